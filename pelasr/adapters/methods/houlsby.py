"""Residual bottleneck adapter (Houlsby et al. 2019), as Kannan et al. 2019 put it after every encoder layer, and
Le et al. 2021 on the output of every feed-forward sub-layer (the serial kind: before that sub-layer's residual)."""

from torch import Tensor, nn

from pelasr.adapters import Adapter, LayerNorm, Linear


class Houlsby(Adapter):
    """y' = y + W_u relu(W_d LN(y) + b_d) + b_u.

    A fresh adapter is exactly the identity, unless `init_std` is given. Parameters: 2 D d + d + 3 D.

    Args:
        width: D, of the host's output.
        bottleneck: d.
        shared_ln: languages fitted in one run share the layer norm (lingvo's layout) instead of each having its own.
        dropout: on the bottleneck, in training.
        init_std: both projections start at N(0, init_std) (0.01 in Le et al. 2021); 0: W_u starts at zero.
    """

    size = "bottleneck"
    by_row = True

    def __init__(
        self,
        width: int,
        bottleneck: int = 256,
        shared_ln: bool = False,
        dropout: float = 0.0,
        init_std: float = 0.0,
    ):
        super().__init__()
        self.norm = LayerNorm(width)
        self.down = Linear(width, bottleneck)
        self.dropout = nn.Dropout(dropout)
        self.up = Linear(bottleneck, width)
        if init_std:
            nn.init.normal_(self.down.weight, std=init_std)
            nn.init.zeros_(self.down.bias)
        nn.init.normal_(self.up.weight, std=init_std)
        nn.init.zeros_(self.up.bias)
        self.shared = ("norm",) if shared_ln else ()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.up(self.dropout(self.down(self.norm(y)).relu()))
