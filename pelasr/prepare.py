"""Stages 1 to 3: checked data, tokens, features and their statistics; and the data of a language that comes later."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelasr.config import nearest
from pelasr.data.kaldi import Utterance, audio_sha256, data_sha256, parse, read_data_dir, text_of, write_data_dir
from pelasr.data.language import check_language, split_pair
from pelasr.data.place import Place
from pelasr.data.problems import DROP, condense
from pelasr.done import Marker
from pelasr.errors import DataError, PelasrError, counted, printable
from pelasr.experiment import Experiment
from pelasr.files import atomic_write, locked, text_bytes
from pelasr.progress import say
from pelasr.stages import split_options

if TYPE_CHECKING:
    from pelasr.data.overlap import Heard
    from pelasr.data.validate import Report


def validate_data(
    place: Place, sets: list[str], config: dict[str, Any], skip_bad: bool, nj: int, name: str = "data"
) -> bool:
    """Stage 1: open every file of the data directories; all problems at once, or dropped utterances.

    Where the configured backbone trains with CTC, training utterances must be long enough for their labels. The tokens
    are not made yet: characters count.
    """
    from pelasr.data.overlap import shared
    from pelasr.data.tokenizer import Tokenizer, normalise, train_graphemes
    from pelasr.data.validate import drop, validate

    train = place.dirs("train") if "train" in sets else []
    others = [path for path in place.dirs(*sets) if path not in train]
    dirs = [*train, *others]
    wanted = {"targets": place.targets(*sets), "sets": place.sets(*sets)}
    sources = sorted({split_pair(language)[0] for language in place.languages})
    subsampling = _subsampling(config) if config.get("ctc_weight") else None
    path, listing = place.exp / ".done" / f"{name}.json", place.exp / "problems.txt"
    listing.unlink(missing_ok=True)
    targets = {"targets": {str(path): names for path, names in wanted["targets"].items()}}
    inputs = {**_data_inputs(dirs, subsampling), **targets}
    if Marker(path, inputs).done:
        say(f"stage 1: {counted(len(dirs), 'data directory')} valid already")
        return False
    texts = [normalise(utterance.text) for folder in train for utterance in parse(folder).utterances]
    tokenizer = Tokenizer(train_graphemes(texts)) if subsampling and any(texts) else None
    reports = [validate(train, tokenizer, subsampling or 1, sources, nj, **wanted)]
    reports.append(validate(others, languages=sources, nj=nj, **wanted))
    by_set: dict[str, list[Heard]] = {}
    for item in reports[1].heard:
        by_set.setdefault(wanted["sets"][Path(item.directory)][0], []).append(item)
    for warning in reports[0].warnings + reports[1].warnings + shared(reports[0].heard, by_set):
        say(f"warning: {warning}")
    _refuse(reports, skip_bad, listing)
    for folder in dirs:
        dropped = {name: reason for report in reports for name, reason in report.bad_in(folder).items()}
        if dropped:
            drop(folder, dropped, wanted["sets"][folder][1])
            say(f"{folder}: {counted(len(dropped), 'utterance')} dropped, listed in {folder}/skipped.txt")
    for name, report in zip(("train", "other sets"), reports, strict=True):
        for language, found in report.languages.items():
            say(f"{language}, {name}: {counted(found.utterances, 'utterance')}, {found.hours:.2f} h")
    # Dropping has changed the directories.
    Marker(path, inputs | _data_inputs(dirs, subsampling)).write(done=True)
    return True


def _refuse(reports: "Sequence[Report]", skip_bad: bool, listing: Path) -> None:
    """Raise DataError for problems that must be mended, which a file lists one by one: those of whole files, unless
    `skip_bad` those of utterances, and those of directories in which no utterance is good."""
    counts = [(folder, count, report) for report in reports for folder, count in report.ids.items()]
    spoilt = {folder for folder, count, report in counts if count and len(report.bad_in(folder)) == count}
    found = [problem for report in reports for problem in report.problems]
    problems = [replace(p, what=p.what.removesuffix(f", {DROP}")) if p.directory in spoilt else p for p in found]
    droppable = [problem for problem in problems if problem.droppable and problem.directory not in spoilt]
    rest = [problem for problem in problems if not problem.droppable or problem.directory in spoilt]
    bad = rest if skip_bad else problems
    if not bad:
        return
    with atomic_write(listing) as stream:
        stream.writelines(f"{problem}\n" for problem in bad)
    folders = len({problem.directory for problem in bad})
    lines = [*condense(bad, listing), f"{counted(len(bad), 'problem')} in {counted(folders, 'data directory')}"]
    lines += [f"{printable(folder)}: no utterance is good, so none can be dropped" for folder in sorted(spoilt)]
    if droppable and not skip_bad:
        count = len({(problem.directory, problem.utterance) for problem in droppable})
        first = "; what else is wrong must be mended first" if rest else ""
        lines.append(f"mend them, or drop {counted(count, 'utterance')} with --skip_bad true{first}")
    raise DataError(lines)


def _subsampling(config: dict[str, Any]) -> int:
    """Feature frames per encoder frame of the configured backbone, which is built without its weights."""
    import torch

    from pelasr.backbones.base import build_backbone

    family, options, _ = split_options(config, "configuration")
    with torch.device("meta"):
        return build_backbone(family, options, vocab_size=3, num_languages=1).subsampling


def _data_inputs(dirs: list[Path], subsampling: int | None) -> dict[str, Any]:
    return {str(path): [data_sha256([path]), audio_sha256(path)] for path in dirs} | {"subsampling": subsampling}


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
    from pelasr.data.tokenizer import Tokenizer, train_graphemes, train_unigram, unknown_report

    inputs = {
        "token_type": token_type,
        "vocab_size": vocab_size,
        "data": data_sha256(place.dirs("train", *sets)),
        "languages": place.languages,
    }
    marker = Marker(place.exp / ".done" / f"{place.tokens.name}.json", inputs)
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
    made = [place.tokens / name for name in ("tokens.txt", "spm.model")]
    marker.write(done=True, outputs=[path for path in made if path.exists()])
    return True


def _texts(place: Place, name: str, language: str) -> list[str]:
    folders = place.folders(name, language)
    return [text_of(utterance, language) for folder in folders for utterance in read_data_dir(folder, language)]


def make_stats(place: Place, sets: list[str], nj: int) -> bool:
    """Stage 3: log-mel features of every utterance, and their mean and variance over the training data."""
    from pelasr.data.features import feature_stats, features_sha256, save_stats

    made = make_features(place, sets, nj)
    train = {path: place.dump / path.name for path in place.dirs("train")}
    inputs = {str(dump): features_sha256(data, dump) for data, dump in train.items()}
    marker = Marker(place.exp / ".done" / "stats.json", inputs)
    if not marker.done:
        save_stats(place.stats, *feature_stats(train.values()))
        marker.write(done=True, outputs=[place.stats])
    elif not made:
        say("stage 3: features and statistics are made already")
        return False
    return True


def make_features(place: Place, sets: list[str], nj: int) -> bool:
    """Log-mel features of every utterance of sets, where they are missing, or of other data than now."""
    from pelasr.data.features import extract, marker_of

    pairs = [(path, place.dump / path.name) for path in place.dirs(*sets)]
    if all(marker_of(*pair).done for pair in pairs):
        return False
    with locked(place.dump / ".lock"):  # experiments that are decoded side by side may both want those of a language
        missing = [pair for pair in pairs if not marker_of(*pair).done]
        return any([str(dump) for dump in extract(missing, nj)])


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

    Raises DataError where directories are missing or faulty, or others of their names are there already.
    """
    check_language(language, "--langs")
    problems = []
    for name, source in folders.items():
        try:
            copy_data_dir(source, place.data / f"{name}_{language}", language)
        except DataError as error:
            problems += error.problems
    part = replace(place, languages=[language])
    for name in ("train", "dev"):
        if not (folder := part.folder(name, language)).is_dir() and name not in folders:
            known = nearest(language, place.languages)
            problems.append(
                f"{folder}: no such data directory; name one with --{name}_dir, or correct --langs: {known}"
            )
    if problems:
        raise DataError(problems)
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
    """Write a data directory again under another name, its audio where it is. Raises DataError if the source has
    faults, the target has other contents, or utterances are in another language."""
    utterances, wanted = read_data_dir(source, language), split_pair(language)[0]
    others = [utterance for utterance in utterances if utterance.language != wanted]
    if others:
        more = f", nor are {len(others) - 1} more of {len(utterances)}" if len(others) > 1 else ""
        what = f"utterance {others[0].id} is {others[0].language!r}, not {wanted!r}{more}"
        cure = f"correct it, or if all are in {wanted} delete the file"
        raise DataError(f"{printable(str(source))}/utt2lang: {what}; cure: {cure}")
    if source.resolve() == target.resolve():
        return
    utterances = _with_paths(utterances)
    if target.is_dir():
        skipped = target / "skipped.txt"
        dropped = text_bytes(skipped).decode("utf-8", "replace").split("\n") if skipped.exists() else []
        dropped = {line.partition(" ")[0] for line in dropped}
        if _with_paths(read_data_dir(target, language)) != [u for u in utterances if u.id not in dropped]:
            cure = "delete it, use another --data_dir, or leave out the option to use it as it is"
            raise DataError(f"{target} holds other data than {printable(str(source))}: {cure}")
        return
    write_data_dir(target, utterances)


def _with_paths(utterances: list[Utterance]) -> list[Utterance]:
    """Sorted, and their audio by absolute paths."""
    found = [replace(utterance, audio=os.path.abspath(utterance.audio)) for utterance in utterances]
    return sorted(found, key=lambda utterance: utterance.id)
