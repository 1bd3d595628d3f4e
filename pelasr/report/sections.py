"""Sections of a results page that tasks share, as parts of a Markdown text."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import chain
from statistics import fmean, stdev
from typing import Any

from pelasr.report.grid import Grid, Line, Measure
from pelasr.score.results import TOTAL

# Okabe and Ito's palette, told apart with any colour vision.
COLOURS = ["#999999", "#0072B2", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#F0E442"]


def corpus_section(corpus: Mapping[str, Any]) -> list[str]:
    """The section on the data, as `pelasr.report.corpus.write_corpus` has them."""
    sets = list(dict.fromkeys(name for group in corpus["languages"] for name in group["sets"]))
    rows = [[group["name"], *(_amount(group["sets"].get(name)) for name in sets)] for group in corpus["languages"]]
    text = "What was trained on and scored: utterances, hours of features, and speakers as far as they are known."
    if corpus["made_with"]:
        text += f" Stage 1 made the data with `{corpus['made_with']}`."
    return ["## The corpus", text, markdown(["", *sets], rows)]


def _amount(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    hours, speakers = found["hours"], found["speakers"]
    shown = "?" if hours is None else f"{hours:.{2 if hours >= 0.1 else 4}f}"
    return f"{found['utterances']:,}, {shown} h, {speakers or '?'} speaker{'' if speakers == 1 else 's'}"


def provenance(grid: Grid, environment: Mapping[str, str], times: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section on how the numbers were made."""
    facts = {key: str(value) for key, value in environment.items()}
    labels = {"scorer": "scorer", "seed": "seed", "data_sha256": "data sha256", "commit": "scored at commit"}
    lines = [*grid.lines.values(), *chain.from_iterable(grid.seeds.values())]
    lines = [line for line in lines if line["language"] != TOTAL and not isinstance(line["seed"], list)]
    for key, label in labels.items():
        facts[label] = ", ".join(sorted({str(line[key]) for line in lines}))
    parts = ["## How these numbers were made", "\n".join(f"- {key}: `{value}`" for key, value in facts.items())]
    if times:
        rows = [[run["stage"], run["started"], run["host"], *_cost(run)] for run in times]
        commands = dict.fromkeys(run["command"] for run in times)
        parts.append("Each run of a stage, in order:")
        parts.append(markdown(["stage", "started", "host", "wall time", "peak memory (MB)"], rows))
        parts.append("The commands:\n\n```sh\n" + "\n".join(commands) + "\n```")
    return parts


def _cost(run: Mapping[str, Any]) -> tuple[str, str]:
    """Wall time, with how it ended if not well, and peak memory of a run."""
    if "seconds" not in run:
        return "did not end", "-"
    ended = run.get("outcome", "done")
    time = str(timedelta(seconds=round(run["seconds"])))
    return time if ended == "done" else f"{time}, {ended}", str(round(run["max_rss_mb"]))


def numbers(grid: Grid, measure: Measure, experiment: str) -> dict[str, str]:
    """The row of an experiment by column, the best of each column bold."""
    best = grid.best(measure)
    shown = {column: measure.number(line) for column, line in grid.row(experiment, measure.metric).items()}
    return {column: f"**{number}**" if number == best[column] else number for column, number in shown.items()}


def without_mean(grid: Grid, measure: Measure) -> list[str]:
    """Which rows have no mean, though one was scored."""
    scored = [name for name in grid.experiments if (name, "mean", measure.metric) in grid.lines]
    names = [name for name in scored if not grid.row(name, measure.metric).get("mean")]
    if not names:
        return []
    return [f"No mean for {', '.join(names)}: it was scored over other languages. Score all of them together."]


def rates(grid: Grid, test_set: str, measure: Measure) -> list[str]:
    """The section of a measure: figures with the best of each column in bold and parameter counts, then intervals;
    nothing where it has none."""
    if not grid.has(measure.metric):
        return []
    rows = []
    for name, description in grid.experiments.items():
        cells = grid.row(name, measure.metric).values()
        counts = [parameters(cells, which) for which in ("trainable", "total")]
        rows.append([name, description, *numbers(grid, measure, name).values(), *counts])
    text = f"{measure.what or measure.name} over the set `{test_set}`."
    text += " The best of each column is bold." if any(grid.best(measure).values()) else ""
    if "mean" in grid.columns:
        text += f" `mean` is unweighted, over {' '.join(grid.languages)}."
    headers = ["", "experiment", *grid.headings.values(), "trainable parameters", "total parameters"]
    table = markdown(headers, rows)
    return [f"## {measure.label}", text, table, *without_mean(grid, measure), *intervals(grid, measure)]


def intervals(grid: Grid, measure: Measure) -> list[str]:
    """The table of intervals."""
    rows = []
    for name in grid.experiments:
        rows.append([name, *(measure.interval(line) for line in grid.row(name, measure.metric).values())])
    text = "95 % intervals, bootstrap over utterances (another training seed may move a figure by more):"
    several = list(dict.fromkeys(name for name, _, metric in grid.seeds if metric == measure.metric))
    if several:
        text = (
            f"95 % intervals. Of {', '.join(several)}: of the mean over training seeds, Student's interval over seeds"
            " and the bootstrap's over utterances together (the squares of their half-widths are added)."
        )
        if len(several) < len(grid.experiments):
            text += " Of the others: bootstrap over utterances (another training seed may move a figure by more)."
    return [text, markdown(["", *grid.headings.values()], rows), *_spread(grid, measure, several)]


def _spread(grid: Grid, measure: Measure, names: list[str]) -> list[str]:
    """The table of what seeds do: mean, standard deviation, smallest and largest figure."""
    rows = []
    for name in names:
        cells, seeds = [], ""
        for column in grid.columns:
            parts = grid.seeds.get((name, column, measure.metric), [])
            cells.append(_deviation(measure, parts) if parts else "-")
            seeds = " ".join(str(part["seed"]) for part in parts) or seeds
        rows.append([name, seeds, *cells])
    if not rows:
        return []
    text = "Over training seeds: mean, standard deviation (n - 1), and the smallest and the largest."
    return [text, markdown(["", "seeds", *grid.headings.values()], rows)]


def _deviation(measure: Measure, parts: Sequence[Line]) -> str:
    values = [part["value"] for part in parts]
    shown = [f"{value:.{measure.decimals}f}" for value in (fmean(values), stdev(values), min(values), max(values))]
    return "{} ± {} ({} to {})".format(*shown)


def comparisons(grid: Grid, measure: Measure) -> list[str]:
    """The section of paired comparisons: one table for each pair of experiments."""
    parts = []
    for name, other in grid.compared(measure):
        rows = []
        for column, heading in grid.headings.items():
            line = grid.difference(name, other, column, measure)
            if line:
                sides = (measure.number(grid.get(side, column, measure.metric)) for side in (other, name))
                shown = measure.change(line), measure.interval(line, "+"), measure.verdict(line)
                rows.append([heading, *sides, *shown])
        parts.append(f"### {name} against {other}")
        parts.append(markdown(["", other, name, "difference", "95 % interval", f"{name} is"], rows))
    if parts:
        text = f"Difference in {measure.name} on the same utterances, in points ({measure.sign}), by paired bootstrap."
        if any(metric.startswith(measure.paired) for _, _, metric in grid.seeds):
            text += " Of several training seeds: the mean of the differences seed by seed, its interval as the means'."
        parts[:0] = ["## Paired comparisons", text + " `not clear`: the 95 % interval holds zero."]
    return parts


def paper_section(paper: Mapping[str, Any]) -> list[str]:
    """Published figures."""
    source = f"Source: {paper['source']}."
    return [f"## {paper['title']}", source, markdown(paper["columns"], paper["rows"]), paper.get("note", "")]


def parameters(cells: Iterable[Line | None], which: str) -> str:
    """A parameter count, or the smallest and largest when the languages' lines differ."""
    counts = {line[f"{which}_parameters"] for line in cells if line}
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) if counts else "-"


def markdown(headers: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    from tabulate import tabulate

    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(cells, [str(header) for header in headers], tablefmt="github", disable_numparse=True)
