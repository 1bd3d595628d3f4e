"""Experiments: named settings of one program (A0 ... A5), and the folders they live in."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pelasr.config import check_keys, load_yaml, override
from pelasr.data.language import check_language
from pelasr.data.place import Place
from pelasr.errors import PelasrError, brief, nearest
from pelasr.score.seeds import seeded, split_seed
from pelasr.search.lm import LMOptions
from pelasr.terminal import split_words


@dataclass(frozen=True)
class Decoding:
    """How sets are decoded, where it is not as usual. `beam_size`: of the search. `decode_as`: the language of the
    backbone's as which new languages are decoded that have no pack. `lm`: language models that count."""

    beam_size: int | None = None
    decode_as: str | None = None
    lm: LMOptions | None = None


AS_USUAL = Decoding()
# Names that none of an experiment can be.
TAKEN = {"all": "how every experiment or method is asked for", "tokens": "the folder of the token lists"}
# What an entry may say beside overrides of the configuration.
DESCRIPTION, READ_EARLY, ADAPT, COMPARE = "description", "read_early", "adapt", "compare"
LANGS, EACH, ADAPTER, SERVE, FUSE = "langs", "each", "adapter", "serve", "fuse"
TOKENS, RATES = ("token_type", "vocab_size"), "lr"
KINDS = {  # what is expected of an entry's keys
    DESCRIPTION: (str, "words"),
    LANGS: (str, "languages in one string"),
    EACH: (bool, "true or false"),
    TOKENS[0]: (str, "char or unigram"),
    TOKENS[1]: (int, "a number of tokens"),
}


@dataclass(frozen=True)
class Experiment:
    """One entry of an experiments file.

    An experiment trains a backbone of its own with `overrides` (with `each: true` one for every language); or, with
    `read_early: X`, reads the backbone of X at its early epoch; or, with `adapt: X`, fits adapters on the frozen
    backbone of X, by the adapter's file `adapter` (beside the one that the command line names) and `overrides`. With
    `adapt` and its own name the backbone in its folder was imported; others may adapt it too.
    `backbone` names the experiment that trains, `weights` which of its weights are used, `compare` an experiment to
    test against, utterance by utterance, `serve` the language whose pack alone is fitted and serves all of them (to see
    what it does to the others), `fuse` the experiment whose packs its adapters are made of, `languages` those of an
    experiment that is not about the recipe's, and `tokens` the kind and number of its tokens where they are its own.
    """

    name: str
    description: str
    backbone: str
    weights: str
    adapted: bool
    overrides: dict[str, Any]
    compare: str | None
    languages: list[str] | None = None
    each: bool = False
    adapter: str | None = None
    serve: str | None = None
    fuse: str | None = None
    tokens: dict[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    seed: int | None = None
    whole: bool = False

    @property
    def base(self) -> str:
        """Its name without the seed."""
        return split_seed(self.name)[0]

    @property
    def trains(self) -> bool:
        """Whether it trains the backbone in its folder."""
        return self.backbone == self.name and not self.adapted

    def backbones(self, place: Place) -> dict[Path, Place]:
        """Folders of the backbones, and what each is about."""
        folder, languages = place.exp / self.backbone, self.languages or place.languages
        if self.each:
            return {folder / language: place.of([language]) for language in languages}
        return {folder: place.of(self.languages) if self.languages else place}


def load_experiments(
    path: str | Path, comparison: Mapping[Any, dict[str, Any]] | None = None, compared: str | Path = "comparison"
) -> dict[str, Experiment]:
    """Read an experiments file: {name: {description, overrides or read_early or adapt}}.

    `comparison`: entries that stand beside them, see `pelasr.stages.comparison`; all settings of their adapters are in
    the entry. `compared`: their file. Raises PelasrError for what is wrong with either.
    """
    entries, methods, result = _read_entries(path), dict(comparison or {}), {}
    for name in methods:
        if name in entries:
            raise PelasrError(f"{path}: {name!r} is a method of the comparison too: rename the experiment")
    for name, entry in (entries := entries | methods).items():
        entry, where = dict(entry), f"{compared if name in methods else path}: {name}"
        if name in TAKEN:
            raise PelasrError(f"{where}: this is {TAKEN[name]}: choose another name")
        for key in (ADAPT, READ_EARLY, COMPARE, FUSE):
            if key in entry:
                entry[key] = str(entry[key])  # YAML reads the row 2 as a number
                if entry[key] not in entries:
                    raise PelasrError(f"{where} refers to {brief(entry[key])!r}; {nearest(entry[key], entries)}")
        source = entry.get(ADAPT) or entry.get(READ_EARLY)
        imported = ADAPT in entry and str(entries[entry[ADAPT]].get(ADAPT)) == entry[ADAPT]
        if source and not imported and {ADAPT, READ_EARLY, EACH} & set(entries[source]):
            raise PelasrError(f"{where} refers to {source!r}, which trains no backbone of its own for all")
        if READ_EARLY in entry:
            allowed = [READ_EARLY, DESCRIPTION, COMPARE]
            check_keys(entry, allowed, f"{where} has the settings of {source}")
        if ADAPT in entry and (own := {LANGS, EACH, *TOKENS} & set(entry)):
            raise PelasrError(f"{where} has the languages and tokens of {source}, not its own {min(own)}")
        if FUSE in entry and (FUSE in entries[entry[FUSE]] or str(entries[entry[FUSE]].get(ADAPT)) != entry.get(ADAPT)):
            raise PelasrError(f"{where}: fuse: {entry[FUSE]} has no adapters of its own on the same backbone")
        inherited = entries[source] if source else {}
        inherited = {key: value for key, value in inherited.items() if key in (LANGS, *TOKENS)}
        method = {ADAPTER: entry.pop(ADAPTER)} if name in methods else {}
        found = _experiment(name, inherited | entry, where)
        result[name] = replace(found, whole=True, overrides=method | found.overrides) if method else found
    return result


def _read_entries(path: str | Path) -> dict[str, dict[str, Any]]:
    """The entries of an experiments file by name. Raises PelasrError for a name that is none of a folder: experiments
    are folders, and nothing may lead out of `exp/`."""
    entries: dict[str, dict[str, Any]] = {}
    for key, entry in load_yaml(path).items():
        name = check_name(key, f"{path}: experiment")
        if name in entries:
            raise PelasrError(f"{path}: the experiment {name!r} comes a second time")
        if not isinstance(entry or {}, dict):
            raise PelasrError(f"{path}: {name}: expected `key: value` lines, found {brief(repr(entry))}")
        entries[name] = entry or {}
    return entries


def check_name(name: Any, where: str) -> str:
    """A name of a file or folder, as a string (YAML reads the row 2 as a number). Raises PelasrError for what is none,
    or could not be named among others on the command line."""
    found = str(name)
    plain = found.isprintable() and not re.search(r"[\s/\\]", found) and len(found.encode()) <= 100
    if type(name) not in (str, int) or not plain or found.startswith((".", "-")) or not found:
        raise PelasrError(f"{where} {brief(found)!r}: want a name of a folder, as A1")
    if split_seed(found)[1] is not None:
        raise PelasrError(f"{where} {brief(found)!r}: such names are those of runs with another seed (--seeds)")
    return found


def _experiment(name: str, entry: dict[str, Any], where: str) -> Experiment:
    """An entry whose references are checked."""
    for key, (kind, what) in KINDS.items():
        if not isinstance(entry.get(key, kind()), kind):
            raise PelasrError(f"{where}: {key}: expected {what}, found {brief(repr(entry[key]))}")
    languages = split_words(f"{where}: {LANGS}", entry.pop(LANGS)) if LANGS in entry else None
    for language in [*(languages or []), *([entry[SERVE]] if SERVE in entry else [])]:
        check_language(language, where)
    if ADAPTER in entry:
        check_name(entry[ADAPTER], f"{where}: {ADAPTER}")
    adapted, early = entry.pop(ADAPT, None), entry.pop(READ_EARLY, None)
    if RATES in entry and not adapted:
        raise PelasrError(f"{where}: {RATES} goes with {ADAPT}; a backbone's learning rate is optim_conf: {{lr: ...}}")
    return Experiment(
        name=name,
        description=entry.pop(DESCRIPTION, name),
        backbone=adapted or early or name,
        weights="early" if early else "backbone",
        adapted=adapted is not None,
        compare=entry.pop(COMPARE, None),
        languages=languages,
        each=entry.pop(EACH, False),
        adapter=entry.pop(ADAPTER, None) if adapted else None,
        serve=entry.pop(SERVE, None) if adapted else None,
        fuse=entry.pop(FUSE, None),
        tokens={key: entry.pop(key) for key in TOKENS if key in entry},
        rates=_rates(entry.pop(RATES), where) if RATES in entry else (),
        overrides=entry,
    )


def _rates(given: Any, where: str) -> tuple[float, ...]:
    """Learning rates to choose among: a number, or a list of them."""
    rates = given if isinstance(given, list) else [given]
    for rate in rates:
        if type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise PelasrError(f"{where}: {RATES}: {brief(repr(rate))} is no number above 0")
    if not rates or len(set(map(folder_of, rates))) < len(rates):
        raise PelasrError(f"{where}: {RATES}: {brief(repr(given))}: want one number or several, each once (six digits)")
    return tuple(map(float, rates))


def folder_of(rate: float) -> str:
    """The folder, in that of the experiment, of what is fitted by a learning rate."""
    return f"lr_{rate:g}"


def find_experiment(experiments: dict[str, Experiment], name: str) -> Experiment:
    """One experiment by name, `A1`, or with another seed, `A1.seed2`: with the backbone of that seed too, if it was not
    imported. An unknown one is an error that lists what there is."""
    base, seed = split_seed(name)
    if base not in experiments or not (seed is None or isinstance(seed, int)):
        raise PelasrError(f"no experiment {name!r}; {nearest(name, experiments)}")
    found = experiments[base]
    if seed is None:
        return found
    owner = found.backbone
    backbone = owner if experiments[owner].adapted else seeded(owner, seed)
    others = {"compare": found.compare, "fuse": found.fuse}
    others = {key: other and seeded(other, seed) for key, other in others.items()}
    return replace(found, name=name, backbone=backbone, seed=seed, **others)


def resolve(config: dict[str, Any], experiment: Experiment, overrides: dict[str, Any]) -> dict[str, Any]:
    """The configuration file, then the experiment's settings, then the command line's; but a seed in its name."""
    found = override(override(config, experiment.overrides), overrides)
    return found if experiment.seed is None else found | {"seed": experiment.seed}
