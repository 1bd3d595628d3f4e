"""What backbones of several families are made of: a convolutional subsampler, the losses of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Loss:
    """Losses of a batch in nats per utterance, (B,) each: what is minimised, and its parts by name."""

    total: Tensor
    parts: dict[str, Tensor]


def within(lens: Tensor, size: int) -> Tensor:
    """Which of `size` frames belong to their utterance: (B,) to bool (B, size)."""
    return torch.arange(size, device=lens.device) < lens[:, None]


def ctc_loss(logits: Tensor, lens: Tensor, targets: Tensor, target_lens: Tensor) -> Tensor:
    """CTC loss (B,) of logits (B, T, V), frames (B,), labels (B, U), their number (B,); blank is 0."""
    # Minus infinity (a token that is not the row's) would make gradients NaN.
    log_probs = logits.float().log_softmax(-1).clamp(min=-1e4).transpose(0, 1)
    return F.ctc_loss(log_probs, targets, lens, target_lens, reduction="none", zero_infinity=True)


class ConvSubsampler(nn.Module):
    """Two convolutions over time with gated linear units, each of stride 2 (fairseq's s2t_transformer; Synnaeve et al.
    2020): a quarter of the frames. Parameters: input * channels * k + channels + channels / 2 * 2 D * k + 2 D."""

    def __init__(self, input_size: int, output_size: int, channels: int = 1024, kernel_size: int = 5):
        super().__init__()
        sizes = [(input_size, channels), (channels // 2, 2 * output_size)]
        self.convs = nn.ModuleList(
            nn.Conv1d(before, after, kernel_size, stride=2, padding=kernel_size // 2) for before, after in sizes
        )
        self.subsampling = 4

    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, input), (B,) to (B, ceil(T / 4), output), (B,); what lies beyond an utterance's end counts as zero."""
        for conv in self.convs:
            x = x * within(lens, x.shape[1])[..., None]
            x = F.glu(conv(x.transpose(1, 2)), dim=1).transpose(1, 2)
            lens = (lens + 1) // 2
        return x, lens
