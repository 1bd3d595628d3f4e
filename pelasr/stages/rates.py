"""Stage 5 of an experiment with several learning rates: each is fitted, the best on dev has its packs taken."""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pelasr.config import override
from pelasr.cost import read_cost
from pelasr.data.place import Place, label
from pelasr.done import Marker
from pelasr.errors import PelasrError
from pelasr.files import atomic_write, read_json, sha256_file
from pelasr.packs.format import PackDescription, read_checked
from pelasr.progress import say
from pelasr.stages.adapt import fit_adapters
from pelasr.stages.experiment import Experiment, folder_of
from pelasr.train.options import FRESH
from pelasr.train.runs import is_from_elsewhere


@dataclass(frozen=True)
class Candidate:
    """A learning rate that was fitted: its mean dev scores (see `train.schedule.rank`), the epochs of its longest fit,
    the seconds of all of them, None if that is not known, and the hashes of their settings."""

    lr: float
    dev: dict[str, float]
    epochs: int
    seconds: float | None
    config_sha256: list[str]


def fit_rates(
    place: Place,
    experiment: Experiment,
    config: dict[str, Any],
    where: str,
    only: list[str],
    ngpu: int,
    tokens: str = "auto",
    go_on: bool = False,
    start: str = FRESH,
) -> bool:
    """Stage 5: fit languages by each of an experiment's learning rates, in `<exp>/<experiment>/lr_<rate>`, and copy the
    packs of the best one to `<exp>/<experiment>/packs`. Options as in `fit_adapters`.

    The best has the lowest mean dev error of these languages. It is chosen with the first seed: other seeds are fitted
    by that one rate, as is what is trained further (`go_on`).
    """
    from pelasr.backbones.source import Source, write_model

    folder, first = place.exp / experiment.name, place.exp / experiment.base
    only = [language for language in only if experiment.serve in (None, language)]
    if not only:
        return fit_adapters(place, experiment, config, where, only, ngpu, tokens, go_on, start)
    rates = experiment.rates
    if experiment.seed is not None or go_on:
        rates = (_read_chosen(first, only),)
    worked = False
    for rate in rates:
        one = replace(experiment, name=f"{experiment.name}/{folder_of(rate)}", rates=())
        settings = override(config, {"optim_conf": {"lr": rate}})
        worked |= fit_adapters(place, one, settings, where, only, ngpu, tokens, go_on, start)
    found = [_candidate(folder / folder_of(rate), rate, only) for rate in rates]
    chosen = _best(found)
    write_model(folder, Source(place.exp / experiment.backbone, experiment.weights))
    for language in only:
        worked |= _copy_pack(folder / folder_of(chosen.lr) / "packs" / language, folder / "packs" / language)
    record = {"chosen": chosen.lr, "candidates": [asdict(each) for each in found]}
    if not go_on and read_record(folder, only) != record:
        Marker(_record(folder, only), record).write(done=True)
        worked = True
    if len(found) > 1:
        say(f"{folder}: learning rate {chosen.lr:g} is the best on dev of {' '.join(f'{each.lr:g}' for each in found)}")
    return worked


def read_record(folder: Path, languages: list[str]) -> dict[str, Any] | None:
    """What was chosen for languages that were fitted together: `chosen`, a learning rate, and `candidates`; None where
    nothing was, or the file is not as it was written: stage 5 writes it again."""
    found = Marker(_record(folder, languages), {}).found
    return found["inputs"] if found is not None else None


def _record(folder: Path, languages: list[str]) -> Path:
    return folder / f"rates_{label(languages)}.json"


def _read_chosen(folder: Path, languages: list[str]) -> float:
    record = read_record(folder, languages)
    if record is None:
        what = "no such file, or not as it was written; the learning rate is chosen with the first seed"
        raise PelasrError(f"{_record(folder, languages)}: {what}: run stage 5 of {folder.name}")
    return float(record["chosen"])


def _candidate(folder: Path, rate: float, languages: list[str]) -> Candidate:
    from pelasr.train.evaluate import LanguageScores, macro

    packs = [read_checked(folder / "packs" / language / "pack.yaml") for language in languages]
    dev = macro({pack.language: LanguageScores.of(pack.training["dev"]) for pack in packs}).facts()
    fits = fits_of(folder, packs)
    costs = [read_cost(fit) for fit in fits]
    seconds = sum(cost.seconds for cost in costs if cost) if all(costs) else None
    epochs = max(_epochs(fit) for fit in fits)
    hashes = sorted({pack.training["config_sha256"] for pack in packs})
    return Candidate(rate, dev, epochs, seconds, hashes)


def fits_of(folder: Path, packs: list[PackDescription]) -> list[Path]:
    """The folders of the fits, in a folder, that made packs."""
    groups = dict.fromkeys(tuple(pack.training.get("fitted_with", [])) for pack in packs)
    return [folder / f"fit_{label(group)}" for group in groups if group]


def _epochs(fit: Path) -> int:
    history = read_json(fit / "history.json", f"restore it, or delete {fit.parent}", kind=list)
    return history[-1]["epoch"]


def _best(candidates: list[Candidate]) -> Candidate:
    from pelasr.train.schedule import rank

    return min(candidates, key=lambda each: rank(each.dev))


def _copy_pack(source: Path, target: Path) -> bool:
    """Copy a pack where it is not there already; its description last, so that half a copy is none. Raises PelasrError
    for one that no learning rate has made: it may be somebody's only one."""
    description = (source / "pack.yaml").read_bytes()
    there = target / "pack.yaml"
    if there.exists() and there.read_bytes() == description and _is_whole(target):
        return False
    if is_from_elsewhere(target):
        raise PelasrError(f"{target}: no fit here has made it, and this one would overwrite it: move it elsewhere")
    with open(source / "pack.safetensors", "rb") as weights, atomic_write(target / "pack.safetensors", "wb") as stream:
        shutil.copyfileobj(weights, stream)
    with atomic_write(there, "wb") as stream:
        stream.write(description)
    return True


def _is_whole(pack: Path) -> bool:
    weights = pack / "pack.safetensors"
    return weights.is_file() and sha256_file(weights) == read_checked(pack / "pack.yaml").safetensors_sha256
