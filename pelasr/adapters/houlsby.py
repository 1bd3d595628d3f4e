"""Residual bottleneck adapter (Houlsby et al. 2019), as Kannan et al. 2019 put it after every encoder layer."""

from torch import Tensor, nn

from pelasr.adapter import Adapter


class Houlsby(Adapter):
    """y' = y + W_u relu(W_d LN(y) + b_d) + b_u.

    The up-projection starts at zero, so a fresh adapter is exactly the identity. Parameters: 2 D d + d + 3 D.

    Args:
        width: D, of the host's output.
        bottleneck: d.
        shared_ln: languages fitted in one run share the layer norm (lingvo's layout) instead of each having its own.
        dropout: on the bottleneck, in training.
    """

    def __init__(self, width: int, bottleneck: int = 256, shared_ln: bool = False, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.shared = ("norm",) if shared_ln else ()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.up(self.dropout(self.down(self.norm(y)).relu()))
