"""What the verbs of the command line do: one function per stage, each of which skips work that is finished."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pelasr.config import check_keys, load_yaml
from pelasr.data import audio_sha256, data_sha256, parse, read_data_dir, split_pair, text_of
from pelasr.errors import DataError, PelasrError
from pelasr.experiment import Experiment, Marker, Place, label
from pelasr.files import sha256_file
from pelasr.options import TrainingOptions


def say(message: str) -> None:
    print(message, flush=True)


def validate_data(place: Place, sets: list[str], config: dict[str, Any], skip_bad: bool, nj: int) -> bool:
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
    path = place.exp / ".done" / "data.json"
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
    from pelasr.features import extract, feature_stats, save_stats

    markers = {
        place.dump / path.name: Marker(place.dump / path.name / "done.json", {"data": audio_sha256(path)})
        for path in place.dirs(*sets)
    }
    missing = [folder for folder, marker in markers.items() if not marker.done]
    for folder in extract([(place.data / folder.name, folder) for folder in missing], nj):
        markers[folder].write(done=True)
    dumps = [place.dump / path.name for path in place.dirs("train")]
    inputs = {str(path): sha256_file(path / "done.json") for path in dumps}
    marker = Marker(place.exp / ".done" / "stats.json", inputs, [place.stats])
    if not marker.done:
        save_stats(place.stats, *feature_stats(dumps))
        marker.write(done=True)
    elif not missing:
        say("stage 3: features and statistics are made already")
        return False
    return True


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
    place: Place, experiment: Experiment, config: dict[str, Any], where: str, only: list[str], ngpu: int
) -> bool:
    """Stage 5: fit adapters of some languages on an experiment's frozen backbone, if the experiment has adapters."""
    if not experiment.adapted:
        say(f"stage 5: {experiment.name} has no adapters")
        return False
    from pelasr.adapter import find_method

    method, options, training = split_adapter_options(config, where)
    source = place.exp / experiment.backbone
    # Fine-tuning gives each language a run of its own; adapters of several languages are fitted in mixed batches.
    runs = [[language] for language in only] if find_method(method).copies else [only]
    missing = []
    for languages in runs:
        # A folder for each choice of languages: fitting one again later leaves the run that fitted all as it is.
        folder = place.exp / experiment.name / f"fit_{label(languages)}"
        inputs = {
            **_training_inputs(place, {"adapter": method, "adapter_conf": options}, training),
            "backbone": required(source / f"{experiment.weights}.safetensors", 4),
        }
        snapshots = [folder / "snapshots" / f"{name}.safetensors" for name in languages]
        marker = Marker(folder / "adapt.json", inputs, snapshots)
        packs = [folder.parent / "packs" / language for language in languages]
        if marker.done and all(_fit_of(path) == (marker.sha256, languages) for path in packs):
            say(f"stage 5: the adapters of {' '.join(languages)} in {folder} are fitted already")
        else:
            marker.check_unchanged()
            missing.append((folder, marker, languages))
    if not missing:
        return False
    from pelasr.fit import fit_bank
    from pelasr.train import make_fabric

    fabric = make_fabric(ngpu, adapters=True)
    for folder, marker, languages in missing:
        fit_bank(fabric, place, folder, marker, source, experiment.weights, languages, method, options, training)
    return True


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
    training = load_yaml(pack / "pack.yaml")["training"]
    return training["config_sha256"], training.get("fitted_with", [])


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
        wanted = [key for key in missing if key[1] in part.languages]
        if wanted:
            decode_sets(part, source, experiment.weights, packs, folder / "decode", wanted, ngpu, beam_size)
            for key in wanted:
                missing[key].write(done=True)
    return True


def decoded(
    place: Place, experiment: Experiment, sets: list[str], languages: list[str], beam_size: int | None = None
) -> dict[tuple[str, str], Marker]:
    """Done-files of what an experiment decodes, {(set, language): marker}."""
    folder, markers = place.exp / experiment.name, {}
    for source, part in experiment.backbones(place).items():
        backbone = required(source / f"{experiment.weights}.safetensors", 4)
        for language in (language for language in part.languages if language in languages):
            inputs = {"backbone": backbone} | ({"beam_size": beam_size} if beam_size else {})
            if experiment.adapted:
                inputs["pack"] = required(folder / "packs" / language / "pack.yaml", 5)
            for name in sets:
                data = {"data": data_sha256([place.folder(name, language)])}
                output = folder / "decode" / f"{name}_{language}"
                markers[name, language] = Marker(output / "done.json", inputs | data, [output / "text"])
    return markers
