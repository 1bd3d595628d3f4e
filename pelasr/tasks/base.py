"""What a task is: what a model's texts are measured by, and how a results page shows it. A task is one file here.

The task is decided in one place, `task_of`: by its name, which the backbone's configuration may give (`task: NAME`), or
else by the language keys: pairs are translated, languages recognised.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pelasr.config import class_in, find_module
from pelasr.data.language import is_pair
from pelasr.data.tokenizer import normalise
from pelasr.errors import PelasrError
from pelasr.files import atomic_write
from pelasr.report.bars import bar_chart
from pelasr.report.grid import Grid, Measure
from pelasr.report.sections import comparisons, rates
from pelasr.score.bootstrap import (
    Estimate,
    difference_over_seeds,
    mean_interval,
    mean_over_seeds,
    paired_mean_test,
)
from pelasr.score.decoded import Figures, Texts, groups, write_details
from pelasr.version import __version__


class Task:
    """Base of a task. A subclass gives `measures` and `count`; all else has a default.

    `measures`: what is measured, the chief one first: it is looked at in training, compared between experiments and
    drawn. `tag`: what a model hub calls the task. `together`: whether intervals of several language keys with the same
    utterances draw these for all keys at once. `detailed`: whether lines of results have the sizes of model and
    adapters, and hours of training data.
    """

    measures: Sequence[Measure]
    tag: str = "automatic-speech-recognition"
    together: bool = False
    detailed: bool = False

    @property
    def name(self) -> str:
        """What a configuration calls it: the name of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def compared(self) -> list[str]:
        """Metrics of paired comparisons."""
        return [self.measures[0].metric]

    def measure(self, metric: str) -> Measure:
        """The measure of a metric that is the task's."""
        return next(measure for measure in self.measures if measure.metric == metric)

    def count(self, metric: str, reference: str, hypothesis: str) -> tuple[float, float]:
        """What is counted in an utterance (errors, say, or what is right), and out of how many.

        Texts are normalised: NFC, single spaces.
        """
        raise PelasrError(f"task {self.name}: it has no `count`, which `statistics` needs")

    def statistics(self, metric: str, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Numbers of each utterance (N, K) that a figure follows from when they are summed; (0, K) without utterances.

        A model's texts may have spaces too many.
        """
        texts = [map(normalise, side) for side in (references, hypotheses)]
        counts = [self.count(metric, *sides) for sides in zip(*texts, strict=True)]
        return np.array(counts, float).reshape(-1, 2)

    def figure(self, metric: str, sums: np.ndarray) -> np.ndarray:
        """Figures (...), percent or points of a hundred, of summed statistics (..., K)."""
        return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)

    def scorer(self, metric: str) -> str:
        """Name and version of what computes a metric."""
        return f"pelasr {__version__}"

    def dev_metric(self, references: Sequence[str]) -> str:
        """The metric that training looks at, for a language with these dev texts."""
        return self.measures[0].metric

    def score(self, texts: Mapping[str, Texts], hours: Mapping[str, float]) -> Figures:
        """All figures of a decoded set, {(key or mean, metric): figure}; writes files beside each text.

        `texts`: of each language key; `hours`: {key: hours of training data} if the task is `detailed`.
        """
        tables = {measure.metric: self._tables(measure.metric, texts) for measure in self.measures}
        for key, found in texts.items():
            self.write(found, {metric: table[key] for metric, table in tables.items()})
        figures: Figures = {}
        for metric, table in tables.items():
            for group, members in groups(texts).items():
                chosen = {key: table[key] for key in members}
                figures[group, metric] = mean_interval(
                    partial(self.figure, metric), chosen, together=self._are_drawn_together(texts)
                )
        return figures

    def compare(self, one: Mapping[str, Texts], other: Mapping[str, Texts]) -> Figures:
        """Figures of a decoded set minus those of another of the same utterances, {(key or mean, metric): figure}."""
        figures: Figures = {}
        for metric in self.compared:
            tables = [self._tables(metric, texts) for texts in (one, other)]
            for group, members in groups(one).items():
                mine, others = ({key: table[key] for key in members} for table in tables)
                drawn = self._are_drawn_together(one)
                value, lo, hi, _ = paired_mean_test(partial(self.figure, metric), mine, others, together=drawn)
                figures[group, metric] = Estimate(value, lo, hi)
        return figures

    def score_over_seeds(self, runs: Sequence[Mapping[str, Texts]]) -> Figures:
        """The measures as means over trainings that differ in the seed alone, {(key or mean, metric): figure}."""
        figures: Figures = {}
        for metric in (measure.metric for measure in self.measures):
            tables = [self._tables(metric, texts) for texts in runs]
            for group, members in groups(runs[0]).items():
                chosen = [{key: table[key] for key in members} for table in tables]
                drawn = self._are_drawn_together(runs[0])
                found = mean_over_seeds(partial(self.figure, metric), chosen, drawn)
                figures[group, metric] = found._replace(lo=max(found.lo, 0.0))  # few seeds tell less than that
        return figures

    def compare_over_seeds(self, one: Sequence[Mapping[str, Texts]], other: Sequence[Mapping[str, Texts]]) -> Figures:
        """As `compare`, of means over seeds: the trainings of both sides are in the order of their seeds."""
        figures: Figures = {}
        for metric in self.compared:
            tables = [[self._tables(metric, texts) for texts in side] for side in (one, other)]
            for group, members in groups(one[0]).items():
                mine, others = ([{key: table[key] for key in members} for table in side] for side in tables)
                drawn = self._are_drawn_together(one[0])
                figures[group, metric] = difference_over_seeds(partial(self.figure, metric), mine, others, drawn)
        return figures

    def write(self, texts: Texts, tables: Mapping[str, np.ndarray]) -> None:
        """Write `score.tsv`, the figures of each utterance, and `result.txt`, those of the set, beside its texts.

        `tables`: statistics (N, K) by metric.
        """
        rows = [[f"{self.figure(metric, row):.2f}" for row in table] for metric, table in tables.items()]
        write_details(texts, list(tables), zip(*rows, strict=True))
        with atomic_write(texts.folder / "result.txt") as stream:
            for metric, table in tables.items():
                stream.write(f"{self.measure(metric).label} {self.figure(metric, table.sum(0)):.2f}\n")

    def sections(self, grid: Grid, test_set: str, chart: str) -> list[str]:
        """The task's part of a results page: a table for each measure, the chart's link, and paired comparisons.

        `chart`: the chart's file name, empty without one.
        """
        first = self.measures[0]
        parts = rates(grid, test_set, first)
        parts += [f"![{first.name} by language and experiment]({chart})"] if chart else []
        for measure in self.measures[1:]:
            parts += rates(grid, test_set, measure)
        return parts + comparisons(grid, first)

    def chart(self, grid: Grid) -> Any:
        """The chart of a results page, a matplotlib figure."""
        return bar_chart(grid, self.measures[0])

    def _tables(self, metric: str, texts: Mapping[str, Texts]) -> dict[str, np.ndarray]:
        return {key: self.statistics(metric, *found.sides) for key, found in texts.items()}

    def _are_drawn_together(self, texts: Mapping[str, Texts]) -> bool:
        return self.together and len({tuple(found.references) for found in texts.values()}) == 1


def find_task(name: str) -> Task:
    """The task of `pelasr/tasks/<name>.py`, or of a recipe's `local/tasks/<name>.py`; an unknown name is an error that
    lists them. Raises PelasrError for one that does not say what it measures."""
    task = class_in(find_module("pelasr.tasks", name, "task: no task", ("base",)), Task)()
    counts = type(task).count is not Task.count or type(task).statistics is not Task.statistics
    if not counts or not getattr(task, "measures", ()):
        raise PelasrError(f"task {name}: {type(task).__name__} needs `measures`, and `count` or `statistics`")
    return task


def task_of(languages: Sequence[str], name: str | None = None) -> Task:
    """The task of a model or of packs: by the name that a description or configuration gives, or else by the language
    keys. Raises PelasrError for an unknown name."""
    return find_task(name or _implied(languages))


def said(task: str | None, languages: Sequence[str]) -> dict[str, str]:
    """What descriptions say of a task that a configuration names: nothing where the language keys tell it."""
    return {} if task in (None, _implied(languages)) else {"task": task}


def _implied(languages: Sequence[str]) -> str:
    return "translation" if is_pair(languages[0]) else "recognition"


def task_of_results(lines: Iterable[Mapping[str, Any]]) -> tuple[Task, list[Mapping[str, Any]]]:
    """The task of a set, and those of its result lines that are of it.

    Recognition has no place where there is another task: it is of a recogniser that an encoder came from, say.
    """
    lines = list(lines)
    names = dict.fromkeys(line["task"] for line in lines if line["task"])
    name = next((name for name in reversed(names) if name != "recognition"), "recognition")
    return find_task(name), [line for line in lines if line["task"] in (None, name)]
