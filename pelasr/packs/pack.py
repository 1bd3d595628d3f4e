"""Packs: what one language adds to a backbone, as files: `pack.safetensors` and `pack.yaml`, never a pickle.

A pack may come from anywhere. Nothing of it is used before all of it is as it must be, and nothing is allocated that
the backbone and the sizes of the files do not account for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelasr.adapters.bank import Bank
from pelasr.adapters.finetune import make_bank
from pelasr.adapters.own import HEAD, VECTOR, OwnParts
from pelasr.backbones.store import LoadedBackbone
from pelasr.errors import PelasrError, brief, nearest
from pelasr.files import sha256_file
from pelasr.packs.format import CURE, FORMAT, PackDescription, again, check_description, read_checked
from pelasr.storage import check_size, check_tensors, load_weights, save_weights, state_sha256, write_description


@dataclass(frozen=True)
class Pack:
    """A pack that was opened: what it says of itself, and its tensors {"<site path>/<parameter>": tensor}."""

    folder: Path
    description: PackDescription
    tensors: dict[str, Tensor]


def save_pack(
    folder: Path, bank: Bank, language: str, tensors: dict[str, Tensor], backbone: LoadedBackbone, training: dict
) -> None:
    """Write a language's tensors (keys `<site path>/<parameter>`, as the bank has them) and what they are bound to.

    The description is written last and holds the hash of the tensors' file, so that a half-written pack is never taken
    for whole. Raises PelasrError for what could not be loaded again, such as a language with a strange name.
    """
    own = bank.own_of(language)
    content = {
        "format": FORMAT,
        "language": language,
        "adapter": bank.method,
        "adapter_conf": bank.options,
        "sites": bank.sites_for(own),
        "own_tokens": bank.own_tokens(language),
        "own_vector": own is not None and own.vector,
        "backbone_sha256": backbone.sha256,
        "tokens_sha256": backbone.tokenizer.sha256,
        "safetensors_sha256": "0" * 64,  # until the file is written
        "parameters": bank.size(language),
        "training": training,
    }
    _check_binding(folder, check_description(content, folder / "pack.yaml"), backbone)
    save_weights(folder / "pack.safetensors", bank.settled(language, tensors))
    content["safetensors_sha256"] = sha256_file(folder / "pack.safetensors")
    write_description(folder / "pack.yaml", content)


def read_pack(folder: Path) -> PackDescription:
    """A pack's description alone. Raises PelasrError if there is none, or it is not one of this format."""
    path = folder / "pack.yaml"
    if not path.exists():
        raise PelasrError(
            f"{folder}: no pack of {folder.name!r}; {nearest(folder.name, _beside(folder))} (fit it with stage 5)"
        )
    return read_checked(path)


def read_bound(folder: Path, backbone: LoadedBackbone, language: str | None = None) -> PackDescription:
    """As `read_pack`. Raises PelasrError too for a pack of another language than `language`, and of another backbone or
    token list."""
    description = read_pack(folder)
    _check_binding(folder, description, backbone)
    if language is not None and description.language != language:
        there = ", ".join(_beside(folder))
        raise PelasrError(
            f"{folder}: holds {description.language!r}, not {language!r}; packs in {folder.parent}: {there}"
        )
    return description


def open_pack(folder: Path, backbone: LoadedBackbone, language: str | None = None) -> Pack:
    """A pack of this backbone.

    Raises PelasrError for a pack of another language than `language`, of another backbone or token list, of a method or
    options that there are not, and for any tensor that is missing, unexpected, misshapen, not finite, or not the one
    that was saved.
    """
    description = read_bound(folder, backbone, language)
    expected = _expected(folder, description, backbone)
    path, cure = folder / "pack.safetensors", f"restore it, or {again(description)}"
    check_size(path, expected, cure)
    tensors = load_weights(path, description.safetensors_sha256, cure)
    check_tensors(tensors, expected, str(path))
    return Pack(folder, description, tensors)


def _expected(folder: Path, description: PackDescription, backbone: LoadedBackbone) -> dict[str, Tensor]:
    """The tensors that a pack must have, without memory for them: the options of a hostile one may ask for any size."""
    language = description.language
    try:
        probe = make_bank(description.adapter, description.adapter_conf, backbone.module)
        with torch.device("meta"):
            probe.add(language, own=own_parts(description, backbone), settled=True)
    except PelasrError as error:
        raise PelasrError(f"{folder}/pack.yaml: {error}") from None
    if description.sites != (sites := probe.sites_for(probe.own_of(language))):
        raise _differs(folder, "sites", description, sites)
    if description.parameters != (count := probe.size(language)):
        raise _differs(folder, "parameters", description, count)
    return probe.tensors(language)


def bank_for(pack: Pack, backbone: LoadedBackbone) -> Bank:
    """An empty bank of a pack's method, in evaluation mode."""
    return make_bank(pack.description.adapter, pack.description.adapter_conf, backbone.module).eval()


def load_pack(pack: Pack, bank: Bank, backbone: LoadedBackbone) -> None:
    """Add a pack's language to a bank. Raises PelasrError for a pack of another method than the bank's, and for a
    language that the bank has already."""
    language = pack.description.language
    check_making(pack, bank.method, bank.options)
    bank.add(language, own=own_parts(pack.description, backbone), settled=True)
    with torch.no_grad():
        for name, parameter in bank.tensors(language).items():
            parameter.copy_(pack.tensors[name])
    bank.eval()


def load_bank(packs: Path, languages: list[str], backbone: LoadedBackbone) -> Bank:
    """A bank with the packs `<packs>/<language>`; see `open_pack` and `load_pack`."""
    bank = None
    for language in languages:
        pack = open_pack(packs / language, backbone, language)
        if bank is None:
            bank = bank_for(pack, backbone)
        load_pack(pack, bank, backbone)
    if bank is None:
        raise PelasrError(f"{packs}: no languages asked for")
    return bank


def check_making(pack: Pack, method: str, options: dict[str, Any]) -> None:
    """Raise PelasrError for a pack that is not of this method with these options."""
    for key, expected in (("adapter", method), ("adapter_conf", options)):
        if getattr(pack.description, key) != expected:
            raise _differs(pack.folder, key, pack.description, expected)


def own_parts(description: PackDescription, backbone: LoadedBackbone) -> OwnParts | None:
    """What a pack's language has beside adapters, yet without values."""
    tokens, vector = description.own_tokens, description.own_vector
    return OwnParts(backbone.module, tokens, vector) if tokens or vector else None


def identical(tensors: Mapping[str, Mapping[str, Tensor]]) -> list[tuple[str, str]]:
    """Of the tensors of several languages, own ones included: pairs of languages that are the same bit by bit."""
    hashes = {language: state_sha256(found) for language, found in tensors.items()}
    return [(one, other) for one, other in combinations(hashes, 2) if hashes[one] == hashes[other]]


def _check_binding(folder: Path, description: PackDescription, backbone: LoadedBackbone) -> None:
    """Raise PelasrError for a pack that is not of this backbone, or whose own tokens are not its own."""
    if description.backbone_sha256 != backbone.sha256:
        fitting = ", ".join(name for name in _beside(folder) if _is_of(folder.with_name(name), backbone)) or "none"
        error = _differs(folder, "backbone_sha256", description, backbone.sha256, most=15)
        raise PelasrError(f"{error}; packs beside it that fit this model: {fitting}")
    if description.tokens_sha256 != backbone.tokenizer.sha256:
        raise _differs(folder, "tokens_sha256", description, backbone.tokenizer.sha256, most=15)
    if shared := set(description.own_tokens) & set(backbone.tokenizer.tokens):
        raise PelasrError(f"{folder}/pack.yaml: own_tokens: the backbone has {brief(min(shared))} itself; {CURE}")
    language, known, kinds = description.language, backbone.languages, backbone.module.own_sites().values()
    if HEAD in kinds and not description.own_tokens:
        raise PelasrError(f"{folder}/pack.yaml: own_tokens: none, but the output layer is to be the pack's own; {CURE}")
    if language not in known and not description.own_vector and VECTOR in kinds:
        raise PelasrError(
            f"{folder}/pack.yaml: {language!r} is new to the backbone ({' '.join(known)}) and has no vector; {CURE}"
        )


def _differs(folder: Path, key: str, description: PackDescription, expected: Any, most: int = 40) -> PelasrError:
    """`most`: characters of a value that are shown; of longer mappings the first entry that differs is."""
    found = getattr(description, key)
    if isinstance(found, dict) and max(len(str(found)), len(str(expected))) > most:
        name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
        sides = [f"{brief(x[name])} at {name}" if name in x else f"without {name}" for x in (found, expected)]
        (found, expected), most = sides, 150
    return PelasrError(
        f"{folder}/pack.yaml: {key} is {brief(found, most)}, this model's is {brief(expected, most)};"
        f" {again(description)} with the method, backbone and tokens of the others, or load those it was made with"
    )


def _beside(folder: Path) -> list[str]:
    """Names of the packs in the folder's folder."""
    return [path.parent.name for path in sorted(folder.parent.glob("*/pack.yaml"))]


def _is_of(folder: Path, backbone: LoadedBackbone) -> bool:
    try:
        return read_pack(folder).backbone_sha256 == backbone.sha256
    except PelasrError:  # it is only to be listed
        return False
