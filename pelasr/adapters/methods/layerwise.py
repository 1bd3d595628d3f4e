"""Adapters by layer for pretrained encoders (Otake et al. 2023, arXiv 2212.02780): bottlenecks within the layers, and a
feature of each layer's output, whose weighted sum the output layer sees in the place of the top layer.

Unlike there, the gains of the norms in the bottlenecks start at zero, so that the frozen layers start as they are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.adapters import Adapter, LayerNorm, Linear
from pelasr.adapters.methods.norm import Norm
from pelasr.errors import PelasrError

STD = 1e-3  # of the matrices at the start


class Layerwise(Adapter):
    """E-adapters at `ffn` (but in the last layer), L-adapters at `layer`, their sum at `top`, and tuned layer norms.

    `sites: [ffn, layer_norm]` are E-adapters alone, in all layers, `[layer, top]` L-adapters alone. Those begin
    with features that the output layer has not seen: only where it is the language's own. Parameters: of L layers
    (L - 1) (2 D d + d + 3 D), L (D m + 3 m + 1), and 2 D of each norm.
    """

    together = ("layer", "top")
    because = "it is for layers with feed-forward sub-layers and layer norms"

    @classmethod
    def choose(cls, found: Mapping[str, Any], backbone: Any) -> Mapping[str, Any]:
        kinds = {site.kind for site in found.values()}
        if "top" not in kinds:
            return found
        if "head" not in backbone.own_sites().values():
            raise PelasrError(
                "adapter layerwise: what it puts in the place of the top layer a shared output layer or decoder has"
                " never seen; take a backbone ctc with `objective: none` or `masked`, or `sites: [ffn, layer_norm]`"
            )
        last = [path for path, site in found.items() if site.kind == "layer"][-1]
        return {path: site for path, site in found.items() if site.kind != "ffn" or not path.startswith(f"{last}.")}


class EAdapter(Adapter):
    """y' = y + LN(W_u gelu(W_d y + b_d) + b_u). A fresh one is exactly the identity.

    Args:
        width: D, of the host's output.
        bottleneck: d.
    """

    size = "bottleneck"
    by_row = True

    def __init__(self, width: int, bottleneck: int = 256):
        super().__init__()
        self.down, self.up = _linear(width, bottleneck), _linear(bottleneck, width)
        self.norm = LayerNorm(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.norm(self.up(F.gelu(self.down(y))))


class LAdapter(Adapter):
    """e = LN(gelu(W h + b)), a feature (B, T, m) of a layer's output h, which stays as it is; and a weight among those
    of all layers, equal at the start.

    Args:
        width: D, of the host's output.
        index: number of the layer.
        features: m, no larger than D.
    """

    needs = ("shared",)
    by_row = True

    def __init__(self, width: int, index: int, features: int = 512):
        super().__init__()
        if not 0 < features <= width:
            raise PelasrError(f"features: {features}: the output layer sees {width} channels: want 1 to {width}")
        self.index = index
        self.map = _linear(width, features)
        self.norm = LayerNorm(features)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor, shared: Any) -> Tensor:
        # By layer: one that is computed again in a backward pass leaves the same in the same place.
        shared.values["feature", self.index] = self.norm(F.gelu(self.map(y)))
        shared.values["weight", self.index] = self.weight
        return y


class FeatureSum(Adapter):
    """The features of all layers, summed by a softmax of their weights, and zeros up to the width D of the top layer,
    which the output layer is made for. No parameters."""

    needs = ("shared",)
    by_row = True

    def forward(self, x: Tensor, y: Tensor, shared: Any) -> Tensor:
        numbers = sorted(number for name, number in shared.values if name == "feature")
        shares = torch.cat([shared.values["weight", number] for number in numbers], dim=-1).softmax(-1)
        total = torch.zeros_like(shared.values["feature", 0])
        for number in numbers:
            total = torch.addcmul(total, shared.values["feature", number], shares[..., number, None, None])
        return F.pad(total, (0, y.shape[-1] - total.shape[-1])).to(y.dtype)


def _linear(width_in: int, width: int) -> Linear:
    made = Linear(width_in, width)
    nn.init.normal_(made.weight, std=STD)
    nn.init.zeros_(made.bias)
    return made


Layerwise.parts = {"ffn": EAdapter, "layer": LAdapter, "top": FeatureSum, "layer_norm": Norm}
