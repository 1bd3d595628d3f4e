"""What a comparison of methods is: a file that says what is the same for all of them, and the methods."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelasr.backbones.format import BACKBONE_FACTS
from pelasr.config import check_keys, load_yaml, override, require_keys
from pelasr.errors import PelasrError, brief, nearest
from pelasr.files import read_json
from pelasr.score.seeds import parse_seeds, seeded
from pelasr.stages.experiment import FUSE, Experiment, check_name, find_experiment, load_experiments
from pelasr.terminal import split_words

KEYS = ("adapt", "baseline", "shared", "methods")


@dataclass(frozen=True)
class Comparison:
    """Methods on one frozen backbone, with the same training.

    `adapt`: the experiment whose backbone it is. `baseline`: an experiment, or a method, that the others are compared
    with. `entries`: {method: its entry}, as of an experiments file, but that `adapter` is the method and no file.
    """

    path: Path
    adapt: str
    baseline: str
    entries: dict[str, dict[str, Any]]

    def chosen(self, words: str) -> list[str]:
        """The methods that `--adapters` names, or `all`, after what they are compared with, each after the one that it
        is made of, if any. Raises PelasrError for an unknown one."""
        names = split_words("--adapters", words)
        known = [*self.entries, "all"]
        for name in names:
            if name not in known:
                raise PelasrError(f"--adapters: no method {brief(name)!r} in {self.path}; {nearest(name, known)}")
        wanted = list(self.entries) if "all" in names else names
        with_sources = [[self.entries[name].get(FUSE), name] for name in wanted]
        return list(dict.fromkeys([self.baseline, *(str(name) for pair in with_sources for name in pair if name)]))


def read_comparison(path: Path) -> Comparison:
    """Read a comparison's file. Raises PelasrError for what is none."""
    if not path.is_file():
        raise PelasrError(f"{path}: no such file: nothing says which methods to compare; name one with --comparison")
    found = load_yaml(path)
    check_keys(found, KEYS, str(path))
    require_keys(found, [key for key in KEYS if key != "shared"], str(path))
    shared, methods = found.get("shared") or {}, found["methods"]
    for where, part in (("shared", shared), ("methods", methods)):
        if not isinstance(part, dict):
            raise PelasrError(f"{path}: {where}: expected `key: value` lines, found {brief(repr(part))}")
    adapt, baseline = str(found["adapt"]), str(found["baseline"])  # YAML reads the row 2 as a number
    entries = {}
    for key, entry in methods.items():
        name = check_name(key, f"{path}: method")
        if name in entries:
            raise PelasrError(f"{path}: the method {name!r} comes a second time")
        if not isinstance(entry, dict) or not isinstance(entry.get("adapter"), str):
            raise PelasrError(f"{path}: {name}: which method? Its entry needs the key `adapter`")
        others = {"adapt": adapt} | ({"compare": baseline} if name != baseline else {})
        entries[name] = override(others | shared, entry)
    return Comparison(path, adapt, baseline, entries)


def expand(
    experiments: Path, exps: str, comparison: Path | None, adapters: str | None, seeds: str | None
) -> list[Experiment]:
    """The experiments `exps` of a file and the methods `adapters` of a comparison, for each of the `seeds`; the first
    of these has the experiments' own names. Raises PelasrError for what is unknown or makes no sense."""
    if adapters and comparison is None:
        raise PelasrError(f"--adapters {brief(adapters)!r}: of which comparison? Name its file with --comparison")
    compared = read_comparison(comparison) if comparison else None
    names = split_words("--exps", exps)
    if compared and adapters:
        names = list(dict.fromkeys([*names, *compared.chosen(adapters)]))
    known = (
        load_experiments(experiments, compared.entries, compared.path) if compared else load_experiments(experiments)
    )
    later = parse_seeds("--seeds", seeds or "")[1:]
    return [find_experiment(known, name) for name in [*names, *(seeded(n, seed) for seed in later for n in names)]]


def check_trained(exp: Path, chosen: list[Experiment], seeds: str | None = None) -> None:
    """Raise PelasrError where adapters lack the backbone that they are fitted on, and where the first of several seeds
    is not that of the backbone there: means over seeds would be of other ones than they say."""
    numbers = parse_seeds("--seeds", seeds or "")
    trained = {experiment.backbone for experiment in chosen if experiment.seed is not None}
    for name in dict.fromkeys(each.backbone for each in chosen if each.adapted and each.seed is None):
        facts = exp / name / BACKBONE_FACTS
        # One that was imported has no seed.
        if len(numbers) > 1 and seeded(name, numbers[1]) in trained and facts.exists():
            seed = read_json(facts, "run stage 4", ("seed",))["seed"]
            if seed != numbers[0]:
                raise PelasrError(f"{exp / name}: trained with seed {seed}: name it first in --seeds, not {numbers[0]}")
    for experiment in chosen:
        if experiment.adapted and not (exp / experiment.backbone / "backbone.yaml").exists():
            folder = exp / experiment.backbone
            raise PelasrError(f"{folder}: no backbone yet for {experiment.name}: run stage 4 first (--stage 4)")
