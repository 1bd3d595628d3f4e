"""A tiny experiments folder: a backbone of random weights, and an experiment with packs on it."""

from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import nn

from pelasr.adapters.finetune import make_bank
from pelasr.adapters.own import OwnParts
from pelasr.backbones.base import build_backbone
from pelasr.backbones.store import LoadedBackbone, describe_backbone, load_backbone
from pelasr.data.tokenizer import Tokenizer, train_graphemes
from pelasr.files import sha256_file
from pelasr.packs.pack import save_pack
from pelasr.storage import load_weights, read_description, save_weights, write_description

RNNT = {
    "stack": 2,
    "stride": 2,
    "encoder_conf": {"num_layers": 2, "hidden_size": 8, "output_size": 6, "reduction_layer": 1},
    "decoder_conf": {"num_layers": 1, "hidden_size": 8, "output_size": 6},
    "joint_net_conf": {"joint_space_size": 6},
    "num_mels": 5,
}
LANGUAGES = ["hi", "ur", "pa"]
OWN = {"uk": ["ї", "ґ"]}  # a language that the backbone was not trained on, with tokens of its own
TRAINING = {"epoch": 4, "step": 80, "dev": {"loss": 3.5, "wer": 12.5}, "seed": 0, "config_sha256": "c" * 64}
TRAINING |= {"utterances": 1200, "hours": 1.25}


def make_backbone(folder: Path, seed: int = 0, **options) -> LoadedBackbone:
    """A backbone's folder, as stage 4 leaves it."""
    tokens = folder.parent / "tokens"
    Tokenizer(train_graphemes(["abcd"])).save(tokens)
    torch.manual_seed(seed)
    options = {**RNNT, **options}
    module = build_backbone("rnnt", options, len(Tokenizer.load(tokens).tokens), len(LANGUAGES))
    mels = options["num_mels"]
    module.set_feature_stats(torch.arange(float(mels)), torch.full((mels,), 2.0))
    save_weights(folder / "backbone.safetensors", module.state_dict())
    describe_backbone(folder, "rnnt", options, LANGUAGES, tokens, {"training": {"epochs": 3}})
    return load_backbone(folder)


def make_packs(
    folder: Path, backbone: LoadedBackbone, languages=("hi", "ur", "uk"), method="houlsby", seed=1, **options
) -> None:
    """An experiment's folder, as stage 5 leaves it, with random adapters."""
    if method == "houlsby":
        options.setdefault("bottleneck", 4)
    bank = make_bank(method, options, backbone.module)
    for language in languages:
        new = language not in backbone.languages
        bank.add(language, own=OwnParts(backbone.module, OWN.get(language, []), vector=True) if new else None)
    torch.manual_seed(seed)
    for parameter in bank.parameters():
        nn.init.normal_(parameter, std=0.3)
    for language in languages:
        save_pack(folder / "packs" / language, bank, language, bank.tensors(language), backbone, TRAINING)
    (folder / "model.yaml").write_text(yaml.safe_dump({"backbone": "../A1", "weights": "backbone"}))


def make_exp(folder: Path) -> Path:
    """Experiments A1 (a backbone) and A5 (packs on it) in a folder; returns it."""
    make_packs(folder / "A5", make_backbone(folder / "A1"))
    return folder


def rewrite(pack: Path, **changes) -> None:
    """Another description in a pack, whose hash is right; None takes a key out."""
    description = {**read_description(pack / "pack.yaml", ""), **changes}
    write_description(pack / "pack.yaml", {key: value for key, value in description.items() if value is not None})


def retensor(pack: Path, change: Callable[[dict], object], honest: bool = True) -> None:
    """Other tensors in a pack, with (`honest`) the hash that they have."""
    path = pack / "pack.safetensors"
    tensors = load_weights(path)
    change(tensors)
    save_weights(path, tensors)
    if honest:
        rewrite(pack, safetensors_sha256=sha256_file(path))
