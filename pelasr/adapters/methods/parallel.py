"""Parallel adapter (He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 4): a
scaled bottleneck beside a sub-layer, which sees what the sub-layer sees."""

from torch import Tensor, nn

from pelasr.adapters import Adapter, Linear, find_activation


class Parallel(Adapter):
    """y' = y + s (W_u relu(W_d x + b_d) + b_u), where x is the host's input.

    W_d starts as Kaiming's, uniform, all else at zero: a fresh adapter is exactly the identity. Parameters:
    D_in d + d + d D + D.

    Args:
        width_in, width: D_in and D, of the host's input and output.
        bottleneck: d.
        scale: s.
        dropout: on the bottleneck, in training.
        activation: relu, gelu or swish.
    """

    sites = ("ffn",)
    because = "an LSTM has no feed-forward sub-layers, but it may be beside whole layers"
    size = "bottleneck"
    by_row = True

    def __init__(
        self,
        width_in: int,
        width: int,
        bottleneck: int = 256,
        scale: float = 4.0,
        dropout: float = 0.0,
        activation: str = "relu",
    ):
        super().__init__()
        self.scale = scale
        self.down = Linear(width_in, bottleneck)
        self.activation = find_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.up = Linear(bottleneck, width)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y.add(self.up(self.dropout(self.activation(self.down(x)))), alpha=self.scale)
