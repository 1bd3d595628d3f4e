"""The model card of an exported pack: what a model hub shows of it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from pelasr.data.language import split_pair
from pelasr.errors import brief
from pelasr.packs.format import PackDescription
from pelasr.report.grid import Measure
from pelasr.score.results import latest, read_results

LOAD = """```sh
pelasr packs verify --model exp/NAME {language}
pelasr packs import {language} --model exp/NAME
```

copies this folder, called `{language}` here, to the packs of the experiment `exp/NAME`, if it belongs to its backbone.
In Python:

```python
import pelasr

model = pelasr.load("exp/NAME")
model.load_language("{language}")  # this folder
model.decode(["talk.wav"], language="{language}")
```"""


class Shown(Protocol):
    """What a card takes from a task: its tag on model hubs, and the figures that it shows."""

    @property
    def tag(self) -> str: ...
    @property
    def measures(self) -> Sequence[Measure]: ...


TaskOf = Callable[[Sequence[str], str | None], Shown]


def dev_score(description: PackDescription) -> str:
    """A pack's score on its dev data, `wer 12.34`, or nothing."""
    dev = description.training.get("dev", {})
    metric = next((key for key in dev if key not in ("loss", "higher_is_better")), "loss")
    return f"{brief(metric)} {dev[metric]:.2f}" if metric in dev else ""


def figures_of(pack: Path, description: PackDescription) -> list[Mapping[str, Any]]:
    """The latest figures of the fit that a pack `<exp>/<experiment>/packs/<language>` comes from."""
    experiment = pack.resolve().parents[1]
    path, training = experiment.parent / "results.jsonl", description.training
    if not path.is_file():
        return []
    return [
        line
        for (name, _, language, _), line in latest(read_results(path)).items()
        if (name, language) == (experiment.name, description.language)
        and line["config_sha256"] == training.get("config_sha256")
    ]


def make_card(description: PackDescription, figures: Sequence[Mapping[str, Any]], task_of: TaskOf) -> str:
    """Markdown with a head in YAML. `description`: a pack's; `figures`: lines of results.jsonl; `task_of`: the task of
    languages, or that of a name."""
    language, method = description.language, description.adapter
    task = task_of([language], next((line["task"] for line in figures if line["task"]), None))
    tag = task.tag
    head = {
        "language": [code.replace("_", ".").partition(".")[0] for code in split_pair(language) if code],
        "library_name": "pelasr",
        "tags": [tag, "multilingual", "adapter", method],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {language}: a pelasr pack",
        f"What the language `{language}` adds to a frozen backbone for {tag.replace('-', ' ')}. It works with the"
        " backbone that it was fitted on alone; with any other it is refused.",
        _table(("", ""), _facts(description)),
        "## Results",
        _results(figures, task),
        "## Loading",
        LOAD.format(language=language),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(description: PackDescription) -> list[tuple[str, str]]:
    training, conf = description.training, description.adapter_conf
    options = ", ".join(f"{key}: {brief(value, 100)}" for key, value in conf.items())
    heard = f"{training['hours']:.2f} h" if "hours" in training else "not recorded"
    if "utterances" in training:
        heard += f", {training['utterances']:,} utterances"
    rows = [
        ("language", description.language),
        ("method", f"{description.adapter} ({options})" if options else description.adapter),
        ("parameters", f"{description.parameters:,}"),
        ("tokens of its own", f"{len(description.own_tokens)}"),
        ("language vector of its own", "yes" if description.own_vector else "no"),
        ("training data", heard),
        ("dev data", dev_score(description) or "not recorded"),
        ("backbone, sha256 of its tensors", f"`{description.backbone_sha256}`"),
        ("tokens, sha256", f"`{description.tokens_sha256}`"),
    ]
    for merged in training.get("merged", []):
        rows.append(("average of", f"{merged['language']}, weight {merged['weight']:.3f}"))
    return rows


def _results(figures: Sequence[Mapping[str, Any]], task: Shown) -> str:
    names = {each.metric: ", ".join(filter(None, (each.name, each.unit))) for each in task.measures}
    figures = [line for line in figures if line["metric"] in names]
    if not figures:
        return "No test figures came with this pack."
    rows = [
        (
            line["set"],
            names[line["metric"]],
            f"{line['value']:.2f}",
            f"{line['lo']:.2f} to {line['hi']:.2f}",
            f"{line['utterances']:,}",
            line["scorer"],
        )
        for line in figures
    ]
    return _table(("set", "metric", "value", "95 % interval", "utterances", "scorer"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
