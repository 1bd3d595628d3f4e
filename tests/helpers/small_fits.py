"""Fits of tiny adapters as stage 5 does them, and what they leave."""

import json
from pathlib import Path

import torch
from safetensors.torch import load

from pelasr.backbones.base import build_backbone
from pelasr.backbones.store import describe_backbone
from pelasr.data.place import Place
from pelasr.data.tokenizer import Tokenizer
from pelasr.stages.adapt import fit_adapters
from pelasr.stages.experiment import Experiment
from pelasr.storage import save_weights

OPTIONS = {
    "encoder_conf": {"num_layers": 2, "hidden_size": 8, "output_size": 6, "reduction_layer": 1},
    "decoder_conf": {"num_layers": 1, "hidden_size": 8, "output_size": 6},
    "joint_net_conf": {"joint_space_size": 6},
}
ADAPTED = Experiment("A5", "", "A1", "backbone", True, {}, None)
PLAIN = Experiment("A1", "", "A1", "backbone", False, {}, None)
CONFIG = {"adapter": "houlsby", "adapter_conf": {"bottleneck": 3}, "max_epoch": 2, "batch_size": 8, "warmup_steps": 1}


def start(folder: Path, tokens: Path) -> None:
    """Write a backbone A1 of random weights for Hindi and Tamil."""
    torch.manual_seed(0)
    module = build_backbone("rnnt", OPTIONS, len(Tokenizer.load(tokens)), 2)
    save_weights(folder / "exp/A1/backbone.safetensors", module.state_dict())
    describe_backbone(folder / "exp/A1", "rnnt", OPTIONS, ["hi", "ta"], tokens, {})


def fit(
    place: Place, *languages: str, go_on: bool = False, tokens: str = "auto", begin: str = "fresh", **options
) -> bool:
    """Fit adapters A5 on it, of the backbone's languages or others; False if that was done before."""
    only = list(languages) or place.languages
    return fit_adapters(place, ADAPTED, CONFIG | options, "test", only, 0, tokens, go_on, begin)


def history(place: Place, languages: str = "hi_ta") -> list[dict]:
    return json.loads((place.exp / f"A5/fit_{languages}/history.json").read_text())


def pack(place: Place, language: str) -> dict[str, torch.Tensor]:
    return load((place.exp / f"A5/packs/{language}/pack.safetensors").read_bytes())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two packs are equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flip(path: Path) -> None:
    """Alter one bit near the end of a file."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
