"""Pretrained encoders in folders as transformers stores them: what they say is read, nothing in them is run."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pelasr.backbones.bounds import Bounds
from pelasr.config import LIMIT, arguments_of, construct
from pelasr.errors import PelasrError, brief, nearest
from pelasr.files import check_holes, no_file, read_json, sha256_file, sha256_json
from pelasr.nn.span_masks import SpanMasks
from pelasr.nn.speech_encoder import ENCODERS, default_conf, make_encoder, make_frontend
from pelasr.storage import check_tensors, sizes

CURE = "give the folder of a model as transformers stores it"
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # the second one of newer versions
EXTRACTOR = "feature_extractor"  # the preprocessor, in the file of a processor
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
RATE = 16000
REFUSED = {  # keys of config.json, with what they ask for
    "auto_map": "code of its own, which is never run",
    "trust_remote_code": "code of its own, which is never run",
    "custom_pipelines": "code of its own, which is never run",
    "quantization_config": "quantised weights; save the model with full ones",
    "add_adapter": "layers above the encoder, which are not built; save the model without them",
}
# First parts of the names of tensors that belong to no encoder: output layers and what pretraining predicts with.
HEADS = ("lm_head", "quantizer", "project_hid", "project_q", "final_proj", "label_embs_concat", "classifier")
HEADS += ("projector", "layer_weights", "tdnn", "objective")
LANGUAGE_ADAPTERS = "adapter_layer"  # of MMS, within the layers: a language's, not the encoder's
CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; weights = torch.load(sys.argv[1], weights_only=True);"
    " save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, sys.argv[2])"
)
NAMES = (  # beginnings and ends of names of our tensors and of transformers'
    ("frontend.", "feature_extractor."),
    ("encoder.projection.", "feature_projection."),
    ("encoder.position.", "encoder.pos_conv_embed."),
    ("encoder.norm.", "encoder.layer_norm."),
)
ENDS = ((".weight_g", ".parametrizations.weight.original0"), (".weight_v", ".parametrizations.weight.original1"))
MASK_EMBEDDING = "masked_spec_embed"


@dataclass(frozen=True)
class Pretrained:
    """A pretrained encoder in its folder: its name (a key of ENCODERS), its configuration and that of its masks where
    they differ from transformers' defaults, and whether it hears audio of mean 0 and variance 1 per utterance."""

    encoder: str
    encoder_conf: dict[str, Any]
    mask_conf: dict[str, Any]
    normalise: bool
    folder: Path


def read_pretrained(folder: Path) -> Pretrained:
    """What a folder's `config.json` and the file of its preprocessor say of its encoder.

    Raises PelasrError for what no encoder can be made of, what asks for code, and for a folder without safetensors or
    with fewer of them than the configuration needs.
    """
    path = folder / CONFIG
    config = read_json(path, CURE, ["model_type"])
    for key, what in REFUSED.items():
        if config.get(key):
            raise PelasrError(f"{path}: {key}: the model asks for {what}")
    model_type = config["model_type"]
    name = model_type.replace("-", "_") if isinstance(model_type, str) else ""
    if name not in ENCODERS:
        raise PelasrError(f"{path}: model_type {brief(repr(model_type))}: {nearest(name, ENCODERS)}")
    files = weight_files(folder)
    for file in files:  # one that is not there, or is a pointer to it, is said to be so, not to be too small
        with _opened(file):
            pass
    try:
        default = default_conf(name)
        conf = {key: config[key] for key, value in default.items() if key in config and not _same(config[key], value)}
        usual = {key: argument.default for key, argument in arguments_of(SpanMasks).items() if key != "embedding"}
        masks = {key: config[key] for key, value in usual.items() if not _same(config.get(key, value), value)}
        if not config.get("apply_spec_augment", True):
            masks |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
        with Bounds(files), torch.device("meta"):
            make_frontend(name, conf)
            make_encoder(name, conf)
            construct(SpanMasks, masks, "masks", embedding=torch.empty(0))
    except PelasrError as error:
        raise PelasrError(f"{path}: {error}") from None
    return Pretrained(name, conf, masks, _normalises(folder), folder)


def _same(value: Any, default: Any) -> bool:
    default = list(default) if isinstance(default, tuple) else default
    return value == default and isinstance(value, bool) == isinstance(default, bool)


def _normalises(folder: Path) -> bool:
    """Whether the preprocessor normalises each utterance, as it does if it does not say. Of two files that describe it
    that of the processor counts, as in transformers."""
    path = folder / PROCESSOR
    said = read_json(path, CURE).get(EXTRACTOR) if path.exists() else None
    if said is None:
        path = folder / PREPROCESSOR
        said = read_json(path, CURE) if path.exists() else {}
    if not isinstance(said, dict):
        raise PelasrError(f"{path}: {EXTRACTOR}: expected names and values, found {brief(said)}")
    normalise, rate = said.get("do_normalize", True), said.get("sampling_rate", RATE)
    if not isinstance(normalise, bool):
        raise PelasrError(f"{path}: do_normalize: expected true or false, found {brief(normalise)}")
    if rate != RATE:
        raise PelasrError(f"{path}: sampling_rate: {brief(rate)}: only models of audio at {RATE} Hz are used")
    return normalise


def weight_files(folder: Path) -> list[Path]:
    """The files of safetensors in a folder: one, or the shards that its index names.

    Raises PelasrError if there are none, with the command that makes one of a pickle, and for an index that names what
    is not in the folder.
    """
    whole, index, pickle = folder / WEIGHTS, folder / INDEX, folder / PICKLE
    if not no_file(whole):
        return [whole]
    if not no_file(index):
        shards = read_json(index, CURE, ["weight_map"])["weight_map"]
        names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise PelasrError(f"{index}: weight_map: {brief(name)!r} is no file of safetensors beside it")
        if names:
            return [folder / name for name in sorted(names)]
        raise PelasrError(f"{index}: weight_map: names no file; {CURE}")
    if no_file(pickle):
        raise PelasrError(f"{whole}: {no_file(whole)}; {CURE}")
    raise pickle_error(pickle, whole)


def pickle_error(pickle: Path, converted: Path) -> PelasrError:
    """What is said of weights in a pickle: the command that makes safetensors of it."""
    command = shlex.join([sys.executable, "-c", CONVERT, str(pickle), str(converted)])
    return PelasrError(
        f"{pickle}: a pickle, which can run anything, is not read; convert it if you trust it: {command}"
    )


def pretrained_sha256(folder: Path) -> str:
    """Hash of the configuration and the weights in a folder."""
    others = [path for name in (PREPROCESSOR, PROCESSOR, INDEX) if (path := folder / name).exists()]
    return sha256_json({path.name: sha256_file(path) for path in [folder / CONFIG, *others, *weight_files(folder)]})


def file_names(module: nn.Module) -> dict[str, str]:
    """{name of a tensor: its name in transformers' files} of a module's `frontend`, `encoder` and `mask_embedding`."""
    return {name: _file_name(name) for name in _tensors(module)}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    sides = ("frontend.", "encoder.", "mask_embedding")
    return {name: tensor for name, tensor in module.state_dict().items() if name.startswith(sides)}


def _file_name(name: str) -> str:
    if name == "mask_embedding":
        return MASK_EMBEDDING
    for own, theirs in NAMES:
        if name.startswith(own):
            name = theirs + name.removeprefix(own)
    for own, theirs in ENDS:
        if name.endswith(own):
            name = name.removesuffix(own) + theirs
    return name


def load_pretrained(pretrained: Pretrained, module: nn.Module) -> list[str]:
    """Fill `frontend`, `encoder` and `mask_embedding` of a module from a folder's weights, all or nothing; the last is
    left as it is if the folder has none.

    Returns first parts of the names of what was left out: heads, and MMS's adapters of a language. Raises PelasrError
    naming the first tensor that is missing, unexpected, misshapen or not finite, and for a damaged file.
    """
    expected = {_file_name(name): tensor for name, tensor in _tensors(module).items()}
    files = weight_files(pretrained.folder)
    found, left_out = _read(files, f"{pretrained.encoder}.", expected)
    if MASK_EMBEDDING not in found:
        expected.pop(MASK_EMBEDDING, None)
    check_tensors(found, expected, str(files[0] if len(files) == 1 else pretrained.folder))
    state = {name: found[theirs] for name, theirs in file_names(module).items() if theirs in found}
    module.load_state_dict(state, strict=False)
    return left_out


def _read(files: list[Path], prefix: str, expected: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of an encoder in some files, by name without the prefix, in float32, and what was left out."""
    keys = []
    for path in files:
        with _opened(path) as weights:
            keys += weights.keys()
    prefix = prefix if any(key.startswith(prefix) for key in keys) else ""
    found: dict[str, Tensor] = {}
    left_out = set()
    for path in files:
        with _opened(path) as weights:
            for key in weights.keys():  # noqa: SIM118
                name, outside = key.removeprefix(prefix), not key.startswith(prefix)
                if part := _part_left_out(name, outside):
                    left_out.add(part)
                    continue
                for own, theirs in ENDS:  # how torch called them before
                    name = name.removesuffix(own) + theirs if name.endswith(own) else name
                if name in found:
                    raise PelasrError(f"{path}: tensor {brief(key, 100)} comes a second time")
                if outside or name not in expected:
                    raise PelasrError(f"{path}: tensor {brief(key, 100)} is unexpected")
                shape, wanted = tuple(weights.get_slice(key).get_shape()), tuple(expected[name].shape)
                if shape != wanted:
                    raise PelasrError(f"{path}: tensor {key} is {shape}, expected {wanted} by {CONFIG}")
                tensor = weights.get_tensor(key)
                found[name] = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return found, sorted(left_out)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of safetensors. Raises PelasrError for a damaged one, also within the block."""
    from safetensors import SafetensorError, safe_open

    header, size = sizes(path, CURE)
    try:
        if header > LIMIT:
            raise ValueError(f"a header of {header} bytes in a file of {size}")
        check_holes(path)
        with safe_open(path, framework="pt") as weights:
            yield weights
    except (SafetensorError, OSError, ValueError) as error:
        raise PelasrError(f"{path}: damaged ({brief(error, 200)}); fetch it again") from None


def _part_left_out(name: str, outside: bool) -> str:
    """The part of a tensor's name that says it is none of the encoder's; empty for one of the encoder's. `outside`: it
    lacks the prefix that others have."""
    parts = name.split(".")
    if LANGUAGE_ADAPTERS in parts:
        return LANGUAGE_ADAPTERS
    # A speaker classifier has a layer that is called as the convolutions within the encoder are.
    heads = (*HEADS, "feature_extractor") if outside else HEADS
    return parts[0] if parts[0] in heads else ""
