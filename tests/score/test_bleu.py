"""BLEU and chrF2 against sacrebleu itself, intervals, and paired tests against sacrebleu's."""

import random
from functools import partial
from importlib.metadata import version

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from pelasr.errors import PelasrError
from pelasr.score import bootstrap
from pelasr.score.bleu import figure, sentence_bleu, signature, statistics, summary

WORDS = ["Das", "ist", "ein", "Haus,", "das", "größer", "war", "als", "25,5", "Bäume.", "«Там»", "é", "&amp;", "-"]
OWN = {"bleu": BLEU, "chrf": CHRF}


def mean_interval(metric, tables, **options):
    return bootstrap.mean_interval(partial(figure, metric), tables, **options)


def paired_mean_test(metric, a, b, **options):
    return bootstrap.paired_mean_test(partial(figure, metric), a, b, **options)


def references(size, seed=0):
    draws = random.Random(seed)
    return [" ".join(draws.choices(WORDS, k=draws.randint(4, 14))) for _ in range(size)]


def spoil(texts, rate, seed):
    """Each word replaced with probability `rate`."""
    draws = random.Random(seed)
    spoiled = []
    for text in texts:
        spoiled.append(" ".join(draws.choice(WORDS) if draws.random() < rate else word for word in text.split()))
    return spoiled


@pytest.fixture(scope="module")
def texts():
    found = references(120)
    return found, [*spoil(found, 0.3, 1)[:-3], "", "Das", found[-1] + " war"]


@pytest.mark.parametrize("metric", OWN)
def test_summed_statistics_give_sacrebleus_score(texts, metric):
    table = statistics(metric, *texts)
    own = OWN[metric]()
    expected = own.corpus_score(texts[1], [texts[0]])
    assert figure(metric, table.sum(0)) == expected.score
    assert 20 < expected.score < 80
    assert summary(metric, table) == expected.format(signature=str(own.get_signature()))
    # and of many draws at once, each by itself
    rows = np.random.default_rng(0).integers(0, len(table), (3, 50))
    scores = figure(metric, table[rows].sum(1))
    for drawn, score in zip(rows, scores, strict=True):
        sides = [[side[row] for row in drawn] for side in texts]
        assert score == OWN[metric]().corpus_score(sides[1], [sides[0]]).score


def test_no_sentences_and_no_matches(texts):
    for metric, width in (("bleu", 10), ("chrf", 18)):
        assert statistics(metric, [], []).sum(0).tolist() == [0] * width
        assert figure(metric, np.zeros(width, int)) == 0
        assert figure(metric, statistics(metric, ["ab"], ["xy"]).sum(0)) == 0
        assert figure(metric, statistics(metric, *[texts[0]] * 2).sum(0)) == pytest.approx(100)
        with pytest.raises(PelasrError, match="2 references but 1"):
            statistics(metric, ["a", "b"], ["a"])


def test_cased_and_punctuated(texts):
    upper = [text.upper() for text in texts[0]]
    assert figure("bleu", statistics("bleu", texts[0], upper).sum(0)) < 40
    # 13a makes punctuation tokens of their own: 3 of 4 tokens match
    assert statistics("bleu", ["ein Haus."], ["ein Haus!"])[0].tolist() == [3, 3, 2, 1, 0, 0, 3, 2, 1, 0]


def test_sentence_bleu_is_sacrebleus(texts):
    own = BLEU(effective_order=True)
    expected = [own.sentence_score(h, [r]).score for r, h in zip(*texts, strict=True)]
    assert sentence_bleu(statistics("bleu", *texts)) == expected


def test_signatures_tell_settings_and_version(texts):
    statistics("bleu", [], [])  # leaves no trace
    tail = f"|version:{version('sacrebleu')}"
    assert signature("bleu") == "BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp" + tail
    assert signature("chrf") == "chrF2|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no" + tail


def test_interval_holds_the_score_and_shrinks():
    widths = []
    for size in (50, 800):
        found = references(size)
        table = statistics("bleu", found, spoil(found, 0.3, 2))
        value, lo, hi = mean_interval("bleu", {"en-de": table})
        assert value == pytest.approx(figure("bleu", table.sum(0)))
        assert lo < value < hi
        widths.append(hi - lo)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_interval_is_that_of_sacrebleus_bootstrap(texts):
    score = BLEU().corpus_score(texts[1], [texts[0]], n_bootstrap=1000)
    _, lo, hi = mean_interval("bleu", {"en-de": statistics("bleu", *texts)})
    assert (hi - lo) / 2 == pytest.approx(score._ci, rel=0.1)


def test_mean_is_unweighted():
    sides = {pair: references(size, size) for pair, size in (("en-de", 100), ("en-fr", 20))}
    tables = {pair: statistics("chrf", found, spoil(found, 0.3, 3)) for pair, found in sides.items()}
    value, lo, hi = mean_interval("chrf", tables)
    assert value == pytest.approx(sum(figure("chrf", table.sum(0)) for table in tables.values()) / 2)
    assert lo < value < hi
    assert mean_interval("chrf", tables) == (value, lo, hi)


@pytest.mark.parametrize("metric", OWN)
def test_paired_test_of_nothing(texts, metric):
    table = statistics(metric, *texts)
    assert paired_mean_test(metric, {"en-de": table}, {"en-de": table}) == (0, 0, 0, 1)


def test_paired_test_agrees_with_sacrebleus():
    found = references(150, 5)
    base = spoil(found, 0.3, 6)
    systems = {"better": [a if n % 4 else b for n, (a, b) in enumerate(zip(base, found, strict=True))]}
    systems |= {"alike": spoil(found, 0.3, 7), "worse": spoil(found, 0.4, 8)}
    _, own = PairedTest([("base", base), *systems.items()], {"BLEU": BLEU()}, [found], "bs", 1000)()
    baseline = {"en-de": statistics("bleu", found, base)}
    results = dict(zip(systems, own["BLEU"][1:], strict=True))
    for name, hypotheses in systems.items():
        value, lo, hi, p = paired_mean_test("bleu", {"en-de": statistics("bleu", found, hypotheses)}, baseline)
        assert value == pytest.approx(results[name].score - own["BLEU"][0].score)
        assert (p < 0.05) == (results[name].p_value < 0.05) == (name != "alike")
        assert {"better": lo > 0, "alike": lo < 0 < hi, "worse": hi < 0}[name]


def test_paired_mean_is_the_mean_of_differences():
    a, b = {}, {}
    for seed, pair in enumerate(("en-de", "en-fr")):
        found = references(60, seed)
        a[pair], b[pair] = (statistics("bleu", found, spoil(found, rate, seed + 9)) for rate in (0.2, 0.4))
    value, lo, hi, p = paired_mean_test("bleu", a, b)
    assert value == pytest.approx(sum(figure("bleu", a[k].sum(0)) - figure("bleu", b[k].sum(0)) for k in a) / 2)
    assert 0 < lo < value < hi and p < 0.01
    back = paired_mean_test("bleu", b, a)
    assert (back.value, back.lo, back.hi) == pytest.approx((-value, -hi, -lo))


def test_pairs_of_the_same_utterances_are_drawn_together():
    found = references(60)
    a, b = (statistics("bleu", found, spoil(found, rate, 9)) for rate in (0.2, 0.25))
    copies = {f"en-{number}": (a, b) for number in range(4)}  # nothing is known better by asking four times
    sides = [{pair: tables[side] for pair, tables in copies.items()} for side in (0, 1)]
    one = mean_interval("bleu", {"en-de": a})
    assert mean_interval("bleu", sides[0], together=True) == pytest.approx(one)
    apart = mean_interval("bleu", sides[0])
    assert (one.hi - one.lo) / (apart.hi - apart.lo) == pytest.approx(2, rel=0.15)
    assert paired_mean_test("bleu", *sides, together=True) == pytest.approx(paired_mean_test("bleu", {"": a}, {"": b}))
