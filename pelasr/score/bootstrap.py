"""95 % intervals of a test set's figures, by percentile bootstrap over utterances.

A figure follows from statistics that are summed over utterances, such as errors and words. So a sample, the utterances
of one language key, is a table with a row of statistics for each; and a `Figure` turns sums into figures.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import NormalDist, stdev
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000

# Sums of statistics (..., K) to figures (...), a row for each draw of utterances.
Figure = Callable[[np.ndarray], np.ndarray]


class Estimate(NamedTuple):
    """A figure and its 95 % interval, in percent."""

    value: float
    lo: float
    hi: float


class Difference(NamedTuple):
    """A difference, its 95 % interval (percentage points) and the two-sided p of "no difference"."""

    value: float
    lo: float
    hi: float
    p: float


def estimate(samples: Sequence[np.ndarray], figure: Figure, seed: int = 0) -> Estimate:
    """Unweighted mean of the figures of `samples`, tables (N, K), and its interval; each is resampled by itself."""
    return _bootstrap(samples, figure, seed)[0]


def difference(samples: Sequence[np.ndarray], figure: Figure, seed: int = 0) -> Difference:
    """The same where the figure is the difference of two systems on one draw of utterances."""
    found, resampled = _bootstrap(samples, figure, seed)
    # One added to both counts: a bootstrap of finite size cannot show p = 0.
    tails = [sum(value <= 0 for value in resampled), sum(value >= 0 for value in resampled)]
    p = min(1.0, 2 * (min(tails) + 1) / (len(resampled) + 1))
    return Difference(*found, p)


def mean_interval(figure: Figure, tables: Mapping[str, np.ndarray], seed: int = 0, together: bool = False) -> Estimate:
    """Unweighted mean of the figures of language keys and its interval; `tables`: {key: statistics (N, K)}.

    Each key is resampled by itself; `together`: row n of all tables is the same utterance, and is drawn for all keys or
    for none, because an utterance that is hard to hear is hard in every pair.
    """
    if together:
        return estimate([np.hstack(list(tables.values()))], partial(_mean, figure, len(tables)), seed)
    return estimate(list(tables.values()), figure, seed)


def paired_mean_test(
    figure: Figure,
    a: Mapping[str, np.ndarray],
    b: Mapping[str, np.ndarray],
    seed: int = 0,
    together: bool = False,
) -> Difference:
    """Figure of `a` minus that of `b`, statistics of the same utterances in the same order, by paired bootstrap.

    Of several keys it is the unweighted mean, resampled as in `mean_interval`.
    """

    def gain(keys: int, sums: np.ndarray) -> np.ndarray:
        left, right = np.split(sums, 2, axis=-1)
        return _mean(figure, keys, left) - _mean(figure, keys, right)

    if together:
        joined = np.hstack([*a.values(), *(b[key] for key in a)])
        return difference([joined], partial(gain, len(a)), seed)
    return difference([np.hstack([a[key], b[key]]) for key in a], partial(gain, 1), seed)


def mean_over_seeds(figure: Figure, runs: Sequence[Mapping[str, np.ndarray]], together: bool = False) -> Estimate:
    """Mean over trainings that differ in the seed alone, and its interval; `runs`: of each the tables of
    `mean_interval`, with the same utterances in the same order.

    The squares of two half-widths are added: of Student's interval over the seeds, and of the bootstrap's over
    utterances, which draws the same ones for all seeds. So it holds the truth as often as it says also with two or
    three seeds; a bootstrap of seeds shows half or two thirds of their variance, and was right 77 and 86 times in a
    hundred where the seed is what matters.
    """
    from scipy.stats import t

    keys, number = list(runs[0]), len(runs)
    values = [math.fsum(figure(run[key].sum(0)) for key in keys) / len(keys) for run in runs]
    tables = [np.hstack([run[key] for run in runs]) for key in keys]
    samples, parts = ([np.hstack(tables)], number * len(keys)) if together else (tables, number)
    (value, *_), resampled = _bootstrap(samples, partial(_mean, figure, parts), 0)
    between = float(t.ppf(0.975, number - 1)) * stdev(values) / math.sqrt(number)
    half = math.hypot(between, NormalDist().inv_cdf(0.975) * stdev(resampled))
    return Estimate(value, value - half, value + half)


def difference_over_seeds(
    figure: Figure,
    a: Sequence[Mapping[str, np.ndarray]],
    b: Sequence[Mapping[str, np.ndarray]],
    together: bool = False,
) -> Estimate:
    """Figure of `a` minus that of `b`, seed by seed, as `mean_over_seeds` has it."""

    def gain(sums: np.ndarray) -> np.ndarray:
        left, right = np.split(sums, 2, axis=-1)
        return figure(left) - figure(right)

    runs = [{key: np.hstack([one[key], other[key]]) for key in one} for one, other in zip(a, b, strict=True)]
    return mean_over_seeds(gain, runs, together)


def _mean(figure: Figure, keys: int, sums: np.ndarray) -> Any:
    """Mean figure (...) of the sums of several keys beside each other (..., keys * K)."""
    return sum(figure(part) for part in np.split(sums, keys, axis=-1)) / keys


def _bootstrap(samples: Sequence[np.ndarray], figure: Figure, seed: int) -> tuple[Estimate, list[float]]:
    """The mean of the samples' figures, and its resampled values.

    scipy resamples each of the samples given to it by itself; what it is given are row numbers.
    """
    from scipy.stats import bootstrap

    tables = [np.asarray(table, dtype=float) for table in samples]
    value = math.fsum(figure(table.sum(0)) for table in tables) / len(tables)
    # scipy wants two observations: the halves of an only row have its sum, and never vary.
    numbers = [np.arange(len(table)) if len(table) > 1 else np.zeros(2, int) for table in tables]
    tables = [table if len(table) > 1 else table / 2 for table in tables]

    def mean_figure(*drawn: np.ndarray, axis: int) -> Any:
        figures = []
        for table, rows in zip(tables, drawn, strict=True):
            figures.append(figure(np.stack([column[rows].sum(axis) for column in table.T], -1)))
        return sum(figures) / len(figures)

    batch = max(1, 2_000_000 // sum(len(rows) for rows in numbers))  # bounds memory, the result is the same
    result = bootstrap(
        numbers,
        mean_figure,
        n_resamples=RESAMPLES,
        batch=batch,
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    # Rounded, so that draws which differ in the order of the sums alone are equal to each other and to the value.
    resampled = result.bootstrap_distribution.round(9).tolist()
    lo, hi = np.percentile(resampled, [2.5, 97.5]).tolist()
    return Estimate(round(value, 9), lo, hi), resampled
