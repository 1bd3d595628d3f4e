"""CHAPTER's CNN adapters (Chen, Sung and Lee 2022, arXiv 2212.01282, section 3): a copy beside each of the
convolutional blocks that an encoder of waveforms begins with."""

from typing import Any

import torch
from torch import Tensor, nn

from pelasr.adapters import Adapter, LayerNorm


class Cnn(Adapter):
    """y' = y + scale * Block'(x), where Block' is the host's block with a convolution of zeros and a fresh norm. A
    group norm is over the utterance's own frames, as the host's.

    A fresh adapter is exactly the identity where the activation of 0 is 0. Parameters: the block's.

    Args:
        host: the block.
        scale: a constant.
    """

    sites = ("conv_layer",)
    by_row = True
    needs = ("inside",)
    because = "only pretrained encoders that hear a waveform begin with such convolutions"

    def __init__(self, host: nn.Module, scale: float = 0.01):
        super().__init__()
        block: Any = host
        conv, norm = block.conv, getattr(block, "layer_norm", None)
        self.scale, self.activation = scale, block.activation
        bias = conv.bias is not None
        self.conv = Convolution(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, bias=bias)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)
        if norm is None:
            self.norm = None
        elif isinstance(norm, nn.GroupNorm):  # a channel a group
            self.norm = TimeNorm(conv.out_channels, norm.eps)
        else:
            self.norm = LayerNorm(conv.out_channels, norm.eps)

    def forward(self, x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
        """(B, T, C_in), (B, T', C), and which of T' are the utterance's own (B, T'), to (B, T', C)."""
        z = self.conv(x)
        if self.norm is not None:
            z = self.norm(z, inside) if isinstance(self.norm, TimeNorm) else self.norm(z)
        return y + (self.scale * self.activation(z)).to(y.dtype)


class Convolution(nn.Conv1d):
    """Over (B, T, C_in) to (B, T', C), whose weight (C, C_in, k) and bias (C,) may be given by row, (B, ...): then as a
    linear map of what each output sees, since convolutions with a weight for each row are slow."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 3:
            return super().forward(x.mT).mT
        seen = x.unfold(1, self.kernel_size[0], self.stride[0]).flatten(2).to(self.weight.dtype)
        y = seen.bmm(self.weight.flatten(2).mT)
        return y if self.bias is None else y + self.bias[:, None]


class TimeNorm(nn.Module):
    """Every channel to mean 0 and variance 1 over the utterance's own frames, a factor and a shift."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """(B, T, C), which frames are the utterance's own (B, T), to (B, T, C), zero at the others."""
        own = inside[..., None]
        count = own.sum(1, keepdim=True)
        x = x.to(torch.promote_types(x.dtype, torch.float32)) * own
        x = (x - x.sum(1, keepdim=True) / count) * own
        variance = x.square().sum(1, keepdim=True) / count
        normal = x * (variance + self.eps).rsqrt()
        return (normal * self.weight.unsqueeze(-2) + self.bias.unsqueeze(-2)) * own


Cnn.parts = {"conv_layer": Cnn}
