"""BitFit (Ben Zaken et al. 2022): of a linear map, a norm or a convolution the bias alone is trained."""

from typing import Any

import torch
from torch import Tensor, nn

from pelasr.adapters import Adapter
from pelasr.errors import PelasrError


class BitFit(Adapter):
    """y' = y + s, which is to train the host's bias: b' = b + s. Hosts without a bias have no adapter.

    A fresh adapter is exactly the identity. Parameters: D. Shared output layers (`output`) and the two biases of
    relative attention (`position`) are sites when they are asked for.
    """

    sites = ("linear", "norm", "conv")
    by_row = True
    shifts = True

    @classmethod
    def wants(cls, host: nn.Module) -> bool:
        return getattr(host, "bias", True) is not None

    def __init__(self, host: nn.Module):
        super().__init__()
        bias = getattr(host, "bias", None)
        if not isinstance(bias, Tensor):
            raise PelasrError(
                f"bitfit adapts the bias of a linear map, norm or convolution, not {type(host).__name__}: what is fused"
                " inside an LSTM is no bias of its own; choose other `sites`"
            )
        self.shift = nn.Parameter(torch.zeros(bias.shape))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.shift.to(y.dtype).unsqueeze(-2)

    @torch.no_grad()
    def fold(self, host: Any) -> None:
        host.bias.add_(self.shift)
