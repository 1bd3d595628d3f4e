"""Stage 7 of a comparison: what methods cost, as lines of results, and the page that compares them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pelasr.backbones.format import BACKBONE_FACTS
from pelasr.config import load_yaml
from pelasr.cost import Cost, read_cost
from pelasr.data.kaldi import read_data_dir
from pelasr.data.place import Place
from pelasr.files import atomic_write, read_json
from pelasr.packs.format import PackDescription, read_checked
from pelasr.progress import say
from pelasr.report import methods as report
from pelasr.report.corpus import read_corpus
from pelasr.report.grid import select
from pelasr.report.sections import corpus_section, provenance
from pelasr.score.environment import commit, read_environment
from pelasr.score.results import KEYS, TOTAL, append_results, read_results
from pelasr.score.seeds import split_seed
from pelasr.stages.experiment import AS_USUAL, Decoding, Experiment, folder_of
from pelasr.stages.rates import fits_of, read_record
from pelasr.stages.score import data_of, facts_of, find_task_of, one_hash
from pelasr.stages.table import print_table, read_times
from pelasr.tasks.base import task_of_results
from pelasr.train.schedule import metric_of
from pelasr.version import __version__


@dataclass(frozen=True)
class Found:
    """A cost: its metric, value, smallest and largest where languages differ, on what it was measured, over how many
    utterances, and the settings' hashes if it is of other fits than those of the packs."""

    metric: str
    value: float
    lo: float | None = None
    hi: float | None = None
    where: str = ""
    utterances: int = 0
    config_sha256: list[str] | None = None


def record_costs(place: Place, chosen: list[Experiment], test_set: str, recipe: str, how: Decoding = AS_USUAL) -> None:
    """Append what experiments cost to `<exp>/results.jsonl`, as lines of the language `total`."""
    lines = []
    for experiment in chosen:
        packs = _packs(place, experiment)
        languages = [pack.language for pack in packs] or place.languages
        facts = {"recipe": recipe, "experiment": experiment.name, "set": test_set, "language": TOTAL}
        facts |= facts_of(place, experiment, languages, how) | {"commit": commit(), "reference_words": 0}
        part = replace(place, languages=languages)
        facts |= {"task": find_task_of(place, experiment).name, "data_sha256": data_of(part, experiment, test_set)}
        for found in costs_of(place, experiment, packs, test_set):
            lo, hi = (found.value if bound is None else bound for bound in (found.lo, found.hi))
            scorer = ", ".join(filter(None, (f"pelasr {__version__}", found.where)))
            line = facts | {"metric": found.metric, "value": found.value, "lo": lo, "hi": hi, "scorer": scorer}
            line |= {"utterances": found.utterances}
            line |= {"config_sha256": one_hash(found.config_sha256)} if found.config_sha256 else {}
            lines.append({key: line[key] for key in KEYS})
    append_results(place.exp / "results.jsonl", lines)


def costs_of(place: Place, experiment: Experiment, packs: list[PackDescription], test_set: str) -> Iterator[Found]:
    """What is known of an experiment's costs."""
    folder = place.exp / experiment.name
    if packs:
        backbone = read_json(place.exp / experiment.backbone / BACKBONE_FACTS, "run stage 4", ("total_parameters",))
        yield Found("backbone_parameters", backbone["total_parameters"])
        yield _over("language_parameters", [pack.parameters for pack in packs])
        yield _over("pack_bytes", [_size(folder / "packs" / pack.language) for pack in packs])
        record = read_record(folder, [pack.language for pack in packs])
        home = folder / folder_of(record["chosen"]) if record else folder
        yield from _fit([read_cost(fit) for fit in fits_of(home, packs)])
        if record:
            yield from _rates(record)
    outputs = {language: folder / "decode" / f"{test_set}_{language}" for language in place.languages}
    costs = [cost for path in outputs.values() if (cost := read_cost(path))]
    if len(costs) == len(outputs) and len({cost.where for cost in costs}) == 1:
        utterances = sum(len(read_data_dir(place.folder(test_set, language), language)) for language in outputs)
        seconds = round(math.fsum(cost.seconds for cost in costs), 3)
        yield Found("decode_seconds", seconds, where=costs[0].where, utterances=utterances)


def _packs(place: Place, experiment: Experiment) -> list[PackDescription]:
    """Of the recipe's languages, or that which serves them all."""
    if not experiment.adapted:
        return []
    folder = place.exp / experiment.name / "packs"
    wanted = [experiment.serve] if experiment.serve else place.languages
    paths = [folder / language / "pack.yaml" for language in wanted]
    return [read_checked(path) for path in paths if path.exists()]


def _size(pack: Path) -> int:
    return sum((pack / name).stat().st_size for name in ("pack.yaml", "pack.safetensors"))


def _over(metric: str, values: list[int]) -> Found:
    return Found(metric, sum(values) / len(values), min(values), max(values))


def _fit(costs: list[Cost | None]) -> Iterator[Found]:
    """Of the fits of all languages, one after the other; nothing if that is not known of all of them."""
    known = [cost for cost in costs if cost]
    if known and len(known) == len(costs) and len({cost.where for cost in known}) == 1:
        where = known[0].where
        yield Found("fit_seconds", round(math.fsum(cost.seconds for cost in known), 1), where=where)
        yield Found("fit_memory_mb", max(cost.memory_mb for cost in known), where=where)


def _rates(record: dict[str, Any]) -> Iterator[Found]:
    yield Found("lr", record["chosen"])
    for each in record["candidates"]:
        at = f"at_lr_{each['lr']:g}"
        metric = metric_of(each["dev"])
        found = {f"dev_{metric}_{at}": round(each["dev"][metric], 4), f"epochs_{at}": each["epochs"]}
        if each["seconds"] is not None:
            found[f"seconds_{at}"] = round(each["seconds"], 1)
        for name, value in found.items():
            yield Found(name, value, config_sha256=each["config_sha256"])


def write_page(
    place: Place,
    baseline: str,
    chosen: list[Experiment],
    test_set: str,
    recipe: str,
    notes: tuple[Path, Path],
    output: Path,
) -> None:
    """The page of a comparison, its chart, and its table on the terminal, all from `<exp>/results.jsonl`.

    `notes`: files of what the page says beside the figures, and of published ones.
    """
    descriptions = {experiment.name: experiment.description for experiment in chosen if experiment.seed is None}
    results = read_results(place.exp / "results.jsonl")
    results = [line for line in results if split_seed(line["experiment"])[0] in descriptions]
    task, lines = task_of_results(line for line in results if line["set"] == test_set)
    grid = select(lines or results, test_set, descriptions, place.languages)
    chart = output.with_suffix(".png")
    with atomic_write(chart, "wb") as stream:
        figure = report.scatter(grid, task.measures[0])
        figure.savefig(stream, format="png", metadata={"Software": None})
    note, paper = (load_yaml(path) if path.exists() else {} for path in notes)
    corpus = read_corpus(place.exp)
    parts = [f"# {recipe}: methods", note.get("note", "")]
    parts += report.sections(grid, task.measures[0], baseline, test_set, chart.name)
    parts += report.papers(paper.get("papers", []), note.get("order", ""))
    parts += corpus_section(corpus) if corpus else []
    environment, times = read_environment(place.exp / "environment.json"), read_times(place.exp / "times.jsonl")
    parts += provenance(grid, environment, times)
    with atomic_write(output) as stream:
        stream.write("\n\n".join(part.strip() for part in parts if part) + "\n")
    print_table(results, test_set, descriptions, place.languages)
    say(f"written: {output} and {chart}")
