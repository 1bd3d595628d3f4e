"""What backbones of several families share: ESPnet's encoders, the convolutional subsampler, the losses of a batch."""

import io
from contextlib import redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from math import prod
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.config import construct
from pelasr.errors import PelasrError, TooShortError
from pelasr.stateless import make_stateless

ESPNET_ENCODERS = {
    "transformer": "TransformerEncoder",
    "conformer": "ConformerEncoder",
    "e_branchformer": "EBranchformerEncoder",
}

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


def settled(options: dict[str, Any]) -> dict[str, Any]:
    """A backbone's options, in which a Conformer's relative positions are never left to ESPnet: by its default,
    `legacy`, an utterance's output depends on what pads its batch."""
    conf = options.get("encoder_conf") or {}
    if options.get("encoder") != "conformer" or not isinstance(conf, dict) or "rel_pos_type" in conf:
        return options
    return {**options, "encoder_conf": {**conf, "rel_pos_type": "latest"}}


class ESPnetEncoder(nn.Module):
    """One of ESPnet's encoders, whose outputs do not depend on what an utterance is batched with.

    Args:
        name: a key of ESPNET_ENCODERS.
        input_size: width of the frames that come in.
        conf: arguments of ESPnet's class; without its `input_layer` ESPnet's subsampling (conv2d, a quarter) is used,
            without its `rel_pos_type` `latest`.
    """

    def __init__(self, name: str, input_size: int, conf: dict[str, Any]):
        super().__init__()
        conf = settled({"encoder": name, "encoder_conf": conf})["encoder_conf"]
        for key, value in conf.items():
            if str(value).startswith("legacy"):
                raise PelasrError(
                    f"encoder_conf: {key}: {value}: with ESPnet's old positions an utterance's output depends on what"
                    " pads its batch; use `rel_pos_type: latest`"
                )
        # ESPnet prints that there is no flash attention, which is not used. All threads have one standard output.
        with _importing, redirect_stdout(io.StringIO()):
            cls = getattr(import_module(f"espnet2.asr.encoder.{name}_encoder"), ESPNET_ENCODERS[name])
        self.encoder = construct(cls, {"use_flash_attn": False, **conf}, "encoder_conf", input_size=input_size)
        self.output_size = self.encoder.output_size()
        make_stateless(self.encoder)
        # The subsampling, if there is any: kernel and stride over time of convolutions that add nothing at the ends.
        convolutions = [part for part in getattr(self.encoder.embed, "conv", ()) if not isinstance(part, nn.ReLU)]
        self._kernels = [(part.kernel_size[0], part.stride[0]) for part in convolutions]
        self.subsampling = prod(stride for _, stride in self._kernels)
        if self._kernels:
            self.encoder.embed.register_forward_hook(self._mend_mask)
        for layer in self.encoder.encoders:
            layer.register_forward_pre_hook(_remember_frames)
        for module in self.encoder.modules():
            if isinstance(module, nn.Conv1d) and module.padding[0]:
                module.register_forward_pre_hook(_hide_padding)

    def _frames_of(self, lens: Tensor | int) -> Tensor | int:
        """Frames after the subsampling, of which each saw none but the utterance's own."""
        for kernel, stride in self._kernels:
            lens = (lens - kernel) // stride + 1
        return lens

    def _mend_mask(self, subsampling: nn.Module, args: tuple[Tensor, Tensor], output: tuple[Any, Tensor]) -> tuple:
        """ESPnet's mask (B, 1, T') has frames more in it, that saw what pads the batch."""
        x, mask = output
        return x, within(self._frames_of(args[1].sum((1, 2))), mask.shape[-1])[:, None]

    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, input), (B,) to (B, T', output), (B,). Raises TooShortError if an utterance has no frames left."""
        shortest, longest = (int(size) for size in lens.aminmax())
        if self._frames_of(shortest) < 1:
            needed = 1
            for kernel, stride in reversed(self._kernels):
                needed = (needed - 1) * stride + kernel
            raise TooShortError(f"{shortest} frames are too short for encoder_conf.input_layer, which needs {needed}")
        _frames.set(within(self._frames_of(lens), self._frames_of(longest))[:, None])
        x, lens, _ = self.encoder(x[:, :longest], lens)  # ESPnet makes its masks from the lengths alone
        return x, lens


def _remember_frames(layer: nn.Module, args: tuple) -> None:
    """When a checkpointed layer is computed again, no `forward` of the encoder's has come before."""
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
