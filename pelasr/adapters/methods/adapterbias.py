"""AdapterBias (Fu et al. 2022, section 3): a shift of every frame along one direction, as far as the frame itself
says."""

import torch
from torch import Tensor, nn

from pelasr.adapters import Adapter, Linear
from pelasr.errors import PelasrError, nearest

INPUTS = ("hidden", "intermediate")


class AdapterBias(Adapter):
    """y' = y + (w h + b) v: one number for each frame times a vector v (D,), so that all shifts of an utterance
    together have rank 1.

    v starts at zero, as the authors' code has it: a fresh adapter is exactly the identity. Parameters: 2 D + 1, or
    D + D_in + 1.

    Args:
        width_in, width: D_in and D, of the host's input and output.
        alpha_input: h: `hidden`, the host's output y; or `intermediate`, its input x, as in the authors' code: at
            `ffn_out` what is between the two maps of the sub-layer.
        start: of v, zeros or ones; ones are no identity (Chen et al. 2022).
    """

    sites = ("ffn_out",)
    because = "an LSTM has no feed-forward sub-layers, but it may be on whole layers"
    by_row = True

    def __init__(self, width_in: int, width: int, alpha_input: str = "hidden", start: str = "zeros"):
        super().__init__()
        for name, value, known in (("alpha_input", alpha_input, INPUTS), ("start", start, ("zeros", "ones"))):
            if value not in known:
                raise PelasrError(f"{name}: {value!r}; {nearest(value, known)}")
        self.sees_output = alpha_input == "hidden"
        self.alpha = Linear(width if self.sees_output else width_in, 1)
        self.v = nn.Parameter(torch.zeros(width) if start == "zeros" else torch.ones(width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        alpha = self.alpha(y if self.sees_output else x)
        return y + alpha.to(y.dtype) * self.v.to(y.dtype).unsqueeze(-2)
