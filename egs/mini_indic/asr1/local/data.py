#!/usr/bin/env python3
"""Make the mini_indic corpus: synthetic speech of nine Indic languages, and of a tenth (pa) to be added later.

Writes `DATA/{train,dev,test}_LANG/` and the wav files they name below `DATA/wav/`. A language that is there already
with the same settings is left alone; one that was interrupted is made again.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from minicorpus import versions

from pelasr.data import Utterance, write_data_dir
from pelasr.errors import PelasrError
from pelasr.files import atomic_write

LANGUAGES = ["hi", "mr", "bn", "te", "gu", "ta", "ml", "kn", "ur", "pa"]
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Size:
    """`words`: shortest and longest sentence of the closed lexicon, or None for open sentences; `train`: utterances by
    language; `dev`, `test`: of every language; `augmentation`: 0 clean, 1 noise, 2 noise and rooms."""

    words: tuple[int, int] | None
    augmentation: int
    train: dict[str, int]
    dev: int
    test: int


def counts(*numbers: int) -> dict[str, int]:
    return dict(zip(LANGUAGES, numbers, strict=True))


# The imbalance of Kannan et al. 2019 (16M Hindi to 0.44M Urdu), flattened: `full` is count ** 0.6, at least 200.
SIZES = {
    "test": Size((2, 2), 0, counts(*[12] * 10), dev=4, test=6),
    "tiny": Size((2, 3), 1, counts(600, 160, 150, 120, 110, 100, 90, 80, 60, 100), dev=40, test=100),
    "full": Size(None, 2, counts(1397, 617, 599, 448, 425, 377, 338, 295, 200, 200), dev=40, test=100),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", choices=SIZES, default="tiny", help="test: seconds of work; tiny: 0.6 h of train; full: 3 h"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nj", type=int, default=2, help="processes; the bytes do not depend on it")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder to write to")
    parser.add_argument("--langs", default=" ".join(LANGUAGES), help="which languages, in quotes")
    arguments = parser.parse_args()
    try:
        make_corpus(arguments.data, arguments.langs.split(), arguments.size, arguments.seed, arguments.nj)
    except PelasrError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run it again to go on")


def make_corpus(data: Path, languages: list[str], size: str, seed: int, nj: int) -> None:
    """Make every one of `languages` that `data` does not have yet with these settings."""
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown:
        raise PelasrError(f"no such language: {' '.join(unknown)}; mini_indic has {' '.join(LANGUAGES)}")
    wheels = versions()
    done_file = data / "mini_indic.json"
    done = json.loads(done_file.read_text(encoding="utf-8")) if done_file.exists() else {}
    settings = {
        language: {**asdict(SIZES[size]), "train": SIZES[size].train[language], "seed": seed, **wheels}
        for language in languages
    }
    settings = json.loads(json.dumps(settings))  # as it will be read back: tuples are lists
    missing = [
        language for language in languages if not is_done(data, language, done.get(language), settings[language])
    ]
    if not missing:
        print(f"{data}: {' '.join(languages)} already there", file=sys.stderr)
        return

    from minicorpus.speech import workers

    with workers(nj) as pool:
        for language in missing:
            make_language(data, language, SIZES[size], seed, pool)
            done[language] = settings[language]
            with atomic_write(done_file) as stream:
                json.dump(done, stream, indent=1, sort_keys=True)


def is_done(data: Path, language: str, found: dict | None, wanted: dict) -> bool:
    return found == wanted and all((data / f"{split}_{language}" / "text").exists() for split in SPLITS)


def make_language(data: Path, language: str, size: Size, seed: int, pool) -> None:
    """Speak the sentences of one language and write its three data directories."""
    from minicorpus.cldr import shared_names
    from minicorpus.meanings import closed, open_ended
    from minicorpus.sentences import draw_splits
    from minicorpus.speakers import SPEAKERS
    from minicorpus.speech import Request, speak_all

    # Names that all ten languages can write, whichever are made now: a language does not depend on the others.
    draw = closed(*size.words) if size.words else open_ended(shared_names(LANGUAGES))
    wanted = {"train": size.train[language], "dev": size.dev, "test": size.test}
    folder = data / "wav" / language
    shutil.rmtree(folder, ignore_errors=True)
    requests, utterances = [], {}
    for split, sentences in draw_splits(draw, language, wanted, seed).items():
        utterances[split] = []
        for number, sentence in enumerate(sentences):
            speaker = SPEAKERS[split][number % len(SPEAKERS[split])]
            name = f"{speaker.id}-{language}-{split}-{number:05d}"
            path = folder / split / f"{name}.wav"
            requests.append(Request(name, language, sentence.spoken, speaker, size.augmentation, seed, path))
            utterances[split].append(
                Utterance(name, name, os.fspath(path), None, None, sentence.text, speaker.id, language)
            )
    speak_all(requests, pool, f"speech {language}")
    for split in SPLITS:
        write_data_dir(data / f"{split}_{language}", utterances[split])


if __name__ == "__main__":
    main()
