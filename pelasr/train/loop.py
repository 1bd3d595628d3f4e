"""The training engine: one loop for backbones and adapters, on Lightning Fabric (devices, processes, precision).

The loop is written out because a run must continue after any interruption as if there had been none: all randomness
follows from the seed and the step, and a checkpoint holds the place within the epoch.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.fabric
import torch
from torch import Tensor, nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.hooks import added_losses
from pelasr.backbones.base import Backbone
from pelasr.config import construct
from pelasr.data.batch import Batch, Collate, Example, batches
from pelasr.data.sampling import BatchSampler
from pelasr.data.tokenizer import Tokenizer
from pelasr.decode.recognise import encode
from pelasr.errors import PelasrError, brief
from pelasr.tasks.base import Task
from pelasr.train.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from pelasr.train.evaluate import LanguageScores, evaluate
from pelasr.train.kept import Kept
from pelasr.train.monitor import Monitor, entry_of
from pelasr.train.options import TrainingOptions
from pelasr.train.schedule import MEAN, decay_start, factor, is_candidate


@dataclass(frozen=True)
class Data:
    """What is trained on: utterances, dev's of every language; what makes batches of them; and the tokenizer of every
    language and the task, for the dev figures."""

    train: list[Example]
    dev: list[Example]
    collate: Collate
    tokenizers: Mapping[str, Tokenizer]
    task: Task


class Objective(nn.Module):
    """What is minimised: the backbone's loss on a batch, through the adapters of its languages if there are any.

    `draw`: the number of the batch, the same for all processes: what is drawn for an utterance may follow from it.
    """

    draw: int = 0

    def __init__(self, backbone: Backbone, bank: Bank | None = None, specaug_conf: dict[str, Any] | None = None):
        super().__init__()
        self.backbone, self.bank = backbone, bank
        self.augment = backbone.make_augment(specaug_conf) if specaug_conf else None

    @property
    def trained(self) -> nn.Module:
        return self.bank if self.bank is not None else self.backbone

    def groups(self) -> list[dict[str, Any]]:
        """Optimizer groups, named by whose dev scores are theirs: the backbone, with the mean of all, or one for
        each language, so that no language's step scales another's. Raises PelasrError for a language that has nothing
        to train."""
        if self.bank is None:
            return [{"name": MEAN, "params": list(self.backbone.parameters())}]
        found = {
            language: [p for p in self.bank.tensors(language).values() if p.requires_grad]
            for language in self.bank.languages
        }
        for language, parameters in found.items():
            if not parameters:
                what = f"the method {self.bank.method} has no adapters, and the language brings no tokens of its own"
                raise PelasrError(f"{language}: nothing to train: {what}; use another method")
        return [{"name": language, "params": parameters} for language, parameters in found.items()]

    def route(self, batch: Batch) -> AbstractContextManager[None]:
        """Where the loss of a batch is computed, and its gradients: the backward pass may compute layers again."""
        return self.bank.route(batch.languages) if self.bank is not None else nullcontext()

    def forward(self, batch: Batch) -> Tensor:
        """Loss of every utterance, (B,), inside `route`."""
        augment = self.augment if self.training else None
        enc, enc_lens = encode(self.backbone, self.bank, batch, augment)
        loss = self.backbone.loss(enc, enc_lens, batch.targets, batch.target_lens, batch.prefix).total
        return sum(added_losses(), loss) if self.training else loss


@dataclass
class Progress:
    """Where a run stands: between steps, all of it in the checkpoint."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches completed of the next one
    step: int = 0  # optimizer steps tried
    skips: int = 0
    loss: float = 0.0  # sum over the utterances since the last validation
    utterances: int = 0
    seconds: float = 0.0  # of work so far, without what was lost by interruptions


class Fit:
    """One training run in a folder; `run()` trains, or goes on where the last checkpoint is.

    Args:
        objective: what to train; what of it has gradients is trained.
        data: utterances, and what makes batches of them.
        kept: what keeps the weights of validations, on the first process.
        history: the validations of the run that this one goes on from, after its last epoch.
    """

    def __init__(
        self,
        objective: Objective,
        data: Data,
        options: TrainingOptions,
        folder: Path,
        fabric: lightning.fabric.Fabric,
        kept: Kept,
        history: Sequence[dict[str, Any]] = (),
    ):
        self.options, self.folder, self.fabric = options, folder, fabric
        self.data, self.train, self.kept = data, data.train, kept
        copies, self.sampler = 1, self._make_sampler(1)
        while len(self.sampler) < options.epoch_steps * options.accum_grad:
            copies += 1
            self.sampler = self._make_sampler(copies)
        self.train = data.train * copies
        self.steps_per_epoch = math.ceil(len(self.sampler) / options.accum_grad)
        self.objective = objective
        self.trained = objective.trained
        optimizer = construct(torch.optim.AdamW, options.optim_conf, "optim_conf", params=objective.groups())
        self.wrapped, self.optimizer = fabric.setup(objective, optimizer)
        self.history = list(history)
        self.first = history[-1]["epoch"] if history else 0
        self.place = Progress(self.first, step=history[-1]["step"] if history else 0)
        self.groups = [group["name"] for group in self.optimizer.param_groups]
        self.decays: dict[str, int | None] = {}
        self._find_decays()
        factors = [partial(self._learning_rate, name) for name in self.groups]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        self.gradients_checked = False
        total = self.steps_per_epoch * options.max_epoch + self.place.step
        self.monitor = Monitor(folder, total, active=fabric.global_rank == 0)

    def _make_sampler(self, copies: int) -> BatchSampler:
        """Of the training data, so many times; copies of an utterance are apart, as other utterances are."""
        train, options = self.train * copies, self.options
        return BatchSampler(
            [example.frames for example in train],
            [example.language for example in train],
            None if options.batch_frames else options.batch_size,
            options.alpha,
            options.seed,
            self.fabric.global_rank,
            self.fabric.world_size,
            options.batch_frames,
            [f"{number // len(self.train)} {example.feats}" for number, example in enumerate(train)],
        )

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def _learning_rate(self, name: str, step: int) -> float:
        """Factor on the learning rate of a group after so many steps."""
        decay = self.decays.get(name)
        decay = None if decay is None else decay - self.first
        return factor(self.options, step, self.steps_per_epoch, decay)

    def _find_decays(self) -> None:
        """After which epoch the learning rate of each group goes down, as far as that is known."""
        if self.options.scheduler == "wsd":
            self.decays = {name: decay_start(self.history, name, self.options, self.first) for name in self.groups}

    @property
    def settled(self) -> set[str]:
        """The languages that nothing changes any more: at the last validation their learning rates were zero."""
        if not self.history or len(self.groups) == 1:
            return set()
        ends = {name: decay + self.options.slowing for name, decay in self.decays.items() if decay is not None}
        return {name for name, end in ends.items() if self.history[-1]["epoch"] >= end}

    @property
    def ended(self) -> bool:
        """Whether the last epoch is over, or the learning rates of all groups are zero."""
        if self.place.epoch - self.first >= self.options.max_epoch:
            return True
        ends = [decay + self.options.slowing for decay in self.decays.values() if decay is not None]
        return len(ends) == len(self.groups) and self.place.epoch >= max(ends)

    def run(self) -> None:
        """Train to the end. Raises PelasrError after `max_skips` steps that were not finite."""
        self.counted = time.monotonic()  # up to when `place.seconds` is
        if self.checkpoint.exists():
            self._load()
        else:
            if not self.history:
                self._validate()
            self._save()
        with self.monitor:
            while not self.ended:
                self._train_epoch()
                if self.ended or self.place.epoch % self.options.val_interval == 0:
                    self._validate()
                self._save()

    def _train_epoch(self) -> None:
        place, options = self.place, self.options
        order = list(self.sampler.epoch(place.epoch))
        sizes = self._step_sizes(order)
        settled = self.settled
        order = [self._without(settled, batch) for batch in order]
        loader = batches(self.train, order[place.batch :], self.data.collate, options.num_workers)
        saved = time.monotonic()
        parts: list[tuple[Batch, Tensor]] = []
        self.wrapped.train()
        for batch in loader:
            batch = batch.to(self.fabric.device)
            # A step's randomness is its own, so a run that was interrupted draws what it would have drawn.
            self.objective.draw = (options.seed << 40) + place.epoch * len(order) + place.batch
            torch.manual_seed(
                (options.seed << 40)
                + (place.epoch * len(order) + place.batch) * self.fabric.world_size
                + self.fabric.global_rank
            )
            parts.append((batch, self._backward(batch, sizes[place.batch // options.accum_grad])))
            place.batch += 1
            if len(parts) < options.accum_grad and place.batch < len(order):
                continue
            self._step(parts)
            parts = []
            if time.monotonic() - saved > options.checkpoint_seconds and place.batch < len(order):
                self._save()
                saved = time.monotonic()
        place.epoch, place.batch = place.epoch + 1, 0

    def _without(self, languages: set[str], batch: list[int]) -> list[int]:
        """A batch without some languages; but all processes must have something of every batch."""
        return [index for index in batch if self.train[index].language not in languages] or batch[:1]

    def _step_sizes(self, order: list[list[int]]) -> list[float]:
        """Utterances of each optimizer step over all processes, by process: each of them weighs the same, whatever the
        batches and processes that it is divided among."""
        width = self.options.accum_grad
        sizes = [sum(map(len, order[n : n + width])) for n in range(0, len(order), width)]
        everyone = self._gather(sizes)
        return [sum(step) / self.fabric.world_size for step in zip(*everyone, strict=True)]

    def _backward(self, batch: Batch, size: float) -> Tensor:
        """Add the batch's part of the mean gradient over `size` utterances; returns its losses (B,)."""
        with self.objective.route(batch):
            losses = self.wrapped(batch)
            self.fabric.backward(losses.sum() / size)  # DDP takes the mean over the processes
        return losses.detach()

    def _step(self, parts: list[tuple[Batch, Tensor]]) -> None:
        place = self.place
        if self.objective.bank is not None and not self.gradients_checked:
            self.objective.bank.check_gradients({language for batch, _ in parts for language in batch.languages})
            self.gradients_checked = True
        norms = [
            nn.utils.clip_grad_norm_(group["params"], self.options.grad_clip) for group in self.optimizer.param_groups
        ]
        place.step += 1
        if all(bool(norm.isfinite()) for norm in norms):
            self.optimizer.step()
            losses = torch.cat([losses for _, losses in parts])
            place.loss += self._sum(losses.sum().item())
            place.utterances += int(self._sum(float(len(losses))))
        else:
            self._skip(parts)
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.monitor.step(place.step, place.loss / max(place.utterances, 1), float(self.schedule.get_last_lr()[0]))

    def _skip(self, parts: list[tuple[Batch, Tensor]]) -> None:
        """A loss or gradient that is not finite never enters the weights; too many of them end the run."""
        mine = [
            (name, math.isfinite(loss))
            for batch, losses in parts
            for name, loss in zip(batch.ids, losses.tolist(), strict=True)
        ]
        everyone = [pair for pairs in self._gather(mine) for pair in pairs]
        bad = [name for name, finite in everyone if not finite]
        names = bad or [name for name, _ in everyone]
        what = "loss" if bad else "gradient, finite loss"
        self.place.skips += 1
        message = f"step {self.place.step}: not finite ({what}) in {' '.join(names)}"
        self.monitor.say(f"{message}: step skipped ({self.place.skips} so far)")
        if self.place.skips >= self.options.max_skips:
            raise PelasrError(
                f"{message}; {self.place.skips} steps were skipped: look at these utterances, or lower optim_conf.lr"
            )

    def _validate(self) -> None:
        place = self.place
        train_loss = place.loss / place.utterances if place.utterances else None
        self.history.append(entry_of(place.epoch, place.step, train_loss, self._scores()))
        self._find_decays()
        decays = {name: self.decays.get(name) for name in self.groups}
        wanted = [name for name, decay in decays.items() if is_candidate(place.epoch, decay, self.options)]
        self.history[-1]["candidates"] = wanted
        if self.fabric.global_rank == 0:
            self.kept.validated(self.history)
            self.monitor.validated(self.history)
        self.fabric.barrier()
        place.loss, place.utterances = 0.0, 0

    def _scores(self) -> dict[str, LanguageScores]:
        """Scores of each language on dev; those of settled ones stay what they were."""
        settled = self.settled
        scores = self.evaluate([example for example in self.data.dev if example.language not in settled])
        known = {language: LanguageScores.of(self.history[-1]["dev"][language]) for language in settled}
        return dict(sorted((scores | known).items()))

    def evaluate(self, dev: list[Example]) -> dict[str, LanguageScores]:
        """Scores of each language that there are utterances of."""
        self.wrapped.eval()
        how = self.data.collate, self.data.tokenizers, self.data.task, self.fabric, self.options.num_workers
        return evaluate(self.objective.backbone, self.objective.bank, dev, *how)

    def _sum(self, value: float) -> float:
        """Over all processes."""
        if self.fabric.world_size == 1:
            return value
        total: Any = self.fabric.all_reduce(torch.tensor(value, device=self.fabric.device), reduce_op="sum")
        return float(total)

    def _gather(self, value: Any) -> list[Any]:
        """The values of all processes."""
        if self.fabric.world_size == 1:
            return [value]
        values = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def _save(self) -> None:
        now = time.monotonic()
        self.place.seconds, self.counted = self.place.seconds + now - self.counted, now
        if self.fabric.global_rank != 0:
            return
        state = {
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "place": vars(self.place),
            "first": self.first,
            "history": self.history,
            "kept": self.kept.hashes,
        }
        save_checkpoint(self.checkpoint, state)
        self.kept.prune()

    def _load(self) -> None:
        try:
            state = load_checkpoint(self.checkpoint)
            self.trained.load_state_dict(state["trained"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.place, self.first = Progress(**state["place"]), state["first"]
            self.history, self.kept.hashes = state["history"], state["kept"]
        except PelasrError:
            raise
        except Exception as error:  # torch's readers raise many kinds
            why = brief(error, 200)
            raise PelasrError(f"{self.checkpoint}: cannot go on from it ({why}); delete it to start again") from error
        self.kept.check()
        self._find_decays()
        self.monitor.resume(self.history)
        self.monitor.say(f"going on after epoch {self.place.epoch}, batch {self.place.batch} of the next")
