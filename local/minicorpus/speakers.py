"""Synthetic speakers: an espeak-ng voice variant with a pitch, a rate, a range and a vocal tract of its own.

The same speakers speak every language, so that the language cannot be told from the voice. Variants meant as people
were chosen by name and by measured pitch; near copies of one variant (adam and benjamin, steph and steph2) are never in
two pools, and those that are not reproducible (caleb, Reed) in none.
"""

from dataclasses import dataclass
from random import Random

VARIANTS = {
    "train": [
        "f1",
        "m1",
        "Alicia",
        "m2",
        "f2",
        "m4",
        "Andrea",
        "m5",
        "f4",
        "m6",
        "anika",
        "m8",
        "aunty",
        "Alex",
        "shelby",
        "Andy",
        "steph",
        "Gene",
        "Henrique",
        "Hugo",
        "Lee",
        "Michael",
        "boris",
        "edward",
    ],
    "dev": ["f5", "m7", "belinda", "Mario", "sandro", "miguel"],
    "test": ["f3", "m3", "Annie", "Diogo", "linda", "travis", "grandma", "paul", "pablo", "norbert"],
}


@dataclass(frozen=True)
class Speaker:
    """rate: words a minute; pitch, pitch_range: espeak's 0 to 100; warp: factor on the formants."""

    id: str
    variant: str
    pitch: int
    rate: int
    pitch_range: int
    warp: float


def _speaker(split: str, index: int, variant: str, take: int) -> Speaker:
    random = Random(f"speaker {variant} {take}" if take else f"speaker {variant}")
    # Training covers more than the voices to be recognised: those at the edge of its range would be half unknown.
    wider = 1.6 if split == "train" else 1.0

    def between(low: float, high: float) -> float:
        middle, reach = (low + high) / 2, wider * (high - low) / 2
        return middle - reach + 2 * reach * random.random()

    return Speaker(
        id=f"{split}{index:02d}",
        variant=variant,
        pitch=round(between(35, 65)),
        rate=round(between(145, 195)),
        pitch_range=round(between(35, 70)),
        warp=round(between(0.92, 1.09), 3),
    )


# A recogniser trained on one speaker a variant fails on unseen voices: in train every variant serves three.
TAKES = {"train": 3, "dev": 1, "test": 1}
SPEAKERS = {
    split: [
        _speaker(split, take * len(variants) + index, variant, take)
        for take in range(TAKES[split])
        for index, variant in enumerate(variants)
    ]
    for split, variants in VARIANTS.items()
}
