"""Several training seeds of one experiment: how they are named, as folders and in results.

The first seed has the experiment's own name, `A1`. Another is `A1.seed2`. What is found over all of them stands under
`A1.seeds`, which is no folder.
"""

import re

from pelasr.errors import PelasrError, brief

MOST = 2**23 - 1  # as in `train.options`
ALL = "seeds"


def seeded(name: str, seed: int | str) -> str:
    """The name of an experiment's run with another seed than the first; with `ALL` of what is over all seeds."""
    return f"{name}.{ALL}" if seed == ALL else f"{name}.seed{seed}"


def split_seed(name: str) -> tuple[str, int | str | None]:
    """An experiment's own name and the seed, or `ALL`, of a name that `seeded` gave; None: the first seed."""
    found = re.fullmatch(r"(.+)\.seed(s|0|[1-9][0-9]*)", name)
    if found is None:
        return name, None
    base, seed = found.groups()
    return base, ALL if seed == "s" else int(seed)


def parse_seeds(option: str, text: str) -> list[int]:
    """The seeds of `--seeds "0 1 2"`. Raises PelasrError for what is no whole number, and for one that comes twice."""
    seeds: list[int] = []
    for word in text.split():
        if not (word.isascii() and word.isdigit()) or len(word) > 8 or int(word) > MOST:
            raise PelasrError(f"{option} {brief(text)!r}: {brief(word)!r} is no whole number from 0 to {MOST}")
        if int(word) in seeds:
            raise PelasrError(f"{option} {brief(text)!r}: {int(word)} comes twice; name it once")
        seeds.append(int(word))
    return seeds
