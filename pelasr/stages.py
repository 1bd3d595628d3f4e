"""Stages 4 to 6: training, fitting and decoding. Each skips work that is finished."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pelasr.backbones.format import BACKBONE_FACTS, read_backbone
from pelasr.config import check_keys, nearest
from pelasr.data.kaldi import data_sha256
from pelasr.data.language import split_pair
from pelasr.data.place import Place, label
from pelasr.done import Marker, required
from pelasr.errors import PelasrError
from pelasr.experiment import AS_USUAL, Decoding, Experiment
from pelasr.files import atomic_write, no_file, sha256_file, sha256_json
from pelasr.nn.defaults import settled
from pelasr.packs.format import read_checked
from pelasr.progress import say
from pelasr.train.options import TrainingOptions

# Options that change how fast a run is made, or where, but not what comes out.
WITHOUT_EFFECT = ("num_workers", "checkpoint_seconds")


def split_options(config: dict[str, Any], where: str) -> tuple[str, dict[str, Any], Any]:
    """Name of the backbone's family, its options, and the training options, of a flat configuration."""
    from pelasr.backbones.base import backbone_options

    if "backbone" not in config:
        raise PelasrError(f"{where}: the key `backbone` is missing")
    family = config["backbone"]
    training = [field.name for field in fields(TrainingOptions)]
    check_keys(config, ["backbone", *backbone_options(family), *training], where)
    options = {key: value for key, value in config.items() if key in backbone_options(family)}
    return family, settled(options), TrainingOptions(**{key: config[key] for key in training if key in config})


def split_adapter_options(config: dict[str, Any], where: str) -> tuple[str, dict[str, Any], Any]:
    """Name of the method, its options, and the training options, of an adapter configuration."""
    training = [field.name for field in fields(TrainingOptions)]
    check_keys(config, ["adapter", "adapter_conf", *training], where)
    if "adapter" not in config:
        raise PelasrError(f"{where}: the key `adapter` is missing")
    options = TrainingOptions(**{key: config[key] for key in training if key in config})
    return config["adapter"], config.get("adapter_conf") or {}, options


def check_adapter(config: dict[str, Any], where: str) -> None:
    """Raise PelasrError for options that the configured method does not have, long before stage 5."""
    from pelasr.adapters.base import method_options

    method, options, _ = split_adapter_options(config, where)
    check_keys(options, method_options(method), f"{where}: adapter_conf of {method}")


def train_backbone(
    place: Place, experiment: Experiment, config: dict[str, Any], where: str, ngpu: int, init: str | None = None
) -> bool:
    """Stage 4: train the backbone that an experiment uses, in the folder of the experiment that owns it.

    `init` is an experiment whose encoder the training starts from.
    """
    family, options, training = split_options(config, where)
    source = place.exp / init if init else None
    first = f"train it first: pelasr train --exp {init}, without --init"
    started = {"init": weights_sha256(source, "backbone", first)} if source else {}
    missing = {}
    for folder, part in experiment.backbones(place).items():
        inputs = {
            **{"backbone": family, **options},
            **_settings(training),
            **_consumed(part),
            "tokens": required(part.tokens / "tokens.txt", 2),
            "stats": required(place.stats, 3),
            **started,
        }
        marker = Marker(folder / "train.json", inputs, strict=True)
        if marker.changed:
            raise PelasrError(f"{_other(folder, marker)}: delete it, or use another --exp_dir")
        if marker.found is None and (folder / "backbone.yaml").exists():
            raise PelasrError(f"{folder}: holds a backbone, but no train.json says of what; restore it, or delete all")
        if marker.finished:
            _check_backbone(folder, marker, training)
            say(f"stage 4: the backbone {folder} is trained already")
        else:
            missing[folder] = part, marker
    if not missing:
        return False
    from pelasr.train.fabric import make_fabric
    from pelasr.train.fit import fit_backbone

    fabric = make_fabric(ngpu)
    for folder, (part, marker) in missing.items():
        fit_backbone(fabric, part, folder, marker, family, options, training, source)
    return True


def _check_backbone(folder: Path, marker: Marker, training: TrainingOptions) -> None:
    """Raise PelasrError where a finished backbone is not as it was made. Its facts are made again; a history cannot be,
    but is no reason to lose a good backbone."""
    from pelasr.train.monitor import HISTORY

    faults = marker.faults()
    if fault := faults.pop(HISTORY, None):
        say(f"warning: {fault}; the backbone is not affected")
    if set(faults) == {BACKBONE_FACTS}:
        from pelasr.adapters.bank import count_parameters
        from pelasr.backbones.store import load_backbone
        from pelasr.train.fit import write_facts

        say(f"{faults[BACKBONE_FACTS]}; it is made again")
        write_facts(folder, count_parameters(load_backbone(folder).module), training, marker)
        faults.pop(BACKBONE_FACTS)
    for fault in faults.values():
        raise PelasrError(f"{fault}; restore it, or delete {folder} and train it again")


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
            **_consumed(part),
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
    path, settings = folder / "adapt.json", _settings(training)
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
            f"{_other(folder, marker)}: delete the folder to fit anew, or give this one an experiment of its own; to"
            " train the finished fit further, whatever the training's options, say --continue true"
        )


def _other(folder: Path, marker: Marker) -> str:
    return f"{folder} holds a run with other settings ({'; '.join(marker.changed)})"


def _write_model(place: Place, experiment: Experiment) -> None:
    """Say beside an experiment's packs which backbone they belong to."""
    content = f"backbone: ../{experiment.backbone}\nweights: {experiment.weights}\n"
    path = place.exp / experiment.name / "model.yaml"
    if no_file(path) or path.read_bytes() != content.encode():
        with atomic_write(path) as stream:
            stream.write(content)


def _settings(training: TrainingOptions) -> dict[str, Any]:
    """The options of a training that decide what comes out, as they will be read back."""
    options = {key: value for key, value in asdict(training).items() if key not in WITHOUT_EFFECT}
    return json.loads(json.dumps(options))


def _consumed(place: Place) -> dict[str, Any]:
    """What a training reads: languages, texts and features."""
    dirs = place.dirs("train", "dev")
    return {
        "languages": place.languages,
        "data_sha256": data_sha256(dirs),
        "features_sha256": features_of(place, dirs),
    }


def features_of(place: Place, dirs: list[Path]) -> str:
    """Hash of the features of data directories. Raises PelasrError if there are none, or of other audio than now."""
    from pelasr.data.features import features_sha256

    return sha256_json([features_sha256(path, place.dump / path.name) for path in dirs])


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


def weights_sha256(folder: Path, weights: str, cure: str = "") -> str:
    """Hash of a trained backbone's file. Raises PelasrError if it is not there, or not as it was described."""
    path = folder / f"{weights}.safetensors"
    found = required(path, 4, cure)
    if read_backbone(folder)["weights"].get(weights) != found:
        raise PelasrError(
            f"{path}: damaged: not the file that stage 4 wrote; restore it from a copy, or train it again"
        )
    return found


def decode(
    place: Place, experiment: Experiment, sets: list[str], only: list[str], ngpu: int, how: Decoding = AS_USUAL
) -> bool:
    """Stage 6: hypotheses and scores of sets and languages, as `<exp>/<experiment>/decode/<set>_<language>`."""
    folder = place.exp / experiment.name
    if experiment.serve:  # it is there to see what one language's pack does to all
        only = [*place.languages, *([experiment.serve] if experiment.serve not in place.languages else [])]
    _prepare_new(place, [language for language in only if language not in place.languages], sets)
    markers = decoded(place, experiment, sets, only, how)
    missing = {key: marker for key, marker in markers.items() if not marker.done}
    if not missing:
        say(f"stage 6: {folder}/decode is made already")
        return False
    from pelasr.decode.sets import decode_sets

    packs = folder / "packs" if experiment.adapted else None
    like = {language: served_by(place, experiment, language, how) for _, language in missing}
    for marker in missing.values():
        marker.write(done=False)  # what is there will be overwritten
    for source, part in experiment.backbones(place).items():
        wanted = [key for key in missing if key[1] in part.languages or key[1] not in place.languages]
        if wanted:
            what = experiment.weights, packs, folder / "decode", wanted, ngpu, how.beam_size, experiment.serve, like
            decode_sets(part, source, *what)
            for name, language in wanted:
                made = [folder / "decode" / f"{name}_{language}" / file for file in ("text", "scores", "limited")]
                missing[name, language].write(done=True, outputs=made)
    return True


def served_by(place: Place, experiment: Experiment, language: str, how: Decoding) -> str:
    """As which language a language is decoded: itself, if it is not new or has a pack."""
    if experiment.serve or how.decode_as is None or language in place.languages:
        return language
    if how.decode_as not in place.languages:
        raise PelasrError(f"--decode_as: {nearest(how.decode_as, place.languages)}")
    has_pack = experiment.adapted and (place.exp / experiment.name / "packs" / language / "pack.yaml").exists()
    return language if has_pack else how.decode_as


def _prepare_new(place: Place, new: list[str], sets: list[str]) -> None:
    """Features of the sets that there are of new languages, whose packs may come from elsewhere."""
    from pelasr.prepare import make_features

    for language in new:
        part = replace(place, languages=[language])
        there = [name for name in sets if part.folder(name, language).is_dir()]
        for name in set(sets) - set(there):
            say(f"stage 6: no {part.folder(name, language)}: {language} is not decoded on {name}")
        make_features(part, there, nj=1)


def decoded(
    place: Place, experiment: Experiment, sets: list[str], languages: list[str], how: Decoding = AS_USUAL
) -> dict[tuple[str, str], Marker]:
    """Done-files of what an experiment decodes, {(set, language): marker}; of languages that are new to the backbone
    too, unless it has none that could serve them."""
    folder, markers = place.exp / experiment.name, {}
    new = [language for language in languages if language not in place.languages]
    for source, part in experiment.backbones(place).items():
        backbone = weights_sha256(source, experiment.weights)
        if not experiment.adapted:
            new = [language for language in new if how.decode_as or _can_serve(experiment, source, language)]
        for language in [language for language in part.languages if language in languages] + new:
            inputs = {"backbone": backbone} | ({"beam_size": how.beam_size} if how.beam_size else {})
            served = served_by(place, experiment, language, how)
            inputs |= {"decode_as": served} if served != language else {}
            if experiment.adapted:
                inputs["pack"] = required(folder / "packs" / (experiment.serve or served) / "pack.yaml", 5)
            for name in [name for name in sets if language in part.languages or place.folder(name, language).is_dir()]:
                data = [place.folder(name, language)]
                read = {"data": data_sha256(data), "features": features_of(place, data)}
                output = folder / "decode" / f"{name}_{language}"
                markers[name, language] = Marker(output / "done.json", inputs | read)
    return markers


def _can_serve(experiment: Experiment, source: Path, language: str) -> bool:
    """Whether a backbone without adapters can be given a language that it was not trained on: not if there is one for
    each language, or no tag of the target."""
    from pelasr.data.tokenizer import Tokenizer

    target = split_pair(language)[1]
    return not experiment.each and (not target or f"<lang:{target}>" in Tokenizer.load(source / "tokens").tokens)
