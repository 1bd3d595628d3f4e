"""ESPnet's encoders, made independent of what an utterance is batched with."""

import io
from contextlib import redirect_stdout
from importlib import import_module
from math import prod
from threading import Lock
from typing import Any, TypeVar

from torch import Tensor, nn

from pelasr.config import construct
from pelasr.errors import PelasrError, TooShortError
from pelasr.nn.defaults import settled
from pelasr.nn.frames import inside, set_inside
from pelasr.nn.layers import within
from pelasr.nn.positions import add_position_biases
from pelasr.nn.stateless import make_stateless

ESPNET_ENCODERS = {
    "transformer": "TransformerEncoder",
    "conformer": "ConformerEncoder",
    "e_branchformer": "EBranchformerEncoder",
}
# By the last part of their paths: kinds of site that linear maps are, in attention and in feed-forward sub-layers.
ESPNET_SITES = {
    "linear_q": "q",
    "linear_k": "k",
    "linear_v": "v",
    "linear_out": "out",
    "w_1": "ffn_in",
    "w_2": "ffn_out",
}
SHARED_BY_ROWS = "linear_pos"  # relative attention's map of positions, which a batch has once: no site
Frames = TypeVar("Frames", Tensor, int)  # of several utterances, or of one
_importing = Lock()


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
            from pelasr.nn.espnet_attention import RelativeAttention
        self.encoder = construct(cls, {"use_flash_attn": False, **conf}, "encoder_conf", input_size=input_size)
        self.input_size, self.output_size = input_size, self.encoder.output_size()
        for module in self.encoder.modules():
            if type(module) is RelativeAttention.__base__:  # of which it has all attributes
                module.__class__ = RelativeAttention
                add_position_biases(module)
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

    def _frames_of(self, lens: Frames) -> Frames:
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
        set_inside(within(self._frames_of(lens), self._frames_of(longest)))
        x, lens, _ = self.encoder(x[:, :longest], lens)  # ESPnet makes its masks from the lengths alone
        return x, lens


def espnet_sites(stack: ESPnetEncoder, prefix: str) -> dict[str, dict[str, int]]:
    """{kind: {path: width of the output}} of the layers of an encoder whose own path is `prefix`, their feed-forward
    sub-layers (of two the second) and their attention; see ESPNET_SITES for the maps in them. A decoder's attention is
    no site: a search computes its keys and values without calling it."""
    layers = dict(stack.encoder.encoders.named_children())
    attention = {
        f"{name}.{path}": module
        for name, layer in layers.items()
        for path, module in layer.named_modules()
        if hasattr(module, "linear_q") and isinstance(module.linear_out, nn.Linear)
    }
    # As by default in an E-Branchformer, a layer may have none.
    ffn = [f"{name}.feed_forward" for name, layer in layers.items() if getattr(layer, "feed_forward", None) is not None]
    kinds = {"layer": list(layers), "ffn": ffn, "attention": list(attention)}
    return {
        kind: {f"{prefix}.encoder.encoders.{path}": stack.output_size for path in paths}
        for kind, paths in kinds.items()
        if paths
    }


def _remember_frames(layer: nn.Module, args: tuple) -> None:
    """When a checkpointed layer is computed again, no `forward` of the encoder's has come before."""
    set_inside(args[1][:, 0])


def _hide_padding(conv: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """ESPnet's convolution over time would see what pads the batch: (B, D, T) with zeros there."""
    frames = inside()
    assert frames is not None  # the layer, or the encoder, has said
    return (args[0] * frames[:, None],)
