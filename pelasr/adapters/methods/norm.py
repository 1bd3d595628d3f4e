"""Tuning of layer norms: their gains and biases alone are trained, as Houlsby et al. 2019 do beside their adapters."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.adapters import Adapter
from pelasr.errors import PelasrError


class Norm(Adapter):
    """y' = y + n(x) g + b, where n(x) is x normalised to mean 0 and variance 1 as the host does it, which is to train
    the host's gain and bias: G' = G + g, B' = B + b.

    A fresh adapter is exactly the identity. Parameters: 2 D. Batch norms have none, their statistics are the
    backbone's.
    """

    sites = ("layer_norm",)
    by_row = True

    @classmethod
    def wants(cls, host: nn.Module) -> bool:
        return isinstance(host, nn.LayerNorm)

    def __init__(self, host: nn.Module):
        super().__init__()
        if not isinstance(host, nn.LayerNorm) or host.weight is None or host.bias is None:
            raise PelasrError(f"norm adapts layer norms that have gain and bias, not {type(host).__name__}")
        self.shape, self.eps = host.normalized_shape, host.eps
        self.gain = nn.Parameter(torch.zeros(self.shape))
        self.bias = nn.Parameter(torch.zeros(self.shape))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        normal = F.layer_norm(x, self.shape, eps=self.eps)
        return y + torch.addcmul(self.bias.unsqueeze(-2), normal, self.gain.unsqueeze(-2)).to(y.dtype)

    @torch.no_grad()
    def fold(self, host: Any) -> None:
        host.weight += self.gain
        host.bias += self.bias
