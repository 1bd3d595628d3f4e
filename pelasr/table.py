"""RESULTS.md, its chart and the terminal table, made from result lines alone.

Shown is the latest line of each (experiment, set, language, metric). Nothing depends on the time of the call: the same
lines give the same bytes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pelasr.errors import PelasrError
from pelasr.files import atomic_write
from pelasr.results import latest

PAIRED = "wer_minus_"
# Okabe and Ito's palette, told apart with any colour vision.
COLOURS = ["#999999", "#0072B2", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#F0E442"]


@dataclass(frozen=True)
class Grid:
    """The lines of one set, keyed by (experiment, language, metric), in the order of a table.

    `experiments`: {name: description}. `languages`: the recipe's, which the mean is over. `columns`: these, `mean` when
    there are several, then languages that were scored but are outside the mean (added to the model later).
    """

    lines: dict[tuple[str, str, str], dict[str, Any]]
    experiments: dict[str, str]
    languages: list[str]
    columns: list[str]

    def get(self, experiment: str, column: str, metric: str) -> dict[str, Any] | None:
        """The line of a cell. None when it was not scored, and for a mean that is not the mean of the row."""
        line = self.lines.get((experiment, column, metric))
        if line is None or column != "mean":
            return line
        parts = [self.lines.get((experiment, language, metric)) for language in self.languages]
        if None in parts:
            return None
        mean = math.fsum(part["value"] for part in parts) / len(parts)
        return line if abs(mean - line["value"]) < 1e-3 else None  # values have four decimals


def select(
    results: Sequence[Mapping[str, Any]],
    test_set: str = "test",
    experiments: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
) -> Grid:
    """The latest lines of a set as a Grid.

    `experiments`: {name: short description} in the order of the rows; others follow by name, described by their method.
    `languages`: the recipe's, in its order; by default all that were scored. Raises PelasrError for a set without
    results.
    """
    lines = {key[:1] + key[2:]: line for key, line in latest(results).items() if key[1] == test_set}
    if not lines:
        sets = ", ".join(sorted({line["set"] for line in results})) or "none"
        raise PelasrError(f"no results for the set {test_set}; sets with results: {sets}; score it first")
    methods = {name: line["method"] for (name, _, _), line in sorted(lines.items())}
    named = {name: text for name, text in (experiments or {}).items() if name in methods}
    scored = list(dict.fromkeys(language for _, language, _ in lines if language != "mean"))
    inside = list(languages or scored)
    columns = inside + ["mean"] * (len(inside) > 1) + [name for name in scored if name not in inside]
    return Grid(lines, named | {name: text for name, text in methods.items() if name not in named}, inside, columns)


def read_times(path: str | Path) -> list[dict[str, Any]]:
    """Lines of `times.jsonl` (stage, command, seconds, max_rss_mb, started, host); empty when there is no file."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def make_table(
    results: Sequence[Mapping[str, Any]],
    test_set: str = "test",
    experiments: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
    *,
    title: str = "Results",
    note: str = "",
    environment: Mapping[str, str] | None = None,
    times: Sequence[Mapping[str, Any]] = (),
    paper: Mapping[str, Any] | None = None,
    chart: str = "",
) -> str:
    """The text of RESULTS.md.

    `test_set`, `experiments`, `languages`: see `select`. `note`: what a reader must know of the data. `environment`:
    as `pelasr.environment.environment` gives it. `times`: see `read_times`. `paper`: published figures with the keys
    title, source, columns, rows, note. `chart`: the chart's file name, as seen from RESULTS.md. What is empty has no
    section.
    """
    grid = select(results, test_set, experiments, languages)
    parts = [f"# {title}", note, *_provenance(grid, environment or {}, times)]
    for metric in ("wer", "cer"):
        parts += _rates(grid, test_set, metric)
        if metric == "wer" and chart:
            parts.append(f"![WER by language and experiment]({chart})")
    parts += _comparisons(grid)
    if paper:
        source = f"Source: {paper['source']}."
        parts += [f"## {paper['title']}", source, _markdown(paper["columns"], paper["rows"]), paper.get("note", "")]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def print_table(
    results: Sequence[Mapping[str, Any]],
    test_set: str = "test",
    experiments: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
) -> None:
    """Print the WER and CER of a set to the terminal."""
    from tabulate import tabulate

    grid = select(results, test_set, experiments, languages)
    columns = grid.columns
    for metric in ("wer", "cer"):
        rows = [[name, *(_number(grid.get(name, column, metric)) for column in columns)] for name in grid.experiments]
        align = ["left"] + ["right"] * len(columns)
        print(tabulate(rows, [f"{metric.upper()} % {test_set}", *columns], disable_numparse=True, colalign=align))
        print()


def make_chart(
    results: Sequence[Mapping[str, Any]],
    path: str | Path,
    test_set: str = "test",
    experiments: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
) -> None:
    """Write a PNG of WER by language, one bar with its 95 % interval for each experiment."""
    from matplotlib.figure import Figure

    grid = select(results, test_set, experiments, languages)
    figure = Figure(figsize=(max(5.0, 1.1 * len(grid.columns) + 2), 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(grid.experiments)
    for number, (name, description) in enumerate(grid.experiments.items()):
        shift = (number - (len(grid.experiments) - 1) / 2) * width
        found = [(x + shift, grid.get(name, column, "wer")) for x, column in enumerate(grid.columns)]
        bars = [(x, line["value"], line["value"] - line["lo"], line["hi"] - line["value"]) for x, line in found if line]
        if bars:
            x, value, below, above = zip(*bars, strict=True)
            look = {"color": COLOURS[number % len(COLOURS)], "edgecolor": "black", "linewidth": 0.4}
            look["hatch"] = "//" * (number // len(COLOURS))
            axes.bar(x, value, width, yerr=(below, above), ecolor="black", label=f"{name} {description}", **look)
    axes.set_xticks(range(len(grid.columns)), grid.columns)
    axes.set_ylabel("WER (%), 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", metadata={"Software": None})


def _provenance(grid: Grid, environment: Mapping[str, str], times: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section on how the numbers were made."""
    facts = {key: str(value) for key, value in environment.items()}
    labels = {"scorer": "scorer", "seed": "seed", "data_sha256": "data sha256", "commit": "scored at commit"}
    for key, label in labels.items():
        facts[label] = ", ".join(sorted({str(line[key]) for line in grid.lines.values()}))
    parts = ["## How these numbers were made", "\n".join(f"- {key}: `{value}`" for key, value in facts.items())]
    if times:
        rows = []
        for run in times:
            cost = [timedelta(seconds=round(run["seconds"])), round(run["max_rss_mb"])]
            rows.append([run["stage"], run["started"], run["host"], *cost])
        commands = dict.fromkeys(run["command"] for run in times)
        parts.append("Each run of a stage, in order:")
        parts.append(_markdown(["stage", "started", "host", "wall time", "peak memory (MB)"], rows))
        parts.append("The commands:\n\n```sh\n" + "\n".join(commands) + "\n```")
    return parts


def _rates(grid: Grid, test_set: str, metric: str) -> list[str]:
    """The section of a metric: rates with the best of each column in bold and parameter counts, then intervals."""
    if not any(grid.get(name, column, metric) for name in grid.experiments for column in grid.columns):
        return []
    best = {column: _best(grid, column, metric) for column in grid.columns}
    rates, intervals, no_mean = [], [], []
    for name, description in grid.experiments.items():
        cells = {column: grid.get(name, column, metric) for column in grid.columns}
        numbers = {column: _number(line) for column, line in cells.items()}
        shown = [f"**{number}**" if number == best[column] else number for column, number in numbers.items()]
        rates.append([name, description, *shown, _parameters(cells, "trainable"), _parameters(cells, "total")])
        intervals.append([name, *(_interval(line) for line in cells.values())])
        if (name, "mean", metric) in grid.lines and not cells.get("mean"):
            no_mean.append(name)
    unit = {"wer": "words", "cer": "characters, spaces included"}[metric]
    text = f"Edits over reference {unit}, summed over the set `{test_set}`."
    text += " The best of each column is bold." if any(best.values()) else ""
    if "mean" in grid.columns:
        text += f" `mean` is unweighted, over {' '.join(grid.languages)}."
    parts = [f"## {metric.upper()} (%)", text]
    parts.append(_markdown(["", "experiment", *grid.columns, "trainable parameters", "total parameters"], rates))
    if no_mean:
        parts.append(
            f"No mean for {', '.join(no_mean)}: it was scored over other languages. Score all of them together."
        )
    parts += [
        "95 % intervals, bootstrap over utterances (another training seed may move a figure by more):",
        _markdown(["", *grid.columns], intervals),
    ]
    return parts


def _best(grid: Grid, column: str, metric: str) -> str:
    """The lowest number of a column as it is shown; nothing when there is none to compare it with."""
    lines = [line for name in grid.experiments if (line := grid.get(name, column, metric))]
    return _number(min(lines, key=lambda line: line["value"])) if len(lines) > 1 else ""


def _comparisons(grid: Grid) -> list[str]:
    """The section of paired comparisons: one table for each pair of experiments."""
    pairs = dict.fromkeys((name, metric) for name, _, metric in grid.lines if metric.startswith(PAIRED))
    parts = []
    for name, metric in pairs:
        other, rows = metric.removeprefix(PAIRED), []
        for column in grid.columns:
            line, *sides = (grid.get(name, column, metric), *(grid.get(side, column, "wer") for side in (other, name)))
            # A difference that is not that of the rates was measured before one of them was.
            if line and None not in sides and abs(sides[1]["value"] - sides[0]["value"] - line["value"]) < 1e-3:
                shown = f"{line['value']:+z.1f}", _interval(line, "+"), _verdict(line)
                rows.append([column, *map(_number, sides), *shown])
        parts.append(f"### {name} against {other}")
        parts.append(_markdown(["", other, name, "difference", "95 % interval", f"{name} is"], rows))
    if parts:
        text = "Difference in WER on the same utterances, in points (negative: fewer errors), by paired bootstrap."
        parts[:0] = ["## Paired comparisons", text + " `not clear`: the 95 % interval holds zero."]
    return parts


def _verdict(line: Mapping[str, Any]) -> str:
    if line["lo"] <= 0 <= line["hi"]:
        return "not clear"
    return "better" if line["hi"] < 0 else "worse"


def _parameters(cells: Mapping[str, Mapping[str, Any] | None], which: str) -> str:
    """A parameter count, or the smallest and largest when the languages' lines differ."""
    counts = {line[f"{which}_parameters"] for line in cells.values() if line}
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) if counts else "-"


def _number(line: Mapping[str, Any] | None) -> str:
    return f"{line['value']:.1f}" if line else "-"


def _interval(line: Mapping[str, Any] | None, sign: str = "") -> str:
    return f"{line['lo']:{sign}z.1f} to {line['hi']:{sign}z.1f}" if line else "-"


def _markdown(headers: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    from tabulate import tabulate

    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(cells, [str(header) for header in headers], tablefmt="github", disable_numparse=True)
