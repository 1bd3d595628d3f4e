"""The bootstrap against one written out, and its cases without variance."""

import numpy as np
import pytest

from pelasr.score.bootstrap import RESAMPLES, difference, estimate


def ratio(sums):
    return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)


def draw(size, seed):
    draws = np.random.default_rng(seed)
    return np.stack([draws.integers(0, 5, size), draws.integers(1, 9, size)], 1)


def test_equals_a_bootstrap_written_out():
    samples = [draw(30, 1), draw(50, 2)]
    value, lo, hi = estimate(samples, ratio, seed=3)
    draws = np.random.default_rng(3)  # scipy draws the rows of all resamples of one sample, then of the next
    rows = [draws.integers(0, len(table), (RESAMPLES, len(table))) for table in samples]
    means = sum(ratio(table[drawn].sum(1)) for table, drawn in zip(samples, rows, strict=True)) / 2
    assert value == pytest.approx(sum(ratio(table.sum(0)) for table in samples) / 2)
    assert (lo, hi) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_a_figure_need_not_be_a_ratio():
    def spread(sums):  # not linear in the statistics
        return np.sqrt(sums[..., 1]) - sums[..., 0] / 7

    table = draw(40, 4)
    value, lo, hi = estimate([table], spread)
    assert value == pytest.approx(spread(table.sum(0)))
    assert lo < value < hi


def test_an_only_row_never_varies():
    def squares(sums):  # of twice the row it would be another figure
        return sums[..., 0] ** 2

    assert estimate([np.array([[3, 1]])], squares) == (9, 9, 9)
    both = [np.array([[3, 1]]), draw(20, 5)]
    value, lo, hi = estimate(both, squares)
    assert lo < value < hi


def test_a_difference_of_nothing_is_nothing():
    assert difference([draw(30, 6)], lambda sums: 0 * sums[..., 0]) == (0, 0, 0, 1)
    steady = np.stack([np.ones(30), np.ones(30)], 1)
    value, lo, hi, p = difference([steady], ratio)
    assert (value, lo, hi) == (100, 100, 100) and p == pytest.approx(2 / (RESAMPLES + 1))
