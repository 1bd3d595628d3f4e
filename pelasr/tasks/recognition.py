"""Recognition's part of a results page: error rates by language, and a chart of bars."""

from typing import Any

from pelasr.report.grid import Grid, Measure
from pelasr.report.sections import COLOURS, comparisons, intervals, markdown, numbers, parameters, without_mean

WER = Measure("wer", "WER", "%", 1, False, "negative: fewer errors")
CER = Measure("cer", "CER", "%", 1, False, "negative: fewer errors")
MEASURES = [WER, CER]
FEW, WIDEST = 6, 0.4  # bars of one experiment that have their numbers beside them; width of a bar at most
UNITS = {"wer": "words", "cer": "characters, spaces included"}


def sections(grid: Grid, test_set: str, chart: str) -> list[str]:
    """WER with its chart, CER and paired comparisons."""
    parts = []
    for measure in MEASURES:
        parts += _rates(grid, test_set, measure)
        if measure is WER and chart:
            parts.append(f"![WER by language and experiment]({chart})")
    return parts + comparisons(grid, WER)


def _rates(grid: Grid, test_set: str, measure: Measure) -> list[str]:
    """The section of a metric: rates with the best of each column in bold and parameter counts, then intervals."""
    if not grid.has(measure.metric):
        return []
    rates = []
    for name, description in grid.experiments.items():
        cells = grid.row(name, measure.metric).values()
        counts = [parameters(cells, which) for which in ("trainable", "total")]
        rates.append([name, description, *numbers(grid, measure, name).values(), *counts])
    text = f"Edits over reference {UNITS[measure.metric]}, summed over the set `{test_set}`."
    text += " The best of each column is bold." if any(grid.best(measure).values()) else ""
    if "mean" in grid.columns:
        text += f" `mean` is unweighted, over {' '.join(grid.languages)}."
    headers = ["", "experiment", *grid.headings.values(), "trainable parameters", "total parameters"]
    heading = f"## {measure.name} ({measure.unit})"
    return [heading, text, markdown(headers, rates), *without_mean(grid, measure), *intervals(grid, measure)]


def chart(grid: Grid) -> Any:
    """A matplotlib figure of WER by language, one bar with its 95 % interval for each experiment."""
    from matplotlib.figure import Figure

    few = len(grid.experiments) == 1 and len(grid.columns) <= FEW
    figure = Figure(figsize=(max(5.0, 1.1 * len(grid.columns) + 2), 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    width = min(0.85 / len(grid.experiments), WIDEST)
    for number, (name, description) in enumerate(grid.experiments.items()):
        shift = (number - (len(grid.experiments) - 1) / 2) * width
        found = [(x + shift, grid.get(name, column, "wer")) for x, column in enumerate(grid.columns)]
        bars = [(x, line["value"], line["value"] - line["lo"], line["hi"] - line["value"]) for x, line in found if line]
        if bars:
            x, value, below, above = zip(*bars, strict=True)
            look = {"color": COLOURS[number % len(COLOURS)], "edgecolor": "black", "linewidth": 0.4}
            look["hatch"] = "//" * (number // len(COLOURS))
            look["error_kw"] = {"capsize": 4 * few}
            axes.bar(x, value, width, yerr=(below, above), ecolor="black", label=f"{name} {description}", **look)
            for place, height in zip(x, value, strict=True) if few else ():
                shown = f"{height:.{WER.decimals}f}"
                axes.annotate(shown, (place, height), xytext=(-6, 3), textcoords="offset points", ha="right")
    axes.set_xticks(range(len(grid.columns)), grid.columns)
    margin = 0.5 if len(grid.columns) > 1 else 1.0  # a single bar is not to fill the picture
    axes.set_xlim(-margin, len(grid.columns) - 1 + margin)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("WER (%), 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure
