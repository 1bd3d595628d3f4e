"""Translation: what was said in another language, by BLEU and chrF2; its page in the shape of Le et al. 2021.

What a row is stands in the settings of its lines. `dict`: one dictionary (and model) for all pairs, `multi`, or one for
each, `mono`; `width`: the model's; `enc`, `dec`: the width of the adapters' bottleneck on that side, 0 without them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pelasr.errors import PelasrError
from pelasr.files import atomic_write
from pelasr.report.grid import Grid, Line, Measure
from pelasr.report.sections import COLOURS, comparisons, intervals, markdown, numbers, parameters, without_mean
from pelasr.score import bleu
from pelasr.score.bootstrap import Estimate
from pelasr.score.decoded import Figures, Texts, again, groups, write_details
from pelasr.tasks.base import Task

BLEU = Measure("bleu", "BLEU", "", 2, True, "positive: better")
CHRF = Measure("chrf", "chrF2", "", 2, True, "positive: better")
# Methods that train a copy of the model for each pair, and how much of it.
FINE_TUNED = {"decoder": "decoder", "full": "all"}
BETTER, WORSE = "\\*", "†"  # a bare asterisk may be read as Markdown
SETTINGS = ["Dict", "D", "d", "ENC", "DEC", "FT"]


class Translation(Task):
    """BLEU and chrF2 by sacrebleu, 0 to 100, hypotheses at the length limit, and hours of training data."""

    measures = [BLEU, CHRF]
    tag = "speech-translation"
    together = True
    detailed = True

    @property
    def compared(self) -> list[str]:
        return [measure.metric for measure in self.measures]

    def statistics(self, metric: str, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """sacrebleu's, integers (N, 10) for `bleu` and (N, 18) for `chrf`."""
        return bleu.statistics(metric, references, hypotheses)

    def figure(self, metric: str, sums: np.ndarray) -> np.ndarray:
        return bleu.figure(metric, sums)

    def scorer(self, metric: str) -> str:
        return bleu.signature(metric) if metric in bleu.NAMES else super().scorer(metric)

    def score(self, texts: Mapping[str, Texts], hours: Mapping[str, float]) -> Figures:
        """BLEU and chrF2 with intervals; `limited` (how many hypotheses hit the length limit) and `train_hours`, which
        are counted. Raises PelasrError where stage 6 did not write which were limited."""
        limited = {pair: _count_limited(found) for pair, found in texts.items()}
        figures = super().score(texts, hours)
        for group, members in groups(texts).items():
            figures[group, "limited"] = _exact(math.fsum(limited[pair] for pair in members) / len(members))
        return figures | {(pair, "train_hours"): _exact(hours[pair]) for pair in texts if pair in hours}

    def score_over_seeds(self, runs: Sequence[Mapping[str, Texts]]) -> Figures:
        """BLEU, chrF2, and the mean number of hypotheses at the length limit."""
        counts = {pair: [_count_limited(texts[pair]) for texts in runs] for pair in runs[0]}
        means = {pair: math.fsum(found) / len(runs) for pair, found in counts.items()}
        figures = super().score_over_seeds(runs)
        for group, members in groups(runs[0]).items():
            figures[group, "limited"] = _exact(math.fsum(means[pair] for pair in members) / len(members))
        return figures

    def write(self, texts: Texts, tables: Mapping[str, np.ndarray]) -> None:
        """BLEU of each sentence, and sacrebleu's summary."""
        write_details(texts, ["bleu"], [(f"{value:.2f}",) for value in bleu.sentence_bleu(tables["bleu"])])
        with atomic_write(texts.folder / "result.txt") as stream:
            stream.writelines(bleu.summary(metric, table) + "\n" for metric, table in tables.items())

    def sections(self, grid: Grid, test_set: str, chart: str) -> list[str]:
        """BLEU with its chart, chrF2, paired comparisons and hypotheses at the length limit."""
        parts = _bleu(grid, test_set)
        if chart:
            parts.append(f"![BLEU against trainable parameters]({chart})")
        parts += ["The rows, with parameters counted over all pairs:", _rows(grid), *intervals(grid, BLEU)]
        return parts + _chrf(grid) + comparisons(grid, BLEU) + _limited(grid)

    def chart(self, grid: Grid) -> Any:
        """BLEU, with its 95 % interval, against trainable parameters: a point for each row."""
        return chart(grid)


def _exact(value: float) -> Estimate:
    """A figure that is counted, not estimated from a sample."""
    return Estimate(value, value, value)


def _count_limited(texts: Texts) -> int:
    """How many hypotheses the search stopped at its length limit."""
    path = texts.folder / "limited"
    if not path.is_file():
        what = "no such file, so nobody knows which hypotheses hit the length limit"
        raise PelasrError(f"{path}: {what}; {again(texts.folder)}")
    names = set(path.read_text(encoding="utf-8").split())
    unknown = sorted(names - texts.hypotheses.keys())
    if unknown:
        raise PelasrError(f"{path}: {unknown[0]} is not among the hypotheses; {again(texts.folder)}")
    return len(names)


def setting_cells(line: Line | None) -> list[str]:
    """The cells of SETTINGS; `d` is `encoder/decoder` where the two differ."""
    line = line if line is not None else {}
    sides = [line.get(side) or 0 for side in ("enc", "dec")]
    widths = dict.fromkeys(str(width) for width in sides if width)
    marks = ["✓" if width else "-" for width in sides]
    dictionary, width = (str(line.get(key) or "-") for key in ("dict", "width"))
    return [dictionary, width, "/".join(widths) or "-", *marks, FINE_TUNED.get(line.get("method", ""), "-")]


def parameter_cell(line: Line, pairs: int) -> str:
    """Trainable and total parameters in millions, `8×0.2/33.7`: what each pair has of its own has its number before it.

    Those of a line are counted over all `pairs`. A backbone is shared by all pairs, unless each has a
    dictionary of its own; adapters are each pair's own, on one backbone; a fine-tuned model is a pair's own.
    """
    copied = line["method"] in FINE_TUNED or line["dict"] == "mono"
    own = copied or line["method"] != "backbone"
    shares = [(line["trainable_parameters"], own), (line["total_parameters"], copied)]
    return "/".join(_millions(count, pairs if own else 1) for count, own in shares)


def _millions(count: int, copies: int) -> str:
    each = count / copies / 1e6
    # A tiny model has adapters of less than the paper's one decimal.
    shown = f"{each:.1f}" if each >= 0.1 else f"{each:.2g}"
    return f"{copies}×{shown}" if copies > 1 else shown


def _bleu(grid: Grid, test_set: str) -> list[str]:
    """The table in the paper's shape, with the hours of training data in its first line."""
    rows = [["training hours", *[""] * (len(SETTINGS) + 1), *(_hours(grid, column) for column in grid.columns)]]
    for name in grid.experiments:
        lines = [line for line in grid.row(name, "bleu").values() if line]
        shown = dict.fromkeys(parameter_cell(line, len(grid.languages)) for line in lines)
        settings = setting_cells(lines[0] if lines else None)
        rows.append([name, *settings, " to ".join(shown) or "-", *_marked(grid, BLEU, name)])
    headers = ["row", *SETTINGS, "params (M) trainable/total", *grid.headings.values()]
    return ["## BLEU", _reading(grid, test_set), markdown(headers, rows), *without_mean(grid, BLEU)]


def _reading(grid: Grid, test_set: str) -> str:
    """How to read the table of BLEU."""
    pairs = len(grid.languages)
    parts = [
        f"sacreBLEU (13a tokens, cased, detokenised) over the set `{test_set}`, 0 to 100.",
        "`d`: width of the adapters' bottleneck (encoder/decoder where the two differ).",
        "`FT`: what was fine-tuned for each pair. `params (M)`: millions of parameters.",
        f"`{pairs}×`: each of the {pairs} pairs has its own." if pairs > 1 else "",
        "The best of each column is bold." if any(grid.best(BLEU).values()) else "",
        _legend(grid, BLEU),
        f"`avg` is unweighted, over {' '.join(grid.languages)}." if "mean" in grid.columns else "",
    ]
    return " ".join(filter(None, parts))


def _rows(grid: Grid) -> str:
    rows = []
    for name, description in grid.experiments.items():
        lines = grid.row(name, "bleu").values()
        rows.append([name, description, *(parameters(lines, which) for which in ("trainable", "total"))])
    return markdown(["row", "experiment", "trainable parameters", "total parameters"], rows)


def _chrf(grid: Grid) -> list[str]:
    if not grid.has("chrf"):
        return []
    rows = [[name, *_marked(grid, CHRF, name)] for name in grid.experiments]
    text = "sacreBLEU's chrF2 (cased, n-grams of up to six characters without spaces). " + _legend(grid, CHRF)
    return ["## chrF2", text, markdown(["row", *grid.headings.values()], rows), *intervals(grid, CHRF)]


def _limited(grid: Grid) -> list[str]:
    """The section of hypotheses that the search cut off."""
    if not grid.has("limited"):
        return []
    rows, sizes = [], {}
    for name in grid.experiments:
        cells = grid.row(name, "limited")
        sizes |= {column: str(line["utterances"]) for column, line in cells.items() if line and column != "mean"}
        shown = {column: f"{line['value']:.0f}" if line else "-" for column, line in cells.items()}
        if mean := cells.get("mean"):
            shown["mean"] = f"{mean['value']:.1f}"
        rows.append([name, *shown.values()])
    rows.insert(0, ["of", *(sizes.get(column, "") for column in grid.columns)])
    heading, text = "## Hypotheses at the length limit", "How many the search stopped before they came to an end."
    return [heading, text, markdown(["row", *grid.headings.values()], rows)]


def _hours(grid: Grid, column: str) -> str:
    """Hours of training data; smallest and largest when the rows had other data."""
    lines = [grid.get(name, column, "train_hours") for name in grid.experiments]
    values = [line["value"] for line in lines if line]
    if not values:
        return ""
    decimals = 0 if min(values) >= 100 else 1 if min(values) >= 10 else 2
    return " to ".join(dict.fromkeys(f"{value:.{decimals}f}" for value in (min(values), max(values))))


def _references(grid: Grid, measure: Measure) -> dict[str, str]:
    """The row that each row is compared with; of several the first in the table."""
    references: dict[str, str] = {}
    for other in grid.experiments:
        for name, compared in grid.compared(measure):
            if compared == other:
                references.setdefault(name, other)
    return references


def _marked(grid: Grid, measure: Measure, name: str) -> list[str]:
    """The row of an experiment, with what its paired comparison shows of each cell."""
    other, cells = _references(grid, measure).get(name), numbers(grid, measure, name)
    lines = {column: grid.difference(name, other, column, measure) for column in cells} if other else {}
    marks = {"better": BETTER, "worse": WORSE, "not clear": ""}
    shown = {column: marks[measure.verdict(line)] for column, line in lines.items() if line}
    return [cell + shown.get(column, "") for column, cell in cells.items()]


def _legend(grid: Grid, measure: Measure) -> str:
    """What the marks of a table mean."""
    references = _references(grid, measure)
    others = dict.fromkeys(other for name, other in references.items() if name in grid.experiments)
    if not others:
        return ""
    whom = f"row {next(iter(others))}"
    if len(others) > 1:
        against = [f"{name} against {references[name]}" for name in grid.experiments if name in references]
        whom = f"the row it is compared with ({', '.join(against)})"
    return f"{BETTER} better and {WORSE} worse than {whom}: the paired 95 % interval of the difference excludes zero."


def chart(grid: Grid) -> Any:
    """A matplotlib figure of BLEU, with its 95 % interval, against trainable parameters: a point for each row."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(8.0, 5.0), dpi=100, layout="constrained")
    axes = figure.subplots()
    column = "mean" if "mean" in grid.columns else grid.columns[0]
    lines = {name: line for name in grid.experiments if (line := grid.get(name, column, "bleu"))}
    for number, (name, description) in enumerate(grid.experiments.items()):
        if line := lines.get(name):
            x, y, colour = line["trainable_parameters"], line["value"], COLOURS[number % len(COLOURS)]
            axes.plot([x, x], [line["lo"], line["hi"]], color=colour, marker="_")
            marker = "so^D"[number // len(COLOURS) % 4]
            look: Any = {"color": colour, "marker": marker, "markeredgecolor": "black", "linestyle": "none"}
            axes.plot([x], [y], label=f"{name} {description}", **look)
            shown = f"{name}: {BLEU.number(line)}" if len(lines) == 1 else name
            axes.annotate(shown, (x, y), xytext=(6, 4), textcoords="offset points")
    axes.set_xscale("log")
    counts = [line["trainable_parameters"] for line in lines.values()] or [1_000_000]
    axes.set_xlim(min(counts) / 1.6, max(counts) * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(counts) < 1000 * min(counts) else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count / 1e6:g}"))
    if len(lines) == 1:
        axes.set_ylim(bottom=0)
    pairs = f"mean of {len(grid.languages)} pairs" if column == "mean" else column
    axes.set_xlabel("trainable parameters, millions" + (", of all pairs together" if column == "mean" else ""))
    axes.set_ylabel(f"BLEU ({pairs}), 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    return figure
