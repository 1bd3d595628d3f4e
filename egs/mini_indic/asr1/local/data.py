#!/usr/bin/env python3
"""Make the mini_indic corpus: synthetic speech of nine Indic languages, and of others to be added later: Punjabi (pa),
Sinhala (si) and Georgian (ka), whose scripts the nine do not have.

Writes `DATA/{train,dev,test}_LANG/` and the wav files they name below `DATA/wav/`. A language that is there already
with the same settings is left alone; one that was interrupted is made again.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from minicorpus.corpus import Plan, check_chosen, command_line, make_missing
from minicorpus.meanings import closed, open_ended

LANGUAGES = ["hi", "mr", "bn", "te", "gu", "ta", "ml", "kn", "ur", "pa"]
FURTHER = ["si", "ka"]


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
    return dict(zip(LANGUAGES, numbers, strict=True)) | dict.fromkeys(FURTHER, numbers[-1])


# The imbalance of Kannan et al. 2019 (16M Hindi to 0.44M Urdu), flattened: `full` is count ** 0.6, at least 200.
SIZES = {
    "test": Size((2, 2), 0, counts(*[12] * 10), dev=4, test=6),
    "tiny": Size((2, 3), 1, counts(600, 160, 150, 120, 110, 100, 90, 80, 60, 100), dev=40, test=100),
    "full": Size(None, 2, counts(1397, 617, 599, 448, 425, 377, 338, 295, 200, 200), dev=40, test=100),
}


def main() -> None:
    sizes = {"test": "seconds of work", "tiny": "0.6 h of train", "full": "3 h"}
    command_line(__doc__.splitlines()[0], sizes, "--langs", LANGUAGES + FURTHER, make_corpus)


def make_corpus(data: Path, languages: list[str], size: str, seed: int, nj: int) -> None:
    """Make every one of `languages` that `data` does not have yet with these settings."""
    check_chosen(languages, LANGUAGES + FURTHER, "mini_indic")
    chosen = SIZES[size]
    settings = {language: {**asdict(chosen), "train": chosen.train[language], "seed": seed} for language in languages}

    def plan(language: str) -> Plan:
        from minicorpus.cldr import shared_names

        # Names that all ten languages can write, whichever are made now: a language does not depend on the others.
        draw = closed(*chosen.words) if chosen.words else open_ended(shared_names(LANGUAGES))
        counts = {"train": chosen.train[language], "dev": chosen.dev, "test": chosen.test}
        return Plan(draw, counts, chosen.augmentation, seed)

    make_missing(data / "mini_indic.json", settings, nj, plan)


if __name__ == "__main__":
    main()
