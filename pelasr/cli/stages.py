"""The verbs of the stages and their options; `pelasr.stages` is what they do."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelasr.cli.arguments import (
    adapter_of,
    add_beam_size,
    add_config,
    add_definitions,
    add_dump,
    add_experiment,
    add_experiments,
    add_fit_langs,
    add_gpus,
    add_processes,
    add_recipe,
    add_search,
    add_sets,
    add_skip_bad,
    add_stage,
    boolean,
    chosen_of,
    experiment_of,
    experiments_of,
    fit_langs_of,
    lm_of,
    place_of,
    sets_of,
)
from pelasr.errors import PelasrError
from pelasr.terminal import split_words
from pelasr.train.options import FRESH, STARTS, TOKENS

if TYPE_CHECKING:
    from pelasr.stages.experiment import Decoding


def add_stages(verbs: Any) -> None:
    """Add the verbs to a parser's."""
    for add in (_add_data, _add_tokens, _add_stats, _add_train, _add_add, _add_adapt):
        add(verbs)
    for add in (_add_decode, _add_score, _add_forgetting, _add_table, _add_methods):
        add(verbs)


def _add_data(verbs: Any) -> None:
    text = "Stage 1: check data directories, all problems at once."
    sub = add_stage(verbs, "data", _data, text, overridable=True)
    add_config(sub)
    add_experiments(sub)
    add_sets(sub, "train dev test")
    add_skip_bad(sub)
    add_processes(sub)


def _data(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.data import validate_data

    return validate_data(place_of(known), sets_of(known), _with_ctc(known, rest), known.skip_bad, known.nj)


def _with_ctc(known: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """The configuration, or that of an experiment that trains with CTC, for which utterances must be long enough."""
    from pelasr.config import load_yaml, override, parse_overrides
    from pelasr.stages.experiment import resolve
    from pelasr.stages.settings import trains_with_ctc

    given, overrides = load_yaml(known.config), parse_overrides(rest)
    config = override(given, overrides)
    own = [experiment for experiment in chosen_of(known) if experiment.trains]
    resolved = [resolve(given, experiment, overrides) for experiment in own]
    return next((found for found in [config, *resolved] if trains_with_ctc(found)), config)


def _add_tokens(verbs: Any) -> None:
    sub = add_stage(verbs, "tokens", _tokens, "Stage 2: make the token lists of the experiments' training texts.")
    add_experiments(sub)
    add_sets(sub, "dev test")
    sub.add_argument("--token_type", choices=["char", "unigram"], default="char")
    sub.add_argument("--vocab_size", type=int, default=1000, help="for unigram: number of tokens")


def _tokens(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.tokens import make_tokens

    return make_tokens(place_of(known), chosen_of(known), sets_of(known), known.token_type, known.vocab_size)


def _add_stats(verbs: Any) -> None:
    text = "Stage 3: features of every utterance, mean and variance of the training data."
    sub = add_stage(verbs, "stats", _stats, text, overridable=True)
    sub.add_argument("--config", type=Path, help="YAML file of the backbone that is to hear them; default: 80 channels")
    add_sets(sub, "train dev test")
    add_dump(sub)
    add_processes(sub)


def _stats(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.config import load_yaml, override, parse_overrides
    from pelasr.data.hears import USUAL
    from pelasr.stages.settings import configured_backbone
    from pelasr.stages.stats import make_stats

    if rest and known.config is None:
        raise PelasrError(f"{rest[0]}: of which backbone? add --config FILE")
    hears = USUAL
    if known.config is not None:
        hears = configured_backbone(override(load_yaml(known.config), parse_overrides(rest))).hears
    return make_stats(place_of(known), sets_of(known), known.nj, hears, known.dump)


def _add_train(verbs: Any) -> None:
    text = "Stage 4: train the backbone that an experiment uses."
    sub = add_stage(verbs, "train", _train, text, overridable=True)
    add_config(sub)
    add_experiment(sub)
    sub.add_argument("--init", help="experiment whose encoder it starts from")
    add_gpus(sub)


def _train(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.config import load_yaml, parse_overrides
    from pelasr.score.seeds import seeded, split_seed
    from pelasr.stages.experiment import find_experiment, resolve
    from pelasr.stages.train import check_imported, train_backbone

    experiments = experiments_of(known)
    experiment = find_experiment(experiments, known.exp)
    owner = find_experiment(experiments, experiment.backbone)
    if owner.adapted:
        return check_imported(place_of(known), owner)
    if known.init:
        if experiment.seed is not None and split_seed(known.init)[1] is None:
            known.init = seeded(known.init, experiment.seed)
        source = find_experiment(experiments, known.init)
        if source.each or source.backbone != source.name:
            raise PelasrError(f"--init {known.init}: trains no backbone for them all; name an experiment that does")
    config = resolve(load_yaml(known.config), owner, parse_overrides(rest))
    return train_backbone(place_of(known), experiment, config, str(known.config), known.ngpu, known.init)


def _add_add(verbs: Any) -> None:
    text = "Before stage 5: check a new language's data, extract its features."
    sub = add_stage(verbs, "add", _add, text, overridable=True)
    add_config(sub)
    add_fit_langs(sub, "new languages: those that the backbone was not trained on", required=True)
    add_sets(sub, "train dev test")
    for name in ("train", "dev", "test"):
        sub.add_argument(f"--{name}_dir", type=Path, help=f"of one language: data directory to copy as {name}")
    add_skip_bad(sub)
    add_dump(sub)
    add_processes(sub)


def _add(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.config import load_yaml, override, parse_overrides
    from pelasr.stages.add import add_language

    place, config = place_of(known), override(load_yaml(known.config), parse_overrides(rest))
    languages = split_words("--fit_langs", known.fit_langs)
    given = {name: getattr(known, f"{name}_dir") for name in ("train", "dev", "test")}
    folders = {name: path for name, path in given.items() if path is not None}
    if folders and len(languages) > 1:
        raise PelasrError(f"--{next(iter(folders))}_dir: of which of {known.fit_langs}? Add them one by one")
    sets = list(dict.fromkeys([*sets_of(known), *folders]))
    worked = False
    for language in languages:
        if language in place.languages:
            raise PelasrError(f"{language}: the backbone was trained on it; a new language has a name of its own")
        if add_language(place, language, folders, sets, config, known.skip_bad, known.nj, known.dump):
            worked = True
    return worked


def _add_adapt(verbs: Any) -> None:
    text = "Stage 5: fit an experiment's adapters on its frozen backbone."
    sub = add_stage(verbs, "adapt", _adapt, text, overridable=True)
    sub.add_argument("--adapter", type=Path, required=True, help="YAML file of the adapter and its training")
    add_experiment(sub)
    add_fit_langs(sub, "languages to fit, also new ones; default: all of --langs")
    tokens = "of a new language: its own where the shared ones lack, keep the shared, or auto: own if many are unknown"
    sub.add_argument("--tokens", choices=TOKENS, default="auto", help=tokens)
    start = "adapters begin fresh, as those of another language's pack, of the nearest pack, or meta-trained"
    sub.add_argument("--start", default=FRESH, metavar="|".join([*STARTS, "LANGUAGE"]), help=start)
    more = "true: train further what is fitted already, or was imported, by the options of this call"
    sub.add_argument("--continue", dest="go_on", type=boolean, default=False, help=more)
    add_gpus(sub)


def _adapt(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.config import parse_overrides
    from pelasr.stages.adapt import fit_adapters
    from pelasr.stages.rates import fit_rates

    place, experiment, overrides = place_of(known), experiment_of(known), parse_overrides(rest)
    languages = fit_langs_of(known, place, ["train"])
    config, path = adapter_of(experiment, known.adapter, overrides) if experiment.adapted else ({}, "")
    how = (config, path, languages, known.ngpu, known.tokens, known.go_on, known.start)
    if experiment.rates:
        rate = (overrides.get("optim_conf") or {}).get("lr")
        return fit_rates(place, experiment if rate is None else replace(experiment, rates=(rate,)), *how)
    return fit_adapters(place, experiment, *how)


def _add_decode_as(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--decode_as", help="of --langs, as which new languages are decoded that have no pack")


def _decoding(known: argparse.Namespace) -> "Decoding":
    from pelasr.stages.experiment import Decoding

    return Decoding(known.beam_size, known.decode_as, lm_of(known))


def _add_decode(verbs: Any) -> None:
    sub = add_stage(verbs, "decode", _decode, "Stage 6: recognise or translate test sets.")
    add_experiment(sub)
    add_sets(sub, "test")
    add_search(sub)
    add_fit_langs(sub, "languages to decode, also new ones; default: all of --langs")
    _add_decode_as(sub)
    sub.add_argument("--ngpu", type=int, default=0, help="1: on a GPU")


def _decode(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.decode import decode

    place, experiment, sets = place_of(known), experiment_of(known), sets_of(known)
    return decode(place, experiment, sets, fit_langs_of(known, place, sets), known.ngpu, _decoding(known))


def _add_score(verbs: Any) -> None:
    text = "Stage 7: error rates or BLEU with intervals, into results.jsonl."
    sub = add_stage(verbs, "score", _score, text)
    add_experiments(sub, required=True)
    add_sets(sub, "test")
    add_search(sub)
    _add_decode_as(sub)
    add_recipe(sub)


def _score(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.score import score

    chosen, sets = chosen_of(known), sets_of(known)
    return score(place_of(known), experiments_of(known), chosen, sets, known.recipe, _decoding(known))


def _add_methods(verbs: Any) -> None:
    text = "Stage 7: what methods cost beside their figures; write RESULTS_methods.md and its chart."
    sub = add_stage(verbs, "methods", _methods, text)
    add_experiments(sub, required=True)
    sub.add_argument("--set", default="test", help="name of the data set, without the language")
    add_search(sub)
    _add_decode_as(sub)
    add_recipe(sub)
    sub.add_argument("--page", type=Path, required=True, help="YAML file of a note on the figures, if any")
    sub.add_argument("--paper", type=Path, required=True, help="YAML file of published figures")
    sub.add_argument("--output", type=Path, metavar="FILE", required=True, help="the page")


def _methods(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.comparison import read_comparison
    from pelasr.stages.methods import record_costs, write_page

    place, chosen = place_of(known), chosen_of(known)
    if known.comparison is None:
        raise PelasrError("which methods are compared? Name their file with --comparison")
    baseline = read_comparison(known.comparison).baseline
    record_costs(place, chosen, known.set, known.recipe, _decoding(known))
    write_page(place, baseline, chosen, known.set, known.recipe, (known.page, known.paper), known.output)
    return True


def _add_forgetting(verbs: Any) -> None:
    text = "Stage 7: measure whether added languages changed anything for the others."
    sub = add_stage(verbs, "forgetting", _forgetting, text)
    add_experiments(sub, required=True)
    add_sets(sub, "test")
    add_beam_size(sub)
    add_fit_langs(sub, "new languages: those that were added", required=True)
    add_recipe(sub)


def _forgetting(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.experiment import Decoding
    from pelasr.stages.forgetting import measure_forgetting

    place, sets = place_of(known), sets_of(known)
    new = [language for language in fit_langs_of(known, place, sets) if language not in place.languages]
    if not new:
        raise PelasrError(f"--fit_langs {known.fit_langs!r}: the backbone was trained on them; name new languages")
    return measure_forgetting(place, chosen_of(known), new, sets, known.recipe, Decoding(known.beam_size))


def _add_table(verbs: Any) -> None:
    text = "Stage 7: print the table of a set; write RESULTS.md and its chart."
    sub = add_stage(verbs, "table", _table, text)
    add_definitions(sub)
    sub.add_argument("--set", default="test", help="name of the data set, without the language")
    sub.add_argument("--recipe", required=True, help="title of the page")
    sub.add_argument("--page", type=Path, default=Path("conf/results.yaml"), help="note and paper's figures, if any")
    sub.add_argument("--output", type=Path, metavar="FILE", help="the page; default: RESULTS.md in exp_dir")
    sub.add_argument("--forgetting", action="store_true", help="print what is said of languages added later")


def _table(known: argparse.Namespace, rest: list[str]) -> bool:
    from pelasr.stages.comparison import read_comparison
    from pelasr.stages.experiment import load_experiments
    from pelasr.stages.table import write_page

    experiments = load_experiments(known.experiments)
    methods = read_comparison(known.comparison).entries if known.comparison else {}
    without = methods.keys() - experiments.keys()  # they have a page of their own
    descriptions = {experiment.name: experiment.description for experiment in experiments.values()}
    output = known.output or known.exp_dir / "RESULTS.md"
    place, page = place_of(known), known.page
    write_page(place, descriptions, known.set, known.recipe, page, output, known.forgetting, without)
    return False
