"""Prefix tuning (Li and Liang 2021, section 4): trained keys and values that every query of the encoder also sees."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.adapters import Adapter, Linear


class Prefix(Adapter):
    """Attn(Q, [P_K; K], [P_V; V]) in each attention of the encoder; P is (frames, D), of keys and of values.

    What a map of keys or values puts out begins with P, for queries of any frame, and P has no position. In training it
    may come from a network, which `settle` drops: P = W_u tanh(W_d E + b_d) + b_u, E (frames, D). The search of a
    translation model computes its decoder's keys itself, so the decoder has none. P is drawn from a normal distribution
    (as PEFT's): a fresh adapter is not the identity. Parameters of a layer: 2 frames D.

    Args:
        width: D, of the map's output.
        frames: of the prefix.
        network: width of the network, 0 for none.
    """

    size = "frames"
    sides = ("encoder",)
    because = "an LSTM has no attention"
    by_row = True

    def __init__(self, width: int, frames: int = 30, network: int = 0):
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(frames, width))
        layers = (Linear(width, network), nn.Tanh(), Linear(network, width)) if network else ()
        self.network = nn.Sequential(*layers)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Keys or values (B, T, D) to (B, frames + T, D)."""
        prefix = self.network(self.prefix).to(y.dtype)
        return torch.cat([prefix.expand(len(y), -1, -1), y], dim=1)

    @torch.no_grad()
    def settle(self) -> None:
        self.prefix = nn.Parameter(self.network(self.prefix))
        self.network = nn.Sequential()


class Seen(Adapter):
    """What attention may see, with `frames` more before it. No parameters."""

    size = "frames"
    sides = ("encoder",)
    because = Prefix.because
    by_row = True

    def __init__(self, frames: int = 30):
        super().__init__()
        self.frames = frames

    def before(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """With the mask (B, ..., T), of ESPnet's attention the last argument, as (B, ..., frames + T)."""
        lengthen = partial(F.pad, pad=(self.frames, 0), value=True)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            return args, {**kwargs, "attention_mask": lengthen(mask)}
        return (args, kwargs) if "attention_mask" in kwargs else ((*args[:-1], lengthen(args[-1])), kwargs)


Prefix.parts = {"k": Prefix, "v": Prefix, "attention": Seen}
Prefix.together = tuple(Prefix.parts)
