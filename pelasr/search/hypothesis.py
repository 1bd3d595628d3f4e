"""What a search returns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """A label sequence and its log probability; `limited`: the search stopped it at the length limit."""

    tokens: list[int]
    score: float
    limited: bool = False
