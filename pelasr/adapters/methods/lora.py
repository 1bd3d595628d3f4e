"""Low-rank adaptation (Hu et al. 2022): the matrix W of a linear map becomes W + (alpha / rank) B A."""

from typing import Any

import torch
from torch import Tensor, nn

from pelasr.adapters import Adapter, Linear
from pelasr.errors import PelasrError


class Lora(Adapter):
    """y' = y + (alpha / rank) B A dropout(x) at a linear map y = W x + b.

    A starts as the matrix of a fresh `nn.Linear` (Kaiming's, uniform), B at zero: a fresh adapter is exactly the
    identity. The defaults are PEFT's. Parameters: rank (D_in + D).

    Args:
        host: the linear map.
        rank: rows of A (rank, D_in), columns of B (D, rank).
        alpha: the scale is alpha / rank.
        dropout: on x, in training.
    """

    sites = ("linear",)
    size = "rank"
    by_row = True

    def __init__(self, host: nn.Module, rank: int = 8, alpha: float = 8.0, dropout: float = 0.0):
        super().__init__()
        if not isinstance(host, nn.Linear):
            raise PelasrError(
                f"lora adapts linear maps that are modules (nn.Linear), not {type(host).__name__}: what is fused inside"
                " an LSTM or convolves is no such map; choose other `sites`"
            )
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.a = Linear(host.in_features, rank, bias=False)
        self.b = Linear(rank, host.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y.add(self.b(self.a(self.dropout(x))), alpha=self.scale)

    @torch.no_grad()
    def fold(self, host: Any) -> None:
        host.weight += self.scale * self.b.weight @ self.a.weight
