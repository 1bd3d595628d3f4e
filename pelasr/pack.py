"""Packs: what one language adds to a backbone, as files: `pack.safetensors` and `pack.yaml`, never a pickle."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from pelasr.adapter import Bank
from pelasr.backbones import LoadedBackbone, check_tensors, load_weights, save_weights, state_sha256
from pelasr.config import check_keys, load_yaml, nearest, require_keys
from pelasr.errors import PelasrError
from pelasr.files import atomic_write
from pelasr.finetune import make_bank

FORMAT = 1
KEYS = (
    "format",
    "language",
    "adapter",
    "adapter_conf",
    "sites",
    "backbone_sha256",
    "tokens_sha256",
    "tensors_sha256",
    "parameters",
    "training",
)


def save_pack(
    folder: Path, bank: Bank, language: str, tensors: dict[str, Tensor], backbone: LoadedBackbone, training: dict
) -> None:
    """Write a language's tensors (keys `<site path>/<parameter>`) and what they are bound to.

    The description is written last and holds the tensors' hash, so that a half-written pack is never taken for whole.
    """
    description = {
        "format": FORMAT,
        "language": language,
        "adapter": bank.method,
        "adapter_conf": bank.options,
        "sites": bank.sites,
        "backbone_sha256": backbone.sha256,
        "tokens_sha256": backbone.tokenizer.sha256,
        "tensors_sha256": state_sha256(tensors),
        "parameters": bank.size(language),
        "training": training,
    }
    save_weights(folder / "pack.safetensors", tensors)
    with atomic_write(folder / "pack.yaml") as stream:
        yaml.safe_dump(description, stream, sort_keys=False, allow_unicode=True)


def read_pack(folder: Path) -> dict[str, Any]:
    """A pack's description. Raises PelasrError if there is none, or it is not one of this format."""
    path = folder / "pack.yaml"
    if not path.exists():
        have = [pack.parent.name for pack in sorted(folder.parent.glob("*/pack.yaml"))]
        raise PelasrError(f"{folder}: no pack of {folder.name!r}; {nearest(folder.name, have)} (fit it with stage 5)")
    description = load_yaml(path)
    require_keys(description, KEYS, str(path))
    check_keys(description, KEYS, str(path))
    if description["format"] != FORMAT:
        raise PelasrError(f"{path}: format {description['format']}, this version reads {FORMAT}")
    return description


def load_bank(packs: Path, languages: list[str], backbone: LoadedBackbone) -> Bank:
    """A bank with the packs `<packs>/<language>`, attached to the backbone.

    Raises PelasrError for a pack of another language, method, backbone or token list, and for any tensor that is
    missing, unexpected, misshapen, not finite, or not the one that was saved.
    """
    bank = None
    for language in languages:
        folder = packs / language
        description = read_pack(folder)
        if description["language"] != language:
            raise PelasrError(f"{folder}: holds {description['language']!r}, not {language!r}")
        if bank is None:
            bank = make_bank(description["adapter"], description["adapter_conf"], backbone.module)
        for key, expected in (
            ("adapter", bank.method),
            ("adapter_conf", bank.options),
            ("sites", bank.sites),
            ("backbone_sha256", backbone.sha256),
            ("tokens_sha256", backbone.tokenizer.sha256),
        ):
            if description[key] != expected:
                raise PelasrError(
                    f"{folder}/pack.yaml: {key} is {_short(description[key])}, this model's is {_short(expected)};"
                    " fit it again with the method, backbone and tokens of the others, or load those it was fitted with"
                )
        bank.add(language, share=False)
        put_tensors(bank, language, _read_tensors(folder, description), str(folder / "pack.safetensors"))
    if bank is None:
        raise PelasrError(f"{packs}: no languages asked for")
    bank.attach(backbone.module)
    bank.eval()
    return bank


def put_tensors(bank: Bank, language: str, tensors: dict[str, Tensor], where: str) -> None:
    """Copy tensors into a language's adapters, strictly."""
    live = bank.tensors(language)
    check_tensors(tensors, live, where)
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(tensors[name])


def _read_tensors(folder: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / "pack.safetensors"
    tensors = load_weights(path)
    if state_sha256(tensors) != description["tensors_sha256"]:
        raise PelasrError(f"{path}: not the tensors that pack.yaml describes: incomplete or altered; fit it again")
    return tensors


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
