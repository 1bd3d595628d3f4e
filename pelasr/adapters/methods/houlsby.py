"""Residual bottleneck adapter (Houlsby et al. 2019), as Kannan et al. 2019 put it after every encoder layer, and
Le et al. 2021 on the output of every feed-forward sub-layer (the serial kind: before that sub-layer's residual)."""

from torch import Tensor, nn

from pelasr.adapters import Adapter, LayerNorm, Linear, find_activation


class Houlsby(Adapter):
    """y' = y + W_u relu(W_d LN(y) + b_d) + b_u.

    A fresh adapter is exactly the identity. Parameters: 2 D d + d + D, and 2 D of the norm. At the sites `attention`
    and `ffn` it is twice in a layer, as in the paper; at `ffn` alone, without norm, that of Chen et al. 2022.

    Args:
        width: D, of the host's output.
        bottleneck: d.
        dropout: on the bottleneck, in training.
        norm: whether there is the layer norm; without, y goes in as it is.
        activation: relu, gelu or swish.
    """

    size = "bottleneck"
    by_row = True

    def __init__(
        self, width: int, bottleneck: int = 256, dropout: float = 0.0, norm: bool = True, activation: str = "relu"
    ):
        super().__init__()
        self.norm = LayerNorm(width) if norm else nn.Identity()
        self.down = Linear(width, bottleneck)
        self.activation = find_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.up = Linear(bottleneck, width)
        nn.init.normal_(self.up.weight, std=0.0)  # zeros, but drawn: what is drawn next is as it was in earlier fits
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.up(self.dropout(self.activation(self.down(self.norm(y)))))
