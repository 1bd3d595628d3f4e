"""Runs that train: where, on what, with which settings, and whether they are done. Light: to ask costs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelasr.backbones.format import read_backbone
from pelasr.backbones.source import Source
from pelasr.data.place import Place
from pelasr.done import Marker, required
from pelasr.errors import PelasrError
from pelasr.files import sha256_file, sha256_json
from pelasr.packs.format import read_checked
from pelasr.tasks.base import said
from pelasr.train.inputs import consumed, other_run, training_settings, weights_sha256, with_settings
from pelasr.train.options import FRESH, AdapterConfig, BackboneConfig, TrainingOptions
from pelasr.train.origins import MetaRun, Start


@dataclass(frozen=True)
class BackboneRun:
    """The training of a backbone in a folder. `init`: the backbone whose encoder it starts from. `task`: the one that
    the configuration names."""

    folder: Path
    place: Place
    config: BackboneConfig
    init: Source | None
    marker: Marker
    task: str | None = None


def plan_backbone(
    folder: Path, place: Place, config: BackboneConfig, init: Source | None = None, task: str | None = None
) -> BackboneRun:
    """The run that trains a backbone on a place's languages. Raises PelasrError where another one is in the folder, and
    for what earlier stages should have made."""
    from pelasr.backbones.base import heard_with

    hears = heard_with(config.family, config.options)
    first = f"train it first: pelasr train --exp {init.folder.name}, without --init" if init else ""
    started = {"init": weights_sha256(*init, first)} if init else {}
    if config.model is not None:
        from pelasr.backbones.pretrained import pretrained_sha256

        started["model"] = pretrained_sha256(config.model)
    inputs = {
        **{"backbone": config.family, **config.options},
        **said(task, place.languages),
        **training_settings(config.training),
        **consumed(place, hears),
        "tokens": required(place.tokens / "tokens.txt", 2),
        **({"stats": required(place.stats, 3)} if hears.has_stats else {}),
        **started,
    }
    marker = Marker(folder / "train.json", inputs, strict=True)
    if marker.changed:
        raise PelasrError(f"{other_run(folder, marker)}: delete it, or use another --exp_dir")
    if marker.found is None and (folder / "backbone.yaml").exists():
        raise PelasrError(f"{folder}: holds a backbone, but no train.json says of what; restore it, or delete all")
    return BackboneRun(folder, place, config, init, marker, task)


@dataclass(frozen=True)
class AdapterRun:
    """The fit of languages on a frozen backbone, in a folder beside which the packs go, `<folder>/../packs/<language>`.

    `tokens`: of languages that are new to the backbone, see `new_language.make_own`; None: there are none. `meta`: the
    meta-training whose adapters it begins with. `fuse`: the folder of the packs that are fused.
    """

    folder: Path
    place: Place
    source: Source
    languages: list[str]
    config: AdapterConfig
    tokens: str | None
    marker: Marker
    meta: MetaRun | None = None
    fuse: Path | None = None

    @property
    def packs(self) -> list[Path]:
        return [self.folder.parent / "packs" / language for language in self.languages]

    @property
    def started(self) -> dict[str, str]:
        """Hashes of the packs that it starts from, by language."""
        return self.marker.inputs.get("started", {})

    @property
    def origins(self) -> dict[str, dict[str, Any]]:
        """What the adapters of languages begin as, see `Start.inputs`; of those that are missing here with fresh ones,
        if their packs are not `started` from."""
        return self.marker.inputs.get("origins", {})

    @property
    def done(self) -> bool:
        """Whether it came to its end, and the packs that are there are its own."""
        made = self.marker.sha256, self.languages
        return self.marker.finished and all(_fit_of(pack) == made for pack in self.packs)


def plan_adapters(
    folder: Path,
    place: Place,
    source: Source,
    languages: list[str],
    config: AdapterConfig,
    tokens: str | None = None,
    go_on: bool = False,
    start: Start | None = None,
    fuse: Path | None = None,
) -> AdapterRun:
    """The run that fits languages, with the data of a place. `go_on`: one that is done is trained further, and packs
    that no fit of the experiment has made. `start`: what their adapters begin as; default: fresh ones. `fuse`: the
    folder of packs that the method fuses. Raises PelasrError where another fit is in the folder, and for what earlier
    stages should have made."""
    backbone, description = weights_sha256(*source), read_backbone(source.folder)
    fused = {}
    if fuse is not None:
        from pelasr.train.fuse import with_packs

        config, fused["fuse"] = with_packs(config, fuse, description.languages, languages)
    inputs = {
        **{"adapter": config.method, "adapter_conf": config.options},
        **consumed(place, description.heard),
        **({"tokens": tokens} if tokens is not None else {}),
        "backbone": backbone,
        **fused,
    }
    inputs |= _started(folder, languages, go_on)
    if start is not None:
        if start.word != FRESH and "started" in inputs:
            own = " ".join(inputs["started"])
            raise PelasrError(
                f"--start {start.word}: the packs of {own}, which no fit here has made, are where they start"
            )
        inputs |= start.inputs(folder, languages, tokens)
    marker, training = _fit_marker(folder, inputs, config.training, go_on)
    config, meta = config._replace(training=training), start.meta if start is not None else None
    return AdapterRun(folder, place, source, languages, config, tokens, marker, meta, fuse)


def _started(folder: Path, languages: list[str], go_on: bool) -> dict[str, Any]:
    """What a fit starts from, as `started: {language: hash of its pack}`: packs that were there before it, imported or
    made elsewhere. Raises PelasrError for one that it would overwrite."""
    path = folder / "adapt.json"
    begun = Marker(path, {}, strict=True).found
    if begun is None and (folder / "snapshots").exists():
        return {}  # it is refused anyway
    found = begun["inputs"].get("started", {}) if begun else {}
    for language in languages:
        pack = folder.parent / "packs" / language
        if found.get(language) == _hash_of(pack) or not is_from_elsewhere(pack):
            continue
        if begun or not go_on:
            cure = f"delete {folder}" if begun else "train it further with --continue true"
            raise PelasrError(f"{pack}: no fit here has made it, and this one would overwrite it: {cure}, or delete it")
        found[language] = _hash_of(pack)
    return {"started": found} if found else {}


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
        if not done and training_settings(with_settings(training, continued[-1])) != settings:
            raise PelasrError(f"{folder}: was being continued with other settings: {continued[-1]}; end that first")
        continued = continued if not done else [*continued, settings]
        marker = Marker(path, before | {"continued": continued})
    else:
        marker = Marker(path, marker.inputs | ({"continued": continued} if continued else {}))
        _check_fit(folder, marker)
    return marker, with_settings(training, continued[-1]) if continued else training


def _check_fit(folder: Path, marker: Marker) -> None:
    """Raise PelasrError if another fit is in the folder."""
    if marker.changed:
        raise PelasrError(
            f"{other_run(folder, marker)}: delete the folder and its packs to fit anew, or give this one an"
            " experiment of its own; to train the finished fit further, whatever the training's options, say --continue"
            " true"
        )


def _fit_of(pack: Path) -> tuple[str, list[str]] | None:
    """Which run made a pack: the hash of its settings, and the languages it fitted; None if there is no whole pack."""
    try:
        description = read_checked(pack / "pack.yaml")
        if sha256_file(pack / "pack.safetensors") != description.safetensors_sha256:
            return None
        training = description.training
    except (PelasrError, OSError):  # it is made again
        return None
    return training.get("config_sha256", ""), training.get("fitted_with", [])


def _hash_of(pack: Path) -> str:
    """Of a pack's description; empty if there is none."""
    path = pack / "pack.yaml"
    return sha256_file(path) if path.is_file() else ""


def is_from_elsewhere(pack: Path) -> bool:
    """Whether a whole pack was made by no fit of its experiment."""
    made = _fit_of(pack)
    paths = [path for folder in ("fit_*", "lr_*/fit_*") for path in pack.parents[1].glob(f"{folder}/adapt.json")]
    return made is not None and not any(made[0] in _hashes(path) for path in paths)


def _hashes(path: Path) -> list[str]:
    """Those by which packs name the fit of a done-file, before and after each continuation."""
    found = Marker(path, {}).found
    if found is None:
        return []
    continued = found["inputs"].get("continued", [])
    first = {key: value for key, value in found["inputs"].items() if key != "continued"}
    more = [sha256_json(first | {"continued": continued[:number]}) for number in range(1, len(continued) + 1)]
    return [sha256_json(first), *more]
