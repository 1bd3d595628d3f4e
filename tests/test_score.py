"""Error counts against brute force, intervals, paired tests, and what `score` and `compare` write."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import version

import jiwer
import pytest

from pelasr.environment import commit
from pelasr.errors import PelasrError
from pelasr.results import KEYS, append_results, latest, read_results
from pelasr.score import (
    Counts,
    compare,
    count_errors,
    error_rate,
    interval,
    mean_interval,
    paired_mean_test,
    paired_test,
    read_text,
    score,
)

FACTS = {
    "recipe": "tiny",
    "experiment": "A5",
    "method": "houlsby",
    "trainable_parameters": 10,
    "total_parameters": 1000,
    "seed": 1,
    "config_sha256": "c" * 64,
    "data_sha256": "d" * 64,
}


def distance(a, b):
    """Levenshtein distance by its recursive definition."""

    @lru_cache(None)
    def prefix(i, j):
        if not i or not j:
            return i + j
        return min(prefix(i - 1, j) + 1, prefix(i, j - 1) + 1, prefix(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return prefix(len(a), len(b))


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
    rate = jiwer.wer if unit == "word" else jiwer.cer
    assert error_rate(count_errors(*sides, unit)) == pytest.approx(100 * rate(*sides))


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


def test_paired_test_refuses_other_references():
    with pytest.raises(PelasrError, match="other references"):
        paired_test(draw(3, 0.5, 1, words=4), draw(3, 0.5, 1, words=5))
    with pytest.raises(PelasrError, match="other references"):
        paired_test(draw(3, 0.5, 1), draw(4, 0.5, 1))
    with pytest.raises(PelasrError, match="cannot pair"):
        paired_mean_test({"hi": draw(3, 0.5, 1)}, {"ur": draw(3, 0.5, 1)})


def test_read_text(tmp_path):
    path = tmp_path / "text"
    path.write_text("u1 a  b\u2028c\nu2\nu3\te\u0301", encoding="utf-8")
    assert read_text(path) == {"u1": "a b c", "u2": "", "u3": "é"}
    for content, message in (("u1 a\n\nu2 b\n", "text:2: empty line"), ("u1 a\nu1 b\n", "text:2: utterance u1")):
        path.write_text(content)
        with pytest.raises(PelasrError, match=message):
            read_text(path)
    with pytest.raises(PelasrError, match="no such file"):
        read_text(tmp_path / "none")


def place(root, language, references, **hypotheses):
    """Write the references of a language and each experiment's hypotheses."""
    folders = [(root / "data", references)]
    folders += [(root / "exp" / name / "decode", texts) for name, texts in hypotheses.items()]
    for folder, texts in folders:
        path = folder / f"test_{language}" / "text"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{utterance} {text}\n" for utterance, text in texts.items()), encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    references = {"u2": "d e", "u1": "a b c"}
    place(tmp_path, "hi", references, A1={"u1": "a x", "u2": "d"}, A5={"u1": "a b", "u2": "d e"})
    place(tmp_path, "ur", {"v1": "p q r s"}, A1={"v1": "p"}, A5={"v1": "p q x s s"})
    return tmp_path


def run(root, **changed):
    return score({**FACTS, **changed}, "test", ["hi", "ur"], root / "data", root / "exp")


def test_score_appends_exact_lines(root):
    lines = run(root)
    assert read_results(root / "exp" / "results.jsonl") == lines
    assert all(list(line) == KEYS for line in lines)
    values = {(line["metric"], line["language"]): line["value"] for line in lines}
    assert values == {
        ("wer", "hi"): 20.0,  # one deletion of five words
        ("wer", "ur"): 50.0,  # a substitution and an insertion over four
        ("wer", "mean"): 35.0,  # unweighted; the pooled rate would be 33.3
        ("cer", "hi"): 25.0,  # " c" of eight characters
        ("cer", "ur"): round(300 / 7, 4),
        ("cer", "mean"): round((25 + 300 / 7) / 2, 4),
    }
    mean = lines[2]
    assert (mean["utterances"], mean["reference_words"]) == (3, 9)
    assert mean["scorer"] == f"jiwer {version('jiwer')}"
    assert mean["commit"] == commit()
    assert mean | FACTS == mean


def test_score_writes_counts_beside_the_text(root):
    run(root)
    folder = root / "exp" / "A5" / "decode" / "test_hi"
    assert (folder / "score.tsv").read_text().splitlines() == [
        "utt\twords\thits\tsub\tdel\tins\tref\thyp",
        "u1\t3\t2\t0\t1\t0\ta b c\ta b",
        "u2\t2\t2\t0\t0\t0\td e\td e",
    ]
    assert (
        folder / "result.txt"
    ).read_text() == "Snt Wrd Corr Sub Del Ins Err S.Err\n2 5 80.0 0.0 20.0 0.0 20.0 50.0\n"


def test_scoring_again_adds_only_what_changed(root):
    path = root / "exp" / "results.jsonl"
    first = run(root)
    before = path.read_bytes()
    run(root)
    assert path.read_bytes() == before
    place(root, "ur", {"v1": "p q r s"}, A5={"v1": "p q r s"})
    second = run(root)
    results = read_results(path)
    assert results[: len(first)] == first
    assert results[len(first) :] == [line for line in second if line["language"] != "hi"]
    assert latest(results)["A5", "test", "mean", "wer"]["value"] == 10.0
    # and back: the line equals an older one, but not the latest of its key
    place(root, "ur", {"v1": "p q r s"}, A5={"v1": "p q x s s"})
    run(root)
    assert latest(read_results(path))["A5", "test", "mean", "wer"]["value"] == 35.0


def test_one_language_has_no_mean(root):
    lines = score(FACTS, "test", ["hi"], root / "data", root / "exp")
    assert [(line["metric"], line["language"]) for line in lines] == [("wer", "hi"), ("cer", "hi")]


def test_compare_appends_differences(root):
    lines = compare(FACTS, "A1", "test", ["hi", "ur"], root / "data", root / "exp")
    # A1: three errors of five words, three of four
    found = [(line["experiment"], line["metric"], line["language"], line["value"]) for line in lines]
    assert found == [("A5", "wer_minus_A1", name, value) for name, value in (("hi", -40), ("ur", -25), ("mean", -32.5))]
    assert all(line["lo"] <= line["value"] <= line["hi"] for line in lines)
    assert read_results(root / "exp" / "results.jsonl") == lines


def test_hypotheses_must_fit_the_references(root):
    place(root, "hi", {"u1": "a", "u2": "b", "u3": "c"}, A5={"u1": "a", "u2": "b"})
    with pytest.raises(PelasrError, match="1 utterances without a hypothesis: u3; decode again"):
        run(root)
    place(root, "hi", {"u1": "a"}, A5={"u1": "a", "u9": "b"})
    with pytest.raises(PelasrError, match="unknown to .*data/test_hi/text: u9"):
        run(root)
    place(root, "hi", {"u1": ""}, A5={"u1": "a"})
    with pytest.raises(PelasrError, match="no reference has a word"):
        run(root)
    assert not (root / "exp" / "results.jsonl").exists()


def test_facts_must_be_complete(root):
    with pytest.raises(PelasrError, match="wanted are .*data_sha256"):
        score({"recipe": "tiny"}, "test", ["hi"], root / "data", root / "exp")


def test_parallel_appends_do_not_mix(root):
    path = root / "exp" / "results.jsonl"
    line = dict.fromkeys(KEYS, "x" * 1000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_results(path, [line | {"language": f"l{number}"}] * 3), range(24)))
    assert sorted({result["language"] for result in read_results(path)}) == sorted(f"l{number}" for number in range(24))


def test_bad_result_line_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(PelasrError, match="no results yet"):
        read_results(path)
    good = json.dumps(dict.fromkeys(KEYS, 1))
    path.write_text(f"{good}\n{{}}\n")
    with pytest.raises(PelasrError, match=r"results.jsonl:2: not a result"):
        read_results(path)
    path.write_text(good)  # no newline at the end: the next line must not be glued to it
    append_results(path, [dict.fromkeys(KEYS, 2)])
    assert len(read_results(path)) == 2
