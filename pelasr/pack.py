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
from pelasr.private import Private

FORMAT = 2
KEYS = (
    "format",
    "language",
    "adapter",
    "adapter_conf",
    "sites",
    "own_tokens",
    "own_vector",
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
    private = bank.private_of(language)
    description = {
        "format": FORMAT,
        "language": language,
        "adapter": bank.method,
        "adapter_conf": bank.options,
        "sites": bank.sites,
        "own_tokens": bank.own_tokens(language),
        "own_vector": private is not None and private.vector,
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
    """A bank with the packs `<packs>/<language>`, attached to the backbone; see `load_pack`."""
    bank = None
    for language in languages:
        folder = packs / language
        if bank is None:
            bank = bank_for(folder, backbone)
        load_pack(folder, bank, backbone, language)
    if bank is None:
        raise PelasrError(f"{packs}: no languages asked for")
    return bank


def bank_for(folder: Path, backbone: LoadedBackbone) -> Bank:
    """An empty bank of the method of a pack, attached to the backbone, in evaluation mode."""
    description = read_pack(folder)
    bank = make_bank(description["adapter"], description["adapter_conf"], backbone.module)
    bank.attach(backbone.module)
    return bank.eval()


def load_pack(folder: Path, bank: Bank, backbone: LoadedBackbone, language: str | None = None) -> str:
    """Add a pack's language to a bank; returns the language.

    Raises PelasrError for a pack of another language than `language`, another method, backbone or token list, for a
    language that the bank has already, and for any tensor that is missing, unexpected, misshapen, not finite, or not
    the one that was saved.
    """
    description = read_pack(folder)
    if language is not None and description["language"] != language:
        raise PelasrError(f"{folder}: holds {description['language']!r}, not {language!r}")
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
    bank.add(description["language"], share=False, private=_private(description, backbone))
    put_tensors(bank, description["language"], _read_tensors(folder, description), str(folder / "pack.safetensors"))
    bank.eval()
    return description["language"]


def _private(description: dict[str, Any], backbone: LoadedBackbone) -> Private | None:
    tokens, vector = description["own_tokens"], description["own_vector"]
    return Private(backbone.module, tokens, vector) if tokens or vector else None


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
