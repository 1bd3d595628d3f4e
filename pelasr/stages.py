"""What the verbs of the command line do: one function per stage, each of which skips work that is finished."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pelasr.config import check_keys, load_yaml
from pelasr.data import audio_sha256, data_sha256, parse, read_data_dir
from pelasr.errors import DataError, PelasrError
from pelasr.experiment import Experiment, Marker, Place
from pelasr.files import sha256_file, sha256_json
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
    others = place.dirs(*(name for name in sets if name != "train"))
    dirs = [*train, *others]
    subsampling = _subsampling(config) if config.get("ctc_weight") else None
    path = place.exp / ".done" / "data.json"
    if Marker(path, _data_inputs(dirs, subsampling)).done:
        say(f"stage 1: {len(dirs)} data directories are valid already")
        return False
    texts = [utterance.text for folder in train for utterance in parse(folder).utterances]
    tokenizer = Tokenizer(train_graphemes(texts)) if subsampling and any(texts) else None
    reports = [validate(train, tokenizer, subsampling or 1, place.languages, nj)]
    reports.append(validate(others, languages=place.languages, nj=nj))
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
    Marker(path, _data_inputs(dirs, subsampling)).write(done=True)
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


def make_tokens(place: Place, sets: list[str], token_type: str, vocab_size: int) -> bool:
    """Stage 2: the token list of the languages' training texts, and what it cannot write of other sets' texts."""
    from pelasr.text import Tokenizer, train_graphemes, train_unigram, unknown_report

    dirs = place.dirs("train")
    data_hash = data_sha256(place.dirs("train", *sets))
    inputs = {"token_type": token_type, "vocab_size": vocab_size, "data": data_hash}
    marker = Marker(place.exp / ".done" / "tokens.json", inputs, [place.tokens / "tokens.txt"])
    if marker.done:
        say(f"stage 2: {place.tokens}/tokens.txt is made already")
        return False
    texts = [utterance.text for path in dirs for utterance in read_data_dir(path)]
    if token_type == "char":
        Tokenizer(train_graphemes(texts)).save(place.tokens)
    else:
        train_unigram(texts, vocab_size, place.tokens)
    tokenizer = Tokenizer.load(place.tokens)
    say(f"{len(tokenizer.tokens)} tokens in {place.tokens}/tokens.txt")
    texts_of = {name: [u.text for u in read_data_dir(place.data / name)] for name in place.names(*sets)}
    for name, (unknown, total, which) in unknown_report(tokenizer, texts_of).items():
        shown = " ".join(f"{character}({count})" for character, count in which.most_common(10))
        say(f"{name}: {unknown} of {total} characters unknown ({100 * unknown / max(total, 1):.2f} %) {shown}".rstrip())
    marker.write(done=True)
    return True


def make_stats(place: Place, sets: list[str], nj: int) -> bool:
    """Stage 3: log-mel features of every utterance, and their mean and variance over the training data."""
    from pelasr.features import extract, feature_stats, save_stats

    markers = {
        place.dump / name: Marker(place.dump / name / "done.json", {"data": audio_sha256(place.data / name)})
        for name in place.names(*sets)
    }
    missing = [folder for folder, marker in markers.items() if not marker.done]
    for folder in extract([(place.data / folder.name, folder) for folder in missing], nj):
        markers[folder].write(done=True)
    dumps = [place.dump / name for name in place.names("train")]
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


def train_backbone(place: Place, experiment: Experiment, config: dict[str, Any], where: str, ngpu: int) -> bool:
    """Stage 4: train the backbone that an experiment uses, in the folder of the experiment that owns it."""
    family, options, training = split_options(config, where)
    folder = place.exp / experiment.backbone
    inputs = {
        **_training_inputs(place, {"backbone": family, **options}, training),
        "tokens": _required(place.tokens / "tokens.txt", 2),
        "stats": _required(place.stats, 3),
    }
    outputs = [folder / f"{name}.safetensors" for name in ("backbone", *(["early"] if training.early_epoch else []))]
    marker = Marker(folder / "train.json", inputs, outputs)
    if marker.done:
        say(f"stage 4: the backbone {folder} is trained already")
        return False
    from pelasr.fit import fit_backbone

    fit_backbone(place, folder, marker, family, options, training, ngpu)
    return True


def fit_adapters(
    place: Place, experiment: Experiment, config: dict[str, Any], where: str, only: list[str], ngpu: int
) -> bool:
    """Stage 5: fit adapters of some languages on an experiment's frozen backbone, if the experiment has adapters."""
    if not experiment.adapted:
        say(f"stage 5: {experiment.name} has no adapters")
        return False
    method, options, training = split_adapter_options(config, where)
    # A folder for each choice of languages: fitting one again later leaves the run that fitted all as it is.
    label = "_".join(only)
    label = label if len(label) <= 100 else f"{len(only)}_languages_{sha256_json(only)[:8]}"  # file names have a limit
    folder = place.exp / experiment.name / f"fit_{label}"
    source = place.exp / experiment.backbone
    inputs = {
        **_training_inputs(place, {"adapter": method, "adapter_conf": options}, training),
        "backbone": _required(source / f"{experiment.weights}.safetensors", 4),
    }
    marker = Marker(folder / "adapt.json", inputs, [folder / "snapshots" / f"{name}.safetensors" for name in only])
    packs = [folder.parent / "packs" / language for language in only]
    if marker.done and all(_config_of(path) == marker.sha256 for path in packs):
        say(f"stage 5: the adapters of {' '.join(only)} in {folder} are fitted already")
        return False
    from pelasr.fit import fit_bank

    fit_bank(place, folder, marker, source, experiment.weights, only, method, options, training, ngpu)
    return True


def _training_inputs(place: Place, model: dict[str, Any], training: TrainingOptions) -> dict[str, Any]:
    return {
        **model,
        **{key: value for key, value in asdict(training).items() if key not in WITHOUT_EFFECT},
        "languages": place.languages,
        "data_sha256": data_sha256(place.dirs("train", "dev")),
    }


def _config_of(pack: Path) -> str | None:
    """Hash of the settings that a pack was fitted with; None if there is no pack."""
    if not (pack / "pack.yaml").exists() or not (pack / "pack.safetensors").exists():
        return None
    return load_yaml(pack / "pack.yaml")["training"]["config_sha256"]


def _required(path: Path, stage: int) -> str:
    """Hash of a file that an earlier stage makes."""
    if not path.exists():
        raise PelasrError(f"{path}: no such file; run stage {stage} first")
    return sha256_file(path)


def decode(place: Place, experiment: Experiment, sets: list[str], only: list[str], ngpu: int) -> bool:
    """Stage 6: hypotheses and scores of sets and languages, as `<exp>/<experiment>/decode/<set>_<language>`."""
    source, folder = place.exp / experiment.backbone, place.exp / experiment.name
    markers = _decoded(place, experiment, sets, only)
    missing = {key: marker for key, marker in markers.items() if not marker.done}
    if not missing:
        say(f"stage 6: {folder}/decode is made already")
        return False
    from pelasr.decode import decode_dirs

    packs = folder / "packs" if experiment.adapted else None
    decode_dirs(place, source, experiment.weights, packs, folder / "decode", list(missing), ngpu)
    for marker in missing.values():
        marker.write(done=True)
    return True


def _decoded(
    place: Place, experiment: Experiment, sets: list[str], languages: list[str]
) -> dict[tuple[str, str], Marker]:
    """Done-files of decoded data directories, {(name, language): marker}."""
    folder = place.exp / experiment.name
    backbone = _required(place.exp / experiment.backbone / f"{experiment.weights}.safetensors", 4)
    markers = {}
    for language in languages:
        inputs = {"backbone": backbone}
        if experiment.adapted:
            inputs["pack"] = _required(folder / "packs" / language / "pack.yaml", 5)
        for name in (f"{test_set}_{language}" for test_set in sets):
            inputs["data"] = data_sha256([place.data / name])
            output = folder / "decode" / name
            markers[name, language] = Marker(output / "done.json", dict(inputs), [output / "text"])
    return markers


def score(
    place: Place, experiments: dict[str, Experiment], chosen: list[Experiment], sets: list[str], recipe: str
) -> bool:
    """Stage 7: error rates, and paired comparisons where an experiment names another, into `<exp>/results.jsonl`.

    Raises PelasrError if hypotheses are missing, or are of another model or other data than those there now.
    """
    from pelasr.environment import write_environment
    from pelasr.score import compare
    from pelasr.score import score as score_set

    write_environment(place.exp / "environment.json")
    for experiment in chosen:
        stale = _not_decoded(place, experiment, sets)
        if stale:
            raise PelasrError(f"{experiment.name}: {stale} was not decoded with this model and data; run stage 6")
        other = experiments[experiment.compare] if experiment.compare else None
        for name in sets:
            data_hash = data_sha256(place.dirs("train", "dev", name))
            facts = {"recipe": recipe, "experiment": experiment.name, "data_sha256": data_hash}
            facts |= _facts(place, experiment)
            score_set(facts, name, place.languages, place.data, place.exp)
            if other and not _not_decoded(place, other, [name]):
                compare(facts, other.name, name, place.languages, place.data, place.exp)
    return True


def _not_decoded(place: Place, experiment: Experiment, sets: list[str]) -> str | None:
    """The first data directory whose hypotheses are missing or stale."""
    markers = _decoded(place, experiment, sets, place.languages)
    return next((name for (name, _), marker in markers.items() if not marker.done), None)


def _facts(place: Place, experiment: Experiment) -> dict[str, Any]:
    """What the results say of an experiment's training: of its backbone, or of the packs that were decoded."""
    path = place.exp / experiment.backbone / "facts.json"
    _required(path, 4)
    facts = json.loads(path.read_text(encoding="utf-8"))
    if not experiment.adapted:
        return facts
    folders = [place.exp / experiment.name / "packs" / language for language in place.languages]
    packs = [load_yaml(folder / "pack.yaml") for folder in folders]
    added = sum(pack["parameters"] for pack in packs)
    # Packs may come from several fits: one hash of them all.
    hashes = sorted({pack["training"]["config_sha256"] for pack in packs})
    return facts | {
        "method": packs[0]["adapter"],
        "trainable_parameters": added,
        "total_parameters": facts["total_parameters"] + added,
        "seed": packs[0]["training"]["seed"],
        "config_sha256": hashes[0] if len(hashes) == 1 else sha256_json(hashes),
    }


def write_page(place: Place, descriptions: dict[str, str], name: str, recipe: str, page: Path, output: Path) -> None:
    """Stage 7: a set's table on the terminal, its page and its chart, all from `<exp>/results.jsonl`."""
    from pelasr.environment import read_environment
    from pelasr.files import atomic_write
    from pelasr.results import read_results
    from pelasr.table import make_chart, make_table, print_table, read_times

    results = read_results(place.exp / "results.jsonl")
    extra = load_yaml(page) if page.exists() else {}
    chart = output.with_suffix(".png")
    make_chart(results, chart, name, descriptions, place.languages)
    text = make_table(
        results,
        name,
        descriptions,
        place.languages,
        title=recipe,
        note=extra.get("note", ""),
        environment=read_environment(place.exp / "environment.json"),
        times=read_times(place.exp / "times.jsonl"),
        paper=extra.get("paper"),
        chart=chart.name,
    )
    with atomic_write(output) as stream:
        stream.write(text)
    print_table(results, name, descriptions, place.languages)
    say(f"written: {output} and {chart}")


def count(
    config: dict[str, Any], where: str, adapter: Path | None, vocab_size: int, num_languages: int
) -> dict[str, int]:
    """Integer parameter counts of a configured backbone, and of the adapters of its languages, on live modules."""
    from pelasr.adapter import Bank, count_parameters, freeze
    from pelasr.backbones import build_backbone

    family, options, _ = split_options(config, where)
    backbone = build_backbone(family, options, vocab_size, num_languages)
    if adapter is None:
        return count_parameters(backbone)
    method, method_options, _ = split_adapter_options(load_yaml(adapter), str(adapter))
    freeze(backbone)
    bank = Bank(method, method_options, backbone.sites())
    for number in range(num_languages):
        bank.add(f"language{number}")
    return count_parameters(backbone, bank)
