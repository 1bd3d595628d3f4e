"""The page of translations from hand-made result lines, and the parameter column of Le et al. 2021."""

import json
from pathlib import Path

import pytest
import yaml
from result_lines import line, rows

from pelasr.report.grid import select
from pelasr.score.results import KEYS, OLD_KEYS, SETTINGS, method_of, read_results, renewed
from pelasr.stages.table import Around, make_chart, make_table, print_table
from pelasr.tasks.translation import chart, parameter_cell, setting_cells

EGS = Path(__file__).parents[2] / "egs"
PAIRS = ["en-de", "en-es"]
NAMES = {"1": "bilingual", "2": "multilingual", "3": "adapters", "8": "fine-tuned"}
METHODS = {
    "1": ("backbone dict=mono D=256", 2 * 31_072_256, 2 * 31_072_256),
    "2": ("backbone dict=multi D=256", 32_096_256, 32_096_256),
    "3": ("houlsby dict=multi D=256 enc=0 dec=64", 2 * 201_600, 32_096_256 + 2 * 201_600),
    "8": ("full dict=multi D=256", 2 * 32_096_256, 2 * 32_096_256),
}  # as older lines have it
BLEU = {"1": (22.16, 30.42), "2": (22.37, 30.4), "3": (22.75, 31.074), "8": (23.13, 31.071)}
AGAINST_2 = {"3": {"en-de": (0.1, 0.7), "en-es": (-0.1, 1.4)}, "1": {"en-de": (-0.4, -0.1), "en-es": (-1, 1)}}


def bleu_line(experiment, pair, value, metric="bleu", **changed):
    method, trainable, total = METHODS[experiment]
    facts = settings(method) | {"trainable_parameters": trainable, "total_parameters": total}
    facts |= {"task": "translation", "scorer": "BLEU|nrefs:1"} | changed
    return line(experiment, pair, round(value, 4), metric, **facts)


def settings(method):
    """The keys of a method, written as older lines have it."""
    found = renewed(dict.fromkeys(KEYS) | {"method": method, "metric": "bleu"})
    return {key: found[key] for key in ("method", *SETTINGS)}


def counted(method, trainable, total):
    return settings(method) | {"trainable_parameters": trainable, "total_parameters": total}


def mean(values):
    return sum(values) / len(values)


@pytest.fixture
def results():
    lines = []
    for name, values in BLEU.items():
        for metric, factor in (("bleu", 1), ("chrf", 2)):
            lines += [bleu_line(name, pair, factor * v, metric) for pair, v in zip(PAIRS, values, strict=True)]
            lines.append(bleu_line(name, "mean", factor * mean(values), metric))
        counts = {"en-de": 3, "en-es": 0, "mean": 1.5}
        lines += [bleu_line(name, pair, value, "limited") for pair, value in counts.items()]
        lines += [bleu_line(name, pair, h, "train_hours") for pair, h in zip(PAIRS, (408.2, 503.6), strict=True)]
    for name, intervals in AGAINST_2.items():
        changes = [a - b for a, b in zip(BLEU[name], BLEU["2"], strict=True)]
        for pair, change in zip(PAIRS, changes, strict=True):
            lo, hi = intervals[pair]
            lines.append(bleu_line(name, pair, change, "bleu_minus_2", lo=lo, hi=hi))
        lines.append(bleu_line(name, "mean", mean(changes), "bleu_minus_2", lo=-0.1, hi=0.1))
    return lines


@pytest.mark.parametrize(
    ("row", "method", "trainable", "total", "cell"),
    [
        (1, "backbone dict=mono D=256", 8 * 31_072_256, 8 * 31_072_256, "8×31.1/8×31.1"),
        (2, "backbone dict=multi D=256", 32_096_256, 32_096_256, "32.1/32.1"),
        (3, "houlsby dict=multi D=256 enc=0 dec=64", 1_612_800, 33_709_056, "8×0.2/33.7"),
        (4, "houlsby dict=multi D=256 enc=64 dec=64", 8 * 604_800, 36_934_656, "8×0.6/36.9"),
        (5, "houlsby dict=multi D=256 enc=0 dec=128", 8 * 398_592, 35_284_992, "8×0.4/35.3"),
        (6, "houlsby dict=multi D=256 enc=128 dec=128", 8 * 1_195_776, 41_662_464, "8×1.2/41.7"),
        (7, "decoder dict=multi D=256", 8 * 14_593_024, 8 * 32_096_256, "8×14.6/8×32.1"),
        (8, "full dict=multi D=256", 8 * 32_096_256, 8 * 32_096_256, "8×32.1/8×32.1"),
    ],
)
def test_parameters_are_written_as_in_the_paper(row, method, trainable, total, cell):
    assert parameter_cell(counted(method, trainable, total), 8) == cell
    paper = yaml.safe_load((EGS / "mini_europe/st1/conf/results.yaml").read_text(encoding="utf-8"))["paper"]
    printed = dict(zip(paper["columns"], next(cells for cells in paper["rows"] if cells[0] == row), strict=True))
    assert printed["params (M) trainable/total"] == cell
    assert [str(printed[key]) for key in ("Dict", "D", "d", "ENC", "DEC", "FT")] == setting_cells(settings(method))


def test_parameters_of_one_pair_and_of_tiny_models():
    assert parameter_cell(counted("houlsby dict=multi enc=0 dec=64", 201_600, 32_297_856), 1) == "0.2/32.3"
    assert parameter_cell(counted("backbone dict=mono", 31_072_256, 31_072_256), 1) == "31.1/31.1"
    assert parameter_cell(counted("houlsby dict=multi enc=8 dec=8", 8 * 33_600, 2_000_000), 8) == "8×0.034/2.0"


def test_settings():
    assert setting_cells(settings("houlsby dict=multi D=64 enc=64 dec=32")) == ["multi", "64", "64/32", "✓", "✓", "-"]
    assert setting_cells(settings("houlsby dict=multi D=64 enc=16 dec=0")) == ["multi", "64", "16", "✓", "-", "-"]
    assert setting_cells(settings("backbone")) == ["-"] * 6


def test_the_table_has_the_papers_shape(results):
    table = rows(make_table(results, "test", NAMES, PAIRS), "## BLEU")
    head = ["Dict", "D", "d", "ENC", "DEC", "FT", "params (M) trainable/total", "de", "es", "avg"]
    assert table == {
        "row": head,
        "training hours": [*[""] * 7, "408", "504", ""],
        "1": ["mono", "256", "-", "-", "-", "-", "2×31.1/2×31.1", "22.16†", "30.42", "26.29"],
        "2": ["multi", "256", "-", "-", "-", "-", "32.1/32.1", "22.37", "30.40", "26.39"],
        # 31.074 and 31.071 are the same as shown, so both are best
        "3": ["multi", "256", "64", "-", "✓", "-", "2×0.2/32.5", "22.75\\*", "**31.07**", "26.91"],
        "8": ["multi", "256", "-", "-", "-", "all", "2×32.1/2×32.1", "**23.13**", "**31.07**", "**27.10**"],
    }


def test_what_the_marks_mean(results):
    text = make_table(results, "test", NAMES, PAIRS)
    assert "\\* better and † worse than row 2: the paired 95 % interval of the difference excludes zero." in text
    assert "`avg` is unweighted, over en-de en-es." in text and "`2×`: each of the 2 pairs" in text
    # a row that is compared with another one, and a row compared with two: the first in the table counts
    more = [bleu_line("8", "en-de", 23.13 - 22.75, "bleu_minus_3", lo=0.1, hi=1.0)]
    more.append(bleu_line("3", "en-de", 22.75 - 22.16, "bleu_minus_1", lo=-1.0, hi=1.0))
    text = make_table([*results, *more], "test", NAMES, PAIRS)
    assert "worse than the row it is compared with (1 against 2, 3 against 1, 8 against 3):" in text
    table = rows(text, "## BLEU")
    assert table["3"][7] == "22.75" and table["8"][7] == "**23.13**\\*"
    # nothing compared: no legend
    plain = [found for found in results if "minus" not in found["metric"]]
    assert "better" not in make_table(plain, "test", NAMES, PAIRS)


def test_older_lines_give_the_same_page(results, tmp_path):
    path = tmp_path / "results.jsonl"
    older = [{key: line[key] for key in KEYS if key in OLD_KEYS} | {"method": method_of(line)} for line in results]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in older))
    assert make_table(read_results(path), "test", NAMES, PAIRS) == make_table(results, "test", NAMES, PAIRS)
    assert "| houlsby dict=multi D=256 enc=0 dec=64 |" in make_table(read_results(path)).replace("  ", "")


def test_stale_comparisons_mark_nothing(results):
    again = [*results, bleu_line("3", "en-de", 25.0)]
    table = rows(make_table(again, "test", NAMES, PAIRS), "## BLEU")
    assert table["3"][7:] == ["**25.00**", "**31.07**", "-"]
    assert "No mean for 3:" in make_table(again, "test", NAMES, PAIRS)


def test_other_sections(results):
    text = make_table(results, "test", NAMES, PAIRS, around=Around(chart="RESULTS.png"))
    assert "![BLEU against trainable parameters](RESULTS.png)" in text and "scorer: `BLEU|nrefs:1`" in text
    assert rows(text, "The rows")["3"] == ["adapters", "403,200", "32,499,456"]
    assert rows(text, "95 % intervals") == {
        "": ["de", "es", "avg"],
        "1": ["20.66 to 24.16", "28.92 to 32.42", "24.79 to 28.29"],
        "2": ["20.87 to 24.37", "28.90 to 32.40", "24.89 to 28.39"],
        "3": ["21.25 to 24.75", "29.57 to 33.07", "25.41 to 28.91"],
        "8": ["21.63 to 25.13", "29.57 to 33.07", "25.60 to 29.10"],
    }
    chrf = rows(text, "## chrF2")
    assert chrf["row"] == ["de", "es", "avg"] and chrf["8"] == ["**46.26**", "62.14", "**54.20**"]
    compared = rows(text, "### 3 against 2")
    assert compared["de"] == ["22.37", "22.75", "+0.38", "+0.10 to +0.70", "better"]
    assert compared["avg"] == ["26.39", "26.91", "+0.53", "-0.10 to +0.10", "not clear"]
    assert "Difference in BLEU on the same utterances, in points (positive: better)" in text
    limited = rows(text, "## Hypotheses at the length limit")
    assert limited["of"] == ["50", "50", ""] and limited["2"] == ["3", "0", "1.5"]


@pytest.mark.parametrize(
    ("hours", "shown"),
    [((0.913, 0.913), "0.91"), ((12.34, 12.34), "12.3"), ((408.2, 408.4), "408"), ((10.0, 20.0), "10.0 to 20.0")],
)
def test_training_hours(hours, shown):
    lines = [bleu_line(name, "en-de", 20.0) for name in ("1", "2")]
    lines += [bleu_line(name, "en-de", value, "train_hours") for name, value in zip(("1", "2"), hours, strict=True)]
    assert rows(make_table(lines), "## BLEU")["training hours"][7:] == [shown]


def test_one_pair(tmp_path, capsys):
    figures = {"bleu": 7.126, "chrf": 30.0, "limited": 4}
    lines = [bleu_line("2", "mb-fr", value, metric) for metric, value in figures.items()]
    text = make_table(lines, "test", NAMES, ["mb-fr"])
    table = rows(text, "## BLEU")
    assert table["row"][6:] == ["params (M) trainable/total", "mb-fr"]
    assert table["training hours"][7:] == [""] and table["2"][6:] == ["32.1/32.1", "7.13"]
    assert rows(text, "## Hypotheses at the length limit") == {"row": ["mb-fr"], "of": ["50"], "2": ["4"]}
    for absent in ("avg", "×", "bold", "Paired"):
        assert absent not in text
    make_chart(lines, tmp_path / "chart.png", "test", NAMES, ["mb-fr"])
    print_table(lines)
    printed = [row.split() for row in capsys.readouterr().out.splitlines() if row and not row.startswith("-")]
    assert printed == [["BLEU", "test", "mb-fr"], ["2", "7.13"], ["chrF2", "test", "mb-fr"], ["2", "30.00"]]


def test_sections_without_figures_are_left_out():
    text = make_table([bleu_line("2", "en-de", 20.0)])
    assert [row for row in text.splitlines() if row.startswith("## ")] == ["## BLEU", "## How these numbers were made"]


def test_the_same_lines_give_the_same_bytes(results, tmp_path):
    pages, charts = [], []
    for number in range(2):
        pages.append(make_table(results, "test", NAMES, PAIRS))
        make_chart(results, tmp_path / f"{number}.png", "test", NAMES, PAIRS)
        charts.append((tmp_path / f"{number}.png").read_bytes())
    assert pages[0] == pages[1]
    assert charts[0] == charts[1] and charts[0].startswith(b"\x89PNG") and len(charts[0]) < 100_000


def test_the_chart_has_a_labelled_point_for_each_row(results):
    axes = chart(select(results, "test", NAMES, PAIRS)).axes[0]
    assert axes.get_xscale() == "log"
    points = {text.get_text(): text.xy for text in axes.texts}
    assert points == {name: (METHODS[name][1], round(mean(values), 4)) for name, values in BLEU.items()}
    labels = axes.get_legend_handles_labels()[1]
    assert labels == [f"{name} {description}" for name, description in NAMES.items()]


@pytest.mark.parametrize("recipe", ["mini_europe", "must_c"])
def test_paper_figures(recipe):
    page = yaml.safe_load((EGS / recipe / "st1/conf/results.yaml").read_text(encoding="utf-8"))
    paper = page["paper"]
    assert page["note"] and all(len(row) == len(paper["columns"]) == 17 for row in paper["rows"])
    hours, *experiments = paper["rows"]
    assert hours[8:16] == [408, 504, 492, 465, 442, 385, 432, 489]
    for row in experiments:
        assert all(len(str(cell)) == 5 for cell in row[8:])  # two decimals, as printed
        assert mean([float(cell) for cell in row[8:16]]) == pytest.approx(float(row[16]), abs=0.0051)
        assert float(row[9]) > float(row[10])  # Spanish above French: what the note says of the set
    assert [row[0] for row in experiments] == list(range(1, 9))
    table = rows(make_table([bleu_line("2", "en-de", 1.0)], around=Around(paper=paper)), f"## {paper['title']}")
    assert table["8"][-1] == "24.90"


@pytest.mark.parametrize("counts", [[1_300_000], [200_000, 10_000_000], [200_000, 900_000_000]])
def test_a_chart_has_parameters_in_millions(counts):
    """Also of one row, which has its number beside it: ticks on both sides of it or near, and BLEU from zero."""
    lines = [bleu_line("23"[n], "mb-fr", 0.34) | {"trainable_parameters": count} for n, count in enumerate(counts)]
    figure = chart(select(lines))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    lowest, highest = axes.get_xlim()
    ticks = {text.get_text() for text in axes.get_xticklabels() if lowest <= text.get_position()[0] <= highest}
    assert len(ticks) >= 2 and all(float(text) == round(float(text), 1) for text in ticks)
    if len(counts) == 1:
        assert [text.get_text() for text in axes.texts] == ["2: 0.34"] and axes.get_ylim()[0] == 0
