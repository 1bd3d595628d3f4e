"""The figures of one set as a grid of experiments and language keys, and how a cell is written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pelasr.data.language import is_pair, split_pair
from pelasr.errors import PelasrError
from pelasr.score.results import TOTAL, latest, method_of
from pelasr.score.seeds import ALL, split_seed

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A metric of result lines and how it is shown.

    `sign` says what a difference of two experiments tells, `what` is measured: `Edits over reference words, summed`.
    """

    metric: str
    name: str
    unit: str
    decimals: int
    higher_is_better: bool
    sign: str
    what: str = ""

    @property
    def label(self) -> str:
        """Name and unit, `WER (%)`."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def paired(self) -> str:
        """How the metric of a paired comparison begins; the other experiment follows."""
        return f"{self.metric}_minus_"

    def number(self, line: Line | None) -> str:
        return f"{line['value']:.{self.decimals}f}" if line else "-"

    def change(self, line: Line) -> str:
        return f"{line['value']:+z.{self.decimals}f}"

    def interval(self, line: Line | None, sign: str = "") -> str:
        shown = f"{sign}z.{self.decimals}f"
        return f"{line['lo']:{shown}} to {line['hi']:{shown}}" if line else "-"

    def verdict(self, line: Line) -> str:
        """What a difference shows: `better`, `worse`, or `not clear` when its interval holds zero."""
        if line["lo"] <= 0 <= line["hi"]:
            return "not clear"
        return "better" if (line["lo"] > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Grid:
    """The lines of one set, keyed by (experiment, language key, metric), in the order of a table.

    `experiments`: {name: description}. `languages`: the recipe's, which the mean is over. `columns`: these, `mean` when
    there are several, then languages that were scored but are outside the mean (added to the model later). `seeds`: of
    a cell that is a mean over seeds, the lines of each.
    """

    lines: dict[tuple[str, str, str], Line]
    experiments: dict[str, str]
    languages: list[str]
    columns: list[str]
    seeds: dict[tuple[str, str, str], list[Line]] = field(default_factory=dict)

    @property
    def headings(self) -> dict[str, str]:
        """What a table calls each column: pairs of one and the same source are their targets, their mean is `avg`."""
        pairs = {column: split_pair(column) for column in self.columns if column != "mean"}
        if not all(map(is_pair, pairs)):
            return {column: column for column in self.columns}
        one_source = len(pairs) > 1 and len({source for source, _ in pairs.values()}) == 1
        return {
            column: "avg" if column == "mean" else pairs[column][1] or column if one_source else column
            for column in self.columns
        }

    def get(self, experiment: str, column: str, metric: str) -> Line | None:
        """The line of a cell. None when it was not scored, and for a mean that is not the mean of the row."""
        line = self.lines.get((experiment, column, metric))
        if line is None or column != "mean":
            return line
        parts = self.whole(experiment, metric)
        if not parts:
            return None
        mean = math.fsum(part["value"] for part in parts) / len(parts)
        return line if abs(mean - line["value"]) < 1e-3 else None  # values have four decimals

    def whole(self, experiment: str, metric: str) -> list[Line]:
        """The lines of an experiment for all languages of the recipe; empty if one is missing."""
        keys = [(experiment, language, metric) for language in self.languages]
        return [self.lines[key] for key in keys] if all(key in self.lines for key in keys) else []

    def row(self, experiment: str, metric: str) -> dict[str, Line | None]:
        """The lines of an experiment, by column."""
        return {column: self.get(experiment, column, metric) for column in self.columns}

    def has(self, metric: str) -> bool:
        """Whether any cell was scored."""
        return any(any(self.row(name, metric).values()) for name in self.experiments)

    def difference(self, experiment: str, other: str, column: str, measure: Measure) -> Line | None:
        """The line of a paired comparison. None when there is none, and when it was measured before one of its sides
        was, so that it is not their difference."""
        line = self.get(experiment, column, measure.paired + other)
        first, second = (self.get(side, column, measure.metric) for side in (other, experiment))
        if line is None or first is None or second is None:
            return None
        return line if abs(second["value"] - first["value"] - line["value"]) < 1e-3 else None

    def compared(self, measure: Measure) -> list[tuple[str, str]]:
        """Pairs (experiment, other experiment) of the paired comparisons there are, in the order of their lines."""
        found = ((name, metric) for name, _, metric in self.lines if metric.startswith(measure.paired))
        return [(name, metric.removeprefix(measure.paired)) for name, metric in dict.fromkeys(found)]

    def best(self, measure: Measure) -> dict[str, str]:
        """The best number of each column as it is shown; empty when there is none to compare it with."""
        best = {}
        choose = max if measure.higher_is_better else min
        for column in self.columns:
            lines = [line for name in self.experiments if (line := self.get(name, column, measure.metric))]
            several = len(lines) > 1
            best[column] = measure.number(choose(lines, key=lambda line: line["value"])) if several else ""
        return best


def select(
    results: Sequence[Line],
    test_set: str = "test",
    experiments: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
) -> Grid:
    """The latest lines of a set as a Grid.

    `experiments`: {name: short description} in the order of the rows; others follow by name, described by their method.
    `languages`: the recipe's, in its order; by default all that were scored. Raises PelasrError for a set without
    results.
    """
    found = {key[:1] + key[2:]: line for key, line in latest(results).items() if key[1] == test_set}
    lines, seeds = over_seeds(found)
    if not lines:
        sets = ", ".join(sorted({line["set"] for line in results})) or "none"
        raise PelasrError(f"no results for the set {test_set}; sets with results: {sets}; score it first")
    methods = {name: method_of(line) for (name, _, _), line in sorted(lines.items())}
    named = {name: text for name, text in (experiments or {}).items() if name in methods}
    scored = list(dict.fromkeys(language for _, language, _ in lines if language not in ("mean", TOTAL)))
    inside = list(languages or scored)
    mean = ["mean"] if len(inside) > 1 else []
    columns = [*inside, *mean, *(name for name in scored if name not in inside)]
    rows = named | {name: text for name, text in methods.items() if name not in named}
    return Grid(lines, rows, inside, columns, seeds)


def over_seeds(
    found: Mapping[tuple[str, str, str], Line],
) -> tuple[dict[tuple[str, str, str], Line], dict[tuple[str, str, str], list[Line]]]:
    """The lines of experiments by (experiment, language key, metric), in which means over seeds have the place of the
    first seed's; and of each of these means the lines of its seeds.

    A mean that is not that of the seeds' latest lines is left out.
    """
    plain: dict[tuple[str, str, str], Line] = {}
    others: dict[tuple[str, str, str], dict[Any, Line]] = {}
    for (name, language, metric), line in found.items():
        base, seed = split_seed(name)
        if seed is None:
            plain[name, language, metric] = line
        else:
            others.setdefault((base, language, split_seed(metric)[0]), {})[seed] = line
    several = {}
    for key, lines in others.items():
        mean = lines.get(ALL)
        if mean is None or key not in plain:
            continue
        first, *later = mean["seed"]
        parts = [plain[key], *(lines[seed] for seed in later if seed in lines)]
        value = math.fsum(part["value"] for part in parts) / len(parts)
        if first == plain[key]["seed"] and len(parts) == len(mean["seed"]) and abs(value - mean["value"]) < 1e-3:
            plain[key] = {**mean, "experiment": key[0], "metric": key[2]}
            several[key] = parts
    return plain, several
