"""What backbones of several families share: ESPnet's encoders, the convolutional subsampler, the losses of a batch."""

import io
from contextlib import redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.config import construct
from pelasr.errors import TooShortError
from pelasr.stateless import make_stateless

ESPNET_ENCODERS = {
    "transformer": "TransformerEncoder",
    "conformer": "ConformerEncoder",
    "e_branchformer": "EBranchformerEncoder",
}
CONVOLUTIONS_OVER_TIME = ("depthwise_conv", "depthwise_conv_fusion", "csgu.conv")

_importing = Lock()
_frames: ContextVar[Tensor] = ContextVar("frames")  # those of utterances (B, 1, T), as the layer at work was told


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


class ESPnetEncoder(nn.Module):
    """One of ESPnet's encoders, whose outputs do not depend on what an utterance is batched with, unless ESPnet's own
    convolutions subsample (`input_layer: conv2d...`): those see what pads the batch.

    Args:
        name: a key of ESPNET_ENCODERS.
        input_size: width of the frames that come in.
        conf: arguments of ESPnet's class; without its `input_layer` ESPnet's subsampling (conv2d, a quarter) is used.
    """

    def __init__(self, name: str, input_size: int, conf: dict[str, Any]):
        super().__init__()
        # ESPnet prints that there is no flash attention, which is not used. All threads have one standard output.
        with _importing, redirect_stdout(io.StringIO()):
            cls = getattr(import_module(f"espnet2.asr.encoder.{name}_encoder"), ESPNET_ENCODERS[name])
        self.encoder = construct(cls, {"use_flash_attn": False, **conf}, "encoder_conf", input_size=input_size)
        self.output_size = self.encoder.output_size()
        factors = {"conv2d1": 1, "conv2d2": 2, "conv2d": 4, "conv2d6": 6, "conv2d8": 8}
        self.subsampling = factors.get(conf.get("input_layer", "conv2d"), 1)
        make_stateless(self.encoder)
        if self.subsampling == 1:
            for layer in self.encoder.encoders:
                layer.register_forward_pre_hook(_remember_frames)
                for path, module in layer.named_modules():
                    if path.endswith(CONVOLUTIONS_OVER_TIME):
                        module.register_forward_pre_hook(_hide_padding)

    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, input), (B,) to (B, T', output), (B,)."""
        from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError

        size = int(lens.max())  # ESPnet makes its masks from the lengths alone
        try:
            x, lens, _ = self.encoder(x[:, :size], lens)
        except TooShortUttError as error:
            raise TooShortError(f"an utterance is too short for encoder_conf.input_layer: {error}") from None
        return x, lens


def _remember_frames(layer: nn.Module, args: tuple) -> None:
    _frames.set(args[1])


def _hide_padding(conv: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """ESPnet's convolution over time would see what pads the batch: (B, D, T) with zeros there."""
    return (args[0] * _frames.get(),)


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
