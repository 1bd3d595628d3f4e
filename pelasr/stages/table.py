"""RESULTS.md, its chart and the terminal table, made from result lines alone.

Shown is the latest line of each (experiment, set, language, metric). Nothing depends on the time of the call: the same
lines give the same bytes. How is the task's, which the lines say, see `pelasr.tasks`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelasr.config import load_yaml
from pelasr.data.place import Place
from pelasr.errors import PelasrError
from pelasr.files import atomic_write, read_json_lines
from pelasr.progress import say
from pelasr.report import added as forgetting_table
from pelasr.report.corpus import read_corpus
from pelasr.report.grid import Grid, select
from pelasr.report.sections import corpus_section, paper_section, provenance
from pelasr.score.environment import read_environment
from pelasr.score.results import read_results
from pelasr.score.seeds import split_seed
from pelasr.storage import is_finite
from pelasr.tasks.base import Task, task_of_results

BEGAN = ("stage", "command", "started", "host")  # what `times.jsonl` says of a run when it begins
COST = ("seconds", "max_rss_mb")  # and when it ends


def read_times(path: str | Path) -> list[dict[str, Any]]:
    """The runs of stages in `times.jsonl` (stage, command, started, host; of those that ended outcome, seconds and
    max_rss_mb) that had something to do, in the order in which they began; empty when there is no file. Raises
    PelasrError with file:line for a bad line."""
    if not Path(path).exists():
        return []
    runs: dict[tuple, dict[str, Any]] = {}
    for number, line in read_json_lines(path):
        if not _is_run(line):
            raise PelasrError(f"{path}:{number}: not a run of a stage; remove the line")
        runs.setdefault(tuple(line.get(key) for key in ("started", "host", "command")), {}).update(line)
    return [run for run in runs.values() if run.get("outcome") != "nothing to do"]


def _is_run(line: Any) -> bool:
    """Whether a line says that a run began, or that it ended."""
    if not isinstance(line, dict) or not set(BEGAN) <= set(line) <= {*BEGAN, "outcome", *COST}:
        return False
    texts, cost = [line[key] for key in line if key not in COST], [line[key] for key in COST if key in line]
    return (
        all(isinstance(text, str) for text in texts)
        and len(cost) in (0, len(COST))
        and all(is_finite(value) and 0 <= value < 1e9 for value in cost)
    )


def task_and_grid(
    results: Sequence[Mapping[str, Any]],
    test_set: str,
    experiments: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
) -> tuple[Task, Grid]:
    """The task of a set, and its lines as a grid, see `grid.select`."""
    task, lines = task_of_results(line for line in results if line["set"] == test_set)
    return task, select(lines or results, test_set, experiments, languages)


@dataclass(frozen=True)
class Around:
    """What a page says beside its figures; what is empty has no section.

    `note`: what a reader must know of the data. `environment`, `corpus`: as `score.environment` and `report.corpus`
    give them. `times`: see `read_times`. `paper`: published figures with the keys title, source, columns, rows, note.
    `chart`: the chart's file name, as seen from RESULTS.md.
    """

    title: str = "Results"
    note: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    times: Sequence[Mapping[str, Any]] = ()
    corpus: Mapping[str, Any] | None = None
    paper: Mapping[str, Any] | None = None
    chart: str = ""


NOTHING = Around()


def make_table(
    results: Sequence[Mapping[str, Any]],
    test_set: str = "test",
    experiments: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
    around: Around = NOTHING,
) -> str:
    """The text of RESULTS.md; the figures come first. `test_set`, `experiments`, `languages`: see `grid.select`."""
    task, grid = task_and_grid(results, test_set, experiments, languages)
    parts = [f"# {around.title}", around.note, *task.sections(grid, test_set, around.chart)]
    parts += forgetting_table.sections(grid, task.measures[0])
    parts += paper_section(around.paper) if around.paper else []
    parts += corpus_section(around.corpus) if around.corpus else []
    parts += provenance(grid, around.environment, around.times)
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def print_table(
    results: Sequence[Mapping[str, Any]],
    test_set: str = "test",
    experiments: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
    forgetting: bool = False,
) -> None:
    """Print the measures of a set to the terminal, WER and CER, say; or what the page says of languages that were added
    later."""
    from tabulate import tabulate

    task, grid = task_and_grid(results, test_set, experiments, languages)
    if forgetting:
        found = forgetting_table.sections(grid, task.measures[0])
        print("\n\n".join(found) or f"no language was added later and scored on {test_set}")
        return
    for measure in task.measures:
        rows = []
        for name in grid.experiments:
            rows.append([name, *(measure.number(line) for line in grid.row(name, measure.metric).values())])
        title = " ".join(filter(None, (measure.name, measure.unit, test_set)))
        align = ["left"] + ["right"] * len(grid.columns)
        print(tabulate(rows, [title, *grid.headings.values()], disable_numparse=True, colalign=align))
        print()


def make_chart(
    results: Sequence[Mapping[str, Any]],
    path: str | Path,
    test_set: str = "test",
    experiments: Mapping[str, str] | None = None,
    languages: Sequence[str] | None = None,
) -> None:
    """Write the task's chart as a PNG."""
    task, grid = task_and_grid(results, test_set, experiments, languages)
    figure = task.chart(grid)
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", metadata={"Software": None})


def write_page(
    place: Place,
    descriptions: dict[str, str],
    name: str,
    recipe: str,
    page: Path,
    output: Path,
    forgetting: bool = False,
    without: Collection[str] = (),
) -> None:
    """Stage 7: a set's table on the terminal, its page and its chart, all from `<exp>/results.jsonl`.

    `forgetting`: on the terminal only what the page says of languages that were added later. `without`: experiments
    that have another page.
    """
    results = read_results(place.exp / "results.jsonl")
    results = [line for line in results if split_seed(line["experiment"])[0] not in without]
    extra = load_yaml(page) if page.exists() else {}
    chart = output.with_suffix(".png")
    make_chart(results, chart, name, descriptions, place.languages)
    text = make_table(
        results,
        name,
        descriptions,
        place.languages,
        around=Around(
            title=recipe,
            note=extra.get("note", ""),
            environment=read_environment(place.exp / "environment.json"),
            corpus=read_corpus(place.exp),
            times=read_times(place.exp / "times.jsonl"),
            paper=extra.get("paper"),
            chart=chart.name,
        ),
    )
    with atomic_write(output) as stream:
        stream.write(text)
    print_table(results, name, descriptions, place.languages, forgetting)
    say(f"written: {output} and {chart}")
