"""Experiments: named settings of one program (A0 ... A5), and the folders they live in."""

import fcntl
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelasr.config import check_keys, load_yaml, nearest, override
from pelasr.errors import PelasrError
from pelasr.files import atomic_write, sha256_json


@dataclass(frozen=True)
class Place:
    """Where a recipe keeps its things, and the languages it is about."""

    data: Path
    dump: Path
    exp: Path
    languages: list[str]

    @property
    def tokens(self) -> Path:
        return self.exp / "tokens"

    @property
    def stats(self) -> Path:
        return self.exp / "stats.npz"

    def names(self, *sets: str) -> list[str]:
        """Data directories `<set>_<language>`."""
        return [f"{name}_{language}" for name in sets for language in self.languages]

    def dirs(self, *sets: str) -> list[Path]:
        return [self.data / name for name in self.names(*sets)]


# What an entry may say beside overrides of the configuration.
DESCRIPTION, READ_EARLY, ADAPT, COMPARE = "description", "read_early", "adapt", "compare"


@dataclass(frozen=True)
class Experiment:
    """One entry of an experiments file.

    An experiment trains a backbone of its own with `overrides`; or, with `read_early: X`, reads the backbone of X at
    its early epoch; or, with `adapt: X`, fits adapters on the frozen backbone of X. `backbone` names the experiment
    that trains, `weights` which of its weights are used, `compare` an experiment to test against, utterance by
    utterance.
    """

    name: str
    description: str
    backbone: str
    weights: str
    adapted: bool
    overrides: dict[str, Any]
    compare: str | None


def load_experiments(path: str | Path) -> dict[str, Experiment]:
    """Read an experiments file: {name: {description, overrides or read_early or adapt}}."""
    entries = load_yaml(path)
    result = {}
    for name, entry in entries.items():
        if not isinstance(entry or {}, dict):
            raise PelasrError(f"{path}: {name}: expected `key: value` lines, found {entry!r}")
        entry = dict(entry or {})
        description, compare = entry.pop(DESCRIPTION, name), entry.pop(COMPARE, None)
        source = entry.get(ADAPT) or entry.get(READ_EARLY)
        for other in filter(None, (source, compare)):
            if other not in entries:
                raise PelasrError(f"{path}: {name} refers to {other!r}; {nearest(other, entries)}")
        if source:
            if {ADAPT, READ_EARLY} & set(entries[source] or {}):
                raise PelasrError(f"{path}: {name} refers to {source!r}, which trains no backbone of its own")
            check_keys(entry, [ADAPT if ADAPT in entry else READ_EARLY], f"{path}: {name} has the settings of {source}")
        result[name] = Experiment(
            name,
            description,
            source or name,
            "early" if READ_EARLY in entry else "backbone",
            ADAPT in entry,
            {} if source else entry,
            compare,
        )
    return result


def find_experiment(experiments: dict[str, Experiment], name: str) -> Experiment:
    """One experiment by name; an unknown one is an error that lists what there is."""
    if name not in experiments:
        raise PelasrError(f"no experiment {name!r}; {nearest(name, experiments)}")
    return experiments[name]


def resolve(config: dict[str, Any], experiment: Experiment, overrides: dict[str, Any]) -> dict[str, Any]:
    """The configuration file, then the experiment's settings, then the command line's."""
    return override(override(config, experiment.overrides), overrides)


class Marker:
    """A stage's done-file: it holds what the stage read, and whether the stage came to its end.

    Args:
        path: the file.
        inputs: names and hashes (or values) of everything that decides the stage's output.
        outputs: files that the stage makes; without them it is not done.
    """

    def __init__(self, path: Path, inputs: dict[str, Any], outputs: Sequence[Path] = ()):
        self.path, self.outputs = path, outputs
        self.inputs = json.loads(json.dumps(inputs))  # as it will be read back: tuples are lists
        self.found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def done(self) -> bool:
        if self.found is None or not self.found["done"] or self.changed:
            return False
        return all(path.exists() for path in self.outputs)

    @property
    def sha256(self) -> str:
        """Hash of the inputs."""
        return sha256_json(self.inputs)

    @property
    def changed(self) -> list[str]:
        """What differs from the run that wrote the file, as `key: before -> now`."""
        if self.found is None:
            return []
        before = self.found["inputs"]
        keys = [key for key in {**before, **self.inputs} if before.get(key) != self.inputs.get(key)]
        return [f"{key}: {_brief(before.get(key))} -> {_brief(self.inputs.get(key))}" for key in keys]

    def write(self, done: bool) -> None:
        with atomic_write(self.path) as stream:
            json.dump({"done": done, "inputs": self.inputs}, stream, indent=1, ensure_ascii=False)

    def check_unchanged(self) -> None:
        """Raise PelasrError if a run with other inputs is in the folder already."""
        if self.changed:
            raise PelasrError(
                f"{self.path.parent} holds a run with other settings ({'; '.join(self.changed)}):"
                " delete it, or use another --exp_dir"
            )

    def claim(self) -> None:
        """Begin a long stage in its folder, which is this process's own until it ends.

        Raises PelasrError if another process works in it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.path.with_suffix(".lock"), "w")  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PelasrError(f"{self.path.parent}: another process is training here; wait for it or end it") from None
        self.write(done=False)


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:50]}..."
