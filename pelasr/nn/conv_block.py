"""The blocks of convolution, norm and activation that an encoder of waveforms begins with (wav2vec 2.0, HuBERT)."""

import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """What a layer of transformers' `feature_extractor` becomes: it has the same attributes, `layer_norm` if any."""

    conv: nn.Conv1d
    activation: nn.Module

    def forward(self, x: Tensor, lens: Tensor | None) -> Tensor:
        """(B, T, C_in) to (B, T', C); a group norm is over the frames T' of each utterance (B,) alone, None: over
        all."""
        y, norm = self.conv(x.mT), getattr(self, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            y = norm(y) if lens is None else _norm_each(norm, y, lens)
        elif norm is not None:
            y = norm(y.mT).mT
        return self.activation(y).mT


def _norm_each(norm: nn.GroupNorm, x: Tensor, lens: Tensor) -> Tensor:
    """Group norm of (B, C, T) over the frames of each utterance (B,) alone; zeros beyond them."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    out = [norm(row[None, :, :size]) for row, size in zip(wide, lens.tolist(), strict=True)]
    return torch.cat([nn.functional.pad(row, (0, x.shape[2] - row.shape[2])) for row in out]).to(x.dtype)
