"""Fitting a backbone, and fitting the adapters of its languages: what the two add to the training engine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pelasr.adapters.bank import count_parameters
from pelasr.adapters.finetune import make_bank
from pelasr.adapters.freeze import check_frozen, freeze
from pelasr.backbones.base import build_backbone
from pelasr.backbones.format import BACKBONE_FACTS
from pelasr.backbones.store import describe_backbone, load_backbone, load_encoder
from pelasr.data.batch import Collate, Example, load_examples
from pelasr.data.features import FRAMES_PER_HOUR, load_stats
from pelasr.data.place import Place
from pelasr.data.tokenizer import Tokenizer
from pelasr.done import Marker
from pelasr.errors import PelasrError
from pelasr.files import atomic_write
from pelasr.packs.pack import identical, save_pack
from pelasr.storage import save_weights
from pelasr.train.evaluate import macro
from pelasr.train.kept import BestBackbones, BestSnapshots
from pelasr.train.loop import CHECKPOINT, Fit, Objective
from pelasr.train.monitor import HISTORY, read_history
from pelasr.train.new_language import make_private
from pelasr.train.options import TrainingOptions
from pelasr.train.schedule import MEAN, best_entry, decay_start, metric_of, rank


def fit_backbone(
    fabric: Any,
    place: Place,
    folder: Path,
    marker: Marker,
    family: str,
    options: dict[str, Any],
    training: TrainingOptions,
    init: Path | None = None,
) -> None:
    """Train a backbone and write `backbone.safetensors`, the average of its best or last validations.

    `init`: folder of a backbone whose encoder it starts from.
    """
    first = fabric.global_rank == 0
    _claim(marker, fabric)
    tokenizer = Tokenizer.load(place.tokens)
    tokenizers = dict.fromkeys(place.languages, tokenizer)
    torch.manual_seed(training.seed)
    backbone = build_backbone(family, options, len(tokenizer.tokens), len(place.languages))
    if init is not None:
        load_encoder(backbone, init)
    mean, std = load_stats(place.stats)
    backbone.set_feature_stats(torch.from_numpy(mean), torch.from_numpy(std))
    report = count_parameters(backbone)
    best = BestBackbones(folder, backbone, training)
    train = _examples(place, "train", tokenizers)
    fit = Fit(
        Objective(backbone, specaug_conf=training.specaug_conf),
        train,
        _examples(place, "dev", tokenizers),
        Collate(place.languages),
        tokenizers,
        training,
        folder,
        fabric,
        best,
    )
    fit.monitor.say(f"training {report['trainable']:,} parameters of {report['total']:,}")
    fit.run()
    state, averaged = _average(fit, best)
    if first:
        save_weights(folder / "backbone.safetensors", state)
        facts = {"epochs": fit.place.epoch, "steps": fit.place.step, "skipped_steps": fit.place.skips}
        facts |= _amount(train) | averaged
        describe_backbone(folder, family, options, place.languages, place.tokens, {"training": facts})
        write_facts(folder, report, training, marker)
        made = [folder / name for name in ("backbone.yaml", BACKBONE_FACTS, HISTORY)]
        marker.write(done=True, outputs=made + sorted(folder.glob("*.safetensors")))
        fit.checkpoint.unlink()
    fabric.barrier()


def _average(fit: Fit, best: BestBackbones) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The mean of the kept weights, or the best of them where that is better on dev, and what is known of it."""
    best.hashes = fit.fabric.broadcast(best.hashes)
    best.check()
    chosen, single = best.averaged(fit.history), best_entry(fit.history[1:], MEAN)
    if chosen == [single]:
        return best.average(fit.history), {"averaged": [single["epoch"]], "dev": single["mean"]}
    state = best.average(fit.history)
    best.backbone.load_state_dict(state)
    mean = macro(fit.evaluate(fit.dev)).facts()
    metric, epochs = metric_of(mean), [entry["epoch"] for entry in chosen]
    what = f"dev {metric.upper()} {mean[metric]:.1f} of the average of the epochs {' '.join(map(str, epochs))}"
    if rank(mean) <= rank(single["mean"]):
        fit.monitor.say(what)
        return state, {"averaged": epochs, "dev": mean}
    alone = f"{single['mean'][metric]:.1f} of epoch {single['epoch']} alone, which is taken"
    fit.monitor.say(f"{what}, worse than {alone}")
    return best.load(best.name(single)), {"averaged": [single["epoch"]], "dev": single["mean"]}


def fit_bank(
    fabric: Any,
    place: Place,
    folder: Path,
    marker: Marker,
    source: Path,
    weights: str,
    languages: list[str],
    method: str,
    options: dict[str, Any],
    training: TrainingOptions,
    tokens: str = "auto",
) -> None:
    """Fit adapters of `languages` on a frozen backbone and write a pack for each, its best by its own dev error.

    A language that the backbone was not trained on gets private parts too; `tokens`: see `newcomer.make_private`. A fit
    that is done is not made again; its packs are, from its snapshots, if another fit has replaced them. One that is
    `continued`, by its marker, starts from the snapshots.
    """
    first = fabric.global_rank == 0
    if not marker.finished:
        _claim(marker, fabric)
    backbone = load_backbone(source, weights)
    freeze(backbone.module)
    torch.manual_seed(training.seed)
    bank = make_bank(method, options, backbone.module)
    history = _earlier(marker, folder)
    for language in languages:
        new = language not in backbone.languages
        say = first and not history and not (folder / CHECKPOINT).exists()
        bank.add(language, private=make_private(backbone, place, language, tokens, say) if new else None)
    bank.attach(backbone.module)
    check_frozen(backbone.module)
    tokenizers = {language: backbone.tokenizer.with_own(bank.own_tokens(language)) for language in languages}
    train = _examples(place, "train", tokenizers)
    report = count_parameters(backbone.module, bank)
    best = BestSnapshots(folder, bank)
    best.hashes = marker.made(best.part)
    if history:
        best.restore(history)
    fit = Fit(
        Objective(backbone.module, bank, training.specaug_conf),
        train,
        _examples(place, "dev", tokenizers),
        Collate(backbone.languages, new=languages),
        tokenizers,
        training,
        folder,
        fabric,
        best,
        history,
    )
    if not marker.finished:
        trained = f"training {report['trainable']:,} parameters of {report['total']:,}"
        fit.monitor.say(f"{trained}{'' if bank.cls.copies else ', the backbone is frozen'}")
        fit.run()
    if first:
        for language in languages:
            entry = best_entry(fit.history, language)
            facts = {"epoch": entry["epoch"], "step": entry["step"], "dev": entry["dev"][language]}
            facts |= {"seed": training.seed, "config_sha256": marker.sha256, "fitted_with": languages}
            facts |= _amount([example for example in train if example.language == language])
            tensors = best.best(language, fit.history)
            save_pack(folder.parent / "packs" / language, bank, language, tensors, backbone, facts)
        _report(languages, best, fit.history, training, fit.first)
        marker.write(done=True, outputs=[*best.paths, folder / HISTORY])
        fit.checkpoint.unlink(missing_ok=True)
    fabric.barrier()


def _earlier(marker: Marker, folder: Path) -> list[dict[str, Any]]:
    """The validations of a fit that is done, or to be continued; none of one that begins, or goes on from a checkpoint.
    Raises PelasrError if what it left is not as it was left."""
    if not marker.made(HISTORY) or (not marker.finished and (folder / CHECKPOINT).exists()):
        return []
    marker.check_outputs()
    return read_history(folder)


def _report(
    languages: list[str], best: BestSnapshots, history: list[dict[str, Any]], training: TrainingOptions, first: int
) -> None:
    """Say how the training of each language ended, and which languages are served alike after it: something is wrong
    with their data, or the training."""
    for language in languages:
        entry, last = best_entry(history, language), history[-1]["epoch"]
        scores = entry["dev"][language]
        metric = metric_of(scores)
        found = f"{language}: dev {metric.upper()} {scores[metric]:.1f} after epoch {entry['epoch']} of {last}"
        endless = replace(training, max_epoch=10**9)
        if training.patience and decay_start(history, language, endless, first) is None:
            found += "; it was still improving when max_epoch ended it: go on with --continue true"
        print(found, flush=True)
    for one, other in identical({language: best.best(language, history) for language in languages}):
        print(f"warning: {one} and {other} have identical adapters: are they trained on the same data?", flush=True)
    if unfitted := [language for language in languages if best_entry(history, language)["epoch"] == 0]:
        print(
            f"warning: {' '.join(unfitted)}: no validation was better than the one before training, so the packs hold"
            " fresh adapters: train longer, or with another optim_conf.lr",
            flush=True,
        )


def _claim(marker: Marker, fabric: Any) -> None:
    """The first process claims the folder; all of them stop if it cannot."""
    error = None
    if fabric.global_rank == 0:
        try:
            marker.lock()
            if marker.found is not None and marker.found["done"]:  # by a run that was killed at its very end
                (marker.path.parent / CHECKPOINT).unlink(missing_ok=True)
            marker.write(done=False)
        except PelasrError as refused:
            error = str(refused)
    error = fabric.broadcast(error)
    if error is not None:
        raise PelasrError(error)


def _examples(place: Place, name: str, tokenizers: dict[str, Tokenizer]) -> list[Example]:
    return [example for pair in tokenizers.items() for example in load_examples(place, name, *pair)]


def _amount(examples: list[Example]) -> dict[str, float]:
    """How much speech a training has: utterances, of which one with several targets counts for each, and hours."""
    hours = sum(example.frames for example in examples) / FRAMES_PER_HOUR
    return {"utterances": len(examples), "hours": round(hours, 4)}


def write_facts(folder: Path, report: dict[str, int], training: TrainingOptions, marker: Marker) -> None:
    """What the results table says of a backbone."""
    facts = {
        "total_parameters": report["total"],
        "seed": training.seed,
        "config_sha256": marker.sha256,
    }
    with atomic_write(folder / BACKBONE_FACTS) as stream:
        json.dump(facts, stream, indent=1)
