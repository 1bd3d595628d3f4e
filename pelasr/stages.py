"""Stages 4 to 6: training, fitting and decoding. Each skips work that is finished."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pelasr.config import check_keys, load_yaml
from pelasr.data import data_sha256, split_pair
from pelasr.errors import PelasrError
from pelasr.experiment import Experiment, Marker, Place, label
from pelasr.files import atomic_write, sha256_file
from pelasr.options import TrainingOptions
from pelasr.pack_format import read_checked


def say(message: str) -> None:
    print(message, flush=True)


# Options that change how fast a run is made, or where, but not what comes out.
WITHOUT_EFFECT = ("num_workers", "checkpoint_seconds")


def split_options(config: dict[str, Any], where: str) -> tuple[str, dict[str, Any], Any]:
    """Name of the backbone's family, its options, and the training options, of a flat configuration."""
    from pelasr.backbones import backbone_options

    if "backbone" not in config:
        raise PelasrError(f"{where}: the key `backbone` is missing")
    family = config["backbone"]
    training = [field.name for field in fields(TrainingOptions)]
    check_keys(config, ["backbone", *backbone_options(family), *training], where)
    options = {key: value for key, value in config.items() if key in backbone_options(family)}
    return family, options, TrainingOptions(**{key: config[key] for key in training if key in config})


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
    from pelasr.adapter import method_options

    method, options, _ = split_adapter_options(config, where)
    check_keys(options, method_options(method), f"{where}: adapter_conf of {method}")


def train_backbone(
    place: Place, experiment: Experiment, config: dict[str, Any], where: str, ngpu: int, init: str | None = None
) -> bool:
    """Stage 4: train the backbone that an experiment uses, in the folder of the experiment that owns it.

    `init` is an experiment whose encoder the training starts from.
    """
    family, options, training = split_options(config, where)
    names = ("backbone", *(["early"] if training.early_epoch else []))
    source = place.exp / init if init else None
    started = {"init": required(source / "backbone.safetensors", 4)} if source else {}
    missing = {}
    for folder, part in experiment.backbones(place).items():
        inputs = {
            **_training_inputs(part, {"backbone": family, **options}, training),
            "tokens": required(part.tokens / "tokens.txt", 2),
            "stats": required(place.stats, 3),
            **started,
        }
        marker = Marker(folder / "train.json", inputs, [folder / f"{name}.safetensors" for name in names])
        if marker.done:
            say(f"stage 4: the backbone {folder} is trained already")
        else:
            marker.check_unchanged()
            missing[folder] = part, marker
    if not missing:
        return False
    from pelasr.fit import fit_backbone
    from pelasr.train import make_fabric

    fabric = make_fabric(ngpu)
    for folder, (part, marker) in missing.items():
        fit_backbone(fabric, part, folder, marker, family, options, training, source)
    return True


def fit_adapters(
    place: Place,
    experiment: Experiment,
    config: dict[str, Any],
    where: str,
    only: list[str],
    ngpu: int,
    tokens: str = "auto",
) -> bool:
    """Stage 5: fit adapters of some languages on an experiment's frozen backbone, if the experiment has adapters.

    Languages beyond those of the backbone are fitted each by itself; `tokens`: see `newcomer.make_private`.
    """
    if not experiment.adapted:
        say(f"stage 5: {experiment.name} has no adapters")
        return False
    from pelasr.adapter import find_method
    from pelasr.pack_format import check_language

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
            **_training_inputs(part, {"adapter": method, "adapter_conf": options}, training),
            **({"tokens": tokens} if is_new else {}),
            "backbone": required(source / f"{experiment.weights}.safetensors", 4),
        }
        snapshots = [folder / "snapshots" / f"{name}.safetensors" for name in languages]
        marker = Marker(folder / "adapt.json", inputs, snapshots)
        packs = [folder.parent / "packs" / language for language in languages]
        if marker.done and all(_fit_of(path) == (marker.sha256, languages) for path in packs):
            say(f"stage 5: the adapters of {' '.join(languages)} in {folder} are fitted already")
        else:
            marker.check_unchanged()
            missing.append((part, folder, marker, languages))
    if not missing:
        return False
    from pelasr.fit import fit_bank
    from pelasr.train import make_fabric

    fabric = make_fabric(ngpu, adapters=True)
    for part, folder, marker, languages in missing:
        what = folder, marker, source, experiment.weights, languages, method, options, training, tokens
        fit_bank(fabric, part, *what)
    return True


def _write_model(place: Place, experiment: Experiment) -> None:
    """Say beside an experiment's packs which backbone they belong to."""
    content = {"backbone": f"../{experiment.backbone}", "weights": experiment.weights}
    path = place.exp / experiment.name / "model.yaml"
    if not path.exists() or load_yaml(path) != content:
        with atomic_write(path) as stream:
            stream.writelines(f"{key}: {value}\n" for key, value in content.items())


def _training_inputs(place: Place, model: dict[str, Any], training: TrainingOptions) -> dict[str, Any]:
    return {
        **model,
        **{key: value for key, value in asdict(training).items() if key not in WITHOUT_EFFECT},
        "languages": place.languages,
        "data_sha256": data_sha256(place.dirs("train", "dev")),
    }


def _fit_of(pack: Path) -> tuple[str, list[str]] | None:
    """Which run made a pack: the hash of its settings, and the languages it fitted; None if there is no pack."""
    if not (pack / "pack.yaml").exists() or not (pack / "pack.safetensors").exists():
        return None
    training = read_checked(pack / "pack.yaml")["training"]
    return training.get("config_sha256"), training.get("fitted_with", [])


def required(path: Path, stage: int) -> str:
    """Hash of a file that an earlier stage makes."""
    if not path.exists():
        raise PelasrError(f"{path}: no such file; run stage {stage} first")
    return sha256_file(path)


def decode(
    place: Place, experiment: Experiment, sets: list[str], only: list[str], ngpu: int, beam_size: int | None = None
) -> bool:
    """Stage 6: hypotheses and scores of sets and languages, as `<exp>/<experiment>/decode/<set>_<language>`."""
    folder = place.exp / experiment.name
    if experiment.serve:  # it is there to see what one language's pack does to all
        only = [*place.languages, *([experiment.serve] if experiment.serve not in place.languages else [])]
    _prepare_new(place, [language for language in only if language not in place.languages], sets)
    markers = decoded(place, experiment, sets, only, beam_size)
    missing = {key: marker for key, marker in markers.items() if not marker.done}
    if not missing:
        say(f"stage 6: {folder}/decode is made already")
        return False
    from pelasr.decode import decode_sets

    packs = folder / "packs" if experiment.adapted else None
    for marker in missing.values():
        marker.write(done=False)  # what is there will be overwritten
    for source, part in experiment.backbones(place).items():
        wanted = [key for key in missing if key[1] in part.languages or key[1] not in place.languages]
        if wanted:
            what = experiment.weights, packs, folder / "decode", wanted, ngpu, beam_size, experiment.serve
            decode_sets(part, source, *what)
            for key in wanted:
                missing[key].write(done=True)
    return True


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
    place: Place, experiment: Experiment, sets: list[str], languages: list[str], beam_size: int | None = None
) -> dict[tuple[str, str], Marker]:
    """Done-files of what an experiment decodes, {(set, language): marker}; of languages that are new to the backbone
    too, unless it has none that could serve them."""
    folder, markers = place.exp / experiment.name, {}
    new = [language for language in languages if language not in place.languages]
    for source, part in experiment.backbones(place).items():
        backbone = required(source / f"{experiment.weights}.safetensors", 4)
        if not experiment.adapted:
            new = [language for language in new if _can_serve(experiment, source, language)]
        for language in [language for language in part.languages if language in languages] + new:
            inputs = {"backbone": backbone} | ({"beam_size": beam_size} if beam_size else {})
            if experiment.adapted:
                inputs["pack"] = required(folder / "packs" / (experiment.serve or language) / "pack.yaml", 5)
            for name in [name for name in sets if language in part.languages or place.folder(name, language).is_dir()]:
                data = {"data": data_sha256([place.folder(name, language)])}
                output = folder / "decode" / f"{name}_{language}"
                markers[name, language] = Marker(output / "done.json", inputs | data, [output / "text"])
    return markers


def _can_serve(experiment: Experiment, source: Path, language: str) -> bool:
    """Whether a backbone without adapters can be given a language that it was not trained on: not if there is one for
    each language, or no tag of the target."""
    from pelasr.text import Tokenizer

    target = split_pair(language)[1]
    return not experiment.each and (not target or f"<lang:{target}>" in Tokenizer.load(source / "tokens").tokens)
