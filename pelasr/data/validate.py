"""Check data directories before training: every file is opened and every problem is reported, not the first alone."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pelasr.data.audio import read_audio
from pelasr.data.characters import named, remover, strange
from pelasr.data.hears import RATE, num_frames
from pelasr.data.kaldi import EMPTY, DataDir, Utterance, add_skipped, parse, write_data_dir
from pelasr.data.overlap import Heard
from pelasr.data.problems import DROP, SHOWN, Problem, condense
from pelasr.data.tokenizer import is_nfc, normalise
from pelasr.errors import DataError, counted, printable
from pelasr.parallel import parallel_map

WINDOW = 400  # samples of the first feature window
SEGMENT_SLACK = 0.1  # seconds a segment may end after its recording


class Language(NamedTuple):
    """How much there is of a language: good utterances, and their hours."""

    utterances: int
    hours: float


@dataclass
class Report:
    """What `validate` found. `problems` must be mended or their utterances dropped; `warnings` are lines to read.

    `languages` and `heard` are of good utterances. `ids`: how many utterances each directory names.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    languages: dict[str, Language] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)

    def bad_in(self, directory: str | Path) -> dict[str, str]:
        """Utterance to reason in one directory: what to give `drop`."""
        return _reasons(problem for problem in self.problems if problem.directory == str(Path(directory)))


def _reasons(problems: Iterable[Problem]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for problem in problems:
        if problem.droppable:
            reasons.setdefault(problem.utterance, problem.reason)
    return reasons


class Inspection(NamedTuple):
    """What the audio of an utterance is like: its length in samples at 16 kHz, the fault if it has one, and a hash of
    the samples if it has none."""

    samples: int
    kind: str = ""
    what: str = ""
    digest: str = ""


def validate(
    dirs: Iterable[str | Path],
    subsampling: int | None = None,
    languages: Collection[str] | None = None,
    nj: int = 1,
    targets: Mapping[Path, Collection[str]] | None = None,
    sets: Mapping[Path, tuple[str, str]] | None = None,
) -> Report:
    """Check data directories with `nj` processes; raises nothing for bad data, all of it is in the report.

    With `subsampling`, utterances must have as many encoder frames (one for so many feature frames of 10 ms) as a CTC
    loss needs for the characters of their texts. `languages` are the known ones, None for any. `targets` has for a
    directory the languages that it must have translations into, `sets` the name of its set and the language that its
    utterances must be in, and are in if it has no `utt2lang`.
    """
    report, sets = Report(), sets or {}
    found = [parse(path, sets.get(Path(path), ("", None))[1]) for path in dirs]
    inspected = _inspect_all(found, nj)
    lengths: dict[str, list[int]] = {}
    for data_dir in found:
        _check_targets(data_dir, (targets or {}).get(data_dir.path, ()))
        for file in data_dir.text_files:
            _check_text(data_dir, file)
        _check_languages(data_dir, languages, *sets.get(data_dir.path, ("", "")))
        _check_unused_recordings(data_dir, report.warnings)
        path = str(data_dir.path)
        for utterance in data_dir.utterances:
            _check_audio(data_dir, utterance, inspected[path, utterance.id], subsampling)
        report.problems += data_dir.problems
        report.ids[path] = len(data_dir.ids)
        bad = _reasons(data_dir.problems)
        for utterance in data_dir.utterances:
            if utterance.language and utterance.id not in bad:
                inspection = inspected[path, utterance.id]
                lengths.setdefault(utterance.language, []).append(inspection.samples)
                report.heard.append(Heard(path, utterance, inspection.digest))
    report.languages = {
        language: Language(len(samples), sum(samples) / RATE / 3600) for language, samples in sorted(lengths.items())
    }
    return report


def _check_targets(data_dir: DataDir, targets: Collection[str]) -> None:
    if not data_dir.path.is_dir():
        return
    for target in sorted(targets):
        if target not in data_dir.targets:
            there = " ".join(data_dir.targets) or "none"
            cure = "cure: write lines of `utterance translation`, or correct --langs"
            what = f"no translations into {target} (there are: {there}); {_meant(target, data_dir.targets)}{cure}"
            data_dir.report(f"text.{target}", 0, "", what, "missing-file")


def _meant(word: str, known: Collection[str]) -> str:
    near = get_close_matches(word, known, 1)
    return f"did you mean {near[0]}? " if near else ""


def _check_text(data_dir: DataDir, file: str) -> None:
    noun, quoted = "transcript" if file == "text" else "translation", data_dir.quoted(file)
    table = data_dir.tables[file]
    found = {name: characters for name, entry in table.items() if (characters := strange(entry.value))}
    everything = "\n".join(entry.value for entry in table.values()) if found else ""
    removed = remover((character for characters in found.values() for character in characters), everything, quoted)
    for name, (line, text) in table.items():
        if name in found:
            what = f"text has {', '.join(map(named, found[name]))}; cure: {removed}, {DROP}"
            data_dir.report(file, line, name, what, "character")
        elif not text.strip():
            data_dir.report(file, line, name, f"empty text; cure: write its {noun}, {DROP}", "empty-text")
        elif not is_nfc(text):
            cure = f"uconv -x any-nfc -o {quoted}.new {quoted} && mv {quoted}.new {quoted}"
            data_dir.report(file, line, name, f"text is not NFC; cure: {cure}, {DROP}", "not-nfc")


def _check_languages(data_dir: DataDir, languages: Collection[str] | None, name: str, wanted: str) -> None:
    """`name` and `wanted`: the set, and the language that its utterances must be in, empty for any."""
    if not data_dir.tables:
        return
    where = f"the set {name} has no utterance in {wanted}" if wanted else "no utterances"
    if not data_dir.ids:
        data_dir.report("", 0, "", f"{where}: {EMPTY}", "empty")
    there = {key: entry for key, entry in data_dir.tables.get("utt2lang", {}).items() if entry.value}
    found = Counter(entry.value for entry in there.values())
    if wanted and found and wanted not in found:
        shown = ", ".join(f"{counted(count, 'utterance')} in {other}" for other, count in found.most_common(SHOWN))
        cure = f"cure: correct --langs, or if they are in {wanted}: rm {data_dir.quoted('utt2lang')}"
        data_dir.report("utt2lang", 0, "", f"{where}: there are {printable(shown)}; {cure}", "no-language")
        return
    known = found.keys() if languages is None else set(languages)
    meant = {language: _meant(language, known) for language in found}
    for utterance, (line, language) in there.items():
        if language not in known:
            cure = f"cure: use one of {' '.join(sorted(known))}, {DROP}"
            what = f"unknown language {printable(language)}; {meant[language]}{cure}"
            data_dir.report("utt2lang", line, utterance, what, "unknown-language")
        elif wanted and language != wanted:
            what = f"in {language}, but the directory is for {wanted}; cure: correct it, move the utterance, {DROP}"
            data_dir.report("utt2lang", line, utterance, what, "other-language")


def _check_unused_recordings(data_dir: DataDir, warnings: list[str]) -> None:
    if data_dir.audio_file == "segments":
        used = {entry.value.split()[0] for entry in data_dir.tables["segments"].values() if entry.value.strip()}
        found = [name for name in data_dir.tables.get("wav.scp", {}) if name not in used]
        if len(found) > SHOWN:
            shown = ", ".join(map(printable, found[:SHOWN]))
            what = f"{len(found)} recordings have no segment: {shown} and {len(found) - SHOWN} more: they are not used"
            warnings.append(f"{data_dir.path / 'wav.scp'}: {what}")
            return
        for name in found:
            where = f"{data_dir.path / 'wav.scp'}:{data_dir.tables['wav.scp'][name].line}"
            warnings.append(f"{where}: recording {printable(name)} has no segment: it is not used")


def _inspect_all(found: list[DataDir], nj: int) -> dict[tuple[str, str], Inspection]:
    """Open the audio of all utterances, each recording once; by directory and utterance."""
    users: dict[str, list[tuple[str, Utterance]]] = {}
    for data_dir in found:
        for utterance in data_dir.utterances:
            users.setdefault(utterance.audio, []).append((str(data_dir.path), utterance))
    recordings = [(audio, [(u.start, u.end) for _, u in uses]) for audio, uses in users.items()]
    results = parallel_map(_inspect_batch, recordings, nj, "audio checked")
    inspected = {}
    for uses, inspections in zip(users.values(), results, strict=True):
        for (directory, utterance), inspection in zip(uses, inspections, strict=True):
            inspected[directory, utterance.id] = inspection
    return inspected


Segment = tuple[float | None, float | None]


def _inspect_batch(recordings: list[tuple[str, list[Segment]]]) -> list[list[Inspection]]:
    return [_inspect_recording(audio, segments) for audio, segments in recordings]


def _inspect_recording(audio: str, segments: list[Segment]) -> list[Inspection]:
    try:
        samples, rate = read_audio(audio)
    except DataError as error:
        return [Inspection(0, "unreadable", f"{printable(str(error))}, {DROP}")] * len(segments)
    return [_inspect_segment(printable(audio), samples, rate, segment) for segment in segments]


def _inspect_segment(audio: str, samples: np.ndarray, rate: int, segment: Segment) -> Inspection:
    start, end = segment
    seconds = len(samples) / rate
    if end is not None and end > seconds + SEGMENT_SLACK:
        what = f"segment ends at {end:.2f} s, but {audio} has {seconds:.2f} s; cure: correct the segment, {DROP}"
        return Inspection(0, "segment", what)
    first = round((start or 0.0) * rate)
    samples = samples[first : len(samples) if end is None else round(end * rate)]
    length = -(-len(samples) * RATE // rate)  # as `audio.resample` rounds
    if not length:
        return Inspection(0, "zero-length", f"{audio} has no samples there; cure: fetch it again, {DROP}")
    if not np.isfinite(samples).all():
        count = np.count_nonzero(~np.isfinite(samples))
        what = f"{audio} has NaN or infinite samples ({count}); cure: convert it again from its source, {DROP}"
        return Inspection(length, "not-finite", what)
    if samples.min() == samples.max():
        what = f"{audio} is digital silence (all samples equal); cure: fetch it again, {DROP}"
        return Inspection(length, "silence", what)
    return Inspection(length, digest=hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=16).hexdigest())


def _check_audio(data_dir: DataDir, utterance: Utterance, inspection: Inspection, subsampling: int | None) -> None:
    file = data_dir.audio_file
    line = data_dir.tables[file][utterance.id].line
    if inspection.kind:
        data_dir.report(file, line, utterance.id, inspection.what, inspection.kind)
        return
    if inspection.samples < WINDOW:
        milliseconds = 1000 * inspection.samples / RATE
        what = f"too short: {milliseconds:.0f} ms, less than one window of 25 ms; cure: correct the audio, {DROP}"
        data_dir.report(file, line, utterance.id, what, "too-short")
    elif subsampling is not None:
        frames = -(-num_frames(inspection.samples) // subsampling)
        text = utterance.text.translate(dict.fromkeys(map(ord, strange(utterance.text))))
        labels = normalise(text)
        repeats = sum(left == right for left, right in pairwise(labels))
        if frames < len(labels) + repeats:
            what = (
                f"too short for its text: {inspection.samples / RATE:.2f} s are {frames} encoder frames, the CTC loss "
                f"needs {len(labels) + repeats} ({len(labels)} labels and {repeats} blanks between equal ones); "
                f"cure: correct the text or the audio, use larger units or less subsampling, {DROP}"
            )
            data_dir.report(file, line, utterance.id, what, "too-short")


def drop(directory: str | Path, bad: Mapping[str, str], language: str | None = None) -> None:
    """Rewrite a data directory without the utterances of `bad` (id to reason); `skipped.txt` lists all it ever lost.

    `language`: as for `read_data_dir`. Raises DataError if other problems are left, or if no utterance would be.
    """
    data_dir = parse(directory, language)
    left = [problem for problem in data_dir.problems if not (problem.droppable and problem.utterance in bad)]
    if left:
        raise DataError(condense(left))
    kept = [utterance for utterance in data_dir.utterances if utterance.id not in bad]
    if not kept:
        raise DataError(f"{directory}: all utterances are bad; cure: mend the problems listed by the validator")
    add_skipped(directory, {name: bad[name] for name in data_dir.ids & bad.keys()})
    write_data_dir(directory, kept)
