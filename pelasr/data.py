"""Kaldi data directories: one parser, one writer.

A data directory has `wav.scp`, `text`, `utt2spk`, `utt2lang` and, where recordings hold several utterances, `segments`.
Speech that is translated has a `text.<target>` for each target language besides, such as `text.de`.

A *language key* is a language, `hi`, or a pair of source and target, `en-de`.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pelasr.errors import DataError, PelasrError, brief
from pelasr.files import ABSENT, atomic_write, no_file, read_text, sha256_json, sha256_text

FILES = ("wav.scp", "segments", "text", "utt2spk", "utt2lang")
# Faults of a file as a whole: dropping utterances does not mend them.
STRUCTURAL = frozenset({"missing-file", "not-utf8", "line-format", "duplicate", "unsorted"})
TRANSLATION = re.compile(r"text\.(\w+)")
FOREVER = 1e9  # seconds
# What Kaldi and kaldiio would run: `command |`, `| command`, with an offset or a range behind it too.
COMMAND = re.compile(r"^\s*\||\|\s*(:[\s\w+-]*)?(\[[^\]]*\]?)?\s*$")
WORD = re.compile(r"\S+")  # no white space, no-break spaces and the like included


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


def split_pair(key: str) -> tuple[str, str | None]:
    """Source and target of a language key: `en-de` is ("en", "de"), `hi` is ("hi", None). Raises DataError."""
    source, *targets = key.split("-")
    if not source or len(targets) > 1 or "" in targets:
        raise DataError(f"{key!r} is no language; cure: write a language such as hi, or a pair such as en-de")
    return source, (targets[0] if targets else None)


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


@dataclass(frozen=True)
class Problem:
    """One fault: `where` is `file:line`, `utterance` may be empty, `what` says what is wrong and how to cure it."""

    directory: str
    where: str
    utterance: str
    what: str
    kind: str

    @property
    def droppable(self) -> bool:
        """Whether leaving out the utterance mends it."""
        return bool(self.utterance) and self.kind not in STRUCTURAL

    def __str__(self) -> str:
        name = f"utterance {self.utterance}: " if self.utterance else ""
        return f"{self.where}: {name}{self.what} [{self.kind}]"


class Entry(NamedTuple):
    """The value of an id in a file, and its line number from 1."""

    line: int
    value: str


@dataclass
class DataDir:
    """What could be read of a data directory: the entries of each file present, the utterances, the problems found."""

    path: Path
    tables: dict[str, dict[str, Entry]] = field(default_factory=dict)
    utterances: list[Utterance] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def report(self, file: str, line: int, utterance: str, what: str, kind: str) -> None:
        """Add a problem found at a line (0: the whole file)."""
        where = f"{self.path / file}:{line}" if line else str(self.path / file)
        self.problems.append(Problem(str(self.path), where, utterance, what, kind))

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


def read_data_dir(path: str | Path) -> list[Utterance]:
    """The utterances of a data directory, sorted by id. Raises DataError with every fault of its text files."""
    parsed = parse(path)
    if parsed.problems:
        raise DataError([str(problem) for problem in parsed.problems])
    return parsed.utterances


def parse(path: str | Path) -> DataDir:
    """Read a data directory as far as possible, noting every fault of its text files; raises nothing."""
    found = DataDir(Path(path))
    if not found.path.is_dir():
        found.report("", 0, "", "no such data directory; cure: correct the path, or run the data stage", "missing-file")
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
        if file != "segments":
            found.report(file, 0, "", f"missing; cure: {_how_to_write(found.path, file)}", "missing-file")
        return
    try:
        content = read_text(path, "cure: put a text file there")
    except PelasrError as error:
        found.report(file, 0, "", str(error).removeprefix(f"{path}: "), "missing-file")
        return
    if content.startswith(b"\xef\xbb\xbf"):
        what = f"byte-order mark at the start; cure: sed -i '1s/^\\xEF\\xBB\\xBF//' {path}"
        found.report(file, 1, "", what, "line-format")
        content = content[3:]
    table = found.tables[file] = {}
    last, is_sorted, is_unix = "", True, True
    # Bytes are split at newlines alone: str.splitlines would also cut at U+2028 and the like within a text.
    for number, raw in enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], 1):
        if is_unix and raw.endswith(b"\r"):
            is_unix = False
            found.report(file, number, "", f"Windows line ends; cure: sed -i 's/\\r$//' {path}", "line-format")
        raw = raw.strip(b" \t\r")
        if not raw:
            found.report(file, number, "", f"empty line; cure: sed -i '{number}d' {path}", "line-format")
            continue
        line, is_utf8 = _decode(raw)
        name, value = (re.split("[ \t]+", line, maxsplit=1) + [""])[:2]
        if not is_utf8:
            cure = f"cure: iconv -f ENCODING -t UTF-8 {path} > {path}.new && mv {path}.new {path}"
            found.report(file, number, name, f"not UTF-8; {cure}", "not-utf8")
        if name in table:
            what = f"id is already on line {table[name].line}; cure: keep one of the two lines"
            found.report(file, number, name, what, "duplicate")
            continue
        if is_sorted and name < last:  # code point order of str is the byte order of UTF-8, that of LC_ALL=C
            is_sorted = False
            what = f"not sorted: comes after {last}; cure: LC_ALL=C sort -o {path} {path}"
            found.report(file, number, name, what, "unsorted")
        table[name] = Entry(number, value)
        last = name


def _decode(raw: bytes) -> tuple[str, bool]:
    """The text of a line, and whether it was UTF-8."""
    try:
        return raw.decode("utf-8"), True
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), False


def _how_to_write(path: Path, file: str) -> str:
    """The cure for a missing file."""
    return {
        "wav.scp": "write lines of `utterance path-of-the-audio`",
        "text": "write lines of `utterance transcript`",
        "utt2spk": f"write lines of `utterance speaker`; with unknown speakers: "
        f"awk '{{print $1, $1}}' {path}/text > {path}/utt2spk",
        "utt2lang": f"write lines of `utterance language`; if all are one language, say hi: "
        f"awk '{{print $1, \"hi\"}}' {path}/utt2spk > {path}/utt2lang",
    }[file]


def _compare_ids(found: DataDir) -> None:
    """Report ids that are in one file and not in another, ids with white space, and ids without a value."""
    files = found.utterance_files
    for name in sorted(found.ids):
        missing = [file for file in files if name not in found.tables[file]]
        present = next(file for file in files if name in found.tables[file])
        line = found.tables[present][name].line
        if not WORD.fullmatch(name):
            found.report(present, line, name, f"white space within the id {name!r}; cure: rename it", "id")
        if missing:
            what = f"not in {', '.join(missing)}; cure: add it there, or take it out of the other files"
            found.report(present, line, name, what, "missing-id")
        for file, noun in (("utt2spk", "speaker"), ("utt2lang", "language")):
            entry = found.tables.get(file, {}).get(name)
            if entry and not WORD.fullmatch(entry.value):
                what = f"{noun} is {entry.value!r}, want one word; cure: write `{name} {noun}`"
                found.report(file, entry.line, name, what, "missing-value")


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
                what = (
                    f"segment is {entry.value!r}; cure: write `{name} recording start end` in seconds, 0 <= start < end"
                )
                found.report("segments", entry.line, name, what, "segment")
                continue
            if recording not in recordings:
                if "wav.scp" in found.tables:
                    what = f"recording {recording} is not in wav.scp; cure: add it there, or take out the segment"
                    found.report("segments", entry.line, name, what, "missing-id")
                continue
        audio = recordings[recording].value
        fault = audio_fault(audio)
        if fault:
            found.report("wav.scp", recordings[recording].line, name, fault, "wav-scp")
            continue
        text, speaker, language = (value(file, name) for file in ("text", "utt2spk", "utt2lang"))
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
        _write_table(path / "segments", {u.id: _format_segment(u) for u in utterances})
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


def _format_segment(utterance: Utterance) -> str:
    start = 0.0 if utterance.start is None else utterance.start
    end = -1 if utterance.end is None else utterance.end
    return f"{utterance.recording} {start} {end}"


def _write_table(path: Path, table: dict[str, str]) -> None:
    with atomic_write(path) as stream:
        stream.writelines(f"{name} {value}".rstrip(" ") + "\n" for name, value in sorted(table.items()))


def _check_writable(path: Path, utterances: Sequence[Utterance], segmented: bool) -> None:
    problems, seen, audio_of = [], set(), {}
    targets = _targets(utterances)
    for target in targets:
        if not TRANSLATION.fullmatch(f"text.{target}"):
            problems.append(f"{path}: target {target!r} is no language; cure: name it by letters and digits, as de")
    for u in utterances:
        for noun, word in (("id", u.id), ("recording", u.recording), ("speaker", u.speaker), ("language", u.language)):
            if not WORD.fullmatch(word):
                problems.append(f"{path}: utterance {u.id!r}: {noun} {word!r} must be one word; cure: rename it")
        for text in (u.text, *u.translations.values()):
            if "\n" in text or "\r" in text:
                problems.append(f"{path}: utterance {u.id}: text has a line end; cure: replace it with a space")
        if lacking := [target for target in targets if target not in u.translations]:
            what = f"no translation into {' '.join(lacking)}, which others have; cure: add it, or drop the utterance"
            problems.append(f"{path}: utterance {u.id}: {what}")
        if "\n" in u.audio or audio_fault(u.audio):
            problems.append(f"{path}: utterance {u.id}: {audio_fault(u.audio) or 'line end in the audio path'}")
        if u.id in seen:
            problems.append(f"{path}: utterance {u.id}: given twice; cure: make ids unique")
        if segmented and audio_of.setdefault(u.recording, u.audio) != u.audio:
            other = audio_of[u.recording]
            problems.append(
                f"{path}: utterance {u.id}: recording {u.recording} is both {other} and {u.audio}; "
                "cure: give each recording its own id"
            )
        seen.add(u.id)
    if problems:
        raise DataError(problems)


def add_skipped(path: str | Path, reasons: Mapping[str, str]) -> None:
    """Add utterances and the reasons for leaving them out to the `skipped.txt` of a data directory."""
    skipped = Path(path) / "skipped.txt"
    lines = set(read_text(skipped).decode("utf-8", "replace").splitlines()) if skipped.exists() else set()
    lines |= {f"{name} {reason}" for name, reason in reasons.items()}
    with atomic_write(skipped) as stream:
        stream.writelines(f"{line}\n" for line in sorted(lines))


def data_sha256(dirs: Iterable[str | Path]) -> str:
    """Hash of the text files of data directories (not of the audio), wherever the directories lie."""
    files = [[path / file for file in (*FILES, *_translation_files(path))] for path in map(Path, dirs)]
    return sha256_json([{file.name: sha256_text(file) for file in named if file.exists()} for named in files])


def audio_sha256(path: str | Path) -> str:
    """Hash of a data directory's text files, and of size and time of every audio file that it names."""
    files = {re.sub(r":\d+$", "", utterance.audio) for utterance in parse(path).utterances}
    stamps = {file: (os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files if os.path.exists(file)}
    return sha256_json([data_sha256([path]), stamps])
