"""When a training slows down and ends: the factor on its learning rate, and what a history of validations says."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pelasr.train.options import TrainingOptions

Entry = Mapping[str, Any]  # a validation, see `pelasr.train.monitor.entry_of`
MEAN = "mean"  # in the place of a language: all of them on average
BLEU, HIGHER = "bleu", "higher_is_better"  # of scores: the metric that is no error, and the mark of any other such


def metric_of(scores: Mapping[str, float]) -> str:
    """What was measured beside the loss: `wer`, `cer`, `bleu`, or `error` for the mean of several kinds."""
    return next(key for key in scores if key not in ("loss", HIGHER))


def is_higher_better(scores: Mapping[str, float]) -> bool:
    """Whether what was measured beside the loss is no error: BLEU, and what says so itself."""
    return metric_of(scores) == BLEU or HIGHER in scores


def rank(scores: Mapping[str, float]) -> tuple[float, float]:
    """Sorts what validations found, the best first: by the task's figure, ties by the loss."""
    value = scores[metric_of(scores)]
    return -value if is_higher_better(scores) else value, scores["loss"]


def scores_of(entry: Entry, name: str) -> Mapping[str, float]:
    """What a validation found of a language, or of all on average (MEAN)."""
    return entry["mean"] if name == MEAN else entry["dev"][name]


def best_entry(history: Sequence[Entry], name: str) -> Entry:
    """The best validation of a language, or of all on average (MEAN), among its candidates; the first of equal ones."""
    candidates = [entry for entry in history if name in entry["candidates"]]
    return min(candidates, key=lambda entry: rank(scores_of(entry, name)))


def is_candidate(epoch: int, decay: int | None, options: TrainingOptions) -> bool:
    """Whether the weights after an epoch are among those that may be kept.

    Where the rate is constant (`wsd`) they are not: so far from rest they are worse than those that follow, and of many
    validations on a small dev set one is better by chance.
    """
    return options.scheduler != "wsd" or epoch == 0 or (decay is not None and epoch > decay)


def decay_start(history: Sequence[Entry], name: str, options: TrainingOptions, first: int = 0) -> int | None:
    """After which epoch a learning rate goes down (`wsd`), as far as a history goes; None: not yet.

    That is after `patience` validations that found neither a better error nor a better loss (a new language's error may
    stay at 100 % while its loss falls, and fall later while its loss rises), and in any case early enough to end with
    `max_epoch` epochs. `first`: the epoch that the training goes on from; earlier validations are to be beaten.
    """
    if options.slowing == options.max_epoch:
        return first
    found = [(entry["epoch"], rank(scores_of(entry, name))) for entry in history]
    before = [scores for epoch, scores in found if epoch <= first]
    best = [min(part) for part in zip(*before, strict=True)]  # error and loss, each by itself
    waited = 0
    for epoch, scores in found[len(before) :]:
        waited = 0 if any(one < other for one, other in zip(scores, best, strict=True)) else waited + 1
        best = [min(pair) for pair in zip(best, scores, strict=True)]
        late = epoch - first >= options.max_epoch - options.slowing
        if late or (options.patience and waited >= options.patience):
            return epoch
    return None


def factor(options: TrainingOptions, step: int, steps_per_epoch: int, decay: int | None) -> float:
    """Factor on the learning rate at an optimizer step: linear warm-up, then by the scheduler: half a cosine, the
    inverse square root, or (Hu et al. 2024, MiniCPM) one that is constant and from the epoch `decay` on goes straight
    down to zero."""
    warmup = options.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if options.scheduler == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / (step + 1))
    if options.scheduler == "cosine":
        total = steps_per_epoch * options.max_epoch
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    if decay is None:
        return 1.0
    gone = (step - decay * steps_per_epoch) / (options.slowing * steps_per_epoch)
    return 1 - min(max(gone, 0.0), 1.0)
