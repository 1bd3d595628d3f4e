"""Stage 5: fitting adapters. What is finished is not done again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pelasr.data.place import Place, label
from pelasr.done import Marker
from pelasr.errors import PelasrError
from pelasr.files import atomic_write, no_file, sha256_file
from pelasr.packs.format import read_checked
from pelasr.progress import say
from pelasr.stages.experiment import Experiment
from pelasr.stages.settings import consumed, other_run, split_adapter_options, training_settings, weights_sha256
from pelasr.train.options import TrainingOptions


def fit_adapters(
    place: Place,
    experiment: Experiment,
    config: dict[str, Any],
    where: str,
    only: list[str],
    ngpu: int,
    tokens: str = "auto",
    go_on: bool = False,
) -> bool:
    """Stage 5: fit adapters of some languages on an experiment's frozen backbone, if the experiment has adapters.

    Languages beyond those of the backbone are fitted each by itself; `tokens`: see `newcomer.make_private`. `go_on`:
    what is fitted already is trained further.
    """
    if not experiment.adapted:
        say(f"stage 5: {experiment.name} has no adapters")
        return False
    from pelasr.adapters.base import find_method
    from pelasr.data.language import check_language

    method, options, training = split_adapter_options(config, where)
    source = place.exp / experiment.backbone
    for language in only:
        check_language(language, "--langs")
    _write_model(place, experiment)
    if experiment.serve and experiment.serve not in only:
        say(f"stage 5: {experiment.name} is fitted on {experiment.serve} alone: add it to --langs")
    only = [language for language in only if experiment.serve in (None, language)]
    known, new = [x for x in only if x in place.languages], [x for x in only if x not in place.languages]
    # Fine-tuning gives each language a run of its own; adapters of several languages are fitted in mixed batches.
    runs = [[language] for language in known] if find_method(method).copies else [known] * bool(known)
    missing = []
    for languages in runs + [[language] for language in new]:
        # A folder for each choice of languages: fitting one again later leaves the run that fitted all as it is.
        folder = place.exp / experiment.name / f"fit_{label(languages)}"
        is_new = languages[0] in new
        part = replace(place, languages=languages) if is_new else place
        inputs = {
            **{"adapter": method, "adapter_conf": options},
            **consumed(part),
            **({"tokens": tokens} if is_new else {}),
            "backbone": weights_sha256(source, experiment.weights),
        }
        marker, how = _fit_marker(folder, inputs, training, go_on)
        packs = [folder.parent / "packs" / language for language in languages]
        if marker.finished and all(_fit_of(path) == (marker.sha256, languages) for path in packs):
            say(f"stage 5: the adapters of {' '.join(languages)} in {folder} are fitted already")
        else:
            missing.append((part, folder, marker, languages, how))
    if not missing:
        return False
    from pelasr.train.fabric import make_fabric
    from pelasr.train.fit import fit_bank

    fabric = make_fabric(ngpu, adapters=True)
    for part, folder, marker, languages, how in missing:
        what = folder, marker, source, experiment.weights, languages, method, options, how, tokens
        fit_bank(fabric, part, *what)
    return True


def _fit_marker(
    folder: Path, inputs: dict[str, Any], training: TrainingOptions, go_on: bool
) -> tuple[Marker, TrainingOptions]:
    """The done-file of a fit, and by which options it is made.

    A fit that is done may be gone on with, by the options of the call: its file has those of each continuation under
    `continued`, and stays that of the first ones, so that the command that began it finds it done. Raises PelasrError
    where another fit is in the folder.
    """
    path, settings = folder / "adapt.json", training_settings(training)
    marker = Marker(path, inputs | settings, strict=True)
    if marker.found is None:
        if (folder / "snapshots").exists():
            raise PelasrError(f"{folder}: holds a fit, but no adapt.json says of what; restore it, or delete {folder}")
        return marker, training
    before, done = marker.found["inputs"], marker.found["done"]
    continued = before.get("continued", [])
    if go_on and (done or continued):
        _check_fit(folder, Marker(path, before | inputs))
        if not done and continued[-1] != settings:
            raise PelasrError(f"{folder}: was being continued with other settings: {continued[-1]}; end that first")
        continued = continued if not done else [*continued, settings]
        marker = Marker(path, before | {"continued": continued})
    else:
        marker = Marker(path, marker.inputs | ({"continued": continued} if continued else {}))
        _check_fit(folder, marker)
    return marker, replace(training, **continued[-1]) if continued else training


def _check_fit(folder: Path, marker: Marker) -> None:
    """Raise PelasrError if another fit is in the folder."""
    if marker.changed:
        raise PelasrError(
            f"{other_run(folder, marker)}: delete the folder to fit anew, or give this one an experiment of its own; to"
            " train the finished fit further, whatever the training's options, say --continue true"
        )


def _write_model(place: Place, experiment: Experiment) -> None:
    """Say beside an experiment's packs which backbone they belong to."""
    content = f"backbone: ../{experiment.backbone}\nweights: {experiment.weights}\n"
    path = place.exp / experiment.name / "model.yaml"
    if no_file(path) or path.read_bytes() != content.encode():
        with atomic_write(path) as stream:
            stream.write(content)


def _fit_of(pack: Path) -> tuple[str, list[str]] | None:
    """Which run made a pack: the hash of its settings, and the languages it fitted; None if there is no whole pack."""
    try:
        description = read_checked(pack / "pack.yaml")
        if sha256_file(pack / "pack.safetensors") != description["safetensors_sha256"]:
            return None
        training = description["training"]
    except (PelasrError, OSError):  # it is made again
        return None
    return training.get("config_sha256"), training.get("fitted_with", [])
