"""ConvAdapter of SURE (Li et al. 2023, arXiv 2303.03267, section 3.3): convolutions over time after every layer, whose
channels are gated by what is in the whole utterance."""

from torch import Tensor, nn

from pelasr.adapters import Adapter
from pelasr.errors import PelasrError


class Conv(Adapter):
    """y' = y + g C3(C2(relu(C1(LN(y))))), g = sigmoid(W_2 relu(W_1 mean_t(C3(...)))).

    C1 takes D channels to D / 2 over 3 frames, C2 those over 5, C3 back to D over 3, each in D / 2 groups; there are no
    biases but LN's. Padding counts as zeros in every convolution, and not in the mean. C3 starts at zero: a fresh
    adapter is exactly the identity. Parameters: 10.5 D + 2 D floor(D / reduction).

    A frame sees the 4 after it, and through the mean all: an encoder of an RNN-T no longer streams.

    Args:
        width: D, an even number.
        reduction: D / reduction is the width of the gate's network.
    """

    sides = ("encoder",)
    needs = ("inside",)

    def __init__(self, width: int, reduction: int = 16):
        super().__init__()
        if width % 2:
            raise PelasrError(f"conv adapters work in groups of 2 channels, of which {width} are no multiple")
        if not 1 <= reduction <= width:
            raise PelasrError(f"adapter_conf: reduction: {reduction} is not between 1 and the {width} channels")
        groups = width // 2
        self.norm = nn.LayerNorm(width)
        self.first = nn.Conv1d(width, groups, 3, padding=1, groups=groups, bias=False)
        self.second = nn.Conv1d(groups, groups, 5, padding=2, groups=groups, bias=False)
        self.third = nn.Conv1d(groups, width, 3, padding=1, groups=groups, bias=False)
        self.squeeze = nn.Linear(width, width // reduction, bias=False)
        self.excite = nn.Linear(width // reduction, width, bias=False)
        nn.init.zeros_(self.third.weight)

    def forward(self, x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
        """(B, T, D), with the frames that are the utterance's own (B, T)."""
        own = inside[:, None]
        z = self.first(self.norm(y).mT * own).relu()
        z = self.third(self.second(z * own) * own) * own
        mean = z.sum(2) / own.sum(2)
        gate = self.excite(self.squeeze(mean).relu()).sigmoid()
        return y + (z * gate[..., None]).mT.to(y.dtype)
