"""Ladder side-tuning (Sung et al. 2022, NeurIPS, section 3): a small network beside the encoder, which is given what
every layer puts out, so that no gradient goes through the encoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.adapters import Adapter, LayerNorm, Linear, Shared
from pelasr.errors import PelasrError

TEMPERATURE = 0.1


class Ladder(Adapter):
    """y' = y + W_u s_L + b_u at the top of the encoder, where s_i = Block(m_i (W_i h_i + b_i) + (1 - m_i) s_(i-1)) for
    what layer i puts out, h_i, m_i = sigmoid(a_i / 0.1), and s_0 = W_0 h_0 + b_0 of what the first layer is given.

    Of the paper's blocks, which are small layers of the backbone's kind, the feed-forward half is here: Block(z) =
    z + V_2 relu(V_1 LN(z) + c_1) + c_2, 4 d wide within, so that it is frame by frame. Where the layers have fewer
    frames than before, s is averaged over those that become one. W_u and b_u start at zero: a fresh adapter is exactly
    the identity.

    Parameters, with d = floor(D / reduction): of a layer D d + 8 d^2 + 8 d + 1, of the first (D_in + 1) d more, of the
    top (d + 1) D.
    """

    sites = ()


def _side(width: int, reduction: int) -> int:
    if not 1 <= reduction <= width:
        raise PelasrError(f"adapter_conf: reduction: {reduction} is not between 1 and the {width} channels")
    return width // reduction


class Rung(Adapter):
    """What the side network does at a layer, which stays as it is."""

    needs = ("inside", "shared")
    by_row = True

    def __init__(self, width: int, width_in: int, index: int, reduction: int = 8):
        super().__init__()
        side = _side(width, reduction)
        self.index = index
        self.first = Linear(width_in, side) if index == 0 else None
        self.down = Linear(width, side)
        self.gate = nn.Parameter(torch.zeros(1))
        self.norm = LayerNorm(side)
        self.inner = Linear(side, 4 * side)
        self.outer = Linear(4 * side, side)

    def forward(self, x: Tensor, y: Tensor, inside: Tensor, shared: Shared) -> Tensor:
        """Leaves s (B, T, d), and of which frames it is, under the number of the layer."""
        if self.first is not None:
            before = self.first(x.detach())
        else:
            before = shared.values["s", self.index - 1]
            if before.shape[1] != y.shape[1]:
                before = _fewer(before, shared.values["inside", self.index - 1], y.shape[1])
        share = (self.gate / TEMPERATURE).sigmoid()[..., None]
        z = share * self.down(y.detach()) + (1 - share) * before
        shared.values["s", self.index] = z + self.outer(self.inner(self.norm(z)).relu())
        shared.values["inside", self.index] = inside
        return y


def _fewer(s: Tensor, inside: Tensor, frames: int) -> Tensor:
    """The mean of the utterance's own frames (B, T) among neighbours: (B, T, d) to (B, frames, d)."""
    count = -(-s.shape[1] // frames)
    more = frames * count - s.shape[1]
    own = F.pad(inside, (0, more)).unflatten(1, (frames, count))[..., None]
    s = F.pad(s, (0, 0, 0, more)).unflatten(1, (frames, count))
    return (s * own).sum(2) / own.sum(2).clamp(min=1)


class Top(Adapter):
    """Adds what the side network has found to what comes out of the encoder."""

    needs = ("shared",)
    by_row = True

    def __init__(self, width: int, reduction: int = 8):
        super().__init__()
        self.up = Linear(_side(width, reduction), width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, y: Tensor, shared: Shared) -> Tensor:
        # y may have a graph of its own, of parts that a language trains: its weights of the layers, its vector.
        last = max(number for name, number in shared.values if name == "s")
        return y + self.up(shared.values["s", last]).to(y.dtype)


Ladder.parts = {"layer": Rung, "top": Top}
Ladder.together = tuple(Ladder.parts)
