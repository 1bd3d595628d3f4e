"""A small family that hears the waveform, to be put into a recipe's `local/backbones`."""

from typing import Any

import torch
from torch import Tensor, nn

from pelasr.backbones.base import Augment, Backbone
from pelasr.backbones.sites import module_sites
from pelasr.data.hears import Waveform
from pelasr.errors import TooShortError
from pelasr.nn.layers import Loss, ctc_loss
from pelasr.search.ctc import ctc_best_path
from pelasr.search.hypothesis import Hypothesis

KERNEL, STRIDE = 400, 320


class Wave(Backbone):
    """A convolution over windows of 25 ms every 20 ms, and CTC."""

    beam_size = 1
    batch_frames = 600
    trains_with_ctc = True
    encoder_side = ("encoder", "project")

    def __init__(self, vocab_size: int, num_languages: int, width: int = 8, normalise: bool = True):
        super().__init__()
        self.hears = Waveform(normalise)
        self.width = width
        self.encoder = nn.Conv1d(1, width, KERNEL, STRIDE)
        self.project = nn.Linear(width, width)
        self.ctc = nn.Linear(width, vocab_size)

    @property
    def encodes_language(self) -> bool:
        return False

    @property
    def subsampling(self) -> int:
        return 2

    def sites(self) -> dict[str, dict[str, int]]:
        return {"layer": {"project": self.width}, **module_sites(self, {}, self.own_sites())}

    def own_sites(self) -> dict[str, str]:
        return {"ctc": "output"}

    def set_feature_stats(self, mean: Tensor, std: Tensor) -> None:
        raise AssertionError("a waveform has no statistics")

    def encode(
        self, feats: Tensor, lens: Tensor, language_ids: Tensor | None, augment: Augment | None = None
    ) -> tuple[Tensor, Tensor]:
        if int(lens.min()) < KERNEL:
            raise TooShortError(f"{int(lens.min())} samples are too short for this model, which needs {KERNEL}")
        x = self.encoder(feats.transpose(1, 2)).transpose(1, 2)
        return self.project(torch.tanh(x)), (lens - KERNEL) // STRIDE + 1

    def loss(self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Any = None) -> Loss:
        ctc = ctc_loss(self.ctc(enc), enc_lens, targets, target_lens)
        return Loss(ctc, {"ctc": ctc})

    def logits(self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Any = None) -> Tensor:
        return self.ctc(enc)

    def search(self, enc: Tensor, enc_lens: Tensor, prefix: Any = None, beam_size: int = 1) -> list[Hypothesis]:
        return ctc_best_path(self.ctc(enc), enc_lens)


BACKBONE: type[Backbone] = Wave
