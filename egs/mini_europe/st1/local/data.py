#!/usr/bin/env python3
"""Make the mini_europe corpus: synthetic English speech, and what is said written in eight languages of Europe.

Writes `DATA/{train,dev,test}_en/`, each with a file `text.TARGET` for every target, and the wav files they name below
`DATA/wav/`. What is there already with the same settings is left alone; what was interrupted is made again. More
targets may be asked for later: the speech stays as it is, and so do the targets that are there.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from minicorpus.corpus import SPLITS, Plan, check_chosen, command_line, make_missing
from minicorpus.meanings import open_ended, phrases

SOURCE = "en"
TARGETS = ["de", "es", "fr", "it", "nl", "pt", "ro", "ru"]


@dataclass(frozen=True)
class Size:
    """`open_ended`: open sentences, or phrases of a closed lexicon; `augmentation`: 0 clean, 1 noise, 2 noise and
    rooms; `train`, `dev`, `test`: utterances."""

    open_ended: bool
    augmentation: int
    train: int
    dev: int
    test: int


SIZES = {
    "test": Size(False, 0, train=24, dev=6, test=8),
    "tiny": Size(False, 2, train=800, dev=80, test=200),
    "full": Size(True, 2, train=3000, dev=100, test=300),
}


def main() -> None:
    sizes = {"test": "seconds of work", "tiny": "0.5 h of train", "full": "1.9 h"}
    command_line(__doc__.splitlines()[0], sizes, "--targets", TARGETS, make_corpus)


def make_corpus(data: Path, targets: list[str], size: str, seed: int, nj: int) -> None:
    """Make the speech, and the translations into `targets`, that `data` does not have yet with these settings."""
    check_chosen(targets, TARGETS, "mini_europe")
    chosen = SIZES[size]

    def plan(language: str) -> Plan:
        from minicorpus.cldr import shared_names

        draw = open_ended(shared_names([language, *TARGETS])) if chosen.open_ended else phrases
        counts = {split: getattr(chosen, split) for split in SPLITS}
        here = [target for target in TARGETS if (data / f"train_{language}" / f"text.{target}").exists()]
        return Plan(draw, counts, chosen.augmentation, seed, TARGETS, sorted({*targets, *here}))

    files = ["text", *(f"text.{target}" for target in targets)]
    make_missing(data / "mini_europe.json", {SOURCE: {**asdict(chosen), "seed": seed}}, nj, plan, files)


if __name__ == "__main__":
    main()
