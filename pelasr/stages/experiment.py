"""Experiments: named settings of one program (A0 ... A5), and the folders they live in."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelasr.config import check_keys, load_yaml, override
from pelasr.data.language import check_language
from pelasr.data.place import Place
from pelasr.errors import PelasrError, brief, nearest
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
# What an entry may say beside overrides of the configuration.
DESCRIPTION, READ_EARLY, ADAPT, COMPARE = "description", "read_early", "adapt", "compare"
LANGS, EACH, ADAPTER, SERVE, FUSE = "langs", "each", "adapter", "serve", "fuse"
TOKENS = ("token_type", "vocab_size")
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


def load_experiments(path: str | Path) -> dict[str, Experiment]:
    """Read an experiments file: {name: {description, overrides or read_early or adapt}}."""
    entries, result = _read_entries(path), {}
    for name, entry in entries.items():
        entry = dict(entry)
        for key in (ADAPT, READ_EARLY, COMPARE, FUSE):
            if key in entry:
                entry[key] = str(entry[key])  # YAML reads the row 2 as a number
                if entry[key] not in entries:
                    raise PelasrError(f"{path}: {name} refers to {brief(entry[key])!r}; {nearest(entry[key], entries)}")
        source = entry.get(ADAPT) or entry.get(READ_EARLY)
        imported = ADAPT in entry and str(entries[entry[ADAPT]].get(ADAPT)) == entry[ADAPT]
        if source and not imported and {ADAPT, READ_EARLY, EACH} & set(entries[source]):
            raise PelasrError(f"{path}: {name} refers to {source!r}, which trains no backbone of its own for all")
        if READ_EARLY in entry:
            allowed = [READ_EARLY, DESCRIPTION, COMPARE]
            check_keys(entry, allowed, f"{path}: {name} has the settings of {source}")
        if ADAPT in entry and (own := {LANGS, EACH, *TOKENS} & set(entry)):
            raise PelasrError(f"{path}: {name} has the languages and tokens of {source}, not its own {min(own)}")
        if FUSE in entry and (FUSE in entries[entry[FUSE]] or str(entries[entry[FUSE]].get(ADAPT)) != entry.get(ADAPT)):
            raise PelasrError(f"{path}: {name}: fuse: {entry[FUSE]} has no adapters of its own on the same backbone")
        inherited = entries[source] if source else {}
        inherited = {key: value for key, value in inherited.items() if key in (LANGS, *TOKENS)}
        result[name] = _experiment(name, inherited | entry, f"{path}: {name}")
    return result


def _read_entries(path: str | Path) -> dict[str, dict[str, Any]]:
    """The entries of an experiments file by name. Raises PelasrError for a name that is none of a folder: experiments
    are folders, and nothing may lead out of `exp/`."""
    entries: dict[str, dict[str, Any]] = {}
    for key, entry in load_yaml(path).items():
        name = _check_name(key, f"{path}: experiment")
        if name in entries:
            raise PelasrError(f"{path}: the experiment {name!r} comes a second time")
        if not isinstance(entry or {}, dict):
            raise PelasrError(f"{path}: {name}: expected `key: value` lines, found {brief(repr(entry))}")
        entries[name] = entry or {}
    return entries


def _check_name(name: Any, where: str) -> str:
    """A name of a file or folder, as a string (YAML reads the row 2 as a number). Raises PelasrError for what is none,
    or could not be named among others on the command line."""
    found = str(name)
    plain = found.isprintable() and not re.search(r"[\s/\\]", found) and len(found.encode()) <= 100
    if type(name) not in (str, int) or not plain or found.startswith((".", "-")) or not found:
        raise PelasrError(f"{where} {brief(found)!r}: want a name of a folder, as A1")
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
        _check_name(entry[ADAPTER], f"{where}: {ADAPTER}")
    adapted, early = entry.pop(ADAPT, None), entry.pop(READ_EARLY, None)
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
        overrides=entry,
    )


def find_experiment(experiments: dict[str, Experiment], name: str) -> Experiment:
    """One experiment by name; an unknown one is an error that lists what there is."""
    if name not in experiments:
        raise PelasrError(f"no experiment {name!r}; {nearest(name, experiments)}")
    return experiments[name]


def resolve(config: dict[str, Any], experiment: Experiment, overrides: dict[str, Any]) -> dict[str, Any]:
    """The configuration file, then the experiment's settings, then the command line's."""
    return override(override(config, experiment.overrides), overrides)
