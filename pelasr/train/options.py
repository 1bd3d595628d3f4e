"""Options of a run, light enough to be read without the engine: how to train, and lists of words."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pelasr.errors import PelasrError

SCHEDULERS = ("cosine", "inverse_sqrt", "wsd")
COUNTS = ("epoch_steps", "batch_frames", "keep_last_models", "early_epoch", "warmup_steps", "patience", "decay_epochs")
TOKENS = ("auto", "own", "keep")  # of a language that comes later, see `pelasr.train.new_language`

FRESH, NEAREST, META = STARTS = ("fresh", "nearest", "meta")  # beside languages, see `pelasr.train.origins`


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the keys of the YAML file, whose defaults are these.

    Args:
        max_epoch: passes over the training data, at most.
        epoch_steps: optimizer steps that an epoch has at least: if the data are few they come several times.
        batch_size: utterances per optimizer step and accumulation part, over all processes.
        batch_frames: feature frames instead (an utterance with several targets counts each time); 0: by `batch_size`.
        accum_grad: batches whose gradients are added up before a step.
        alpha: shares of the languages, see `pelasr.data.sampling.language_shares`.
        optim_conf: arguments of AdamW (`lr`, `weight_decay`, `betas`).
        warmup_steps: linear warm-up.
        scheduler: after it, `cosine` down to zero at the last step; `inverse_sqrt`: with one over the step's root; or
            `wsd`, for trainings that end by themselves: constant, then straight down to zero, see `train.schedule`.
        patience: of `wsd`: validations without a better dev error after which a language's rate goes down; 0: it does
            so towards the last epoch.
        decay_epochs: of `wsd`: how many epochs the rate takes to zero, where a language's training ends; at most all.
        grad_clip: largest gradient norm (of the backbone, or of each language's adapters).
        specaug_conf: arguments of ESPnet's SpecAug on normalised features, or of `nn.span_masks.SpanMasks` in a
            pretrained encoder; none: no augmentation.
        val_interval: epochs between validations.
        keep_nbest_models: backbones averaged at the end, those of the best macro-averaged dev WER or BLEU.
        keep_last_models: if not 0, the last so many validations are averaged instead.
        early_epoch: keep the backbone's weights after this epoch as `early.safetensors`; 0: none.
        max_skips: steps that may be skipped for a loss or gradient that is not finite before training stops.
        checkpoint_seconds: time between checkpoints within an epoch.
        num_workers: processes that read ahead; 0 reads in the training process.
        seed: of everything random.
    """

    max_epoch: int = 30
    epoch_steps: int = 0
    batch_size: int = 32
    batch_frames: int = 0
    accum_grad: int = 1
    alpha: float = 0.0
    optim_conf: dict[str, Any] = field(default_factory=dict)
    warmup_steps: int = 100
    scheduler: str = "cosine"
    patience: int = 0
    decay_epochs: int = 0
    grad_clip: float = 5.0
    specaug_conf: dict[str, Any] | None = None
    val_interval: int = 1
    keep_nbest_models: int = 5
    keep_last_models: int = 0
    early_epoch: int = 0
    max_skips: int = 10
    checkpoint_seconds: float = 60.0
    num_workers: int = 0
    seed: int = 0

    @property
    def slowing(self) -> int:
        """How many epochs the rate of `wsd` goes down."""
        return min(self.decay_epochs, self.max_epoch)

    def __post_init__(self):
        """Raises PelasrError for values that would fail, or have no effect, hours later."""
        for key in ("max_epoch", "batch_size", "accum_grad", "val_interval", "keep_nbest_models"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise PelasrError(f"{key}: {value!r} is not a whole number from 1 on")
        for key in COUNTS:
            value = getattr(self, key)
            if not isinstance(value, int) or value < 0:
                raise PelasrError(f"{key}: {value!r} is not a whole number from 0 on")
        for key, other in (("batch_size", "batch_frames"), ("keep_nbest_models", "keep_last_models")):
            if getattr(self, other) and getattr(self, key) != type(self).__dataclass_fields__[key].default:
                raise PelasrError(f"{key}: {getattr(self, key)} has no effect with {other}; set that to 0, or leave it")
        if self.scheduler not in SCHEDULERS:
            raise PelasrError(f"scheduler: {self.scheduler!r}; known: {', '.join(SCHEDULERS)}")
        if self.scheduler == "wsd" and not self.decay_epochs:
            raise PelasrError(
                "decay_epochs: 0; with scheduler wsd the rate takes so many epochs to zero: give one or more"
            )
        if self.scheduler != "wsd" and (self.patience or self.decay_epochs):
            raise PelasrError(f"patience, decay_epochs: have no effect with scheduler {self.scheduler}; use wsd")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**23:
            raise PelasrError(f"seed: {self.seed!r} is not a whole number from 0 to {2**23 - 1}")
        early = self.early_epoch
        if early and early != self.max_epoch and (early > self.max_epoch or early % self.val_interval):
            raise PelasrError(
                f"early_epoch: after epoch {early} there is no validation"
                f" (max_epoch {self.max_epoch}, val_interval {self.val_interval})"
            )


class BackboneConfig(NamedTuple):
    """How a backbone is made: its family, the options of its constructor, how it is trained, and the folder of the
    pretrained model that its encoder comes from."""

    family: str
    options: dict[str, Any]
    training: TrainingOptions
    model: Path | None = None


@dataclass(frozen=True)
class MetaOptions:
    """How initial adapters are meta-trained, see `pelasr.train.meta`; the keys of `meta_conf`.

    Args:
        steps: of the initial adapters, each after an episode in one language.
        inner_steps: of the copy that an episode fits on its support batch.
        inner_lr: learning rate of these.
        outer_lr: of the initial adapters at first; it goes down to zero by half a cosine.
    """

    steps: int = 200
    inner_steps: int = 3
    inner_lr: float = 1e-3
    outer_lr: float = 1e-3

    def __post_init__(self):
        """Raises PelasrError for a value by which nothing would be trained."""
        for key, value in vars(self).items():
            if not 0 < value < math.inf:
                raise PelasrError(f"meta_conf: {key}: {value} is not a number above 0")


class AdapterConfig(NamedTuple):
    """How languages are fitted: the method, its options, how it is trained, and how initial adapters are, if they are
    wanted."""

    method: str
    options: dict[str, Any]
    training: TrainingOptions
    meta: MetaOptions = MetaOptions()
