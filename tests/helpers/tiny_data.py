"""Data directories of noise, and trainings of one epoch."""

from pathlib import Path

import numpy as np
import soundfile
from tiny_speech import RATE, noise

from pelasr.data.kaldi import Utterance, write_data_dir


def noises(count: int, seconds: float = 1.0) -> list[np.ndarray]:
    return [noise(seconds + 0.1 * number, number) for number in range(count)]


def write_set(folder: Path, language: str, count: int, texts: list[str] = ("ab", "c d"), seed: int = 0) -> None:
    """A data directory of noises, whose audio lies beside it."""
    source, _, target = language.partition("-")
    folder.mkdir(parents=True)
    utterances = []
    for number in range(count):
        path, text = folder / f"{number}.wav", texts[number % len(texts)]
        soundfile.write(path, noise(1 + 0.1 * number, seed + number), RATE, subtype="FLOAT")
        translations = {target: text} if target else {}
        name = f"u{number}"
        utterances.append(Utterance(name, name, str(path), None, None, text, "s", source, translations))
    write_data_dir(folder, utterances)


TRAINING = {"max_epoch": 1, "batch_size": 4, "warmup_steps": 1, "optim_conf": {"lr": 0.01}}
