"""The weights that a training keeps of its validations, as files with their hashes, which the checkpoint holds.

A file is written once and never changed, and deleted only after a checkpoint no longer names it: whenever a run is
killed, the files that its checkpoint names are there.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pelasr.adapters.bank import Bank
from pelasr.errors import PelasrError
from pelasr.files import sha256_file
from pelasr.storage import load_weights, save_weights
from pelasr.train.options import TrainingOptions
from pelasr.train.schedule import MEAN, Entry, best_entry, rank


class Kept(ABC):
    """Of a run in `folder` the files that are wanted after each validation, {path within it: sha256}."""

    part: str  # the folder within which files are deleted

    def __init__(self, folder: Path):
        self.folder = folder
        self.hashes: dict[str, str] = {}

    @abstractmethod
    def wanted(self, history: Sequence[Entry]) -> list[str]:
        """Which files; those that are not there yet are of the last validation."""

    @abstractmethod
    def tensors(self, name: str) -> dict[str, Tensor]:
        """What is to be in a file now."""

    def validated(self, history: Sequence[Entry]) -> None:
        """Write what the last validation makes wanted."""
        wanted = self.wanted(history)
        for name in wanted:
            if name not in self.hashes:
                save_weights(self.folder / name, self.tensors(name))
                self.hashes[name] = sha256_file(self.folder / name)
        self.hashes = {name: self.hashes[name] for name in wanted}

    def load(self, name: str) -> dict[str, Tensor]:
        """Raises PelasrError if the file is not as it was written."""
        return load_weights(self.folder / name, self.hashes[name])

    def check(self) -> None:
        """Raise PelasrError naming the first file that is not as it was written."""
        for name, sha256 in self.hashes.items():
            path = self.folder / name
            if not path.is_file() or sha256_file(path) != sha256:
                raise PelasrError(
                    f"{path}: damaged or missing, so the training cannot go on from its checkpoint; restore it, or"
                    f" delete {self.folder} to start again"
                )

    def prune(self) -> None:
        """Delete what is not wanted any more."""
        for path in (self.folder / self.part).rglob("*.safetensors"):
            if str(path.relative_to(self.folder)) not in self.hashes:
                path.unlink()

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.hashes]


class BestBackbones(Kept):
    """The weights of the validations with the best macro-averaged dev figure, or of the last ones and the best, and
    those after the early epoch."""

    part = "epochs"
    early = "early.safetensors"

    def __init__(self, folder: Path, backbone: nn.Module, training: TrainingOptions):
        super().__init__(folder)
        self.backbone, self.training = backbone, training

    def tensors(self, name: str) -> dict[str, Tensor]:
        return self.backbone.state_dict()

    def wanted(self, history: Sequence[Entry]) -> list[str]:
        trained = _trained(history)
        early = [self.early] if any(entry["epoch"] == self.training.early_epoch for entry in history[1:]) else []
        best = [best_entry(trained, MEAN)] if trained else []
        return early + sorted({self.name(entry) for entry in self.averaged(history) + best})

    def averaged(self, history: Sequence[Entry]) -> list[Entry]:
        """The validations whose weights are averaged at the end."""
        trained = _trained(history)
        if self.training.keep_last_models:
            return trained[-self.training.keep_last_models :]
        return sorted(trained, key=lambda entry: rank(entry["mean"]))[: self.training.keep_nbest_models]

    def average(self, history: Sequence[Entry]) -> dict[str, Tensor]:
        """The mean of the weights, in float64."""
        states = [self.load(self.name(entry)) for entry in self.averaged(history)]
        mean: dict[str, Any] = {name: sum(state[name].double() for state in states) / len(states) for name in states[0]}
        return {name: tensor.to(states[0][name].dtype) for name, tensor in mean.items()}

    def name(self, entry: Entry) -> str:
        return f"{self.part}/{entry['epoch']:03d}.safetensors"


def _trained(history: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in history if entry["epoch"] > 0 and MEAN in entry["candidates"]]


class BestSnapshots(Kept):
    """For each language by itself the adapters of its best validation, the untrained ones included."""

    part = "snapshots"

    def __init__(self, folder: Path, bank: Bank):
        super().__init__(folder)
        self.bank = bank

    def tensors(self, name: str) -> dict[str, Tensor]:
        return self.bank.tensors(Path(name).parent.name)

    def wanted(self, history: Sequence[Entry]) -> list[str]:
        return [self.name(language, history) for language in self.bank.languages]

    @torch.no_grad()
    def restore(self, history: Sequence[Entry]) -> None:
        """Give every language of the bank its best adapters."""
        for language in self.bank.languages:
            saved = self.best(language, history)
            for name, tensor in self.bank.tensors(language).items():
                tensor.copy_(saved[name])

    def best(self, language: str, history: Sequence[Entry]) -> dict[str, Tensor]:
        return self.load(self.name(language, history))

    def name(self, language: str, history: Sequence[Entry]) -> str:
        return f"{self.part}/{language}/{best_entry(history, language)['epoch']:03d}.safetensors"
