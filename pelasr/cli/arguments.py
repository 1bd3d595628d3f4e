"""Options that verbs share, and what they mean."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelasr.errors import PelasrError, nearest
from pelasr.terminal import split_words

if TYPE_CHECKING:
    from pelasr.data.place import Place
    from pelasr.search.lm import LMOptions
    from pelasr.stages.experiment import Experiment

OVERRIDES = "Every key of the YAML file is an option too: `--max_epoch 3`, `--optim_conf lr=0.001`."


def add_verb(verbs: Any, name: str, run: Any, text: str, overridable: bool = False) -> argparse.ArgumentParser:
    """A verb without options. `overridable`: keys of its YAML file are options too."""
    sub = verbs.add_parser(name, help=text, description=text, epilog=OVERRIDES if overridable else None)
    sub.set_defaults(run=run, overridable=overridable)
    return sub


def add_stage(verbs: Any, name: str, run: Any, text: str, overridable: bool = False) -> argparse.ArgumentParser:
    """A verb that works in a recipe's folders, on its languages."""
    sub = add_verb(verbs, name, run, text, overridable)
    sub.add_argument("--data_dir", type=Path, default=Path("data"), help="data directories <set>_<language>")
    sub.add_argument("--dump_dir", type=Path, default=Path("dump"), help="features")
    sub.add_argument("--exp_dir", type=Path, default=Path("exp"), help="models and results")
    languages = "the recipe's languages, which backbones are trained on, in the order of the language vector"
    sub.add_argument("--langs", required=True, help=languages)
    return sub


def add_config(sub: argparse.ArgumentParser) -> None:
    """`--config`, of which the keys are options too if the verb is `overridable`."""
    sub.add_argument("--config", type=Path, required=True, help="YAML file of the backbone and its training")


def add_definitions(sub: argparse.ArgumentParser) -> None:
    """`--experiments` and `--comparison`, the files."""
    sub.add_argument(
        "--experiments", type=Path, default=Path("conf/experiments.yaml"), help="YAML file that defines experiments"
    )
    sub.add_argument("--comparison", type=Path, help="YAML file of methods to compare, which are experiments too")


def add_experiment(sub: argparse.ArgumentParser) -> None:
    """`--exp`, of a verb for one experiment."""
    add_definitions(sub)
    sub.add_argument("--exp", required=True, help="which experiment")


def add_experiments(sub: argparse.ArgumentParser, required: bool = False) -> None:
    """`--exps`, of a verb for several."""
    add_definitions(sub)
    sub.add_argument("--exps", required=required, help="which experiments")


def add_sets(sub: argparse.ArgumentParser, default: str) -> None:
    """`--sets`."""
    sub.add_argument("--sets", default=default, help="names of data sets, without the language")


def add_fit_langs(sub: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    """`--fit_langs`, which used to be `--only`."""
    group = sub.add_mutually_exclusive_group(required=required)
    group.add_argument("--fit_langs", help=text)
    group.add_argument("--only", dest="fit_langs", help=argparse.SUPPRESS)


def add_skip_bad(sub: argparse.ArgumentParser) -> None:
    """`--skip_bad true`."""
    sub.add_argument("--skip_bad", type=boolean, default=False, help="true: drop bad utterances and list them")


def add_dump(sub: argparse.ArgumentParser) -> None:
    """`--dump false`."""
    text = "false: features are computed while training, none are written"
    sub.add_argument("--dump", type=boolean, default=True, help=text)


def add_processes(sub: argparse.ArgumentParser) -> None:
    """`--nj`."""
    sub.add_argument("--nj", type=int, default=2, help="processes")


def add_gpus(sub: argparse.ArgumentParser) -> None:
    """`--ngpu`, of a verb that trains."""
    sub.add_argument("--ngpu", type=int, default=0, help="GPUs of this machine; 0: CPU")


def add_beam_size(sub: argparse.ArgumentParser) -> None:
    """`--beam_size`."""
    sub.add_argument("--beam_size", type=_positive, help="of the search; default: the backbone's")


def add_search(sub: argparse.ArgumentParser) -> None:
    """`--beam_size`, and language models."""
    add_beam_size(sub)
    lm = (
        "n-gram language model of words that counts in the search, ARPA or KenLM's binary; {lang} in it is the language"
    )
    sub.add_argument("--lm", metavar="FILE", help=lm)
    sub.add_argument("--lm_weight", type=_finite, help="of the language model's log probabilities; default: 0.5")
    sub.add_argument("--word_bonus", type=_finite, help="of every word, with a language model; default: 1.5")


def lm_of(known: argparse.Namespace) -> "LMOptions | None":
    """The language model that is asked for, if any. Raises PelasrError for its options without it."""
    from pelasr.search.lm import LMOptions

    given = {"weight": known.lm_weight, "bonus": known.word_bonus}
    given = {key: value for key, value in given.items() if value is not None}
    if known.lm is None and given:
        raise PelasrError("--lm_weight, --word_bonus: of which language model? Name it with --lm FILE")
    return LMOptions(known.lm, **given) if known.lm is not None else None


def add_recipe(sub: argparse.ArgumentParser) -> None:
    """`--recipe`."""
    sub.add_argument("--recipe", required=True, help="name of the recipe in the results")


def boolean(text: str) -> bool:
    """The value of an option that is `true` or `false`."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: true or false")
    return text == "true"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 on")
    return int(text)


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r}: a number")
    return number


def place_of(known: argparse.Namespace) -> "Place":
    """The recipe's folders and languages. Raises PelasrError for what are no languages."""
    from pelasr.data.language import check_language, of_one_kind
    from pelasr.data.place import Place

    languages = split_words("--langs", known.langs)
    for language in languages:
        check_language(language, "--langs")
    if not of_one_kind(languages):
        raise PelasrError(f"--langs {known.langs!r}: want languages (hi ur) or pairs (en-de en-fr), not both")
    return Place(known.data_dir, known.dump_dir, known.exp_dir, languages)


def sets_of(known: argparse.Namespace) -> list[str]:
    """The names of `--sets`."""
    return split_words("--sets", known.sets)


def fit_langs_of(known: argparse.Namespace, place: "Place", sets: list[str]) -> list[str]:
    """The languages to fit or decode: the recipe's, or others that there is data for in any of the sets."""
    if not known.fit_langs:
        return place.languages
    found = split_words("--fit_langs", known.fit_langs)
    for language in found:
        wanted = [place.folder(name, language) for name in sets]
        if language not in place.languages and not any(folder.is_dir() for folder in wanted):
            there = nearest(language, place.languages)
            raise PelasrError(f"--fit_langs: no language {language!r}, and no {wanted[0]}; {there}")
    return found


def experiments_of(known: argparse.Namespace) -> "dict[str, Experiment]":
    """All experiments of the file, by name."""
    from pelasr.stages.comparison import read_comparison
    from pelasr.stages.experiment import load_experiments

    if known.comparison is None:
        return load_experiments(known.experiments)
    return load_experiments(known.experiments, read_comparison(known.comparison).entries, known.comparison)


def experiment_of(known: argparse.Namespace) -> "Experiment":
    """The one that `--exp` names."""
    from pelasr.stages.experiment import find_experiment

    return find_experiment(experiments_of(known), known.exp)


def chosen_of(known: argparse.Namespace) -> "list[Experiment]":
    """Those that `--exps` names, if it is given."""
    from pelasr.stages.experiment import find_experiment

    if known.exps is None:
        return []
    experiments = experiments_of(known)
    return [find_experiment(experiments, name) for name in split_words("--exps", known.exps)]


def adapter_of(experiment: "Experiment", default: Path, overrides: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The configuration of an experiment's adapters, and its file, which is beside the `default` one."""
    from pelasr.config import load_yaml
    from pelasr.stages.experiment import resolve

    if experiment.whole:
        return resolve({}, experiment, overrides), f"{experiment.base} of the comparison"
    path = default.with_name(f"{experiment.adapter}.yaml") if experiment.adapter else default
    return resolve(load_yaml(path), experiment, overrides), str(path)
