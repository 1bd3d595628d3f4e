"""What a method that fuses the packs of another experiment is made of."""

from pathlib import Path
from typing import Any

import torch

from pelasr.adapters.bank import Bank
from pelasr.backbones.store import LoadedBackbone
from pelasr.errors import PelasrError, brief, nearest
from pelasr.files import sha256_file
from pelasr.packs.format import PackDescription
from pelasr.packs.pack import Pack, open_pack, own_parts, read_pack
from pelasr.train.options import AdapterConfig

ALL = "all"  # the backbone's languages


def with_packs(
    config: AdapterConfig, packs: Path, known: list[str], languages: list[str]
) -> tuple[AdapterConfig, dict[str, str]]:
    """A configuration with the method and the options of the packs that it fuses, and their hashes by language.

    `packs`: the folder of those that were fitted. `known`: languages of the backbone. `languages`: to be fitted;
    each must have a pack there itself. Raises PelasrError for `sources` without packs, or that are not the
    backbone's, and for packs of several methods.
    """
    options = dict(config.options)
    if own := {"method", "method_conf"} & set(options):
        raise PelasrError(f"adapter_conf: {min(own)}: is that of the packs in {packs}; leave it out")
    sources = options.get("sources", ALL)
    sources = known if sources == ALL else [sources] if isinstance(sources, str) else sources
    if not isinstance(sources, list):
        raise PelasrError(f"adapter_conf: sources: {brief(repr(sources))}: want languages, in a list, or {ALL}")
    if other := [language for language in sources if language not in known]:
        raise PelasrError(f"adapter_conf: sources: {other[0]!r} is not the backbone's; {nearest(str(other[0]), known)}")
    wanted = list(dict.fromkeys([*sources, *languages]))
    if missing := [language for language in wanted if not (packs / language / "pack.yaml").exists()]:
        raise PelasrError(f"{packs}: no pack of {missing[0]}, which is fused: fit {packs.parent.name} on it first")
    descriptions = {language: read_pack(packs / language) for language in wanted}
    first = descriptions[wanted[0]]
    for language, found in descriptions.items():
        if _making(found) != _making(first):
            raise PelasrError(f"{packs / language}: another method or options than {wanted[0]}: fit it again")
    made = {"method": first.adapter, "method_conf": first.adapter_conf, "sources": sources}
    hashes = {language: sha256_file(packs / language / "pack.yaml") for language in wanted}
    return config._replace(options=options | made), hashes


def _making(description: PackDescription) -> tuple[str, dict[str, Any]]:
    return description.adapter, description.adapter_conf


class Sources:
    """The packs that a fit fuses, each opened once. `hashes`: what they were when the fit was planned."""

    def __init__(self, folder: Path, hashes: dict[str, str], backbone: LoadedBackbone):
        self.packs: dict[str, Pack] = {}
        for language, sha256 in hashes.items():
            if sha256_file(folder / language / "pack.yaml") != sha256:
                raise PelasrError(f"{folder / language}: has just become another pack: begin again")
            self.packs[language] = open_pack(folder / language, backbone, language)

    @torch.no_grad()
    def add(self, bank: Bank, language: str, backbone: LoadedBackbone) -> None:
        """Add a language whose adapters are made of the packs, and which has the own parts of its pack."""
        pack = self.packs[language]
        bank.add(language, own=own_parts(pack.description, backbone))
        own = bank.own_of(language)
        for name, tensor in (own.tensors() if own is not None else {}).items():
            tensor.copy_(pack.tensors[name])
        sources = [language, *(other for other in bank.options["sources"] if other != language)]
        for path, adapter in bank.of(language).items():
            made: Any = adapter
            for number in range(len(made.there)):
                found = self.packs[sources[number]].tensors.items()
                made.load(number, {n.removeprefix(f"{path}/"): t for n, t in found if n.startswith(f"{path}/")})


def sources_of(folder: Path | None, hashes: dict[str, str], bank: Bank, backbone: LoadedBackbone) -> Sources | None:
    """What a fit fuses, if its method does; see `Sources`. Raises PelasrError if there is nothing to fuse."""
    if folder is not None:
        return Sources(folder, hashes, backbone)
    if bank.cls.fuses:
        raise PelasrError(f"adapter {bank.method} is made of another experiment's packs: fit it by a recipe's stage 5")
    return None
