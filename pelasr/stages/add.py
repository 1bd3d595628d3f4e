"""Before stage 5: the data of a language that comes later."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pelasr.data.kaldi import Utterance, read_data_dir, write_data_dir
from pelasr.data.language import check_language, split_pair
from pelasr.data.place import Place
from pelasr.errors import DataError, PelasrError, nearest, printable
from pelasr.files import text_bytes
from pelasr.progress import say
from pelasr.stages.data import validate_data
from pelasr.stages.settings import configured_backbone
from pelasr.stages.stats import make_features


def add_language(
    place: Place,
    language: str,
    folders: dict[str, Path],
    sets: list[str],
    config: dict[str, Any],
    skip_bad: bool,
    nj: int,
    dump: bool = True,
) -> bool:
    """Before stage 5, for a language that is new to the backbone: check its data directories `<set>_<language>` and
    extract their features. `folders`: data directories {set: path} from elsewhere, which are copied first. `config`:
    of the backbone. `dump`: as for `make_features`.

    Raises DataError where directories are missing or faulty, or others of their names are there already.
    """
    check_language(language, "--fit_langs")
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
            cure = f"name one with --{name}_dir, or correct --fit_langs: {known}"
            problems.append(f"{folder}: no such data directory; {cure}")
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
    return make_features(part, wanted, nj, configured_backbone(config).hears, dump) or checked


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
