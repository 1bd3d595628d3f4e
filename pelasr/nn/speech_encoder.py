"""Encoders that are pretrained on waveforms, of transformers' layers: wav2vec 2.0, HuBERT, WavLM, Wav2Vec2-BERT.

What an utterance gets does not depend on what it is batched with, which transformers' own models do not promise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pelasr.config import check_keys, construct
from pelasr.errors import PelasrError, TooShortError, brief, nearest
from pelasr.nn.attention import BertAttention, SpeechAttention
from pelasr.nn.conv_block import ConvBlock
from pelasr.nn.frames import set_inside
from pelasr.nn.layers import within
from pelasr.nn.positions import ConvPositions, RelativePositions, RotaryPositions, WeightNormConv1d, add_position_biases
from pelasr.nn.wavlm import GatedAttention

Masks = Callable[[Tensor, Tensor], Tensor]  # projected frames (B, T, D), frames (B,) to frames of which some are masked
Samples = TypeVar("Samples", Tensor, int)  # of several utterances, or of one
CLASSES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM", "wav2vec2_bert": "Wav2Vec2Bert"}
ENCODERS = tuple(CLASSES)
# What shapes an encoder or how it is trained, of transformers' configurations.
_LAYERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
_LAYERS += ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop")
_LAYERS += ("layer_norm_eps",)
_CONV = ("feat_extract_norm", "feat_extract_activation", "conv_dim", "conv_stride", "conv_kernel", "conv_bias")
_CONV += ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "do_stable_layer_norm")
_BERT = ("feature_projection_input_dim", "position_embeddings_type", "rotary_embedding_base")
_BERT += ("left_max_position_embeddings", "right_max_position_embeddings", "conv_depthwise_kernel_size")
_BERT += ("conformer_conv_dropout",)
CONF_KEYS = {
    "wav2vec2": (*_LAYERS, *_CONV),
    "hubert": (*_LAYERS, *_CONV, "feat_proj_layer_norm", "conv_pos_batch_norm"),
    "wavlm": (*_LAYERS, *_CONV, "num_buckets", "max_bucket_distance"),
    "wav2vec2_bert": (*_LAYERS, *_BERT),
}
# By the last part of their paths: kinds of site that linear maps are, in attention and in feed-forward sub-layers.
PRETRAINED_SITES = {
    **{name: kind for kind in ("q", "k", "v") for name in (f"{kind}_proj", f"linear_{kind}")},
    "out_proj": "out",
    "linear_out": "out",
    "intermediate_dense": "ffn_in",
    "output_dense": "ffn_out",
}
NO_SITES = ("gru_rel_pos_linear", "linear_pos")  # maps of heads, and of positions, which a batch has once
FEED_FORWARD = ("feed_forward", "ffn1", "ffn2")
ATTENTION = ("attention", "self_attn")


class Frontend(nn.Module):
    """Convolutions from the waveform to frames, of transformers' `feature_extractor.conv_layers`, which become
    `ConvBlock`s."""

    def __init__(self, conv_layers: nn.ModuleList):
        super().__init__()
        self.conv_layers = conv_layers
        for layer in self._layers():
            layer.__class__ = ConvBlock  # of which it has all attributes
        convs: list[Any] = [layer.conv for layer in self._layers()]
        self.kernels = [conv.kernel_size[0] for conv in convs]
        self.strides = [conv.stride[0] for conv in convs]
        if not convs or min(*self.kernels, *self.strides) < 1:
            raise PelasrError("encoder_conf: conv_kernel, conv_stride: expected numbers above 0")
        self.subsampling = prod(self.strides)
        self.input_size, self.output_size = convs[0].in_channels, convs[-1].out_channels

    def _layers(self) -> Iterator[Any]:
        return iter(self.conv_layers)

    def frames(self, samples: Samples) -> Samples:
        """Frames of so many samples; 0 or less of too few."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, N, 1) or (B, N), samples (B,) to frames (B, T, C), their number (B,).

        Raises TooShortError if an utterance has no frame.
        """
        shortest, samples = (int(size) for size in lens.aminmax())
        if self.frames(shortest) < 1:
            needed = 1
            for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
                needed = (needed - 1) * stride + kernel
            raise TooShortError(f"{shortest} samples are too short for the encoder, which needs {needed}")
        x, longest = x.flatten(1)[:, :samples, None], samples
        for layer, kernel, stride in zip(self._layers(), self.kernels, self.strides, strict=True):
            lens, longest = (lens - kernel) // stride + 1, (longest - kernel) // stride + 1
            set_inside(within(lens, longest))
            x = layer(x, lens if shortest < samples else None)
        return x, lens


class SpeechEncoder(nn.Module):
    """Transformer or Conformer layers above projected frames.

    Args:
        projection, layers: transformers' modules.
        position: what tells the layers where a frame is: `ConvPositions` are added, others are given to each layer.
        norm: before the layers, or after them (`norm_last`); None where a layer has all its norms.
        dropout: of what the layers are given.
        layerdrop: how often a layer is left out in training.
        always: so many layers at the bottom never are.
    """

    def __init__(
        self,
        projection: nn.Module,
        position: nn.Module | None,
        norm: nn.LayerNorm | None,
        layers: nn.ModuleList,
        dropout: float,
        layerdrop: float,
        norm_last: bool,
        always: int,
    ):
        super().__init__()
        self.projection = projection
        self.position = position
        self.norm = norm
        self.dropout = nn.Dropout(dropout)
        self.layers = layers
        self.layerdrop, self.norm_last, self.always = layerdrop, norm_last, always
        inner: Any = projection.projection
        self.input_size: int = inner.in_features
        self.output_size: int = inner.out_features
        self.num_layers = len(layers)

    def forward(self, x: Tensor, lens: Tensor, masks: Masks | None = None) -> list[Tensor]:
        """Frames (B, T, C), their number (B,) to what the first layer is given and what each puts out, L + 1 tensors
        (B, T, D); where a norm comes last, the last one is after it. `masks` change the projected frames."""
        inside = within(lens, x.shape[1])
        set_inside(inside)
        given: dict[str, Any] = {"attention_mask": None if bool(inside.all()) else inside[:, None, None]}
        x = _first(self.projection(x))
        if masks is not None:
            x = masks(x, lens)
        x = x.masked_fill(~inside[..., None], 0.0)
        if isinstance(self.position, ConvPositions):
            x = x + self.position(x, inside)
        elif self.position is not None:
            given["relative_position_embeddings"] = self.position(x)
        if self.norm is not None and not self.norm_last:
            x = self.norm(x)
        states = [self.dropout(x)]
        for number, layer in enumerate(self.layers):
            can_drop = self.training and self.layerdrop > 0 and number >= self.always
            dropped = can_drop and bool(torch.rand([], device="cpu") < self.layerdrop)
            states.append(_through(layer, states[-1], given, dropped))
        if self.norm is not None and self.norm_last:
            states[-1] = self.norm(states[-1])
        return states


def _through(layer: nn.Module, x: Tensor, given: dict[str, Any], dropped: bool) -> Tensor:
    """A layer's output, or its input where the layer is dropped. What a layer puts out beside it is given to those that
    follow. One that is dropped is computed too: each process must have gradients of all parameters, here zeros."""
    out = layer(x, **given)
    if isinstance(out, tuple):
        out, given["position_bias"] = out
    return torch.where(torch.tensor(True, device=x.device), x, out) if dropped else out


def _first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


@contextmanager
def _complaints() -> Iterator[None]:
    """What a library says of a value becomes a line."""
    try:
        yield
    except PelasrError:
        raise
    except Exception as error:
        raise PelasrError(f"encoder_conf: {brief(str(error) or type(error).__name__, 300)}") from error


def default_conf(name: str) -> dict[str, Any]:
    """The keys that an encoder's `encoder_conf` may have, with their defaults, which are transformers' own."""
    config = _config(name, {})
    return {key: getattr(config, key) for key in CONF_KEYS[name]}


def _modeling(name: str, what: str = "modeling") -> ModuleType:
    """A module of transformers. Raises PelasrError for an unknown encoder, and where transformers is missing."""
    if name not in CLASSES:
        raise PelasrError(f"encoder: {brief(name)!r}; {nearest(name, ENCODERS)}")
    try:
        return import_module(f"transformers.models.{name}.{what}_{name}")
    except ModuleNotFoundError:
        raise PelasrError(f"encoder {name} needs transformers; run tools/install.sh hf") from None


def _config(name: str, conf: dict[str, Any]) -> Any:
    cls = getattr(_modeling(name, "configuration"), f"{CLASSES[name]}Config")
    check_keys(conf, CONF_KEYS[name], "encoder_conf")
    config = construct(cls, conf, "encoder_conf", attn_implementation="sdpa")
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
        if getattr(config, key) < 1:
            raise PelasrError(f"encoder_conf: {key}: {getattr(config, key)} is below 1")
    for key in CONF_KEYS[name]:
        if "drop" in key and not 0 <= getattr(config, key) <= 1:  # torch says it of some of them, and when training
            raise PelasrError(f"encoder_conf: {key}: {getattr(config, key)} is not between 0 and 1")
    if name == "wavlm" and not 4 <= config.num_buckets < 4 * config.max_bucket_distance:
        raise PelasrError("encoder_conf: num_buckets: want 4 or more, and fewer than 4 times max_bucket_distance")
    from transformers.activations import ACT2FN

    for key in ("hidden_act", "feat_extract_activation"):
        if (act := getattr(config, key, "gelu")) not in ACT2FN:
            raise PelasrError(f"encoder_conf: {key}: {brief(act)!r}; {nearest(act, ACT2FN)}")
    size, heads = config.hidden_size, config.num_attention_heads
    if size % heads:
        raise PelasrError(f"encoder_conf: hidden_size {size} is no multiple of num_attention_heads {heads}")
    return config


@_complaints()
def make_frontend(name: str, conf: dict[str, Any]) -> Frontend | None:
    """The convolutions of an encoder of this name with fresh weights; None for Wav2Vec2-BERT, which hears log-mel.

    `conf` is the same as of `make_encoder`. Raises PelasrError for what it cannot be.
    """
    config = _config(name, conf)
    if name == "wav2vec2_bert":
        return None
    extractor = getattr(_modeling(name), f"{CLASSES[name]}FeatureEncoder")(config)
    frontend = Frontend(extractor.conv_layers)
    for module in frontend.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
    return frontend


@_complaints()
def make_encoder(name: str, conf: dict[str, Any]) -> SpeechEncoder:
    """An encoder of this name with fresh weights, drawn as transformers does.

    `conf`: the keys of CONF_KEYS, with transformers' defaults. Raises PelasrError for what it cannot be.
    """
    config, modeling, cls = _config(name, conf), _modeling(name), CLASSES[name]
    is_bert = name == "wav2vec2_bert"
    norm_last = not is_bert and config.do_stable_layer_norm
    layer = getattr(modeling, f"{cls}EncoderLayer" + ("StableLayerNorm" if norm_last else ""))
    layers = nn.ModuleList(layer(config) for _ in range(config.num_hidden_layers))
    if name == "wavlm":
        for number, each in enumerate(layers):
            each.attention = GatedAttention(
                config.hidden_size,
                config.num_attention_heads,
                config.attention_dropout,
                config.num_buckets,
                config.max_bucket_distance,
                has_embedding=number == 0,
            )
    else:
        found: list[Any] = [part for path, part in layers.named_modules() if path.rpartition(".")[2] in ATTENTION]
        for attention in found:  # which has all attributes of ours
            attention.__class__ = BertAttention if is_bert else SpeechAttention
            if hasattr(attention, "pos_bias_u"):
                add_position_biases(attention)
    encoder = SpeechEncoder(
        getattr(modeling, f"{cls}FeatureProjection")(config),
        _bert_positions(config) if is_bert else _conv_positions(config),
        None if is_bert else nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
        layers,
        dropout=config.hidden_dropout,
        layerdrop=config.layerdrop,
        norm_last=norm_last,
        always=int(name == "wavlm"),  # its first layer computes the bias of all
    )
    _initialise(encoder, config.initializer_range)
    return encoder


def _conv_positions(config: Any) -> ConvPositions:
    from transformers.activations import ACT2FN

    return ConvPositions(
        config.hidden_size,
        config.num_conv_pos_embeddings,
        config.num_conv_pos_embedding_groups,
        ACT2FN[config.feat_extract_activation],
        getattr(config, "conv_pos_batch_norm", False),
    )


def _bert_positions(config: Any) -> nn.Module | None:
    if config.position_embeddings_type == "relative":
        return RelativePositions()
    if config.position_embeddings_type == "rotary":
        return RotaryPositions(config.hidden_size // config.num_attention_heads, config.rotary_embedding_base)
    return None


@torch.no_grad()
def _initialise(encoder: SpeechEncoder, std: float) -> None:
    """First values as transformers draws them; torch's own serve for the projection, the norms and all biases of
    convolutions."""
    for path, module in encoder.named_modules():
        if isinstance(module, nn.Linear) and not path.startswith("projection"):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, WeightNormConv1d):
            module.draw(2 * (module.kernel_size[0] * module.in_channels) ** -0.5)
        elif isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
    for path, parameter in encoder.named_parameters():
        if path.endswith(("pos_bias_u", "pos_bias_v")):
            nn.init.xavier_uniform_(parameter)


def frontend_sites(frontend: Frontend, prefix: str) -> dict[str, dict[str, int]]:
    """{conv_layer: {path: width of the output}} of the convolutional blocks."""
    widths = [conv.out_channels for conv in frontend.modules() if isinstance(conv, nn.Conv1d)]
    return {"conv_layer": {f"{prefix}.conv_layers.{number}": width for number, width in enumerate(widths)}}


def encoder_sites(encoder: SpeechEncoder, prefix: str) -> dict[str, dict[str, int]]:
    """{kind: {path: width of the output}} of layers, feed-forward and attention modules and the projection of an
    encoder whose own path is `prefix`; see PRETRAINED_SITES for the maps in them."""
    size = encoder.output_size
    paths = {path: path.rpartition(".")[2] for path, _ in encoder.named_modules()}
    return {
        "layer": {f"{prefix}.layers.{number}": size for number in range(encoder.num_layers)},
        "ffn": {f"{prefix}.{path}": size for path, last in paths.items() if last in FEED_FORWARD},
        "attention": {f"{prefix}.{path}": size for path, last in paths.items() if last in ATTENTION},
        "embed": {f"{prefix}.projection.projection": size},
    }
