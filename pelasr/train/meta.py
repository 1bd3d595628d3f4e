"""Meta-training: initial adapters from which a few steps lead to those of a language, whichever it is.

First-order MAML (Finn et al. 2017, section 5.2) of the adapters alone, as in Meta-Adapter (Hou et al. 2021): an episode
fits a copy of them for some steps on a support batch of one language; the gradient of the copy's loss on a query batch
of other utterances is the one by which the initial adapters then take a step.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pelasr.adapters.bank import NEW, Bank
from pelasr.adapters.finetune import make_bank
from pelasr.adapters.freeze import check_frozen, freeze
from pelasr.adapters.own import HEAD
from pelasr.backbones.store import load_backbone
from pelasr.data.batch import Batch, Collate, Example, load_examples
from pelasr.errors import PelasrError, brief
from pelasr.progress import Meter, log
from pelasr.storage import save_weights
from pelasr.train.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from pelasr.train.fabric import claim
from pelasr.train.loop import Objective
from pelasr.train.options import META, MetaOptions, TrainingOptions
from pelasr.train.origins import MetaRun


def train_meta(fabric: Any, run: MetaRun) -> None:
    """Meta-train initial adapters and write them, `{"<site>/<parameter>": tensor}`, at the sites of languages that are
    new to the backbone; a run that was interrupted goes on. Each process takes an episode of every step.

    Raises PelasrError where output layers are the languages' own: a few steps from nothing tell little of adapters.
    """
    backbone, options = load_backbone(*run.source), run.config.training
    if HEAD in backbone.module.own_sites().values():
        what = "every language has an output layer of its own here, and none before it is trained"
        raise PelasrError(f"--start meta: {what}; name the language to start from")
    claim(run.marker, fabric)
    freeze(backbone.module)
    torch.manual_seed(options.seed)
    bank = make_bank(run.config.method, _at_new_sites(run.config.options), backbone.module)
    bank.add(META)
    check_frozen(backbone.module)
    tokenizer, hears = backbone.tokenizer, backbone.module.hears
    sets = {name: load_examples(run.place, "train", name, tokenizer, hears=hears) for name in run.place.languages}
    episodes = Episodes(sets, Collate(backbone.languages), options)
    objective = Objective(backbone.module, bank, options.specaug_conf).to(fabric.device).train()
    training = _Training(run, objective, bank, episodes, fabric)
    training.run()
    if fabric.global_rank == 0:
        save_weights(run.path, bank.tensors(META))
        run.marker.write(done=True, outputs=[run.path])
        training.checkpoint.unlink()
        few = math.ceil(len(training.losses) / 10)
        first, last = (sum(part) / few for part in (training.losses[:few], training.losses[-few:]))
        log(f"{run.folder}: mean loss at the end of an episode {first:.2f} in the first {few}, {last:.2f} in the last")
    fabric.barrier()


def _at_new_sites(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a method whose adapters are where those of new languages are."""
    sites = options.get("sites")
    return options | {"sites": sites[NEW]} if isinstance(sites, dict) and NEW in sites else options


class Episodes:
    """Support and query batches of one language after another, which follow from the seed and the episode's number.

    Args:
        sets: utterances by language, two or more of each.
        training: of its options `batch_size` or `batch_frames` is of each of the two batches, as far as there are data.
    """

    def __init__(self, sets: Mapping[str, Sequence[Example]], collate: Collate, training: TrainingOptions):
        self.sets, self.collate, self.training = sets, collate, training
        for language, examples in sets.items():
            if len(examples) < 2:
                raise PelasrError(f"--start meta: {language} has too few utterances; an episode takes two or more")

    def draw(self, number: int) -> tuple[Batch, Batch]:
        """The batches of an episode: of a language whose turn it is, in an order that is anew in every round."""
        seed, languages = self.training.seed, list(self.sets)
        turn, place = divmod(number, len(languages))
        language = languages[np.random.default_rng([seed, 0, turn]).permutation(len(languages))[place]]
        examples = self.sets[language]
        order = np.random.default_rng([seed, 1, number]).permutation(len(examples)).tolist()
        half = min(self._size(examples), len(examples) // 2)
        support, query = ([examples[n] for n in part] for part in (order[:half], order[half : 2 * half]))
        return self._batch(support), self._batch(query)

    def _size(self, examples: Sequence[Example]) -> int:
        frames = self.training.batch_frames
        return max(1, frames // max(example.frames for example in examples)) if frames else self.training.batch_size

    def _batch(self, examples: Sequence[Example]) -> Batch:
        """Heard in their language, and adapted by the initial adapters."""
        return replace(self.collate(examples), languages=[META] * len(examples))


def first_order(
    parameters: Sequence[nn.Parameter],
    support: Callable[[], Tensor],
    query: Callable[[], Tensor],
    options: MetaOptions,
    grad_clip: float,
) -> float:
    """Leave in `.grad` the gradient of the loss `query` where some steps of Adam on the loss `support` lead, and the
    parameters as they were. Returns that loss."""
    before = [parameter.detach().clone() for parameter in parameters]
    inner = torch.optim.Adam(parameters, lr=options.inner_lr)
    for _ in range(options.inner_steps):
        _gradients(parameters, support(), grad_clip)
        inner.step()
    loss = query()
    _gradients(parameters, loss, grad_clip)
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    return loss.item()


def _gradients(parameters: Sequence[nn.Parameter], loss: Tensor, grad_clip: float) -> None:
    """Raises PelasrError if they are not finite."""
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    if not nn.utils.clip_grad_norm_(parameters, grad_clip).isfinite():
        raise PelasrError("meta-training: the gradient is not finite; lower inner_lr or outer_lr of meta_conf")


class _Training:
    """The steps of a run, from where its checkpoint is."""

    def __init__(self, run: MetaRun, objective: Objective, bank: Bank, episodes: Episodes, fabric: Any):
        self.folder, self.options, self.training = run.folder, run.config.meta, run.config.training
        self.objective, self.bank, self.episodes, self.fabric = objective, bank, episodes, fabric
        self.parameters = [parameter for parameter in bank.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise PelasrError(f"--start meta: the method {bank.method} has no adapters to train")
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.options.outer_lr)
        self.losses: list[float] = []  # of each step, on the query
        self.checkpoint = run.folder / CHECKPOINT

    def run(self) -> None:
        if self.checkpoint.exists():
            self._load()
        steps, saved = self.options.steps, time.monotonic()
        with Meter(f"{self.folder}: meta-training", steps) as meter:
            meter.begin(len(self.losses))
            while len(self.losses) < steps:
                self._step()
                done = len(self.losses)
                meter.update(done, f"loss {sum(self.losses[-10:]) / min(done, 10):.2f}")
                if time.monotonic() - saved > self.training.checkpoint_seconds or done == steps:
                    self._save()
                    saved = time.monotonic()

    def _step(self) -> None:
        fabric, step = self.fabric, len(self.losses)
        number = step * fabric.world_size + fabric.global_rank
        support, query = (batch.to(fabric.device) for batch in self.episodes.draw(number))
        self.objective.draw = (self.training.seed << 40) + step
        torch.manual_seed((self.training.seed << 40) + number)  # so one that goes on draws what it would have drawn
        batches = partial(self._loss, support), partial(self._loss, query)
        loss = first_order(self.parameters, *batches, self.options, self.training.grad_clip)
        if step == 0:
            self.bank.check_gradients([META])
        if fabric.world_size > 1:
            for parameter in self.parameters:
                parameter.grad = fabric.all_reduce(parameter.grad, reduce_op="mean")
            loss = float(fabric.all_reduce(torch.tensor(loss, device=fabric.device), reduce_op="mean"))
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.outer_lr * 0.5 * (1 + math.cos(math.pi * step / self.options.steps))
        self.optimizer.step()
        self.losses.append(loss)

    def _loss(self, batch: Batch) -> Tensor:
        with self.objective.route(batch), self.fabric.autocast():
            return self.objective(batch).mean()

    def _save(self) -> None:
        if self.fabric.global_rank == 0:
            state = {"trained": self.bank.state_dict(), "optimizer": self.optimizer.state_dict()}
            save_checkpoint(self.checkpoint, {**state, "losses": self.losses})

    def _load(self) -> None:
        state = load_checkpoint(self.checkpoint)
        try:
            self.bank.load_state_dict(state["trained"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.losses = state["losses"]
        except Exception as error:  # torch's readers raise many kinds
            why = brief(error, 200)
            raise PelasrError(f"{self.checkpoint}: cannot go on from it ({why}); delete it to start again") from error
        if self.fabric.global_rank == 0:
            log(f"{self.folder}: going on after {len(self.losses)} of {self.options.steps} steps of meta-training")
