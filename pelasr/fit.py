"""Fitting a backbone, and fitting the adapters of its languages: what the two add to the training engine."""

import json
from pathlib import Path
from typing import Any

import torch

from pelasr.adapter import Bank, check_frozen, count_parameters, freeze
from pelasr.backbones import (
    build_backbone,
    describe_backbone,
    load_backbone,
    load_encoder,
    load_weights,
    save_weights,
)
from pelasr.batch import Collate, Example, load_examples
from pelasr.errors import PelasrError
from pelasr.evaluate import LanguageScores
from pelasr.experiment import Marker, Place
from pelasr.features import FRAMES_PER_HOUR, load_stats
from pelasr.files import atomic_write
from pelasr.finetune import make_bank
from pelasr.monitor import read_history
from pelasr.newcomer import make_private
from pelasr.options import TrainingOptions
from pelasr.pack import identical, save_pack
from pelasr.text import Tokenizer
from pelasr.train import Fit, Objective


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
    fit.monitor.say(f"{folder}: training {report['trainable']:,} parameters of {report['total']:,}")
    fit.run()
    if first:
        best.average()
        facts = {"epochs": training.max_epoch, "steps": fit.place.step, "skipped_steps": fit.place.skips}
        facts |= _amount(train)
        describe_backbone(folder, family, options, place.languages, place.tokens, {"training": facts})
        _write_facts(folder, report, training, marker)
        marker.write(done=True)
        fit.checkpoint.unlink()
    fabric.barrier()


class BestBackbones:
    """Keeps the weights of the validations with the best macro-averaged dev WER or BLEU (ties: the lower loss), or of
    the last ones."""

    def __init__(self, folder: Path, backbone: torch.nn.Module, training: TrainingOptions):
        self.folder, self.backbone, self.training = folder, backbone, training

    def __call__(self, epoch: int, scores: dict[str, LanguageScores]) -> None:
        if epoch == 0:
            return
        if epoch == self.training.early_epoch:
            save_weights(self.folder / "early.safetensors", self.backbone.state_dict())
        best = self._best()
        if epoch in best:
            save_weights(self._path(epoch), self.backbone.state_dict())
        for path in self._path(0).parent.glob("*.safetensors"):
            if path not in [self._path(number) for number in best]:
                path.unlink()

    def average(self) -> None:
        """Write the mean of the kept weights, in float64, as `backbone.safetensors`."""
        states = [load_weights(self._path(epoch)) for epoch in self._best()]
        mean = {name: sum(s[name].double() for s in states) / len(states) for name in states[0]}
        state = {name: tensor.to(states[0][name].dtype) for name, tensor in mean.items()}
        save_weights(self.folder / "backbone.safetensors", state)

    def _best(self) -> list[int]:
        entries = [entry for entry in read_history(self.folder) if entry["epoch"] > 0]
        if self.training.keep_last_models:
            return [entry["epoch"] for entry in entries[-self.training.keep_last_models :]]
        entries.sort(key=_rank)
        return [entry["epoch"] for entry in entries[: self.training.keep_nbest_models]]

    def _path(self, epoch: int) -> Path:
        return self.folder / "epochs" / f"{epoch:03d}.safetensors"


def _rank(entry: dict[str, Any]) -> tuple[float, float]:
    """Sorts validations, the best first."""
    mean = entry["mean"]
    return mean["wer"] if "wer" in mean else -mean["bleu"], mean["loss"]


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
    """Fit adapters of `languages` on a frozen backbone and write a pack for each, its best by its own dev loss.

    A language that the backbone was not trained on gets private parts too; `tokens`: see `newcomer.make_private`. A fit
    that is done is not made again; its packs are, from its snapshots, if another fit has replaced them.
    """
    first = fabric.global_rank == 0
    if not marker.done:
        _claim(marker, fabric)
    backbone = load_backbone(source, weights)
    freeze(backbone.module)
    torch.manual_seed(training.seed)
    bank = make_bank(method, options, backbone.module)
    for language in languages:
        new = language not in backbone.languages
        bank.add(language, private=make_private(backbone, place, language, tokens, say=first) if new else None)
    bank.attach(backbone.module)
    check_frozen(backbone.module)
    tokenizers = {language: backbone.tokenizer.with_own(bank.own_tokens(language)) for language in languages}
    train = _examples(place, "train", tokenizers)
    report = count_parameters(backbone.module, bank)
    best = BestSnapshots(folder, bank)
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
    )
    if not marker.done:
        trained = f"training {report['trainable']:,} parameters of {report['total']:,}"
        fit.monitor.say(f"{folder}: {trained}{'' if bank.cls.copies else ', the backbone is frozen'}")
        fit.run()
    if first:
        for language in languages:
            entry = best.entry(language)
            facts = {"epoch": entry["epoch"], "step": entry["step"], "dev": entry["dev"][language]}
            facts |= {"seed": training.seed, "config_sha256": marker.sha256, "fitted_with": languages}
            facts |= _amount([example for example in train if example.language == language])
            save_pack(folder.parent / "packs" / language, bank, language, best.load(language), backbone, facts)
        _report_alike({language: best.load(language) for language in languages}, best)
        marker.write(done=True)
        fit.checkpoint.unlink(missing_ok=True)
    fabric.barrier()


class BestSnapshots:
    """Keeps, for each language by itself, the adapters of its lowest dev loss, the untrained ones included."""

    def __init__(self, folder: Path, bank: Bank):
        self.folder, self.bank = folder, bank

    def __call__(self, epoch: int, scores: dict[str, LanguageScores]) -> None:
        for language in scores:
            if self.entry(language)["epoch"] == epoch:
                save_weights(self._path(language), self.bank.tensors(language))

    def entry(self, language: str) -> dict[str, Any]:
        """The validation that was the language's best."""
        return min(read_history(self.folder), key=lambda entry: entry["dev"][language]["loss"])

    def load(self, language: str) -> dict[str, torch.Tensor]:
        return load_weights(self._path(language))

    def _path(self, language: str) -> Path:
        return self.folder / "snapshots" / f"{language}.safetensors"


def _report_alike(tensors: dict[str, dict[str, torch.Tensor]], best: BestSnapshots) -> None:
    """Say which languages are served alike after fitting: something is wrong with their data, or the training."""
    for one, other in identical(tensors):
        print(f"warning: {one} and {other} have identical adapters: are they trained on the same data?", flush=True)
    if unfitted := [language for language in tensors if best.entry(language)["epoch"] == 0]:
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
            marker.claim()
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


def _write_facts(folder: Path, report: dict[str, int], training: TrainingOptions, marker: Marker) -> None:
    """What the results table says of a backbone."""
    facts = {
        "total_parameters": report["total"],
        "seed": training.seed,
        "config_sha256": marker.sha256,
    }
    with atomic_write(folder / "facts.json") as stream:
        json.dump(facts, stream, indent=1)
