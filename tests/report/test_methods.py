"""The page that compares methods, and means over seeds in tables, from hand-made lines."""

from itertools import combinations

import pytest
from matplotlib.text import Text
from result_lines import line, rows

from pelasr.report.grid import select
from pelasr.report.methods import papers, scatter, sections
from pelasr.report.sections import comparisons, rates
from pelasr.score.results import TOTAL
from pelasr.tasks.recognition import WER

NAMES = {"A1": "the backbone", "lora": "LoRA", "houlsby": "bottleneck"}
CPU = "pelasr 0.1.0, cpu, 1 thread"


def cost(experiment, metric, value, lo=None, hi=None, **changed):
    bounds = {"lo": value if lo is None else lo, "hi": value if hi is None else hi, "task": "recognition"}
    return line(experiment, TOTAL, value, metric, **(bounds | {"scorer": CPU, "utterances": 10} | changed))


def figures(experiment, hi, ta, **changed):
    values = {"hi": hi, "ta": ta, "mean": (hi + ta) / 2}
    return [line(experiment, key, value, **changed) for key, value in values.items()]


@pytest.fixture
def results():
    found = [*figures("A1", 30.0, 40.0), *figures("lora", 28.0, 38.0), *figures("houlsby", 20.0, 32.0)]
    found += [cost("A1", "decode_seconds", 2.0), cost("lora", "decode_seconds", 2.5)]
    found += [cost("houlsby", "decode_seconds", 3.0, scorer="pelasr 0.1.0, cpu, 2 threads")]
    for name, size, spread in (("lora", 500.0, 0.0), ("houlsby", 1234.5, 0.5)):
        found += [cost(name, "language_parameters", size, size - spread, size + spread), cost(name, "lr", 0.001)]
        found += [cost(name, "backbone_parameters", 10000), cost(name, "pack_bytes", 4321)]
        found += [cost(name, "fit_seconds", 3725.2), cost(name, "fit_memory_mb", 640)]
    for rate, dev in ((0.0001, 31.0), (0.001, 22.222), (0.01, 25.0)):
        at = f"at_lr_{rate:g}"
        found += [cost("houlsby", f"dev_wer_{at}", dev), cost("houlsby", f"epochs_{at}", 7)]
        found += [cost("houlsby", f"seconds_{at}", 11.4)] * (rate != 0.01)
    found += [cost("lora", f"dev_cer_at_lr_{rate}", dev) for rate, dev in (("0.001", 9.0), ("0.0001", 9.5))]
    return found


def page(results):
    grid = select(results, "test", NAMES, ["hi", "ta"])
    return grid, "\n\n".join(sections(grid, WER, "A1", "test", "chart.png"))


def test_costs(results):
    grid, text = page(results)
    assert grid.columns == ["hi", "ta", "mean"]  # what is about no language is none
    found = rows(text, "## Costs")
    assert found["A1"] == ["the backbone", "-", "-", "-", "-", "-", "1.00", "-", "1"]
    assert found["lora"] == ["LoRA", "500", "5", "4,321", "1:02:05", "640", "1.25", "0.001", "1"]
    assert found["houlsby"][1:3] == ["1,234 to 1,235", "12.3"]
    assert found["houlsby"][6] == "- (not measured alike)"  # on more threads
    assert f"Measured by {CPU} for each fit" in text and "![WER against parameters of a language](chart.png)" in text


@pytest.mark.parametrize("how", [{"beam": 1}, {"lm": "words.arpa weight=0.5 bonus=1.5"}])
def test_decodings_by_other_searches_are_not_compared(results, how):
    _, text = page([*results, cost("A1", "decode_seconds", 1.0, **how)])
    assert rows(text, "## Costs")["lora"][6] == "- (not measured alike)"


def test_learning_rates(results):
    _, text = page(results)
    table = [part.split("|")[1:-1] for part in text[text.index("## Learning rates") :].splitlines() if "0.0" in part]
    cells = [[cell.strip() for cell in row] for row in table]
    assert cells == [
        ["lora", "0.0001", "CER", "9.50", "-", "-", ""],
        ["lora", "0.001", "CER", "**9.00**", "-", "-", "✓"],
        ["houlsby", "0.0001", "WER", "31.00", "7", "11", ""],
        ["houlsby", "0.001", "WER", "**22.22**", "7", "11", "✓"],
        ["houlsby", "0.01", "WER", "25.00", "7", "-", ""],
    ]
    assert "so a better one may lie outside: lora.\n" in text


def test_without_costs_there_are_figures(results):
    _, text = page([each for each in results if each["language"] != TOTAL])
    assert "## Learning rates" not in text and rows(text, "## Costs")["lora"] == ["LoRA", *"-------", "1"]


def test_the_chart_has_a_point_for_each_method_and_a_line_for_the_backbone(results):
    axes = scatter(select(results, "test", NAMES, ["hi", "ta"]), WER).axes[0]
    points = [each.get_xydata().tolist() for each in axes.lines if each.get_marker() == "o"]
    assert points == [[[500, 33]], [[1234.5, 26]]] and axes.get_xscale() == "log"
    assert [each.get_text() for each in axes.texts] == ["A1", "lora", "houlsby"]
    bars = [list(each.get_ydata()) for each in axes.lines if each.get_marker() == "_"]
    assert bars == [[31.5, 35.0], [24.5, 28.0]]


def test_labels_in_the_chart_do_not_lie_on_each_other():
    """Of methods as good and as small as each other."""
    names = [f"method{number}" for number in range(6)]
    found = [each for name in names for each in figures(name, 20.0, 30.0)]
    found += [cost(name, "language_parameters", 1000 + number) for number, name in enumerate(names)]
    figure = scatter(select(found, "test", dict.fromkeys(names, ""), ["hi", "ta"]), WER)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(label) for label in figure.axes[0].texts]
    assert len(boxes) == 6 and not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_published_tables():
    paper = {"title": "T", "source": "S", "columns": ["a", "b"], "rows": [["x", "7.00"]], "note": "N"}
    text = "\n".join(papers([paper], "The order agrees."))
    assert text.startswith("## Published figures, not comparable") and "heads. The order agrees." in text
    assert "Source: S." in text and rows(text, "### T") == {"x": ["7.00"], "a": ["b"]} and "N" in text
    assert papers([], "") == []


def seeds(values=(30.0, 34.0, 35.0), mean=33.0):
    """Lines of A1 with three seeds, their mean, and of a comparison."""
    names = ["A1", "A1.seed1", "A1.seed7"]
    found = []
    for name, value, seed in zip(names, values, (0, 1, 7), strict=True):
        found += [line(name, "hi", value, seed=seed)]
        found += [line(name.replace("A1", "A5"), "hi", value - 2.0, seed=seed)]
        found += [line(name.replace("A1", "A5"), "hi", -2.0, f"wer_minus_{name}", seed=seed)]
    found += [line("A1.seeds", "hi", mean, seed=[0, 1, 7]), line("A5.seeds", "hi", 31.0, seed=[0, 1, 7])]
    return [*found, line("A5.seeds", "hi", -2.0, "wer_minus_A1.seeds", seed=[0, 1, 7], lo=-3.0, hi=-1.0)]


def test_a_cell_is_the_mean_over_seeds():
    grid = select(seeds(), "test", {"A1": "backbone", "A5": "adapters"}, ["hi"])
    assert list(grid.experiments) == ["A1", "A5"]  # seeds are no rows
    text = "\n".join([*rates(grid, "test", WER), *comparisons(grid, WER), ""])
    assert rows(text, "## WER")["A1"][:2] == ["backbone", "33.0"]
    assert "Of A1, A5: of the mean over training seeds" in text and "Of the others" not in text
    assert rows(text, "Of A1, A5")["A1"] == ["31.5 to 35.0"]
    assert rows(text, "Over training seeds")["A1"] == ["0 1 7", "33.0 ± 2.6 (30.0 to 35.0)"]
    assert rows(text, "### A5 against A1")["hi"] == ["33.0", "31.0", "-2.0", "-3.0 to -1.0", "better"]
    assert "the mean of the differences seed by seed" in text


@pytest.mark.parametrize(
    "stale",
    [
        seeds(mean=33.2),  # a seed was scored anew
        [each for each in seeds() if each["experiment"] != "A1.seed7"],
        [each | {"seed": 4} if each["experiment"] == "A1" else each for each in seeds()],  # trained with another
        [each for each in seeds() if each["experiment"] != "A1.seeds"],
    ],
)
def test_a_mean_of_other_lines_is_left_out(stale):
    grid = select(stale, "test", {"A1": "backbone", "A5": "adapters"}, ["hi"])
    assert grid.get("A1", "hi", "wer")["value"] == 30.0 and grid.get("A5", "hi", "wer")["value"] == 31.0
    text = "\n".join(rates(grid, "test", WER))
    assert "Of A5: of the mean" in text and "Of the others: bootstrap over utterances" in text
    assert "A1" not in rows(text, "Over training seeds")
