"""Reprogramming (Yang et al. 2021, Voice2Series; Radhakrishnan et al. 2023, of log-mel frames): a trained signal is
added to what the model hears."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pelasr.adapters import Adapter, within
from pelasr.errors import PelasrError


class Reprogramming(Adapter):
    """x'_t = x_t + n_t for the utterance's own t < frames: of a waveform samples, otherwise the frames that go into the
    encoder, normalised, of an RNN-T also stacked and with the language vector.

    With `mean` and `std` 0 a fresh adapter is exactly the identity. Parameters: frames C.

    Args:
        width_in: C, channels of what is heard; 1 of a waveform.
        frames: length of the signal n.
        mean, std: of the normal distribution that it is drawn from.
    """

    by_row = True

    def __init__(self, width_in: int, frames: int = 3000, mean: float = 0.0, std: float = 0.0):
        super().__init__()
        if frames < 1 or std < 0:
            raise PelasrError(f"adapter_conf: want frames above 0 and std of 0 or more, not {frames} and {std}")
        self.signal = nn.Parameter(mean + std * torch.randn(frames, width_in))

    def before(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Of (B, T, C) and frames (B,), which come first."""
        x, lens, *rest = args
        frames, channels = self.signal.shape[-2:]
        if x.shape[-1] != channels:
            raise PelasrError(f"reprogramming: the signal has {channels} channels, what is heard {x.shape[-1]}")
        length = min(frames, x.shape[1])
        signal = F.pad(self.signal[..., :length, :], (0, 0, 0, x.shape[1] - length))
        return (x + (signal * within(lens, x.shape[1])[..., None]).to(x.dtype), lens, *rest), kwargs


Reprogramming.parts = {"input": Reprogramming}
