"""The command line: `pelasr <verb>`. A verb's imports are its own, so that help is instant."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from pelasr.cli.packs import add_pack_verbs
from pelasr.cli.transcribe import add_speech_options, transcribe, translate
from pelasr.errors import PelasrError
from pelasr.terminal import at_terminal, split_words, with_underscores
from pelasr.train.options import TOKENS
from pelasr.version import __version__

OVERRIDES = "Every key of the YAML file is an option too: `--max_epoch 3`, `--optim_conf lr=0.001`."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; a PelasrError is printed without a traceback, exit code 1."""
    given = with_underscores(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    known, rest = parser.parse_known_args(given)
    if rest and not known.overridable:
        parser.error(f"unknown option {rest[0]!r} of `pelasr {known.verb}`; see `pelasr {known.verb} --help`")
    with at_terminal(resumes="exp_dir" in known), _recorded(known, given) as run:
        if known.run(known, rest):
            run["outcome"] = "done"


def _recorded(known: argparse.Namespace, given: Sequence[str]) -> AbstractContextManager[dict[str, str]]:
    """Record the run where results pages look for it, if it is that of a stage."""
    if "exp_dir" not in known or known.verb == "table":
        return nullcontext({})
    from pelasr.score.environment import recorded

    return recorded(known.exp_dir / "times.jsonl", known.verb, given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pelasr", description="Multilingual speech recognition and translation with adapters."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")

    def verb(name: str, run: Any, text: str, overridable: bool = False, place: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, epilog=OVERRIDES if overridable else None)
        sub.set_defaults(run=run, overridable=overridable)
        if place:
            sub.add_argument("--data_dir", type=Path, default=Path("data"), help="data directories <set>_<language>")
            sub.add_argument("--dump_dir", type=Path, default=Path("dump"), help="features")
            sub.add_argument("--exp_dir", type=Path, default=Path("exp"), help="models and results")
            sub.add_argument("--langs", required=True, help="languages of the backbone, in the order of its vector")
        return sub

    def config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--config", type=Path, required=True, help="YAML file of the backbone and its training")

    def experiment(sub: argparse.ArgumentParser, several: bool = False, required: bool = True) -> None:
        sub.add_argument("--experiments", type=Path, default=Path("conf/experiments.yaml"), help="their definitions")
        sub.add_argument("--exps" if several else "--exp", required=required, help="which")

    def sets(sub: argparse.ArgumentParser, default: str) -> None:
        sub.add_argument("--sets", default=default, help="names of data sets, without the language")

    sub = verb("data", _data, "Stage 1: check data directories, all problems at once.", overridable=True)
    config(sub)
    experiment(sub, several=True, required=False)
    sets(sub, "train dev test")
    sub.add_argument("--skip_bad", type=_boolean, default=False, help="true: drop bad utterances and list them")
    sub.add_argument("--nj", type=int, default=2, help="processes")

    sub = verb("tokens", _tokens, "Stage 2: make the token lists of the experiments' training texts.")
    experiment(sub, several=True, required=False)
    sets(sub, "dev test")
    sub.add_argument("--token_type", choices=["char", "unigram"], default="char")
    sub.add_argument("--vocab_size", type=int, default=1000, help="for unigram: number of tokens")

    text = "Stage 3: features of every utterance, mean and variance of the training data."
    sub = verb("stats", _stats, text, overridable=True)
    sub.add_argument("--config", type=Path, help="YAML file of the backbone that is to hear them; default: 80 channels")
    sets(sub, "train dev test")
    sub.add_argument("--nj", type=int, default=2, help="processes")

    sub = verb("train", _train, "Stage 4: train the backbone that an experiment uses.", overridable=True)
    config(sub)
    experiment(sub)
    sub.add_argument("--init", help="experiment whose encoder it starts from")
    sub.add_argument("--ngpu", type=int, default=0, help="GPUs of this machine; 0: CPU")

    sub = verb("add", _add, "Before stage 5: check a new language's data, extract its features.", overridable=True)
    config(sub)
    sub.add_argument("--only", required=True, help="languages that the backbone was not trained on")
    sets(sub, "train dev test")
    for name in ("train", "dev", "test"):
        sub.add_argument(f"--{name}_dir", type=Path, help=f"of one language: data directory to copy as {name}")
    sub.add_argument("--skip_bad", type=_boolean, default=False, help="true: drop bad utterances and list them")
    sub.add_argument("--nj", type=int, default=2, help="processes")

    sub = verb("adapt", _adapt, "Stage 5: fit an experiment's adapters on its frozen backbone.", overridable=True)
    sub.add_argument("--adapter", type=Path, required=True, help="YAML file of the adapter and its training")
    experiment(sub)
    sub.add_argument("--only", help="languages to fit, also such as the backbone was not trained on; default: --langs")
    tokens = "of a new language: its own where the shared ones lack, keep the shared, or auto: own if many are unknown"
    sub.add_argument("--tokens", choices=TOKENS, default="auto", help=tokens)
    more = "true: train further what is fitted already, by the options of this call"
    sub.add_argument("--continue", dest="go_on", type=_boolean, default=False, help=more)
    sub.add_argument("--ngpu", type=int, default=0, help="GPUs of this machine; 0: CPU")

    def beam_size(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--beam_size", type=_positive, help="of the search; default: the backbone's")

    def decode_as(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--decode_as", help="of --langs, as which new languages are decoded that have no pack")

    sub = verb("decode", _decode, "Stage 6: recognise or translate test sets.")
    experiment(sub)
    sets(sub, "test")
    beam_size(sub)
    sub.add_argument("--only", help="languages to decode, also new ones; default: all of --langs")
    decode_as(sub)
    sub.add_argument("--ngpu", type=int, default=0, help="1: on a GPU")

    sub = verb("score", _score, "Stage 7: error rates or BLEU with intervals, into results.jsonl.")
    experiment(sub, several=True)
    sets(sub, "test")
    beam_size(sub)
    decode_as(sub)
    sub.add_argument("--recipe", required=True, help="name of the recipe in the results")

    sub = verb("forgetting", _forgetting, "Stage 7: measure whether added languages changed anything for the others.")
    experiment(sub, several=True)
    sets(sub, "test")
    beam_size(sub)
    sub.add_argument("--only", required=True, help="languages that were added")
    sub.add_argument("--recipe", required=True, help="name of the recipe in the results")

    sub = verb("table", _table, "Stage 7: print the table of a set; write RESULTS.md and its chart.")
    sub.add_argument("--experiments", type=Path, default=Path("conf/experiments.yaml"), help="their definitions")
    sub.add_argument("--set", default="test", help="name of the data set, without the language")
    sub.add_argument("--recipe", required=True, help="title of the page")
    sub.add_argument("--page", type=Path, default=Path("conf/results.yaml"), help="note and paper's figures, if any")
    sub.add_argument("--output", type=Path, metavar="FILE", help="the page; default: RESULTS.md in exp_dir")
    sub.add_argument("--forgetting", action="store_true", help="print what is said of languages added later")

    sub = verb("experiments", _experiments_of, "Print names of experiments: what may run side by side.", place=False)
    experiment(sub, several=True)
    kinds = "those that train a backbone for the ones that are named, or of these those that have adapters"
    sub.add_argument("--which", choices=["backbones", "adapted"], required=True, help=kinds)

    sub = verb("params", _params, "Count parameters, on the live modules.", overridable=True, place=False)
    config(sub)
    sub.add_argument("--adapter", type=Path, help="YAML file of an adapter, to count it too: options as for config")
    sub.add_argument("--vocab_size", type=int, default=500, help="tokens")
    sub.add_argument("--num_languages", type=int, default=9, help="languages")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = verb("config", _config, "Check option names and print the configuration.", overridable=True, place=False)
    config(sub)
    experiment(sub, several=True, required=False)
    sub.add_argument("--adapter", type=Path, help="YAML file of an adapter: options with the prefix adapt_ are its")
    sub.add_argument("--others", default="", help="names of other options that there are, which may be meant")

    for run in (transcribe, translate):
        sub = verb(run.__name__, run, run.__doc__, place=False)
        add_speech_options(sub)
        beam_size(sub)

    add_pack_verbs(verb("packs", None, "List, show, verify, merge, export and import packs.", place=False))
    return parser


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: true or false")
    return text == "true"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 on")
    return int(text)


def _place(known: argparse.Namespace) -> Any:
    from pelasr.data.language import check_language
    from pelasr.data.place import Place

    languages = split_words("--langs", known.langs)
    for language in languages:
        check_language(language, "--langs")
    if len({"-" in language for language in languages}) != 1:
        raise PelasrError(f"--langs {known.langs!r}: want languages (hi ur) or pairs (en-de en-fr), not both")
    return Place(known.data_dir, known.dump_dir, known.exp_dir, languages)


def _sets(known: argparse.Namespace) -> list[str]:
    return split_words("--sets", known.sets)


def _only(known: argparse.Namespace) -> list[str]:
    """Which languages to work on: the backbone's, or others that there is data for."""
    from pelasr.errors import nearest

    place = _place(known)
    only = split_words("--only", known.only) if known.only else place.languages
    for language in only:
        wanted = [place.folder(name, language) for name in (_sets(known) if "sets" in known else ["train"])]
        if language not in place.languages and not any(folder.is_dir() for folder in wanted):
            raise PelasrError(
                f"--only: no language {language!r}, and no {wanted[0]}; {nearest(language, place.languages)}"
            )
    return only


def _experiments(known: argparse.Namespace) -> Any:
    from pelasr.stages.experiment import load_experiments

    return load_experiments(known.experiments)


def _chosen(known: argparse.Namespace) -> Any:
    """The experiments that are named."""
    from pelasr.stages.experiment import find_experiment

    if known.exps is None:
        return []
    experiments = _experiments(known)
    return [find_experiment(experiments, name) for name in split_words("--exps", known.exps)]


def _experiments_of(known: argparse.Namespace, rest: list[str]) -> bool:
    chosen = _chosen(known)
    if known.which == "backbones":
        names = list(dict.fromkeys(experiment.backbone for experiment in chosen))
    else:
        names = [experiment.name for experiment in chosen if experiment.adapted]
    print(*names)
    return False


def _configured(path: Path, rest: list[str]) -> dict[str, Any]:
    from pelasr.config import load_yaml, override, parse_overrides

    return override(load_yaml(path), parse_overrides(rest))


def _data(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.data import validate_data

    config = _with_ctc(known, rest)
    return validate_data(_place(known), _sets(known), config, known.skip_bad, known.nj)


def _with_ctc(known: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """The configuration, or that of an experiment that trains with CTC, for which utterances must be long enough."""
    from pelasr.config import load_yaml, parse_overrides
    from pelasr.stages.experiment import resolve

    config = _configured(known.config, rest)
    own = [experiment for experiment in _chosen(known) if experiment.backbone == experiment.name]
    resolved = [resolve(load_yaml(known.config), experiment, parse_overrides(rest)) for experiment in own]
    return next((found for found in [config, *resolved] if found.get("ctc_weight")), config)


def _tokens(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.tokens import make_tokens

    return make_tokens(_place(known), _chosen(known), _sets(known), known.token_type, known.vocab_size)


def _stats(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.data.features import USUAL
    from pelasr.stages.settings import configured_backbone
    from pelasr.stages.stats import make_stats

    if rest and known.config is None:
        raise PelasrError(f"{rest[0]}: of which backbone? add --config FILE")
    hears = USUAL if known.config is None else configured_backbone(_configured(known.config, rest)).hears
    return make_stats(_place(known), _sets(known), known.nj, hears)


def _add(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.add import add_language

    place, config, only = _place(known), _configured(known.config, rest), split_words("--only", known.only)
    given = {name: getattr(known, f"{name}_dir") for name in ("train", "dev", "test")}
    folders = {name: path for name, path in given.items() if path is not None}
    if folders and len(only) > 1:
        raise PelasrError(f"--{next(iter(folders))}_dir: of which of {known.only}? Add them one by one")
    sets = list(dict.fromkeys([*_sets(known), *folders]))
    worked = False
    for language in only:
        if language in place.languages:
            raise PelasrError(f"{language}: the backbone was trained on it; a new language has a name of its own")
        worked |= add_language(place, language, folders, sets, config, known.skip_bad, known.nj)
    return worked


def _train(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.config import load_yaml, parse_overrides
    from pelasr.stages.experiment import find_experiment, resolve
    from pelasr.stages.train import train_backbone

    experiments = _experiments(known)
    experiment = find_experiment(experiments, known.exp)
    owner = find_experiment(experiments, experiment.backbone)
    if known.init:
        source = find_experiment(experiments, known.init)
        if source.each or source.backbone != source.name:
            raise PelasrError(f"--init {known.init}: trains no backbone for them all; name an experiment that does")
    config = resolve(load_yaml(known.config), owner, parse_overrides(rest))
    return train_backbone(_place(known), experiment, config, str(known.config), known.ngpu, known.init)


def _adapt(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.config import parse_overrides
    from pelasr.stages.adapt import fit_adapters
    from pelasr.stages.experiment import find_experiment

    experiment = find_experiment(_experiments(known), known.exp)
    only = _only(known)
    config, path = _adapter_of(experiment, known.adapter, parse_overrides(rest)) if experiment.adapted else ({}, "")
    return fit_adapters(_place(known), experiment, config, path, only, known.ngpu, known.tokens, known.go_on)


def _adapter_of(experiment: Any, default: Path, overrides: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The configuration of an experiment's adapters, and its file."""
    from pelasr.config import load_yaml
    from pelasr.stages.experiment import resolve

    path = default.with_name(f"{experiment.adapter}.yaml") if experiment.adapter else default
    return resolve(load_yaml(path), experiment, overrides), str(path)


def _decode(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.decode import decode
    from pelasr.stages.experiment import find_experiment

    experiment = find_experiment(_experiments(known), known.exp)
    return decode(_place(known), experiment, _sets(known), _only(known), known.ngpu, _decoding(known))


def _decoding(known: argparse.Namespace) -> Any:
    from pelasr.stages.experiment import Decoding

    return Decoding(known.beam_size, getattr(known, "decode_as", None))


def _score(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.score import score

    chosen, sets = _chosen(known), _sets(known)
    return score(_place(known), _experiments(known), chosen, sets, known.recipe, _decoding(known))


def _forgetting(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.forgetting import measure_forgetting

    new = [language for language in _only(known) if language not in known.langs.split()]
    return measure_forgetting(_place(known), _chosen(known), new, _sets(known), known.recipe, _decoding(known))


def _table(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.table import write_page

    descriptions = {experiment.name: experiment.description for experiment in _experiments(known).values()}
    output = known.output or known.exp_dir / "RESULTS.md"
    write_page(_place(known), descriptions, known.set, known.recipe, known.page, output, known.forgetting)
    return False


def _params(known: argparse.Namespace, rest: list[str]) -> bool:
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
    return False


def _config(known: argparse.Namespace, rest: list[str]) -> bool:
    import yaml

    from pelasr.backbones.base import backbone_options
    from pelasr.config import given_for_adapter, suggest, two_configurations
    from pelasr.stages.settings import check_adapter, split_adapter_options, split_options
    from pelasr.train.options import TrainingOptions

    config, adapter = two_configurations(known.config, known.adapter, rest)
    if known.others and "backbone" in config:
        training = [field.name for field in fields(TrainingOptions)]
        keys = ["backbone", *backbone_options(config["backbone"]), *training]
        suggest(rest, [*keys, "adapter_conf", *(f"adapt_{key}" for key in training)], known.others.split())
    split_options(config, str(known.config))
    print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")
    if adapter is not None:
        split_adapter_options(adapter, str(known.adapter))
        for experiment in _chosen(known):
            if experiment.adapted:
                check_adapter(*_adapter_of(experiment, known.adapter, given_for_adapter(rest)))
        print(f"---\n{yaml.safe_dump(adapter, sort_keys=False, allow_unicode=True)}", end="")
    return False
