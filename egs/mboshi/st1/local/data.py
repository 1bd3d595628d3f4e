#!/usr/bin/env python3
"""Data directories of Mboshi (Bantu C25) with French translations: real voices of three speakers.

Writes `DATA/{train,dev,test}_mb/` with Mboshi transcripts in `text` and French in `text.fr`. The corpus' own `dev` is
the test set; of its `train`, a tenth serves as dev, chosen by a hash of the name. `--speeds` adds faster and
slower copies of the training utterances.
"""

import argparse
import html
import os
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from pelasr.data import Utterance, add_skipped, normalise, write_data_dir
from pelasr.errors import DataError, PelasrError
from pelasr.files import atomic_write
from pelasr.progress import log
from pelasr.terminal import at_terminal

HOW_TO_GET_IT = (
    "git clone https://github.com/besacier/mboshi-french-parallel-corpus, "
    "then pass --mboshi mboshi-french-parallel-corpus/full_corpus_newsplit"
)
ENDINGS = (".wav", ".mb.cleaned", ".fr.cleaned")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mboshi", type=Path, help="the corpus' folder `full_corpus_newsplit`")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder to write to")
    parser.add_argument("--skip_bad", choices=["true", "false"], default="false", help="true: drop bad utterances")
    parser.add_argument("--speeds", type=read_speeds, default="", help="of copies of the training speech: '0.9 1.1'")
    arguments = parser.parse_args()
    with at_terminal():
        make_data_dirs(arguments.mboshi, arguments.data, arguments.skip_bad == "true", arguments.speeds)


def read_speeds(text: str) -> list[float]:
    return [float(speed) for speed in text.split()]


def make_data_dirs(mboshi: Path | None, data: Path, skip_bad: bool, speeds: Sequence[float] = ()) -> None:
    """Write the data directories, or none: raises PelasrError with every fault of the corpus.

    With `skip_bad`, utterances that lack something are left out and listed in `skipped.txt` instead.
    """
    if mboshi is None:
        raise PelasrError(f"where is the Mboshi corpus? {HOW_TO_GET_IT}")
    good: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    bad: dict[str, dict[str, str]] = {split: {} for split in good}
    for part in ("train", "dev"):
        for name in names_in(mboshi / part):
            split = split_of(part, name)
            try:
                good[split].append(read_utterance(mboshi / part, name))
            except DataError as error:
                bad[split][name] = f"{error}; cure: fetch it again, or drop the utterance with --skip_bad true"
    if not skip_bad and any(bad.values()):
        raise DataError([reason for reasons in bad.values() for reason in reasons.values()])
    for split, utterances in good.items():
        if not utterances:
            raise PelasrError(f"{mboshi}: no good utterances for {split}_mb in {mboshi}/train and dev; {HOW_TO_GET_IT}")
    good["train"] += [at_speed(utterance, speed, data / "speed") for speed in speeds for utterance in good["train"]]
    for split, utterances in good.items():
        folder = data / f"{split}_mb"
        write_data_dir(folder, utterances)
        (folder / "skipped.txt").unlink(missing_ok=True)
        if bad[split]:
            add_skipped(folder, bad[split])
            log(f"{folder}: {len(bad[split])} utterances dropped, listed in {folder}/skipped.txt")


def names_in(folder: Path) -> list[str]:
    """Every utterance that has a file, whichever: so one without its wav is noticed."""
    return sorted({path.name.removesuffix(ending) for ending in ENDINGS for path in folder.glob(f"*{ending}")})


def split_of(part: str, name: str) -> str:
    if part == "dev":
        return "test"
    return "dev" if int(sha256(name.encode()).hexdigest(), 16) % 10 == 0 else "train"


def read_utterance(folder: Path, name: str) -> Utterance:
    """An utterance with its transcript and translation. Raises DataError if a file is missing or empty."""
    wav, transcript, translation = (folder / f"{name}{ending}" for ending in ENDINGS)
    for path in (wav, transcript, translation):
        if not path.is_file():
            raise DataError(f"{path}: missing")
        if not path.stat().st_size:
            raise DataError(f"{path}: empty")
    text = read_text(transcript)
    # The published French was tokenised by Moses, which writes &apos; for an apostrophe.
    french = html.unescape(read_text(translation))
    return Utterance(name, name, os.fspath(wav), None, None, text, name.partition("_")[0], "mb", {"fr": french})


def at_speed(utterance: Utterance, speed: float, folder: Path) -> Utterance:
    """A copy, spoken `speed` times as fast and higher by as much: the samples as they are, said to be at another
    rate. Audio that cannot be read is copied as it is, for the check of all data to find."""
    import soundfile

    name, original = f"sp{speed}-{utterance.id}", Path(utterance.audio)
    path = folder / f"{name}.wav"
    if not path.exists() or path.stat().st_mtime < original.stat().st_mtime:
        with atomic_write(path, "wb") as stream:
            try:
                samples, rate = soundfile.read(original, dtype="int16")
                soundfile.write(stream, samples, round(rate * speed), format="WAV")
            except soundfile.LibsndfileError:
                stream.write(original.read_bytes())
    return replace(utterance, id=name, recording=name, audio=os.fspath(path), speaker=f"sp{speed}-{utterance.speaker}")


def read_text(path: Path) -> str:
    try:
        text = normalise(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8") from error
    if not text:
        raise DataError(f"{path}:1: empty")
    return text


if __name__ == "__main__":
    main()
