"""Fitting a backbone, and fitting the adapters of its languages: what the two add to the training engine."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pelasr.adapters.bank import count_parameters
from pelasr.adapters.finetune import make_bank
from pelasr.adapters.freeze import check_frozen, freeze
from pelasr.adapters.own import HEAD
from pelasr.backbones.base import AUDIO, NOTHING, TEXTS, Backbone, build_backbone
from pelasr.backbones.format import BACKBONE_FACTS
from pelasr.backbones.store import describe_backbone, load_backbone, load_encoder
from pelasr.cost import read_cost, write_cost
from pelasr.data.batch import Collate, Example, load_examples
from pelasr.data.features import load_stats
from pelasr.data.hears import FRAMES_PER_HOUR, Hears
from pelasr.data.place import Place
from pelasr.data.tokenizer import SPECIAL, Tokenizer
from pelasr.done import Marker
from pelasr.files import atomic_write
from pelasr.packs.pack import identical, load_pack, save_pack
from pelasr.progress import say, warn
from pelasr.storage import save_weights
from pelasr.tasks.base import said, task_of
from pelasr.train.checkpoint import CHECKPOINT
from pelasr.train.evaluate import macro
from pelasr.train.fabric import claim, make_fabric
from pelasr.train.fuse import sources_of
from pelasr.train.kept import BestBackbones, BestSnapshots
from pelasr.train.loop import Data, Fit, Objective
from pelasr.train.meta import train_meta
from pelasr.train.monitor import HISTORY, read_history
from pelasr.train.new_language import make_own
from pelasr.train.pretrain import Pretraining
from pelasr.train.runs import AdapterRun, BackboneRun
from pelasr.train.schedule import MEAN, best_entry, decay_start, metric_of, rank
from pelasr.train.started import begin_as, keep_started, open_origins, open_started, report_started


def train(runs: Sequence[BackboneRun], ngpu: int) -> None:
    """Train backbones, one after the other: in each run's folder `backbone.safetensors`, the average of its best or
    last validations, and its description."""
    fabric = make_fabric(ngpu)
    for run in runs:
        _train(fabric, run)


def fit(runs: Sequence[AdapterRun], ngpu: int) -> None:
    """Fit languages on frozen backbones, one run after the other, and write a pack for each, its best by its own dev
    error.

    A language that the backbone was not trained on gets parts of its own too. A fit that is done is not made again; its
    packs are, from its snapshots, if another fit has replaced them. One that is `continued`, by its marker, starts from
    the snapshots. Initial adapters that are wanted are meta-trained first.
    """
    fabric = make_fabric(ngpu, adapters=True)
    meta = runs[0].meta  # of all of them
    if meta is not None and not meta.marker.done:
        train_meta(fabric, meta)
    for run in runs:
        if fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(fabric.device)
        _fit(fabric, run)


def _train(fabric: Any, run: BackboneRun) -> None:
    claim(run.marker, fabric)
    folder, place, training = run.folder, run.place, run.config.training
    backbone, tokenizer = _make(run)
    report = count_parameters(backbone)
    if backbone.learns_from == NOTHING:
        if fabric.global_rank == 0:
            say(f"{folder}: {report['total']:,} parameters, taken as they are")
            _finish(run, tokenizer, backbone.state_dict(), report, {})
        fabric.barrier()
        return
    best = BestBackbones(folder, backbone, training)
    data = _read(place, dict.fromkeys(place.languages, tokenizer), backbone.hears, Collate(place.languages), run.task)
    if backbone.learns_from == AUDIO:
        loop = Pretraining(backbone, data, training, folder, fabric, best, run.marker.sha256)
    else:
        loop = Fit(Objective(backbone, specaug_conf=training.specaug_conf), data, training, folder, fabric, best)
    loop.monitor.say(f"training {report['trainable']:,} parameters of {report['total']:,}")
    loop.run()
    state, averaged = _average(loop, best)
    if fabric.global_rank == 0:
        facts = {"epochs": loop.place.epoch, "steps": loop.place.step, "skipped_steps": loop.place.skips}
        _finish(run, tokenizer, state, report, facts | _amount(data.train) | averaged)
        loop.checkpoint.unlink()
    fabric.barrier()


def _make(run: BackboneRun) -> tuple[Backbone, Tokenizer]:
    """The backbone of a run before its training, and its tokens: of one that learns from no texts the special ones."""
    folder, (family, options, _, model) = run.place.tokens, run.config
    tokenizer = Tokenizer.load(folder)
    count = len(run.place.languages)
    with torch.device("meta"):
        texts = build_backbone(family, options, len(tokenizer.tokens), count).learns_from == TEXTS
    tokenizer = tokenizer if texts else Tokenizer(SPECIAL)
    torch.manual_seed(run.config.training.seed)  # now: some families draw numbers on the device `meta` too
    backbone = build_backbone(family, options, len(tokenizer.tokens), count)
    if model is not None:
        from pelasr.backbones.pretrained import load_pretrained, read_pretrained

        load_pretrained(read_pretrained(model), backbone)
    if run.init is not None:
        load_encoder(backbone, run.init.folder)
    if backbone.hears.has_stats:
        mean, std = load_stats(run.place.stats, backbone.hears)
        backbone.set_feature_stats(torch.from_numpy(mean), torch.from_numpy(std))
    return backbone, tokenizer


def _finish(
    run: BackboneRun,
    tokenizer: Tokenizer,
    state: dict[str, torch.Tensor],
    report: dict[str, int],
    facts: dict[str, Any],
) -> None:
    """Write a backbone, all that is known of it, and that it is done."""
    folder, languages = run.folder, run.place.languages
    save_weights(folder / "backbone.safetensors", state)
    found = {"training": facts, **said(run.task, languages)}
    tokenizer.save(folder / "tokens")
    describe_backbone(folder, run.config.family, run.config.options, languages, folder / "tokens", found)
    write_facts(run, report)
    made = [folder / name for name in ("backbone.yaml", BACKBONE_FACTS, HISTORY) if (folder / name).exists()]
    run.marker.write(done=True, outputs=made + sorted(folder.glob("*.safetensors")))


def _average(loop: Fit, best: BestBackbones) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The mean of the kept weights, or the best of them where that is better on dev, and what is known of it."""
    best.hashes = loop.fabric.broadcast(best.hashes)
    best.check()
    chosen, single = best.averaged(loop.history), best_entry(loop.history[1:], MEAN)
    if chosen == [single]:
        return best.average(loop.history), {"averaged": [single["epoch"]], "dev": single["mean"]}
    state = best.average(loop.history)
    best.backbone.load_state_dict(state)
    mean = macro(loop.evaluate(loop.data.dev)).facts()
    metric, epochs = metric_of(mean), [entry["epoch"] for entry in chosen]
    what = f"dev {metric.upper()} {mean[metric]:.1f} of the average of the epochs {' '.join(map(str, epochs))}"
    if rank(mean) <= rank(single["mean"]):
        loop.monitor.say(what)
        return state, {"averaged": epochs, "dev": mean}
    alone = f"{single['mean'][metric]:.1f} of epoch {single['epoch']} alone, which is taken"
    loop.monitor.say(f"{what}, worse than {alone}")
    return best.load(best.name(single)), {"averaged": [single["epoch"]], "dev": single["mean"]}


def _fit(fabric: Any, run: AdapterRun) -> None:
    first = fabric.global_rank == 0
    backbone = load_backbone(*run.source)
    started = open_started(run, backbone)
    if not run.marker.finished:
        claim(run.marker, fabric)
    folder, place, languages, training = run.folder, run.place, run.languages, run.config.training
    freeze(backbone.module)
    torch.manual_seed(training.seed)
    bank = make_bank(run.config.method, run.config.options, backbone.module)
    sources = sources_of(run.fuse, run.marker.inputs.get("fuse", {}), bank, backbone)
    history = _earlier(run.marker, folder)
    begins = not history and not (folder / CHECKPOINT).exists()
    tells, origins = begins and first, open_origins(run, backbone) if begins else {}
    if first:
        keep_started(run)
    fabric.barrier()
    for language in languages:
        new = language not in backbone.languages or HEAD in backbone.module.own_sites().values()
        if language in started:
            load_pack(started[language], bank, backbone)
            if tells:
                report_started(run, language, backbone.tokenizer.with_own(bank.own_tokens(language)))
            continue
        if sources is not None:
            sources.add(bank, language, backbone)
            continue
        own = make_own(backbone, place, language, run.tokens or "auto", tells) if new else None
        # What begins as a pack is trained as packs hold it: of a prefix the network is gone.
        bank.add(language, own=own, settled="pack" in run.origins.get(language, {}))
        if language in origins:
            begin_as(run, bank, language, origins[language], tells)
    check_frozen(backbone.module)
    tokenizers = {language: backbone.tokenizer.with_own(bank.own_tokens(language)) for language in languages}
    report = count_parameters(backbone.module, bank)
    best = BestSnapshots(folder, bank)
    best.hashes = run.marker.made(best.part)
    if history:
        best.restore(history)
    collate = Collate(backbone.languages, new=languages)
    data = _read(place, tokenizers, backbone.module.hears, collate, backbone.description.task)
    objective = Objective(backbone.module, bank, training.specaug_conf)
    loop = Fit(objective, data, training, folder, fabric, best, history)
    if not run.marker.finished:
        trained = f"training {report['trainable']:,} parameters of {report['total']:,}"
        loop.monitor.say(f"{trained}{'' if bank.cls.copies else ', the backbone is frozen'}")
        if history and (before := read_cost(folder)):
            loop.place.seconds = before.seconds
        loop.run()
        if first:
            write_cost(folder, loop.place.seconds, fabric.device)
    if first:
        for language, pack in zip(languages, run.packs, strict=True):
            entry = best_entry(loop.history, language)
            facts = {"epoch": entry["epoch"], "step": entry["step"], "dev": entry["dev"][language]}
            facts |= {"seed": training.seed, "config_sha256": run.marker.sha256, "fitted_with": languages}
            facts |= _amount([example for example in data.train if example.language == language])
            if language in run.origins:
                facts["origin"] = run.origins[language]
            if language in started and "code" in (before := started[language].description.training):
                facts["code"] = before["code"]  # what the model calls the language that the pack came from
            save_pack(pack, bank, language, best.best(language, loop.history), backbone, facts)
        _report(loop, best, languages)
        run.marker.write(done=True, outputs=[*best.paths, folder / HISTORY])
        loop.checkpoint.unlink(missing_ok=True)
    fabric.barrier()


def _earlier(marker: Marker, folder: Path) -> list[dict[str, Any]]:
    """The validations of a fit that is done, or to be continued; none of one that begins, or goes on from a checkpoint.
    Raises PelasrError if what it left is not as it was left."""
    if not marker.made(HISTORY) or (not marker.finished and (folder / CHECKPOINT).exists()):
        return []
    marker.check_outputs()
    return read_history(folder)


def _report(loop: Fit, best: BestSnapshots, languages: list[str]) -> None:
    """Say how the training of each language ended, and which languages are served alike after it: something is wrong
    with their data, or the training."""
    history = loop.history
    for language in languages:
        entry, last = best_entry(history, language), history[-1]["epoch"]
        scores = entry["dev"][language]
        metric = metric_of(scores)
        found = f"{language}: dev {metric.upper()} {scores[metric]:.1f} after epoch {entry['epoch']} of {last}"
        endless = replace(loop.options, max_epoch=10**9)
        if loop.options.patience and decay_start(history, language, endless, loop.first) is None:
            found += "; it was still improving when max_epoch ended it: go on with --continue true"
        say(found)
    for one, other in identical({language: best.best(language, history) for language in languages}):
        warn(f"{one} and {other} have identical adapters: are they trained on the same data?")
    if unfitted := [language for language in languages if best_entry(history, language)["epoch"] == 0]:
        warn(
            f"{' '.join(unfitted)}: no validation was better than the one before training, so the packs hold what"
            " they began with: train longer, or with another optim_conf.lr"
        )


def _read(place: Place, tokenizers: dict[str, Tokenizer], hears: Hears, collate: Collate, task: str | None) -> Data:
    """The training and dev utterances of the tokenizers' languages."""
    train, dev = (
        [
            example
            for language, tokenizer in tokenizers.items()
            for example in load_examples(place, name, language, tokenizer, hears=hears)
        ]
        for name in ("train", "dev")
    )
    return Data(train, dev, collate, tokenizers, task_of(list(tokenizers), task))


def _amount(examples: list[Example]) -> dict[str, float]:
    """How much speech a training has: utterances, of which one with several targets counts for each, and hours."""
    hours = sum(example.frames for example in examples) / FRAMES_PER_HOUR
    return {"utterances": len(examples), "hours": round(hours, 4)}


def write_facts(run: BackboneRun, report: dict[str, int]) -> None:
    """What the results table says of a backbone."""
    facts = {
        "total_parameters": report["total"],
        "seed": run.config.training.seed,
        "config_sha256": run.marker.sha256,
    }
    with atomic_write(run.folder / BACKBONE_FACTS) as stream:
        json.dump(facts, stream, indent=1)
