#!/usr/bin/env python3
"""Data directories of MuST-C: English TED talks with translations, a corpus of its own for each pair of languages.

Reads `MUST_C/en-xx/data/{train,dev,tst-COMMON}/{wav,txt}` and writes `DATA/{train,dev,test}_en-xx/`. An utterance is a
segment of a talk; `en-de_ted_1_0000012` is line 12 of the set's text files.
"""

import argparse
import os
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import soundfile
import yaml

from pelasr.data import Utterance, add_skipped, normalise, split_pair, write_data_dir
from pelasr.errors import DataError, PelasrError
from pelasr.progress import log, track
from pelasr.terminal import at_terminal

SPLITS = {"train": "train", "dev": "dev", "test": "tst-COMMON"}
SLACK = 0.1  # seconds a segment may end after its talk
DROP = "or drop it with --skip_bad true"
FETCH = "cure: fetch MuST-C again"
HOW_TO_GET_IT = (
    "fetch MuST-C v1 of the pairs wanted from https://mt.fbk.eu/must-c/, unpack all into one folder, "
    "then pass --must_c FOLDER, which holds en-de/data/train and so on"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--must_c", type=Path, help="the corpus' folder, with a folder for each pair")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder to write to")
    parser.add_argument("--pairs", required=True, help='which pairs, "en-de en-fr"')
    parser.add_argument("--skip_bad", choices=["true", "false"], default="false", help="true: drop bad segments")
    arguments = parser.parse_args()
    with at_terminal():
        make_data_dirs(arguments.must_c, arguments.data, arguments.pairs.split(), arguments.skip_bad == "true")


def make_data_dirs(must_c: Path | None, data: Path, pairs: list[str], skip_bad: bool) -> None:
    """Write the data directories of all pairs, or none: raises DataError with every fault of the corpus.

    With `skip_bad`, segments with faults of their own are left out and listed in `skipped.txt` instead.
    """
    if must_c is None:
        raise PelasrError(f"where is MuST-C? {HOW_TO_GET_IT}")
    problems: list[str] = []
    sets: dict[Path, Set] = {}
    for pair in pairs:
        if fault := pair_fault(must_c, pair):
            problems.append(fault)
            continue
        for name, split in SPLITS.items():
            try:
                found = read_set(must_c / pair / "data" / split, pair)
            except DataError as error:
                problems += error.problems
                continue
            sets[data / f"{name}_{pair}"] = found
            if found.bad and not skip_bad:
                problems += dict.fromkeys(found.bad.values())  # a talk that is missing is one problem
            elif not found.utterances:
                problems.append(f"{must_c / pair / 'data' / split}: no good segments; {FETCH}")
    if problems:
        raise DataError(problems)
    for folder, found in sets.items():
        write_data_dir(folder, found.utterances)
        (folder / "skipped.txt").unlink(missing_ok=True)
        if found.bad:
            add_skipped(folder, found.bad)
            log(f"{folder}: {len(found.bad)} segments dropped, listed in {folder}/skipped.txt")


def pair_fault(must_c: Path, pair: str) -> str:
    """What is wrong with the folder of a pair as a whole, or an empty string."""
    if (must_c / pair / "data").is_dir() and split_pair(pair)[1]:
        return ""
    there = sorted(path.parent.name for path in must_c.glob("*-*/data"))
    near = get_close_matches(pair, there, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    shown = " ".join(there) or "none"
    return f"{must_c / pair}/data: no such folder; {meant}cure: use a pair that is there ({shown}), or {HOW_TO_GET_IT}"


class Set(NamedTuple):
    """A set of a pair: the good segments, and for each of the others what is wrong with it."""

    utterances: list[Utterance]
    bad: dict[str, str]


class Segment(NamedTuple):
    """An entry of the yaml file: where in which talk, in seconds, and who speaks."""

    wav: str
    offset: float
    duration: float
    speaker: str


def read_set(folder: Path, pair: str) -> Set:
    """Read `folder/{txt,wav}`. Raises DataError with the faults that are not those of single segments."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {FETCH}")
    source, target = split_pair(pair)
    index, *texts = (folder / "txt" / f"{folder.name}.{ending}" for ending in ("yaml", source, target))
    segments, transcripts, translations = read_files(folder / "wav", index, *texts)
    seconds, absent = open_talks(folder / "wav", index, segments)
    found = Set([], {})
    for number, (segment, *lines) in enumerate(zip(segments, transcripts, translations, strict=True), 1):
        talk = f"{pair}_{Path(segment.wav).stem}"
        name = f"{talk}_{number:07d}"
        text, translation = map(normalise, lines)
        end = round(segment.offset + segment.duration, 6)
        if segment.wav in absent:
            found.bad[name] = absent[segment.wav]
        elif not 0 <= segment.offset < end <= seconds[segment.wav] + SLACK:
            what = f"segment from {segment.offset:g} to {end:g} s, but {segment.wav} has {seconds[segment.wav]:.2f} s"
            found.bad[name] = f"{index}:{number}: {what}; cure: correct the segment, {DROP}"
        elif not text or not translation:
            found.bad[name] = f"{texts[1 if text else 0]}:{number}: empty line; cure: write what is said, {DROP}"
        else:
            audio = os.fspath(folder / "wav" / segment.wav)
            given = (talk, audio, segment.offset, end, text, segment.speaker, source, {target: translation})
            found.utterances.append(Utterance(name, *given))
    return found


def read_files(wavs: Path, index: Path, *texts: Path) -> tuple[list[Segment], list[str], list[str]]:
    """The segments, transcripts and translations of a set, as many of each. Raises DataError with every fault."""
    problems = [] if wavs.is_dir() else [f"{wavs}: no such folder; {FETCH}"]
    contents = []
    for path, read in ((index, read_segments), *((path, read_lines) for path in texts)):
        try:
            contents.append(read(path))
        except DataError as error:
            problems += error.problems
    if not problems and len({len(content) for content in contents}) > 1:
        segments, *lines = map(len, contents)
        counts = " and ".join(f"{count} lines in {path.name}" for path, count in zip(texts, lines, strict=True))
        problems.append(f"{index}: {segments} segments, but {counts}; {FETCH}: there must be a line for each segment")
    if problems:
        raise DataError(problems)
    return tuple(contents)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, cut at newlines alone: talks have U+2028 and the like within a line."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; {FETCH}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8; {FETCH}") from error
    return text.removesuffix("\n").split("\n") if text else []


def read_segments(path: Path) -> list[Segment]:
    """The entries of a yaml file, which has one on each line. Raises DataError with every line that is not."""
    lines = read_lines(path)
    segments, problems = [], []
    for number, line in enumerate(track(lines, len(lines), f"{path.name}: segments"), 1):
        try:
            (entry,) = yaml.load(line, yaml.CSafeLoader)
            times = (float(entry["offset"]), float(entry["duration"]))
            segments.append(Segment(str(entry["wav"]), *times, str(entry["speaker_id"])))
        except (yaml.YAMLError, KeyError, TypeError, ValueError):
            wanted = "`- {duration: 3.5, offset: 16.08, speaker_id: spk.1, wav: ted_1.wav}`"
            problems.append(f"{path}:{number}: {line[:80]!r} is not of the form {wanted}; {FETCH}")
    if problems:
        raise DataError(problems)
    return segments


def open_talks(wavs: Path, index: Path, segments: list[Segment]) -> tuple[dict[str, float], dict[str, str]]:
    """The length in seconds of each talk, and what is wrong with those that cannot be read."""
    seconds: dict[str, float] = {}
    absent: dict[str, str] = {}
    for number, segment in enumerate(segments, 1):
        if segment.wav in seconds or segment.wav in absent:
            continue
        path = wavs / segment.wav
        try:
            seconds[segment.wav] = soundfile.info(path).duration
        except soundfile.LibsndfileError as error:
            what = " ".join(str(error).split()) if path.is_file() else f"{path}: no such audio file"
            absent[segment.wav] = f"{index}:{number}: {what}; cure: fetch it again, {DROP}"
    return seconds, absent


if __name__ == "__main__":
    main()
