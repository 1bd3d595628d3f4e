"""A tiny corpus laid out as MuST-C v1 is: talks of tones, one for each word, so that a model can learn them."""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import soundfile

SEGMENTS = {"train": 8, "dev": 4, "tst-COMMON": 4}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RATE = 16000
PAUSE = 0.3  # seconds between segments


def make_must_c(
    root: Path,
    pairs: Iterable[str] = ("en-de", "en-fr"),
    segments: Mapping[str, int] = SEGMENTS,
    talk: int = 4,
    words: tuple[int, int] = (2, 4),
    seconds: float = 0.25,
) -> Path:
    """Write `root/<pair>/data/<split>/{wav,txt}` and return `root`.

    `segments`: how many for each split; `talk`: how many of them share a recording; `words`: fewest and most of a
    segment; `seconds`: of a word. All pairs hold the same talks, as in the corpus.
    """
    for pair in pairs:
        source, target = pair.split("-")
        first = 1
        for split, count in segments.items():
            folder = root / pair / "data" / split
            (folder / "wav").mkdir(parents=True)
            (folder / "txt").mkdir()
            draw = random.Random(split)
            sentences = [draw.choices(WORDS, k=draw.randint(*words)) for _ in range(count)]
            index = []
            for number, begin in enumerate(range(0, count, talk), first):
                index += write_talk(folder / "wav" / f"ted_{number}.wav", sentences[begin : begin + talk], seconds)
            first += len(range(0, count, talk))
            texts = {source: [write(s) for s in sentences], target: [write(s, target) for s in sentences]}
            for ending, content in {"yaml": index, **texts}.items():
                text = "".join(f"{line}\n" for line in content)
                (folder / "txt" / f"{split}.{ending}").write_text(text, encoding="utf-8")
    return root


def write(words: list[str], target: str = "") -> str:
    """A sentence; its translation has every word backwards, marked with the language, in reversed order."""
    said = [word[::-1] + target for word in reversed(words)] if target else words
    return f"{' '.join(said).capitalize()}."


def write_talk(path: Path, sentences: list[list[str]], seconds: float) -> list[str]:
    """Write a recording; returns the lines of the yaml file."""
    draws = np.random.default_rng(sum(map(len, sentences)))
    samples = [draws.normal(0, 0.01, round(PAUSE * RATE))]
    lines, offset = [], PAUSE
    for sentence in sentences:
        samples += [tone(WORDS.index(word), seconds, draws) for word in sentence]
        samples.append(draws.normal(0, 0.01, round(PAUSE * RATE)))
        duration = len(sentence) * seconds
        entry = f"duration: {duration:.6f}, offset: {offset:.6f}, rW: {len(sentence)}, uW: 0"
        lines.append(f"- {{{entry}, speaker_id: spk.{path.stem[4:]}, wav: {path.name}}}")
        offset += duration + PAUSE
    soundfile.write(path, np.concatenate(samples), RATE)
    return lines


def tone(word: int, seconds: float, draws: np.random.Generator) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * 300 * 1.3**word * time) + draws.normal(0, 0.01, len(time))
