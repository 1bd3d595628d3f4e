"""The page that compares methods: their figures, what they cost, and the learning rates that were tried."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from pelasr.report.grid import Grid, Line, Measure
from pelasr.report.sections import COLOURS, comparisons, markdown, rates
from pelasr.score.results import TOTAL

TRIED = re.compile(r"dev_(.+)_at_lr_(.+)")  # metric of a dev figure of a learning rate


def sections(grid: Grid, measure: Measure, baseline: str, test_set: str, chart: str) -> list[str]:
    """Figures, chart, costs, learning rates and paired comparisons. `baseline`: what the others are compared with."""
    parts = rates(grid, test_set, measure)
    parts += [f"![{measure.name} against parameters of a language]({chart})"] if chart else []
    return parts + _costs(grid, baseline) + _learning_rates(grid) + comparisons(grid, measure)


def _cost(grid: Grid, name: str, metric: str) -> Line | None:
    return grid.lines.get((name, TOTAL, metric))


def _costs(grid: Grid, baseline: str) -> list[str]:
    """The table of what methods cost."""
    rows = []
    for name, description in grid.experiments.items():
        rows.append([name, description, *_cells(grid, name, baseline)])
    wheres = dict.fromkeys(line["scorer"] for (_, _, metric), line in grid.lines.items() if metric == "fit_seconds")
    text = (
        "Parameters and bytes of one language's pack. The time of the fit of all languages with the learning rate that"
        " was chosen, steps and validations without the start; what was lost by interruptions is left out. Peak memory"
        " of the process on a CPU, of what torch allocated on a GPU. Decoding: seconds, of the processor on a CPU, in"
        f" encoder and search for this set, over those of {baseline}. Of several seeds the first."
    )
    if wheres:
        text += f" Measured by {'; '.join(wheres)} for each fit; other fits may have run beside it."
    headers = ["", "method", "parameters", "of the backbone (%)", "pack (bytes)", "fit (h:mm:ss)", "memory (MB)"]
    return ["## Costs", text, markdown([*headers, f"decoding / {baseline}", "learning rate", "seeds"], rows)]


def _cells(grid: Grid, name: str, baseline: str) -> list[str]:
    parameters, backbone = (_cost(grid, name, metric) for metric in ("language_parameters", "backbone_parameters"))
    share = f"{100 * parameters['value'] / backbone['value']:.3g}" if parameters and backbone else "-"
    time, memory, rate = (_cost(grid, name, metric) for metric in ("fit_seconds", "fit_memory_mb", "lr"))
    return [
        _count(parameters),
        share,
        _count(_cost(grid, name, "pack_bytes")),
        str(timedelta(seconds=round(time["value"]))) if time else "-",
        f"{memory['value']:.0f}" if memory else "-",
        _ratio(_cost(grid, name, "decode_seconds"), _cost(grid, baseline, "decode_seconds")),
        f"{rate['value']:g}" if rate else "-",
        _seeds(grid, name),
    ]


def _count(line: Line | None) -> str:
    """A count, or the smallest and the largest of the languages."""
    return "-" if line is None else " to ".join(dict.fromkeys(f"{line[key]:,.0f}" for key in ("lo", "hi")))


def _ratio(line: Line | None, other: Line | None) -> str:
    """How many times as long it takes; nothing where the two were not measured alike."""
    if line is None or other is None or not other["value"]:
        return "-"
    alike = all(line[key] == other[key] for key in ("scorer", "utterances", "beam", "lm"))
    return f"{line['value'] / other['value']:.2f}" if alike else "- (not measured alike)"


def _seeds(grid: Grid, name: str) -> str:
    found = [lines for (experiment, _, _), lines in grid.seeds.items() if experiment == name]
    lines = found[0] if found else [line for (experiment, _, _), line in grid.lines.items() if experiment == name][:1]
    return " ".join(str(line["seed"]) for line in lines)


def _learning_rates(grid: Grid) -> list[str]:
    """The table of the learning rates that were fitted."""
    rows, edges = [], []
    for name in grid.experiments:
        tried = _tried(grid, name)
        chosen = _cost(grid, name, "lr")
        if not tried or chosen is None:
            continue
        for rate, (metric, line) in sorted(tried.items()):
            epochs, seconds = (_cost(grid, name, f"{what}_at_lr_{rate:g}") for what in ("epochs", "seconds"))
            shown = f"{line['value']:.2f}"
            rows.append(
                [
                    name,
                    f"{rate:g}",
                    metric.upper(),
                    f"**{shown}**" if rate == chosen["value"] else shown,
                    f"{epochs['value']:.0f}" if epochs else "-",
                    f"{seconds['value']:.0f}" if seconds else "-",
                    "✓" if rate == chosen["value"] else "",
                ]
            )
        if len(tried) > 1 and chosen["value"] in (min(tried), max(tried)):
            edges.append(name)
    if not rows:
        return []
    text = "Mean over languages on dev, of the first seed; the best one's packs are those of the method."
    if edges:
        text += f" The best is at an end of what was tried, so a better one may lie outside: {', '.join(edges)}."
    headers = ["method", "learning rate", "dev", "figure", "epochs", "seconds", "chosen"]
    return ["## Learning rates", text, markdown(headers, rows)]


def _tried(grid: Grid, name: str) -> dict[float, tuple[str, Line]]:
    """{learning rate: (metric, its line)} of an experiment."""
    found = {}
    for (experiment, _, metric), line in grid.lines.items():
        match = TRIED.fullmatch(metric)
        if experiment == name and match:
            found[float(match[2])] = match[1], line
    return found


def papers(found: Sequence[Mapping[str, Any]], order: str) -> list[str]:
    """Published tables, and a sentence on where their order is that of this page."""
    if not found:
        return []
    parts = ["## Published figures, not comparable", "Other data, other backbones, other heads. " + order]
    for paper in found:
        parts += [f"### {paper['title']}", f"Source: {paper['source']}.", markdown(paper["columns"], paper["rows"])]
        parts.append(paper.get("note", ""))
    return parts


def scatter(grid: Grid, measure: Measure) -> Any:
    """A matplotlib figure of a measure, with its 95 % interval, against the parameters of a language: a point for each
    method; what has no parameters of a language's own is a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(8.0, 5.0), dpi=100, layout="constrained")
    axes = figure.subplots()
    column = "mean" if "mean" in grid.columns else grid.columns[0]
    labels: list[Any] = []
    for number, name in enumerate(grid.experiments):
        line, size = grid.get(name, column, measure.metric), _cost(grid, name, "language_parameters")
        colour = COLOURS[number % len(COLOURS)]
        if line and size:
            x, y = size["value"], line["value"]
            axes.plot([x, x], [line["lo"], line["hi"]], color=colour, marker="_")
            axes.plot([x], [y], color=colour, marker="o", markeredgecolor="black", linestyle="none")
            look: Any = {"textcoords": "offset points", "arrowprops": {"arrowstyle": "-", "linewidth": 0.4}}
            labels.append(axes.annotate(name, (x, y), xytext=(6, 4), **look))
        elif line:
            axes.axhline(line["value"], color="#666666", linestyle="--", linewidth=1)
            axes.axhspan(line["lo"], line["hi"], color="#666666", alpha=0.1, linewidth=0)
            place: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate(name, (0.01, line["value"]), xytext=(0, 4), **place)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    sizes = [size["value"] for name in grid.experiments if (size := _cost(grid, name, "language_parameters"))]
    few = not sizes or max(sizes) < 100 * min(sizes)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.set_xlabel("parameters of a language")
    shown = f"mean of {len(grid.languages)} languages" if column == "mean" else column
    axes.set_ylabel(f"{measure.label}, {shown}, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    _spread(figure, labels)
    return figure


def _spread(figure: Any, labels: list[Any]) -> None:
    """Move labels of points up until none lies on another."""
    figure.draw_without_rendering()
    placed: list[Any] = []
    for label in labels:
        while any(_text_box(label).overlaps(other) for other in placed):
            x, y = label.xyann
            label.xyann = (x, y + 3)
        placed.append(_text_box(label))


def _text_box(label: Any) -> Any:
    """Where the words are, without the line to the point."""
    from matplotlib.text import Text

    return Text.get_window_extent(label)
