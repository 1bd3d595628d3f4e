#!/usr/bin/env python3
"""Data directories of the Free Spoken Digit Dataset: English digits of six people, 8 kHz.

Writes `DATA/{train,dev,test}_en/`. Takes 0 to 4 of every digit and speaker are the corpus' own test set; of its
training set, takes 5 to 9 serve as dev. The speakers are the same in all three.
"""

import argparse
import os
import re
from pathlib import Path

from pelasr.data import Utterance, write_data_dir
from pelasr.errors import PelasrError
from pelasr.terminal import at_terminal

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RECORDING = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")  # digit, speaker, take
HOW_TO_GET_IT = (
    "git clone https://github.com/Jakobovski/free-spoken-digit-dataset, "
    "then pass --fsdd free-spoken-digit-dataset/recordings"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fsdd", type=Path, help="the corpus' folder `recordings`")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder to write to")
    arguments = parser.parse_args()
    with at_terminal():
        make_data_dirs(arguments.fsdd, arguments.data)


def make_data_dirs(recordings: Path | None, data: Path) -> None:
    """Write the data directories. Raises PelasrError when there are no recordings."""
    if recordings is None:
        raise PelasrError(f"where is the Free Spoken Digit Dataset? {HOW_TO_GET_IT}")
    utterances = {"train": [], "dev": [], "test": []}
    for path in sorted(recordings.glob("*.wav")):
        if match := RECORDING.fullmatch(path.name):
            digit, speaker, take = match.groups()
            name = f"{speaker}-{digit}-{int(take):02d}"
            text = DIGITS[int(digit)]
            utterances[split_of(int(take))].append(
                Utterance(name, name, os.fspath(path), None, None, text, speaker, "en")
            )
    for split, members in utterances.items():
        if not members:
            raise PelasrError(f"{recordings}: no {split} recordings like 7_jackson_32.wav; {HOW_TO_GET_IT}")
    for split, members in utterances.items():
        write_data_dir(data / f"{split}_en", members)


def split_of(take: int) -> str:
    if take < 5:
        return "test"
    return "dev" if take < 10 else "train"


if __name__ == "__main__":
    main()
