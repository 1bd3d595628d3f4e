"""Pretraining an encoder on audio alone: the clusters of masked frames are predicted (Hsu et al. 2021, HuBERT)."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.fabric
import torch
from torch import Tensor

from pelasr.data.batch import Batch, Example, batches
from pelasr.decode.recognise import search_batches
from pelasr.errors import PelasrError
from pelasr.train.evaluate import LanguageScores
from pelasr.train.kept import Kept
from pelasr.train.loop import Data, Fit, Objective
from pelasr.train.options import TrainingOptions
from pelasr.train.units import make_units

UNITS = "units.npz"
METRIC = "units"  # of masked frames those whose cluster is not recognised, in percent


class MaskedPrediction(Objective):
    """The mean loss of an utterance's masked frames. Its targets are their clusters."""

    def forward(self, batch: Batch) -> Tensor:
        return self.predict(batch, self.draw)[0]

    def predict(self, batch: Batch, draw: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `CTC.masked_loss`. Which frames are masked follows from an utterance's id and `draw`, whatever batch and
        process it is in."""
        backbone: Any = self.backbone
        seeds = [zlib.crc32(f"{draw} {name}".encode()) for name in batch.ids]
        return backbone.masked_loss(batch.feats, batch.lens, batch.targets, seeds)


class Pretraining(Fit):
    """A training that looks at no texts; see `Fit`. `sha256`: what tells its clusters from another run's."""

    def __init__(
        self,
        backbone: Any,
        data: Data,
        options: TrainingOptions,
        folder: Path,
        fabric: lightning.fabric.Fabric,
        kept: Kept,
        sha256: str,
    ):
        if options.specaug_conf:
            raise PelasrError("specaug_conf: has no effect in pretraining, which masks by mask_prob and mask_length")
        train, dev = _each_once(data.train), _each_once(data.dev)
        path, clusters = folder / UNITS, backbone.units.out_features
        if fabric.global_rank == 0:
            make_units(path, train, dev, backbone.frontend.frames, clusters, options.seed, sha256)
        fabric.barrier()
        units = make_units(path, train, dev, backbone.frontend.frames, clusters, options.seed, sha256)
        found = [replace(example, targets=each) for example, each in zip([*train, *dev], units, strict=True)]
        data = replace(data, train=found[: len(train)], dev=found[len(train) :])
        super().__init__(MaskedPrediction(backbone), data, options, folder, fabric, kept)

    @torch.no_grad()
    def evaluate(self, dev: list[Example]) -> dict[str, LanguageScores]:
        """Of each language the loss, and how many clusters of masked frames are wrong; always with the same masks."""
        self.wrapped.eval()
        objective: Any = self.objective
        languages = sorted({example.language for example in dev})
        sums = dict.fromkeys(languages, torch.zeros(4, dtype=torch.double))
        order = search_batches(dev, True, objective.backbone.batch_frames)
        order = order[self.fabric.global_rank :: self.fabric.world_size]
        for batch in batches(dev, order, self.data.collate, self.options.num_workers):
            loss, wrong, masked = objective.predict(batch.to(self.fabric.device), 0)
            rows = torch.stack([loss, wrong, masked, torch.ones_like(loss)], dim=1).double().cpu()
            for language, row in zip(batch.languages, rows, strict=True):
                sums[language] = sums[language] + row
        totals = torch.stack([torch.stack(list(each.values())) for each in self._gather(sums)]).sum(0).tolist()
        return {
            language: LanguageScores(loss / count, 100 * wrong / max(masked, 1), METRIC)
            for language, (loss, wrong, masked, count) in zip(languages, totals, strict=True)
        }


def _each_once(examples: Sequence[Example]) -> list[Example]:
    """Examples of different audio, which several languages may share."""
    return list({example.feats: example for example in reversed(examples)}.values())[::-1]
