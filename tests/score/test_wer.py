"""Error counts against brute force, intervals and paired tests of error rates."""

import random
from functools import lru_cache

import jiwer
import pytest

from pelasr.errors import PelasrError
from pelasr.score import bootstrap
from pelasr.score.wer import Counts, count_errors, error_rate, rate, statistics


def distance(a, b):
    """Levenshtein distance by its recursive definition."""

    @lru_cache(None)
    def prefix(i, j):
        if not i or not j:
            return i + j
        return min(prefix(i - 1, j) + 1, prefix(i, j - 1) + 1, prefix(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return prefix(len(a), len(b))


def mean_interval(counts, **options):
    tables = {language: statistics(found) for language, found in counts.items()}
    return bootstrap.mean_interval(rate, tables, **options)


def interval(counts, **options):
    return mean_interval({"": counts}, **options)


def paired_mean_test(*sides):
    return bootstrap.paired_mean_test(rate, *({key: statistics(c) for key, c in side.items()} for side in sides))


def paired_test(a, b):
    return paired_mean_test({"": a}, {"": b})


def draw(size, rate, seed, words=4):
    """Counts of `size` utterances of `words` words, each wrong with probability `rate`."""
    draws = random.Random(seed)
    wrong = [sum(draws.random() < rate for _ in range(words)) for _ in range(size)]
    return [Counts(words - number, number, 0, 0, words) for number in wrong]


@pytest.mark.parametrize("unit", ["word", "char"])
def test_counts_equal_brute_force(unit):
    draws = random.Random(0)
    words = ["नि", "न", "ab", "é", "அம்மா", "اردو", "𝔘"]
    sides = [[" ".join(draws.choices(words, k=draws.randint(0, 6))) for _ in range(200)] for _ in range(2)]
    sides[0][:2], sides[1][:2] = ["", ""], ["", "ab é"]
    for reference, hypothesis, count in zip(*sides, count_errors(*sides, unit), strict=True):
        a, b = (text.split() if unit == "word" else list(text) for text in (reference, hypothesis))
        assert count.edits == distance(tuple(a), tuple(b))
        assert count.reference == len(a) == count.hits + count.substitutions + count.deletions
        assert len(b) == count.hits + count.substitutions + count.insertions
    theirs = jiwer.wer if unit == "word" else jiwer.cer
    assert error_rate(count_errors(*sides, unit)) == pytest.approx(100 * theirs(*sides))


def test_counts_by_hand():
    # substitution | insertion | deletion | empty hypothesis
    counts = count_errors(["a b c", "d", "e f", "g h"], ["a x c", "d d", "e", ""])
    assert counts == [(2, 1, 0, 0, 3), (1, 0, 0, 1, 1), (1, 0, 1, 0, 2), (0, 0, 2, 0, 2)]
    assert error_rate(counts) == 100 * 5 / 8
    assert count_errors(["a b"], ["ab"], "char") == [(2, 0, 1, 0, 3)]  # the space counts
    assert count_errors([], []) == []
    # composed and decomposed spellings, and other white space, are no errors
    assert count_errors(["é a b"], ["e\u0301\ta\u00a0 b "], "char") == [(5, 0, 0, 0, 5)]


def test_counts_need_one_hypothesis_each():
    with pytest.raises(PelasrError, match="2 references but 1"):
        count_errors(["a", "b"], ["a"])


def test_rate_of_empty_references_is_an_error():
    with pytest.raises(PelasrError, match="empty"):
        error_rate(count_errors(["", ""], ["a", ""]))


def test_interval_holds_the_rate_and_shrinks():
    widths = []
    for size in (50, 5000):
        counts = draw(size, 0.3, seed=1)
        value, lo, hi = interval(counts)
        assert value == pytest.approx(error_rate(counts))
        assert lo < value < hi
        widths.append(hi - lo)
    # 100 times the utterances: a tenth of the width
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.25)


def test_interval_is_that_of_the_normal_approximation():
    # 4 words an utterance, each wrong with p = 0.3: standard error sqrt(p (1 - p) / 4000)
    _, lo, hi = interval(draw(1000, 0.3, seed=2))
    assert hi - lo == pytest.approx(100 * 2 * 1.96 * (0.21 / 4000) ** 0.5, rel=0.1)


def test_interval_is_seeded():
    counts = draw(40, 0.3, seed=3)
    assert interval(counts, seed=7) == interval(counts, seed=7) != interval(counts, seed=8)


@pytest.mark.parametrize(
    "counts", [[Counts(2, 1, 0, 0, 3)], [Counts(2, 1, 0, 0, 3)] * 7, [Counts(2, 1, 0, 0, 3), Counts(4, 2, 0, 0, 6)]]
)
def test_interval_without_variance(counts):
    value, lo, hi = interval(counts)
    assert value == lo == hi == pytest.approx(100 / 3)


def test_interval_with_empty_references_is_finite():
    value, lo, hi = interval([Counts(0, 0, 0, 1, 0), Counts(1, 0, 1, 0, 2)])
    # the draw of the empty reference alone, twice: two insertions over one
    assert (value, lo, hi) == (100, 50, 200)


def test_mean_is_unweighted_and_resamples_each_language():
    large, small = draw(4000, 0.1, seed=4), draw(100, 0.5, seed=5)
    value, lo, hi = mean_interval({"hi": large, "ur": small})
    assert value == pytest.approx((error_rate(large) + error_rate(small)) / 2)
    _, small_lo, small_hi = interval(small)
    # nearly all of the mean's variance is half of the small language's deviation
    assert hi - lo == pytest.approx((small_hi - small_lo) / 2, rel=0.15)


def test_paired_test_sees_a_small_steady_difference():
    worse = draw(200, 0.5, seed=6)
    better = [
        Counts(c.hits + 1, c.substitutions - 1, 0, 0, 4) if i % 10 == 0 and c.edits else c for i, c in enumerate(worse)
    ]
    value, lo, hi, p = paired_test(better, worse)
    assert value == pytest.approx(error_rate(better) - error_rate(worse))
    assert lo < value < hi < 0
    assert p < 0.01
    # unpaired, the two intervals overlap widely
    assert interval(better).hi > interval(worse).lo
    back = paired_test(worse, better)
    assert (back.value, back.lo, back.hi) == pytest.approx((-value, -hi, -lo))


def test_paired_test_of_nothing():
    same = draw(100, 0.3, seed=7)
    assert paired_test(same, same) == (0, 0, 0, 1)
    # two systems of one quality: p below 0.05 about once in twenty
    tests = [paired_test(draw(100, 0.3, seed=100 + i), draw(100, 0.3, seed=300 + i)) for i in range(40)]
    assert sum(test.p < 0.05 for test in tests) <= 5
    assert all((test.p < 0.05) == (test.lo > 0 or test.hi < 0) for test in tests if abs(test.p - 0.05) > 0.01)


def test_paired_mean_is_the_mean_of_differences():
    a = {"hi": draw(300, 0.2, 8), "ur": draw(60, 0.4, 9)}
    b = {"hi": draw(300, 0.3, 10), "ur": draw(60, 0.6, 11)}
    value, lo, hi, p = paired_mean_test(a, b)
    assert value == pytest.approx(sum(error_rate(a[key]) - error_rate(b[key]) for key in a) / 2)
    assert lo < value < hi < 0
    assert p < 0.01
    assert paired_mean_test(a, b) == (value, lo, hi, p)
