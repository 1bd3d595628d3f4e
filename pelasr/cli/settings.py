"""The verbs about settings: `pelasr experiments`, `params` and `config`."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from pelasr.cli.arguments import adapter_of, add_config, add_experiments, add_verb, chosen_of


def add_settings(verbs: Any) -> None:
    """Add the verbs to a parser's."""
    sub = add_verb(verbs, "experiments", _experiments, "Print names of experiments: what may run side by side.")
    add_experiments(sub, required=True)
    sub.add_argument("--adapters", help="methods of --comparison, or all, beside them")
    sub.add_argument("--seeds", help="training seeds: all of these experiments for each of them")
    sub.add_argument("--trained_in", type=Path, metavar="DIR", help="models: check that adapters have their backbones")
    kinds = (
        "all; those that train a backbone for them; or those that have adapters, in a few lines: what is in one, of"
        " further seeds, or made of others' packs, waits for those before"
    )
    sub.add_argument("--which", choices=["all", "backbones", "adapted"], required=True, help=kinds)

    sub = add_verb(verbs, "params", _params, "Count parameters, on the live modules.", overridable=True)
    add_config(sub)
    sub.add_argument("--adapter", type=Path, help="YAML file of an adapter, to count it too: options as for config")
    sub.add_argument("--vocab_size", type=int, default=500, help="tokens")
    sub.add_argument("--num_languages", type=int, default=9, help="languages")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add_verb(verbs, "config", _config, "Check option names and print the configuration.", overridable=True)
    add_config(sub)
    add_experiments(sub)
    sub.add_argument("--adapter", type=Path, help="YAML file of an adapter: options with the prefix adapt_ are its")
    sub.add_argument("--others", default="", help="names of other options that there are, which may be meant")


def _experiments(known: argparse.Namespace, rest: list[str]) -> None:
    from pelasr.stages.comparison import check_trained, expand

    chosen = expand(known.experiments, known.exps, known.comparison, known.adapters, known.seeds)
    if known.trained_in is not None:
        check_trained(known.trained_in, chosen, known.seeds)
    if known.which == "all":
        print(*(experiment.name for experiment in chosen))
    elif known.which == "backbones":
        print(*dict.fromkeys(experiment.backbone for experiment in chosen))
    else:
        # A line for what may run side by side: other seeds take what the first one chose, fusions others' packs.
        rounds: dict[tuple[bool, bool], list[str]] = {}
        for each in (experiment for experiment in chosen if experiment.adapted):
            rounds.setdefault((each.fuse is not None, each.seed is not None), []).append(each.name)
        print(*(" ".join(rounds[key]) for key in sorted(rounds)), sep="\n")


def _params(known: argparse.Namespace, rest: list[str]) -> None:
    from pelasr.config import two_configurations
    from pelasr.stages.params import count

    config, adapter = two_configurations(known.config, known.adapter, rest)
    where = f"{known.config} with {known.adapter}" if adapter else str(known.config)
    report = count(config, adapter, where, known.vocab_size, known.num_languages)
    if known.json:
        print(json.dumps(report))
    else:
        for name, number in report.items():
            print(f"{name:>20} {number:>13,}")


def _config(known: argparse.Namespace, rest: list[str]) -> None:
    import yaml

    from pelasr.config import given_for_adapter, two_configurations
    from pelasr.stages.settings import check_adapter, split_adapter_options, split_options

    config, adapter = two_configurations(known.config, known.adapter, rest)
    if known.others and "backbone" in config:
        _suggest(config["backbone"], rest, known.others.split())
    split_options(config, str(known.config))
    print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")
    if adapter is None:
        return
    split_adapter_options(adapter, str(known.adapter))
    for experiment in chosen_of(known):
        if experiment.adapted:
            check_adapter(*adapter_of(experiment, known.adapter, given_for_adapter(rest)))
    print(f"---\n{yaml.safe_dump(adapter, sort_keys=False, allow_unicode=True)}", end="")


def _suggest(family: str, rest: list[str], others: list[str]) -> None:
    """Raise PelasrError for an option that is no key of the configuration and likest to one of the `others`."""
    from pelasr.backbones.base import backbone_options
    from pelasr.config import suggest
    from pelasr.train.options import TrainingOptions

    training = [field.name for field in fields(TrainingOptions)]
    keys = ["backbone", "task", "model", *backbone_options(family), *training]
    suggest(rest, [*keys, "adapter_conf", *(f"adapt_{key}" for key in ("meta_conf", *training))], others)
