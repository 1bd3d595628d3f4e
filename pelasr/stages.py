"""What the verbs of the command line do: one function per stage, each of which skips work that is finished."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from pelasr.config import check_keys, load_yaml
from pelasr.data import data_sha256, parse, read_data_dir
from pelasr.errors import DataError, PelasrError
from pelasr.experiment import Experiment, Marker, Place
from pelasr.files import sha256_file, sha256_json
from pelasr.options import TrainingOptions


def say(message: str) -> None:
    print(message, flush=True)


def validate_data(place: Place, sets: list[str], config: dict[str, Any], skip_bad: bool, nj: int) -> bool:
    """Stage 1: open every file of the data directories; all problems at once, or dropped utterances.

    The tokens are not made yet: whether an utterance is long enough for its labels is judged by its characters.
    """
    from pelasr.text import Tokenizer, train_graphemes
    from pelasr.validate import drop, validate

    dirs = place.dirs(*sets)
    marker = Marker(place.exp / ".done" / "data.json", _data_inputs(dirs))
    if marker.done:
        say(f"stage 1: {len(dirs)} data directories are valid already")
        return False
    texts = [utterance.text for path in place.dirs("train") for utterance in parse(path).utterances]
    tokenizer = Tokenizer(train_graphemes(texts)) if any(texts) else None
    report = validate(dirs, tokenizer, _subsampling(config), place.languages, nj)
    for warning in report.warnings:
        say(f"warning: {warning}")
    bad = [problem for problem in report.problems if not (skip_bad and problem.droppable)]
    if bad:
        hint = "" if skip_bad else "\nmend them, or drop the utterances that are at fault with --skip_bad true"
        raise DataError([*map(str, bad), f"{len(bad)} problems in {len(dirs)} data directories{hint}"])
    for folder in dirs:
        if report.bad_in(folder):
            drop(folder, report.bad_in(folder))
            say(f"{folder}: {len(report.bad_in(folder))} utterances dropped, listed in {folder}/skipped.txt")
    for language, counted in report.languages.items():
        say(f"{language}: {counted.utterances} utterances, {counted.hours:.2f} h")
    Marker(marker.path, _data_inputs(dirs)).write(done=True)
    return True


def _subsampling(config: dict[str, Any]) -> int:
    """Feature frames per encoder frame of the configured backbone, which is built without its weights."""
    import torch

    from pelasr.backbones import build_backbone

    family, options, _ = split_options(config, "configuration")
    with torch.device("meta"):
        return build_backbone(family, options, vocab_size=3, num_languages=1).subsampling


def _data_inputs(dirs: list[Path]) -> dict[str, Any]:
    missing = [str(path) for path in dirs if not path.is_dir()]
    if missing:
        raise PelasrError(f"{missing[0]}: no such data directory; prepare the data first (stage 1), or correct --langs")
    return {str(path): data_sha256([path]) for path in dirs}


def make_tokens(place: Place, token_type: str, vocab_size: int) -> bool:
    """Stage 2: the token list of the languages' training texts, and what it cannot write of each language."""
    from pelasr.text import Tokenizer, train_graphemes, train_unigram, unknown_report

    dirs = place.dirs("train")
    inputs = {"token_type": token_type, "vocab_size": vocab_size, "data": data_sha256(place.dirs("train", "dev"))}
    marker = Marker(place.exp / ".done" / "tokens.json", inputs)
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
    dev = {
        language: [utterance.text for utterance in read_data_dir(place.data / f"dev_{language}")]
        for language in place.languages
    }
    for language, (unknown, total, which) in unknown_report(tokenizer, dev).items():
        shown = " ".join(f"{character}({count})" for character, count in which.most_common(10))
        say(f"dev_{language}: {unknown} of {total} characters unknown ({100 * unknown / max(total, 1):.2f} %) {shown}")
    marker.write(done=True)
    return True


def make_stats(place: Place, sets: list[str], nj: int) -> bool:
    """Stage 3: log-mel features of every utterance, and their mean and variance over the training data."""
    from pelasr.features import extract, feature_stats, save_stats

    markers = {
        name: Marker(place.dump / name / "done.json", {"data": data_sha256([place.data / name])})
        for name in place.names(*sets)
    }
    missing = [name for name, marker in markers.items() if not marker.done]
    extract([(place.data / name, place.dump / name) for name in missing], nj)
    for name in missing:
        markers[name].write(done=True)
    dumps = [place.dump / name for name in place.names("train")]
    marker = Marker(place.exp / ".done" / "stats.json", {str(path): sha256_file(path / "done.json") for path in dumps})
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
        **_training_inputs(place, config),
        "tokens": _required(place.tokens / "tokens.txt", 2),
        "stats": _required(place.stats, 3),
    }
    marker = Marker(folder / "train.json", inputs)
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
    folder = place.exp / experiment.name / f"fit_{'_'.join(only)}"
    source = place.exp / experiment.backbone
    inputs = {
        **_training_inputs(place, config),
        "backbone": _required(source / f"{experiment.weights}.safetensors", 4),
    }
    marker = Marker(folder / "adapt.json", inputs)
    packs = [folder.parent / "packs" / language / "pack.yaml" for language in only]
    if marker.done and all(path.exists() and _config_of(path) == marker.sha256 for path in packs):
        say(f"stage 5: the adapters of {' '.join(only)} in {folder} are fitted already")
        return False
    from pelasr.fit import fit_bank

    fit_bank(place, folder, marker, source, experiment.weights, only, method, options, training, ngpu)
    return True


def _training_inputs(place: Place, config: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: value for key, value in config.items() if key not in WITHOUT_EFFECT},
        "languages": place.languages,
        "data_sha256": data_sha256(place.dirs("train", "dev")),
    }


def _config_of(pack: Path) -> str:
    """Hash of the settings that a pack was fitted with."""
    return load_yaml(pack)["training"]["config_sha256"]


def _required(path: Path, stage: int) -> str:
    """Hash of a file that an earlier stage makes."""
    if not path.exists():
        raise PelasrError(f"{path}: no such file; run stage {stage} first")
    return sha256_file(path)


def decode(place: Place, experiment: Experiment, sets: list[str], only: list[str], ngpu: int) -> bool:
    """Stage 6: hypotheses and scores of sets and languages, as `<exp>/<experiment>/decode/<set>_<language>`."""
    source = place.exp / experiment.backbone
    folder = place.exp / experiment.name
    backbone = _required(source / f"{experiment.weights}.safetensors", 4)
    markers = {}
    for language in only:
        inputs = {"backbone": backbone}
        if experiment.adapted:
            inputs["pack"] = _required(folder / "packs" / language / "pack.yaml", 5)
        for name in (f"{test_set}_{language}" for test_set in sets):
            inputs["data"] = data_sha256([place.data / name])
            markers[name, language] = Marker(folder / "decode" / name / "done.json", dict(inputs))
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


def score(place: Place, experiments: list[Experiment], sets: list[str], recipe: str) -> bool:
    """Stage 7: error rates, and paired comparisons where an experiment names another, into `<exp>/results.jsonl`."""
    from pelasr.environment import write_environment
    from pelasr.score import compare
    from pelasr.score import score as score_set

    write_environment(place.exp / "environment.json")
    names = [experiment.name for experiment in experiments]
    for experiment in experiments:
        for name in sets:
            data_hash = data_sha256(place.dirs("train", "dev", name))
            facts = {"recipe": recipe, "experiment": experiment.name, "data_sha256": data_hash}
            facts |= _facts(place, experiment)
            score_set(facts, name, place.languages, place.data, place.exp)
            if experiment.compare in names:
                compare(facts, experiment.compare, name, place.languages, place.data, place.exp)
    return True


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
