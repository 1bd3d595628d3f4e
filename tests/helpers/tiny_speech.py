"""Noises, and tiny models of random weights that find different letters in them."""

from pathlib import Path

import numpy as np
import torch
from tiny_exp import make_backbone, make_packs
from tiny_models import ST_ENCODERS

from pelasr.backbones.base import build_backbone
from pelasr.backbones.store import LoadedBackbone, describe_backbone, load_backbone
from pelasr.data.tokenizer import Tokenizer, train_graphemes
from pelasr.storage import save_weights

RATE = 16000
PAIRS = ["en-de", "en-fr"]


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Float32 samples at 16 kHz, whose loudness and colour change every 50 ms."""
    draws = np.random.default_rng(seed)
    count = round(seconds * RATE)
    white = draws.normal(0, 1, count + 2)
    smooth = (white[:-2] + white[1:-1] + white[2:]) / 3
    loud, colour = (np.repeat(draws.uniform(0, 1, count // 800 + 1), 800)[:count] for _ in range(2))
    return (0.2 * loud**3 * (colour * white[1:-1] + (1 - colour) * smooth)).astype(np.float32)


def make_recogniser(folder: Path, seed: int = 0) -> Path:
    """Experiments A1, a backbone that has hi, ur and pa, and A5, packs of hi, ur and uk on it; returns A5."""
    backbone = make_backbone(folder / "A1", seed, num_mels=80)
    module = backbone.module
    with torch.no_grad():
        module.feature_mean.fill_(-6.0)
        module.feature_std.fill_(2.0)
        module.joint.lin_enc.weight *= 3
        module.joint.lin_out.weight *= 5
        module.joint.lin_out.bias.copy_(torch.eye(len(module.joint.lin_out.bias))[0] * 2)  # blank
        for name, parameter in module.encoder.named_parameters():
            if "lstm.weight" in name:
                parameter *= 2
    make_packs(folder / "A5", _save(folder / "A1", "rnnt", backbone.description.options, module, backbone.languages))
    return folder / "A5"


def make_translator(folder: Path, encoder: str = "transformer") -> Path:
    """An experiment 2, a backbone from English into German and French, and its folder."""
    Tokenizer(train_graphemes(["abcd ef"], ["<lang:de>", "<lang:fr>"])).save(folder / "tokens")
    options = {
        "encoder": encoder,
        "encoder_conf": ST_ENCODERS[encoder],
        "decoder_conf": {"attention_heads": 2, "linear_units": 8, "num_blocks": 2},
        "subsampler_conf": {"channels": 8},
    }
    torch.manual_seed(0)
    module = build_backbone("st", options, len(Tokenizer.load(folder / "tokens").tokens), len(PAIRS))
    module.decoder.output_layer.weight.data *= 3
    module.decoder.embed[0].weight.data *= 6  # so that the tag tells
    _save(folder / "2", "st", options, module, PAIRS)
    return folder / "2"


def _save(folder: Path, family: str, options: dict, module: torch.nn.Module, languages: list[str]) -> LoadedBackbone:
    save_weights(folder / "backbone.safetensors", module.state_dict())
    facts = {"training": {"epochs": 3, "utterances": 3600, "hours": 2.0}}  # 2 s each
    describe_backbone(folder, family, options, languages, folder.parent / "tokens", facts)
    return load_backbone(folder)
