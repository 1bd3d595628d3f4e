"""Kaldi data directories: one parser, one writer.

A data directory has `wav.scp`, `text`, `utt2spk`, `utt2lang` and, where recordings hold several utterances, `segments`.
Speech that is translated has a `text.<target>` for each target language besides, such as `text.de`. `utt2lang` may be
missing where the reader knows the language.

A *language key* is a language, `hi`, or a pair of source and target, `en-de`.
"""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pelasr.data.characters import named, strange
from pelasr.data.language import split_pair
from pelasr.data.problems import Problem, condense
from pelasr.data.tables import Entry, is_utf8, read_table, without_offset
from pelasr.errors import DataError, PelasrError, brief, printable
from pelasr.files import ABSENT, atomic_write, no_file, sha256_json, sha256_text, text_bytes

AUDIO_FILES = ("wav.scp", "segments")
FILES = (*AUDIO_FILES, "text", "utt2spk", "utt2lang")
TRANSLATION = re.compile(r"text\.(\w+)")
FOREVER = 1e9  # seconds
# What Kaldi and kaldiio would run: `command |`, `| command`, with an offset or a range behind it too.
COMMAND = re.compile(r"^\s*\||\|\s*(:[\s\w+-]*)?(\[[^\]]*\]?)?\s*$")
WORD = re.compile(r"\S+")  # no white space, no-break spaces and the like included
QUOTES = "\"'`“”‘’«»"
EMPTY = "its files are empty; cure: write them again, or take the language from --langs"


@dataclass(frozen=True)
class Utterance:
    """One utterance. `audio` is a path (absolute, or relative to the working directory) or a kaldi `file.ark:offset`;
    `start` and `end` are seconds within the recording (None: from its beginning, to its end). `text` is the transcript,
    in `language`; `translations` has the text in each target language."""

    id: str
    recording: str
    audio: str
    start: float | None
    end: float | None
    text: str
    speaker: str
    language: str
    translations: dict[str, str] = field(default_factory=dict, hash=False)


def text_of(utterance: Utterance, key: str) -> str:
    """What an utterance is to become for a language key: its transcript, or for a pair its translation into the target.

    Raises DataError if there is no such translation.
    """
    target = split_pair(key)[1]
    if target is None:
        return utterance.text
    if target not in utterance.translations:
        there = " ".join(utterance.translations) or "none"
        cure = f"cure: write text.{target}, or take {key} from --langs"
        raise DataError(f"utterance {utterance.id}: no translation into {target} (there is: {there}); {cure}")
    return utterance.translations[target]


@dataclass
class DataDir:
    """What could be read of a data directory: the entries of each file present, the utterances, the problems found.

    `language` is that of all utterances if there is no `utt2lang`, where it is known."""

    path: Path
    language: str = ""
    tables: dict[str, dict[str, Entry]] = field(default_factory=dict)
    utterances: list[Utterance] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def report(self, file: str, line: int, utterance: str, what: str, kind: str) -> None:
        """Add a problem found at a line (0: the whole file)."""
        self.problems.append(Problem(str(self.path), file, line, utterance, what, kind))

    def quoted(self, file: str) -> str:
        """A file's path for the shell."""
        return printable(shlex.quote(str(self.path / file)))

    @property
    def audio_file(self) -> str:
        """The file that lists the utterances: `segments` if there is one, else `wav.scp`."""
        return "segments" if "segments" in self.tables else "wav.scp"

    @property
    def utterance_files(self) -> list[str]:
        """The files present whose lines begin with an utterance id."""
        files = (self.audio_file, *self.text_files, "utt2spk", "utt2lang")
        return [file for file in files if file in self.tables]

    @property
    def text_files(self) -> list[str]:
        """`text` and the files of translations, as far as they are present."""
        return [file for file in self.tables if file == "text" or TRANSLATION.fullmatch(file)]

    @property
    def targets(self) -> list[str]:
        """The languages that there are translations into."""
        return [file.removeprefix("text.") for file in self.text_files if file != "text"]

    @property
    def ids(self) -> set[str]:
        """The utterance ids of all files together."""
        return set().union(*(self.tables[file] for file in self.utterance_files))


def read_data_dir(path: str | Path, language: str | None = None) -> list[Utterance]:
    """The utterances of a data directory, sorted by id. If it has no `utt2lang` they are in `language`, or in the
    source language of that pair. Raises DataError with every fault of its text files, and where there is no utterance.
    """
    parsed = parse(path, language)
    if not parsed.problems and not parsed.utterances:
        parsed.report("", 0, "", f"no utterances: {EMPTY}", "empty")
    if parsed.problems:
        raise DataError(condense(parsed.problems))
    return parsed.utterances


def parse(path: str | Path, language: str | None = None) -> DataDir:
    """Read a data directory as far as possible, noting every fault of its text files; raises nothing.

    `language`: as for `read_data_dir`.
    """
    found = DataDir(Path(path), split_pair(language)[0] if language else "")
    if not found.path.is_dir():
        cure = "cure: correct the path or --langs, or let the recipe's local/data.py write it"
        found.report("", 0, "", f"no such data directory; {cure}", "missing-file")
        return found
    for file in (*FILES, *_translation_files(found.path)):
        _read_table(found, file)
    _compare_ids(found)
    _build_utterances(found)
    return found


def _translation_files(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("text.*") if TRANSLATION.fullmatch(file.name))


def _read_table(found: DataDir, file: str) -> None:
    """Read lines of `id value` into `found.tables[file]`."""
    path = found.path / file
    if no_file(path) == ABSENT:
        if file != "segments" and not (file == "utt2lang" and found.language):
            found.report(file, 0, "", f"missing; cure: {_how_to_write(found, file)}", "missing-file")
        return
    try:
        content = text_bytes(path, "cure: put a text file there")
    except PelasrError as error:
        found.report(file, 0, "", str(error).removeprefix(f"{path}: "), "missing-file")
        return
    found.tables[file], faults = read_table(content, file == "wav.scp", found.quoted(file))
    for fault in faults:
        found.report(file, *fault)


def _how_to_write(found: DataDir, file: str) -> str:
    """The cure for a missing or empty file."""
    values = {"wav.scp": "path-of-the-audio", "text": "transcript", "utt2spk": "speaker", "utt2lang": "language"}
    values["segments"] = "recording start end"
    cure = f"write lines of `utterance {values.get(file, 'translation')}`"
    quoted, speakers = found.quoted(file), found.quoted("utt2spk")
    if file == "utt2spk" and found.tables.get("text"):
        return f"{cure}; with unknown speakers: awk '{{print $1, $1}}' {found.quoted('text')} > {quoted}"
    if file == "utt2lang" and found.language:
        return f"{cure}; if all are in {found.language}: rm {quoted}"
    if file == "utt2lang":
        return f"{cure}; if all are one language, say hi: awk '{{print $1, \"hi\"}}' {speakers} > {quoted}"
    return f"{cure}; if every recording is an utterance: rm {quoted}" if file == "segments" else cure


def _compare_ids(found: DataDir) -> None:
    """Report ids that are in one file and not in another, ids that are no words, and ids without a value."""
    ids, files = found.ids, [file for file in found.utterance_files if found.tables[file]]
    for file in found.utterance_files:
        if ids and not found.tables[file]:
            found.report(file, 0, "", f"empty; cure: {_how_to_write(found, file)}", "empty")
    for name in sorted(ids):
        missing = [file for file in files if name not in found.tables[file]]
        present = next(file for file in files if name in found.tables[file])
        line = found.tables[present][name].line
        if fault := _word_fault(name):
            found.report(present, line, name, f"{fault} within the id {name!r}; cure: rename it", "id")
        if missing:
            what = f"not in {', '.join(missing)}; cure: add it there, or take it out of the other files"
            found.report(present, line, name, what, "missing-id")
        for file, noun in (("utt2spk", "speaker"), ("utt2lang", "language")):
            entry = found.tables.get(file, {}).get(name)
            if entry and _word_fault(entry.value):
                what = f"{noun} is {entry.value!r}, want one word; cure: write `{printable(name)} {noun}`"
                found.report(file, entry.line, name, what, "missing-value")


def _word_fault(word: str) -> str:
    """What makes an id, a speaker or a language no word, or an empty string."""
    if not WORD.fullmatch(word):
        return "white space"
    if word.isascii() and word.isprintable():
        return ""
    return ", ".join(map(named, strange(word)))


def _build_utterances(found: DataDir) -> None:
    """Make the utterances whose audio is named, with empty strings for what the other files lack."""
    recordings = found.tables.get("wav.scp", {})
    segmented = "segments" in found.tables
    targets = found.targets

    def value(file: str, name: str) -> str:
        entry = found.tables.get(file, {}).get(name)
        return entry.value if entry else ""

    for name, entry in sorted(found.tables.get(found.audio_file, {}).items()):
        recording, start, end = name, None, None
        if segmented:
            try:
                recording, start, end = _parse_segment(entry.value)
            except ValueError:
                form = f"`{printable(name)} recording start end` in seconds, 0 <= start < end"
                found.report("segments", entry.line, name, f"segment is {entry.value!r}; cure: write {form}", "segment")
                continue
            if recording not in recordings:
                if "wav.scp" in found.tables:
                    fault = f"recording {printable(recording)} is not in wav.scp"
                    cure = "cure: add it there, or take out the segment"
                    found.report("segments", entry.line, name, f"{fault}; {cure}", "missing-id")
                continue
            if fault := _word_fault(recording):
                what = f"{fault} within the id of the recording {recording!r}; cure: rename it"
                found.report("segments", entry.line, name, what, "id")
        audio = recordings[recording].value
        fault = audio_fault(audio)
        if fault:
            found.report("wav.scp", recordings[recording].line, name, fault, "wav-scp")
            continue
        text, speaker = value("text", name), value("utt2spk", name)
        language = value("utt2lang", name) if "utt2lang" in found.tables else found.language
        translations = {target: value(f"text.{target}", name) for target in targets}
        found.utterances.append(Utterance(name, recording, audio, start, end, text, speaker, language, translations))


def _parse_segment(value: str) -> tuple[str, float | None, float | None]:
    """`recording start end` with end -1 for the end of the recording, as in Kaldi. Raises ValueError."""
    recording, first, last = value.split()
    start, end = float(first), float(last)
    if end == -1 and 0 <= start < FOREVER:
        return recording, start or None, None
    if not 0 <= start < end < FOREVER:
        raise ValueError(value)
    return recording, start, end


def audio_fault(audio: str) -> str:
    """What is wrong with a value of `wav.scp` and how to cure it, or an empty string."""
    if not audio:
        return "no audio named; cure: write the path of the audio after the id"
    if COMMAND.search(audio):
        return (
            f"{brief(audio, 200)!r} is a command: a data directory must not run programs, and what they print cannot be"
            " traced; cure: run the command once, keep its output as a wav or flac file and write that path"
        )
    bare = audio.strip(QUOTES)
    if bare != audio and not os.path.exists(without_offset(audio)):
        return f"the path is in quotes: {printable(audio)}; cure: take the quotes out: {printable(bare)}"
    if not is_utf8(audio) and not os.path.exists(without_offset(audio)):
        cure = "cure: correct the path, or if wav.scp is in another encoding, convert it with iconv"
        return f"no audio file {printable(audio)}, whose name is not UTF-8; {cure}"
    return ""


def write_data_dir(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write `wav.scp text utt2spk spk2utt utt2lang` (`segments` if any utterance has a start or an end, `text.<target>`
    for every target), sorted as `LC_ALL=C sort` does, each file atomically; files of targets that there are no more are
    removed. Raises DataError on what could not be read back."""
    path = Path(path)
    utterances = sorted(utterances, key=lambda utterance: utterance.id)
    segmented = any(utterance.start is not None or utterance.end is not None for utterance in utterances)
    _check_writable(path, utterances, segmented)
    speakers: dict[str, list[str]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance.id)
    _write_table(path / "wav.scp", {(u.recording if segmented else u.id): u.audio for u in utterances})
    if segmented:
        _write_table(path / "segments", {u.id: f"{u.recording} {_times(u)}" for u in utterances})
    else:
        (path / "segments").unlink(missing_ok=True)
    _write_table(path / "text", {u.id: u.text for u in utterances})
    targets = _targets(utterances)
    for target in targets:
        _write_table(path / f"text.{target}", {u.id: u.translations[target] for u in utterances})
    for file in _translation_files(path):
        if file.removeprefix("text.") not in targets:
            (path / file).unlink()
    _write_table(path / "utt2spk", {u.id: u.speaker for u in utterances})
    _write_table(path / "spk2utt", {speaker: " ".join(names) for speaker, names in speakers.items()})
    _write_table(path / "utt2lang", {u.id: u.language for u in utterances})


def _targets(utterances: Iterable[Utterance]) -> list[str]:
    return sorted({target for utterance in utterances for target in utterance.translations})


def _times(utterance: Utterance) -> str:
    start = 0.0 if utterance.start is None else utterance.start
    end = -1 if utterance.end is None else utterance.end
    return f"{start} {end}"


def _write_table(path: Path, table: dict[str, str]) -> None:
    lines = (f"{name} {value}".rstrip(" ") + "\n" for name, value in sorted(table.items()))
    with atomic_write(path, "wb") as stream:  # the name of an audio file may be any bytes
        stream.writelines(line.encode("utf-8", "surrogateescape") for line in lines)


def _check_writable(path: Path, utterances: Sequence[Utterance], segmented: bool) -> None:
    problems, seen, audio_of = [], set(), {}
    targets = _targets(utterances)
    if not utterances:
        problems.append(f"{path}: no utterances to write; cure: check what they are made from")
    for target in targets:
        if not TRANSLATION.fullmatch(f"text.{target}"):
            problems.append(f"{path}: target {target!r} is no language; cure: name it by letters and digits, as de")
    for u in utterances:
        problems += [f"{path}: utterance {printable(u.id)}: {fault}" for fault in _faults(u, targets)]
        if u.id in seen:
            problems.append(f"{path}: utterance {u.id}: given twice; cure: make ids unique")
        if segmented and audio_of.setdefault(u.recording, u.audio) != u.audio:
            both = f"{printable(audio_of[u.recording])} and {printable(u.audio)}"
            cure = "cure: give each recording its own id"
            problems.append(f"{path}: utterance {u.id}: recording {u.recording} is both {both}; {cure}")
        seen.add(u.id)
    if problems:
        raise DataError(problems)


def _faults(u: Utterance, targets: Sequence[str]) -> list[str]:
    """What of an utterance could not be read back."""
    faults = []
    for noun, word in (("id", u.id), ("recording", u.recording), ("speaker", u.speaker), ("language", u.language)):
        if fault := _word_fault(word) or ("" if is_utf8(word) else "bytes that are not UTF-8"):
            faults.append(f"{noun} {word!r} must be one word, without {fault}; cure: rename it")
    for text in (u.text, *u.translations.values()):
        if "\n" in text or "\r" in text:
            faults.append("text has a line end; cure: replace it with a space")
        if not is_utf8(text):
            faults.append("text is not UTF-8; cure: read it in the encoding that it has")
    if lacking := [target for target in targets if target not in u.translations]:
        what = f"no translation into {' '.join(lacking)}, which others have"
        faults.append(f"{what}; cure: add it, or drop the utterance")
    if fault := audio_fault(u.audio):
        faults.append(fault)
    if "\n" in u.audio or u.audio.strip(" \t\r") != u.audio:
        faults.append(f"line end, or space at an end, in the audio path {u.audio!r}; cure: rename the file")
    try:
        _parse_segment(f"recording {_times(u)}")
    except ValueError:
        faults.append(f"from {u.start} to {u.end} s is no segment; cure: 0 <= start < end")
    return faults


def add_skipped(path: str | Path, reasons: Mapping[str, str]) -> None:
    """Add utterances and the reasons for leaving them out to the `skipped.txt` of a data directory."""
    skipped = Path(path) / "skipped.txt"
    lines = set(text_bytes(skipped).decode("utf-8", "replace").split("\n")) if skipped.exists() else set()
    lines = {f"{name} {reason}" for name, reason in reasons.items()} | lines - {""}
    with atomic_write(skipped) as stream:
        stream.writelines(f"{line}\n" for line in sorted(lines))


def data_sha256(dirs: Iterable[str | Path], files: Collection[str] | None = None) -> str:
    """Hash of the text files of data directories (not of the audio), wherever the directories lie; `files`: of some."""
    named = [[path / file for file in files or (*FILES, *_translation_files(path))] for path in map(Path, dirs)]
    return sha256_json([{file.name: sha256_text(file) for file in found if file.exists()} for found in named])


def audio_sha256(path: str | Path) -> str | None:
    """Hash of size and time of every audio file that a data directory names; None where one of them is missing."""
    files = sorted({without_offset(utterance.audio) for utterance in parse(path).utterances})
    try:
        return sha256_json([(file, (found := os.stat(file)).st_size, found.st_mtime_ns) for file in files])
    except OSError:
        return None
