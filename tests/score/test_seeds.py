"""Names of runs with other seeds, and means over seeds: against formulas, and how often their intervals are right."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from pelasr.errors import PelasrError
from pelasr.score.bootstrap import RESAMPLES, difference_over_seeds, estimate, mean_over_seeds
from pelasr.score.decoded import Texts
from pelasr.score.seeds import ALL, parse_seeds, seeded, split_seed
from pelasr.tasks.recognition import Recognition


def ratio(sums):
    return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)


def draw(size, seed):
    draws = np.random.default_rng(seed)
    return np.stack([draws.integers(0, 5, size), np.full(size, 8)], 1)


def test_names():
    for name in ("A1", "houlsby", "mine.2", "x.seedy", "seed2", "x.seed02", "wer_minus_A1"):
        assert split_seed(name) == (name, None)
        for seed in (0, 2, 8388607, ALL):
            assert split_seed(seeded(name, seed)) == (name, seed)
    assert (seeded("A1", 2), seeded("A1", ALL)) == ("A1.seed2", "A1.seeds")


def test_seeds_of_the_command_line():
    assert parse_seeds("--seeds", " 3 0  12 ") == [3, 0, 12] and parse_seeds("--seeds", "") == []
    for text, said in {
        "0 x": "'x' is no whole number",
        "0,1": "'0,1' is no",
        "-1": "'-1' is no",
        "1.5": "'1.5' is no",
        "9999999999": "is no whole number from 0 to 8388607",
        "8388608": "is no whole number",
        "٣": "is no whole number",
        "1 0 01": "1 comes twice",
    }.items():
        with pytest.raises(PelasrError, match=said):
            parse_seeds("--seeds", text)


def test_without_variance_over_utterances_it_is_students_interval():
    """One utterance never varies: mean, and t of n - 1 degrees of freedom times the standard error."""
    values = [10.0, 20.0, 60.0]
    runs = [{"hi": np.array([[value, 100]])} for value in values]
    half = t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    assert mean_over_seeds(ratio, runs) == pytest.approx((30, 30 - half, 30 + half))


def test_without_variance_over_seeds_it_is_that_of_the_utterances():
    table = draw(60, 1)
    value, lo, hi = mean_over_seeds(ratio, [{"hi": table}] * 3)
    rows = np.random.default_rng(0).integers(0, 60, (RESAMPLES, 60))
    deviation = np.std(ratio(table[rows].sum(1)), ddof=1)
    assert value == pytest.approx(float(ratio(table.sum(0))))
    assert (hi - value, value - lo) == pytest.approx((norm.ppf(0.975) * deviation,) * 2)


def test_squares_of_both_half_widths_are_added():
    """Over two languages."""
    runs = [{"hi": draw(40, 10 + seed), "ta": draw(30, 20 + seed)} for seed in range(3)]
    values = [(ratio(run["hi"].sum(0)) + ratio(run["ta"].sum(0))) / 2 for run in runs]
    value, lo, hi = mean_over_seeds(ratio, runs)
    draws = np.random.default_rng(0)
    rows = {key: draws.integers(0, size, (RESAMPLES, size)) for key, size in (("hi", 40), ("ta", 30))}
    resampled = [[ratio(run[key][rows[key]].sum(1)) for run in runs] for key in rows]  # the same draw for all seeds
    between = t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    half = math.hypot(between, norm.ppf(0.975) * np.std(np.mean(resampled, axis=(0, 1)), ddof=1))
    assert (value, lo, hi) == pytest.approx((np.mean(values), np.mean(values) - half, np.mean(values) + half))


def test_keys_that_are_drawn_together():
    """Two keys with the same statistics are one, if their utterances are drawn together."""
    runs = [draw(40, seed) for seed in range(2)]
    once = mean_over_seeds(ratio, [{"x": run} for run in runs])
    twice = [{"x": run, "y": run} for run in runs]
    assert mean_over_seeds(ratio, twice, together=True) == pytest.approx(once)
    apart = mean_over_seeds(ratio, twice)
    assert apart.value == pytest.approx(once.value) and apart.hi < once.hi


def test_difference_over_seeds():
    one, other = ([{"x": draw(40, 10 * side + seed)} for seed in range(3)] for side in (1, 2))
    assert difference_over_seeds(ratio, one, one) == (0, 0, 0)
    value, lo, hi = difference_over_seeds(ratio, one, other)
    assert value == pytest.approx(mean_over_seeds(ratio, one).value - mean_over_seeds(ratio, other).value)
    mirrored = difference_over_seeds(ratio, other, one)
    assert (-value, -hi, -lo) == pytest.approx(tuple(mirrored))


def test_a_task_has_no_figure_below_zero(tmp_path):
    """Two seeds with very different errors: Student's interval alone would begin far below."""
    texts = [{"hi": Texts(tmp_path, {"u": "a b c d"}, {"u": words})} for words in ("a b c d", "x y z d")]
    found = Recognition().score_over_seeds(texts)["hi", "wer"]
    assert (found.lo, found.value) == (0, 37.5) and found.hi > 100
    other = [{"hi": Texts(tmp_path, {"u": "a b c d"}, {"u": "a b c x"})}] * 2
    gain = Recognition().compare_over_seeds(texts, other)["hi", "wer"]
    assert gain.value == 12.5 and gain.lo < 0 < gain.hi


def test_the_interval_is_right_about_as_often_as_it_says():
    """Trainings whose error rates differ by 6 points: nineteen of twenty intervals from two seeds hold the truth;
    of those of one seed's bootstrap not two thirds."""
    draws, hits, of_one = np.random.default_rng(7), 0, 0
    for _ in range(60):
        rates = np.clip(0.4 + draws.normal(0, 0.06, 2), 0, 1)
        runs = [{"x": np.stack([draws.binomial(10, np.full(40, rate)), np.full(40, 10)], 1)} for rate in rates]
        found, alone = mean_over_seeds(ratio, runs), estimate([runs[0]["x"]], ratio)
        hits += found.lo <= 40 <= found.hi
        of_one += alone.lo <= 40 <= alone.hi
    assert hits >= 57 and of_one < 40
