"""Which lines make a grid, and what its cells say."""

import pytest

from pelasr.errors import PelasrError
from pelasr.report.grid import Measure, select

RATE = Measure("wer", "WER", "%", 1, False, "negative: fewer errors")
BLEU = Measure("bleu", "BLEU", "", 2, True, "positive: better")


def line(experiment, language, value, metric, **changed):
    result = {"experiment": experiment, "set": "test", "language": language, "metric": metric, "value": value}
    return result | {"lo": value - 1, "hi": value + 1, "method": f"method of {experiment}"} | changed


def test_unknown_set_names_the_known():
    with pytest.raises(PelasrError, match="no results for the set dev; sets with results: test;"):
        select([line("A0", "hi", 1.0, "wer")], "dev")


def test_columns_have_headings():
    def headings(*keys, metric="bleu"):
        return list(select([line("1", key, 1.0, metric) for key in keys]).headings.values())

    assert headings("en-de", "en-fr") == ["de", "fr", "avg"]
    assert headings("en-de", "es-fr") == ["en-de", "es-fr", "avg"]
    assert headings("mb-fr") == ["mb-fr"]
    assert headings("hi", "zh-TW", metric="wer") == ["hi", "zh-TW", "mean"]
    added = [line("1", key, 1.0, "bleu") for key in ("en-de", "en-fr", "en-it")]
    assert select(added, languages=["en-fr", "en-de"]).headings == {
        "en-fr": "fr",
        "en-de": "de",
        "mean": "avg",
        "en-it": "it",
    }


def test_cells_are_written_with_their_decimals_and_signs():
    found = line("2", "en-de", -0.004, "bleu_minus_1", lo=-0.5, hi=1.257)
    assert BLEU.number(line("2", "en-de", 22.375, "bleu")) in ("22.37", "22.38")
    assert (BLEU.number(None), BLEU.interval(None)) == ("-", "-")
    assert BLEU.change(found) == "+0.00"  # no negative zero
    assert BLEU.interval(found, "+") == "-0.50 to +1.26" and RATE.interval(found) == "-0.5 to 1.3"


@pytest.mark.parametrize(
    ("lo", "hi", "for_rate", "for_bleu"),
    [
        (-2, -1, "better", "worse"),
        (1, 2, "worse", "better"),
        (-1, 1, "not clear", "not clear"),
        (0, 1, *["not clear"] * 2),
    ],
)
def test_verdict_follows_the_metric(lo, hi, for_rate, for_bleu):
    found = line("2", "x", 0, "difference", lo=lo, hi=hi)
    assert (RATE.verdict(found), BLEU.verdict(found)) == (for_rate, for_bleu)


def test_best_is_the_highest_bleu_and_the_lowest_rate():
    for metric, measure, best in (("bleu", BLEU, "30.00"), ("wer", RATE, "10.0")):
        values = {"1": 10.0, "2": 30.0, "3": 20.0}
        lines = [line(name, "en-de", value, metric) for name, value in values.items()]
        assert select(lines).best(measure) == {"en-de": best}
        assert select(lines[:1]).best(measure) == {"en-de": ""}


def test_difference_of_other_figures_is_none():
    lines = [line("1", "en-de", 10.0, "bleu"), line("2", "en-de", 12.0, "bleu")]
    paired = line("2", "en-de", 2.0, "bleu_minus_1")
    grid = select([*lines, paired])
    assert grid.compared(BLEU) == [("2", "1")]
    assert grid.difference("2", "1", "en-de", BLEU)["value"] == 2.0
    assert grid.difference("2", "3", "en-de", BLEU) is None
    again = line("2", "en-de", 13.0, "bleu")  # scored again, not compared again
    assert select([*lines, paired, again]).difference("2", "1", "en-de", BLEU) is None
