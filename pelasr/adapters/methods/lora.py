"""Low-rank adaptation (Hu et al. 2022): the matrix W of a linear map becomes W + (alpha / rank) B A; with a scale for
large ranks (Kalajdzievski 2023, rsLoRA), and with trained lengths of its rows (Liu et al. 2024, DoRA)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.adapters import Adapter, Linear
from pelasr.errors import PelasrError

TINY = torch.finfo(torch.float32).tiny


class Lora(Adapter):
    """y' = y + (alpha / rank) B A dropout(x) at a linear map y = W x + b.

    A starts as the matrix of a fresh `nn.Linear` (Kaiming's, uniform), B at zero: a fresh adapter is exactly the
    identity. The defaults are PEFT's. Parameters: rank (D_in + D).

    With `dora` the matrix is V = W + (alpha / rank) B A, whose rows get lengths of their own: y' = (|W| + m) / |V| V x
    + b, where |.| (D,) are lengths of rows, that of V taken for a constant in training (section 4.3), as PEFT does. m
    is what PEFT's magnitude has beyond |W|, and starts at zero. Parameters: D more.

    Args:
        host: the linear map.
        rank: rows of A (rank, D_in), columns of B (D, rank).
        alpha: the scale is alpha / rank.
        dropout: on x, in training.
        rslora: the scale is alpha / sqrt(rank) instead.
        dora: whether the rows have lengths of their own.
    """

    sites = ("linear",)
    size = "rank"
    by_row = True

    def __init__(
        self,
        host: nn.Module,
        rank: int = 8,
        alpha: float = 8.0,
        dropout: float = 0.0,
        rslora: bool = False,
        dora: bool = False,
    ):
        super().__init__()
        if not isinstance(host, nn.Linear):
            raise PelasrError(
                f"lora adapts linear maps that are modules (nn.Linear), not {type(host).__name__}: what is fused inside"
                " an LSTM or convolves is no such map; choose other `sites`"
            )
        self.scale = alpha / (rank**0.5 if rslora else rank)
        self.dropout = nn.Dropout(dropout)
        self.a = Linear(host.in_features, rank, bias=False)
        self.b = Linear(rank, host.out_features, bias=False)
        nn.init.zeros_(self.b.weight)
        # In a list, which makes it no submodule: its weights are the backbone's, no pack holds them. A copy of the
        # backbone and its bank in one has the copied host here.
        self.host = [host] if dora else []
        self.magnitude = nn.Parameter(torch.zeros(host.out_features)) if dora else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.magnitude is None:
            return y.add(self.b(self.a(self.dropout(x))), alpha=self.scale)
        (host,) = self.host
        dropped = self.dropout(x)
        plain = y if host.bias is None else y - host.bias.to(y.dtype)
        if self.training and self.dropout.p:
            plain = F.linear(dropped, host.weight)
        factor = self._factor(host.weight).to(y.dtype).unsqueeze(-2)
        return y + (factor - 1) * plain + factor * self.scale * self.b(self.a(dropped))

    def _factor(self, weight: Tensor) -> Tensor:
        """(|W| + m) / |V| (D,), or by row (B, D). |V|² = |W|² + 2 s B·(W A') + s² B (A A')·B, so that no row of a batch
        needs a matrix (D, D_in) of its own."""
        assert self.magnitude is not None
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            a, b = self.a.weight, self.scale * self.b.weight
            before = weight.square().sum(-1)
            after = before + (b * (2 * weight @ a.mT + b @ (a @ a.mT))).sum(-1)
            before, after = before.clamp(min=TINY).sqrt(), after.clamp(min=TINY).sqrt()
        return (before + self.magnitude) / after

    @torch.no_grad()
    def fold(self, host: Any) -> None:
        factor = 1.0 if self.magnitude is None else self._factor(host.weight)[:, None]
        host.weight += self.scale * self.b.weight @ self.a.weight
        host.weight *= factor
