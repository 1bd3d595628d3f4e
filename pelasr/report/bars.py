"""The chart of a results page whose figures stand side by side: bars by language."""

from typing import Any

from pelasr.report.grid import Grid, Measure
from pelasr.report.sections import COLOURS

FEW, WIDEST = 6, 0.4  # bars of one experiment that have their numbers beside them; width of a bar at most


def bar_chart(grid: Grid, measure: Measure) -> Any:
    """A matplotlib figure of a measure by language, one bar with its 95 % interval for each experiment."""
    from matplotlib.figure import Figure

    few = len(grid.experiments) == 1 and len(grid.columns) <= FEW
    figure = Figure(figsize=(max(5.0, 1.1 * len(grid.columns) + 2), 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    width = min(0.85 / len(grid.experiments), WIDEST)
    for number, (name, description) in enumerate(grid.experiments.items()):
        shift = (number - (len(grid.experiments) - 1) / 2) * width
        found = [(x + shift, grid.get(name, column, measure.metric)) for x, column in enumerate(grid.columns)]
        bars = [(x, line["value"], line["value"] - line["lo"], line["hi"] - line["value"]) for x, line in found if line]
        if bars:
            x, value, below, above = zip(*bars, strict=True)
            look = {"color": COLOURS[number % len(COLOURS)], "edgecolor": "black", "linewidth": 0.4}
            look["hatch"] = "//" * (number // len(COLOURS))
            look["error_kw"] = {"capsize": 4 * few}
            axes.bar(x, value, width, yerr=(below, above), ecolor="black", label=f"{name} {description}", **look)
            for place, height in zip(x, value, strict=True) if few else ():
                shown = f"{height:.{measure.decimals}f}"
                axes.annotate(shown, (place, height), xytext=(-6, 3), textcoords="offset points", ha="right")
    axes.set_xticks(range(len(grid.columns)), grid.columns)
    margin = 0.5 if len(grid.columns) > 1 else 1.0  # a single bar is not to fill the picture
    axes.set_xlim(-margin, len(grid.columns) - 1 + margin)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{measure.label}, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure
