"""Stages 1 to 3: checked data, tokens, features and their statistics; and the data of a language that comes later."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pelasr.config import nearest
from pelasr.data import (
    Utterance,
    audio_sha256,
    data_sha256,
    parse,
    read_data_dir,
    split_pair,
    text_of,
    write_data_dir,
)
from pelasr.errors import DataError, PelasrError
from pelasr.experiment import Experiment, Marker, Place
from pelasr.files import read_text, sha256_file
from pelasr.pack_format import check_language
from pelasr.stages import say, split_options


def validate_data(
    place: Place, sets: list[str], config: dict[str, Any], skip_bad: bool, nj: int, name: str = "data"
) -> bool:
    """Stage 1: open every file of the data directories; all problems at once, or dropped utterances.

    Where the configured backbone trains with CTC, training utterances must be long enough for their labels. The tokens
    are not made yet: characters count.
    """
    from pelasr.text import Tokenizer, train_graphemes
    from pelasr.validate import drop, validate

    train = place.dirs("train") if "train" in sets else []
    others = [path for path in place.dirs(*sets) if path not in train]
    dirs = [*train, *others]
    targets, sources = place.targets(*sets), sorted({split_pair(language)[0] for language in place.languages})
    subsampling = _subsampling(config) if config.get("ctc_weight") else None
    path = place.exp / ".done" / f"{name}.json"
    inputs = {**_data_inputs(dirs, subsampling), "targets": {str(path): names for path, names in targets.items()}}
    if Marker(path, inputs).done:
        say(f"stage 1: {len(dirs)} data directories are valid already")
        return False
    texts = [utterance.text for folder in train for utterance in parse(folder).utterances]
    tokenizer = Tokenizer(train_graphemes(texts)) if subsampling and any(texts) else None
    reports = [validate(train, tokenizer, subsampling or 1, sources, nj, targets)]
    reports.append(validate(others, languages=sources, nj=nj, targets=targets))
    for warning in (warning for report in reports for warning in report.warnings):
        say(f"warning: {warning}")
    problems = [problem for report in reports for problem in report.problems]
    bad = [problem for problem in problems if not (skip_bad and problem.droppable)]
    if bad:
        hint = "" if skip_bad else "\nmend them, or drop the utterances that are at fault with --skip_bad true"
        raise DataError([*map(str, bad), f"{len(bad)} problems in {len(dirs)} data directories{hint}"])
    for folder in dirs:
        dropped = {name: reason for report in reports for name, reason in report.bad_in(folder).items()}
        if dropped:
            drop(folder, dropped)
            say(f"{folder}: {len(dropped)} utterances dropped, listed in {folder}/skipped.txt")
    for name, report in zip(("train", "other sets"), reports, strict=True):
        for language, counted in report.languages.items():
            say(f"{language}, {name}: {counted.utterances} utterances, {counted.hours:.2f} h")
    # Dropping has changed the directories.
    Marker(path, inputs | _data_inputs(dirs, subsampling)).write(done=True)
    return True


def _subsampling(config: dict[str, Any]) -> int:
    """Feature frames per encoder frame of the configured backbone, which is built without its weights."""
    import torch

    from pelasr.backbones import build_backbone

    family, options, _ = split_options(config, "configuration")
    with torch.device("meta"):
        return build_backbone(family, options, vocab_size=3, num_languages=1).subsampling


def _data_inputs(dirs: list[Path], subsampling: int | None) -> dict[str, Any]:
    missing = [str(path) for path in dirs if not path.is_dir()]
    if missing:
        raise PelasrError(f"{missing[0]}: no such data directory; prepare the data first (stage 1), or correct --langs")
    return {str(path): audio_sha256(path) for path in dirs} | {"subsampling": subsampling}


def make_tokens(place: Place, chosen: list[Experiment], sets: list[str], token_type: str, vocab_size: int) -> bool:
    """Stage 2: the token lists of the experiments' training texts, and what they cannot write of other sets' texts.

    An experiment's own `token_type` and `vocab_size` count before those given. Without experiments: of the languages.
    """
    wanted: dict[Path, tuple[Place, str, int]] = {}
    if not chosen:
        wanted[place.tokens] = place, token_type, vocab_size
    for experiment in chosen:
        kind = experiment.tokens.get("token_type", token_type), experiment.tokens.get("vocab_size", vocab_size)
        for part in experiment.backbones(place).values():
            if wanted.setdefault(part.tokens, (part, *kind)) != (part, *kind):
                raise PelasrError(
                    f"{experiment.name}: its tokens in {part.tokens} are another experiment's too: {kind}"
                )
    return any([_make_token_list(part, sets, *kind) for part, *kind in wanted.values()])


def _make_token_list(place: Place, sets: list[str], token_type: str, vocab_size: int) -> bool:
    from pelasr.text import Tokenizer, train_graphemes, train_unigram, unknown_report

    inputs = {
        "token_type": token_type,
        "vocab_size": vocab_size,
        "data": data_sha256(place.dirs("train", *sets)),
        "languages": place.languages,
    }
    marker = Marker(place.exp / ".done" / f"{place.tokens.name}.json", inputs, [place.tokens / "tokens.txt"])
    if marker.done:
        say(f"stage 2: {place.tokens}/tokens.txt is made already")
        return False
    texts = [text for language in place.languages for text in _texts(place, "train", language)]
    targets = dict.fromkeys(split_pair(language)[1] for language in place.languages)
    tags = [f"<lang:{target}>" for target in targets if target]
    if token_type == "char":
        Tokenizer(train_graphemes(texts, tags)).save(place.tokens)
    else:
        train_unigram(texts, vocab_size, place.tokens, tags)
    tokenizer = Tokenizer.load(place.tokens)
    say(f"{len(tokenizer.tokens)} tokens in {place.tokens}/tokens.txt")
    texts_of = {f"{name}_{key}": _texts(place, name, key) for name in sets for key in place.languages}
    for name, (unknown, total, which) in unknown_report(tokenizer, texts_of).items():
        shown = " ".join(f"{character}({count})" for character, count in which.most_common(10))
        say(f"{name}: {unknown} of {total} characters unknown ({100 * unknown / max(total, 1):.2f} %) {shown}".rstrip())
    marker.write(done=True)
    return True


def _texts(place: Place, name: str, language: str) -> list[str]:
    folders = place.folders(name, language)
    return [text_of(utterance, language) for folder in folders for utterance in read_data_dir(folder)]


def make_stats(place: Place, sets: list[str], nj: int) -> bool:
    """Stage 3: log-mel features of every utterance, and their mean and variance over the training data."""
    from pelasr.features import feature_stats, save_stats

    made = make_features(place, sets, nj)
    dumps = [place.dump / path.name for path in place.dirs("train")]
    inputs = {str(path): sha256_file(path / "done.json") for path in dumps}
    marker = Marker(place.exp / ".done" / "stats.json", inputs, [place.stats])
    if not marker.done:
        save_stats(place.stats, *feature_stats(dumps))
        marker.write(done=True)
    elif not made:
        say("stage 3: features and statistics are made already")
        return False
    return True


def make_features(place: Place, sets: list[str], nj: int) -> bool:
    """Log-mel features of every utterance of sets, where they are missing."""
    from pelasr.features import extract

    markers = {
        place.dump / path.name: Marker(place.dump / path.name / "done.json", {"data": audio_sha256(path)})
        for path in place.dirs(*sets)
    }
    missing = [folder for folder, marker in markers.items() if not marker.done]
    for folder in extract([(place.data / folder.name, folder) for folder in missing], nj):
        markers[folder].write(done=True)
    return bool(missing)


def add_language(
    place: Place,
    language: str,
    folders: dict[str, Path],
    sets: list[str],
    config: dict[str, Any],
    skip_bad: bool,
    nj: int,
) -> bool:
    """Before stage 5, for a language that is new to the backbone: check its data directories `<set>_<language>` and
    extract their features. `folders`: data directories {set: path} from elsewhere, which are copied first. `config`:
    of the backbone.

    Raises PelasrError where a directory is missing, or another one of its name is there already.
    """
    check_language(language, "--langs")
    for name, source in folders.items():
        copy_data_dir(source, place.data / f"{name}_{language}", language)
    part = replace(place, languages=[language])
    for name in ("train", "dev"):
        if not (folder := part.folder(name, language)).is_dir():
            known = nearest(language, place.languages)
            raise PelasrError(
                f"{folder}: no such data directory; name one with --{name}_dir, or correct --langs: {known}"
            )
    wanted = [name for name in sets if name in ("train", "dev") or part.folder(name, language).is_dir()]
    if shared := set(part.dirs(*wanted)) & set(place.dirs(*wanted)):
        raise PelasrError(
            f"{min(shared)} is other pairs' too, whose models know it as it was: give {language} directories of its"
            f" own, {place.data}/train_{language} and so on, or --train_dir, --dev_dir and --test_dir"
        )
    for name in sets:
        if name not in wanted:
            say(f"no {part.folder(name, language)}: {language} will not be decoded on {name}")
    checked = validate_data(part, wanted, config, skip_bad, nj, f"data_{language}")
    return make_features(part, wanted, nj) or checked


def copy_data_dir(source: Path, target: Path, language: str) -> None:
    """Write a data directory again under another name, its audio where it is. Raises PelasrError if the target has
    other contents, or the utterances are in another language."""
    utterances = read_data_dir(source)
    for utterance in utterances:
        if utterance.language != split_pair(language)[0]:
            raise PelasrError(
                f"{source}/utt2lang: utterance {utterance.id} is {utterance.language!r}, not {language!r}"
            )
    if source.resolve() == target.resolve():
        return
    utterances = _with_paths(utterances)
    if target.is_dir():
        skipped = target / "skipped.txt"
        dropped = read_text(skipped).decode("utf-8", "replace").split("\n") if skipped.exists() else []
        dropped = {line.partition(" ")[0] for line in dropped}
        if _with_paths(read_data_dir(target)) != [u for u in utterances if u.id not in dropped]:
            raise PelasrError(f"{target} holds other data than {source}: delete it, or use another --data_dir")
        return
    write_data_dir(target, utterances)


def _with_paths(utterances: list[Utterance]) -> list[Utterance]:
    """Sorted, and their audio by absolute paths."""
    found = [replace(utterance, audio=os.path.abspath(utterance.audio)) for utterance in utterances]
    return sorted(found, key=lambda utterance: utterance.id)
