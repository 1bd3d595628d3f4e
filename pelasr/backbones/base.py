"""What a backbone is; a family is one file beside this one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pelasr.adapters.own import install
from pelasr.backbones.format import check_options
from pelasr.config import arguments_of, construct, find_module
from pelasr.data.hears import Hears
from pelasr.errors import PelasrError
from pelasr.nn.layers import Loss
from pelasr.nn.parts import Parts
from pelasr.search.hypothesis import Hypothesis
from pelasr.search.lm import Fusion

# Files here that are no families.
OTHERS = ("__init__", "base", "bounds", "format", "pretrained", "sites", "source", "store")
TEXTS, AUDIO, NOTHING = "texts", "audio", "nothing"  # what a backbone learns from in stage 4
GIVEN = ("vocab_size", "num_languages")  # what the data decide, not the configuration
Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # SpecAugment: features (B, T, C), frames (B,) to the same


class Backbone(Parts, ABC):
    """A model that all languages share. Its constructor takes `vocab_size`, `num_languages` and the keys of its
    configuration, and allocates by torch's factories alone, so that it can be built on the device `meta`.

    Token 0 is blank, the last one `<sos/eos>`. What an utterance gets must not depend on what it is batched with.
    """

    hears: Hears  # its input
    batch_frames: ClassVar[int | None] = None  # of 10 ms, padding included, of a batch that is searched; None: as usual
    beam_size: ClassVar[int]  # of decoding, when nothing else is asked
    trains_with_ctc: ClassVar[bool] = False  # always; of a family with the option `ctc_weight` that tells
    learns_from: str = TEXTS  # or AUDIO, in pretraining (which has a `masked_loss`), or NOTHING: it is taken as it is
    encoder_side: ClassVar[tuple[str, ...]]  # paths of the modules that make the encoder's output, which --init copies

    def side(self, path: str) -> str:
        """On which side a module is: `encoder`, or `decoder`, which is all that is not in `encoder_side`."""
        return side_of(path, self.encoder_side)

    @property
    @abstractmethod
    def encodes_language(self) -> bool:
        """Whether the encoder's output depends on the language."""

    @property
    @abstractmethod
    def subsampling(self) -> int:
        """Frames of 10 ms per encoder frame, whatever it hears."""

    @abstractmethod
    def sites(self) -> dict[str, dict[str, int]]:
        """Places for adapters: {kind: {path of the host module: width of its output}}; see `module_sites`."""

    @abstractmethod
    def own_sites(self) -> dict[str, str]:
        """Where a new language adds to the backbone: {path of a module: vector, embedding or output}."""

    @abstractmethod
    def set_feature_stats(self, mean: Tensor, std: Tensor) -> None:
        """Mean and standard deviation of each channel (C,) over the training data, where there are any
        (`hears.has_stats`): to be kept in buffers, or not used."""

    def make_augment(self, conf: dict[str, Any]) -> Any:
        """What `encode` takes as `augment`, by the options `specaug_conf`: ESPnet's SpecAugment."""
        from espnet2.asr.specaug.specaug import SpecAug

        return construct(SpecAug, conf, "specaug_conf")

    @abstractmethod
    def encode(
        self, feats: Tensor, lens: Tensor, language_ids: Tensor | None, augment: Augment | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is heard (B, T, C), its rows (B,), index of the language (B,) to encoder output (B, T', D), frames (B,).

        `language_ids` may be None where `encodes_language` is False. `augment` is applied to normalised features, where
        zero is the mean. Raises TooShortError if an utterance has no frame left.
        """

    @abstractmethod
    def loss(
        self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Tensor | None = None
    ) -> Loss:
        """Encoder output (B, T, D), frames (B,), labels (B, U), their number (B,), forced first tokens (B, P) to losses
        in nats (B,). `prefix` are the tags that targets begin with, None for recognition; it is no part of the loss."""

    @abstractmethod
    def logits(
        self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Tensor | None = None
    ) -> Tensor:
        """Logits (B, N, V) of given labels, by which models are compared; arguments as of `loss`."""

    @abstractmethod
    def search(
        self, enc: Tensor, enc_lens: Tensor, prefix: Tensor | None = None, beam_size: int = 1
    ) -> list[Hypothesis]:
        """The best label sequence of each encoder output (B, T, D), without the prefix (B, P) that it starts from.
        Raises PelasrError for a `beam_size` that it cannot search with; 1, which validations use, it always can."""

    def fused_search(
        self, enc: Tensor, enc_lens: Tensor, fusions: Sequence[Fusion | None], beam_size: int
    ) -> list[Hypothesis]:
        """As `search`, with what a language model adds in each row. Raises PelasrError for a family that has no way to
        count it."""
        raise PelasrError("--lm: this backbone is not searched with a language model; one of the family ctc is")


def side_of(path: str, encoder_side: tuple[str, ...]) -> str:
    """`encoder` for a module in one of these, otherwise `decoder`."""
    inside = any(f"{path}.".startswith(f"{part}.") for part in encoder_side)
    return "encoder" if inside else "decoder"


def find_backbone(name: str) -> type[Backbone]:
    """The class `BACKBONE` of `pelasr/backbones/<name>.py`, or of a recipe's `local/backbones/<name>.py`; an unknown
    name is an error that lists them."""
    module = find_module("pelasr.backbones", name, "backbone: no family", OTHERS)
    if not hasattr(module, "BACKBONE"):
        raise PelasrError(f"{module.__file__}: the line `BACKBONE: type[Backbone] = ...` is missing")
    return module.BACKBONE


def backbone_options(name: str) -> list[str]:
    """Configuration keys of a family: the arguments of its constructor."""
    return [key for key in arguments_of(find_backbone(name)) if key not in GIVEN]


def build_backbone(name: str, options: dict[str, Any], vocab_size: int, num_languages: int) -> Backbone:
    """A fresh backbone with random weights."""
    cls = find_backbone(name)
    check_options(options, f"backbone {name}")
    module = construct(cls, options, f"backbone {name}", vocab_size=vocab_size, num_languages=num_languages)
    install(module)
    return module


def heard_with(name: str, options: dict[str, Any]) -> Hears:
    """What a backbone of these options hears."""
    with torch.device("meta"):
        return build_backbone(name, options, vocab_size=3, num_languages=1).hears
