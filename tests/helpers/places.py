"""Places with next to nothing in them, for the stages that prepare data, and experiments without settings."""

from pathlib import Path

import numpy as np
import soundfile

from pelasr.data.kaldi import Utterance, write_data_dir
from pelasr.data.place import Place
from pelasr.stages.experiment import Experiment


def place(folder: Path, fast: str) -> Place:
    """Half a second of noise in each set; in the set `fast` it is said to be fifty letters."""
    for name in ("train", "dev", "test"):
        audio = folder / f"{name}.wav"
        soundfile.write(audio, np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
        text = "ab" * 25 if name == fast else "ab"
        write_data_dir(folder / f"data/{name}_xx", [Utterance("u", "u", str(audio), None, None, text, "s", "xx")])
    return Place(folder / "data", folder / "dump", folder / "exp", ["xx"])


def translated(folder: Path) -> Place:
    """A training set of four utterances with translations into German and French."""
    texts = {"de": ["Am 3. Mai", "vor 4 Tagen"] * 2, "fr": ["le 3 mai", "il y a 4 jours"] * 2}
    utterances = [
        Utterance(f"u{n}", f"u{n}", f"u{n}.wav", None, None, "may three", "s", "en", {t: texts[t][n] for t in texts})
        for n in range(4)
    ]
    write_data_dir(folder / "data/train_en", utterances)
    return Place(folder / "data", folder / "dump", folder / "exp", ["en-de", "en-fr"])


def experiment(name: str, **options) -> Experiment:
    settings = {"description": "", "backbone": name, "weights": "backbone", "adapted": False, "overrides": {}}
    return Experiment(name, **settings, compare=None, **options)
