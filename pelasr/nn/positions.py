"""How pretrained speech encoders are told where a frame is."""

from typing import Any

import torch
from torch import Tensor, nn


class WeightNormConv1d(nn.Conv1d):
    """A convolution whose weight is `weight_v`, scaled to the norms `weight_g` (1, 1, K) over its channels.

    Unlike one that torch parametrises it can be pickled.
    """

    def __init__(self, size: int, kernel_size: int, groups: int):
        super().__init__(size, size, kernel_size, padding=kernel_size // 2, groups=groups)
        weight = self.weight
        del self.weight
        self.weight_g = nn.Parameter(torch.linalg.vector_norm(weight.detach(), dim=(0, 1), keepdim=True))
        self.weight_v = weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) to (B, D, T'); T' is T + 1 for an even kernel."""
        norm = torch.linalg.vector_norm(self.weight_v, dim=(0, 1), keepdim=True)
        return self._conv_forward(x, self.weight_v * (self.weight_g / norm), self.bias)

    @torch.no_grad()
    def draw(self, std: float) -> None:
        """Draw the weight from a normal distribution."""
        nn.init.normal_(self.weight_v, std=std)
        self.weight_g.copy_(torch.linalg.vector_norm(self.weight_v, dim=(0, 1), keepdim=True))


class ConvPositions(nn.Module):
    """Positions by a wide convolution (wav2vec 2.0, HuBERT, WavLM).

    Args:
        size, kernel_size, groups: of the convolution.
        activation: what follows it.
        batch_norm: a batch norm before it, and then no weight norm (`conv_pos_batch_norm` of HuBERT).
    """

    def __init__(self, size: int, kernel_size: int, groups: int, activation: nn.Module, batch_norm: bool):
        super().__init__()
        if batch_norm:
            self.conv = nn.Conv1d(size, size, kernel_size, padding=kernel_size // 2, groups=groups)
        else:
            self.conv = WeightNormConv1d(size, kernel_size, groups)
        self.batch_norm = nn.BatchNorm1d(size) if batch_norm else None
        self.activation = activation

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Frames (B, T, D), zero where they are not their utterance's, and which are (B, T), to positions (B, T, D)."""
        y = x.transpose(1, 2)
        if self.batch_norm is not None:
            y = self.batch_norm(y) * inside[:, None]  # zeros would be none after it
        return self.activation(self.conv(y)[..., : x.shape[1]]).transpose(1, 2)


class RelativePositions(nn.Module):
    """Sinusoids of all distances (Dai et al. 2019), computed anew: no table bounds the length."""

    def forward(self, x: Tensor) -> Tensor:
        """Frames (B, T, D) to (1, 2 T - 1, D), the largest distance to the left first."""
        frames, size = x.shape[1:]
        distances = torch.arange(frames - 1, -frames, -1, device=x.device, dtype=torch.float32)
        return _waves(distances, size, 10000.0, x).flatten(-2)[None].to(x.dtype)


class RotaryPositions(nn.Module):
    """Cosines and sines by which frames are rotated (Su et al. 2021).

    Args:
        size: of a head.
        base: of the wave lengths.
    """

    def __init__(self, size: int, base: float):
        super().__init__()
        self.size, self.base = size, base

    def forward(self, x: Tensor) -> Tensor:
        """Frames (B, T, D) to (2, T, 1, 1, size), cosines first."""
        times = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        sine, cosine = _waves(times, self.size, self.base, x).unbind(-1)
        return torch.stack([cosine, sine]).repeat(1, 1, 2)[:, :, None, None].to(x.dtype)


def _waves(times: Tensor, size: int, base: float, x: Tensor) -> Tensor:
    """Sine and cosine (T, size / 2, 2) of times at wave lengths that grow to `base`."""
    lengths = base ** (torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
    phases = times[:, None] / lengths
    return torch.stack([phases.sin(), phases.cos()], dim=-1)


class PositionBias(nn.Module):
    """One of the two biases of relative attention (Dai et al. 2019, u and v), which queries get before they meet keys,
    or positions. A module of its own, so that it is a site; the parameter stays the attention's."""

    def __init__(self, attention: nn.Module, name: str):
        super().__init__()
        self._attention, self.name = [attention], name  # in a list: no submodule
        self.out_features = self.bias.numel()

    @property
    def bias(self) -> Tensor:
        """(D,)."""
        return getattr(self._attention[0], self.name).view(-1)

    def forward(self, q: Tensor) -> Tensor:
        """Queries (B, T, D) and the bias."""
        return q + self.bias


def add_position_biases(attention: Any) -> None:
    """Give relative attention, with the parameters `pos_bias_u` and `pos_bias_v`, its modules `bias_u` and `bias_v`."""
    attention.bias_u, attention.bias_v = (PositionBias(attention, f"pos_bias_{name}") for name in "uv")
