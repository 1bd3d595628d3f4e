"""MMS (Pratap et al. 2024) as an experiment: its encoder is the backbone, each language's adapter and output layer a
pack."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from pelasr.adapters.finetune import make_bank
from pelasr.adapters.own import OwnParts
from pelasr.backbones.base import Backbone, build_backbone
from pelasr.backbones.format import BACKBONE_FACTS
from pelasr.backbones.pretrained import Pretrained, load_pretrained, pretrained_sha256
from pelasr.backbones.source import Source, find_backbone_of, write_model
from pelasr.backbones.store import LoadedBackbone, describe_backbone, load_backbone
from pelasr.data.tokenizer import SPECIAL, Tokenizer
from pelasr.errors import PelasrError, brief, counted
from pelasr.files import atomic_write
from pelasr.importers.aside import aside, check_free
from pelasr.importers.mms_folder import MMS, Language, read_mms
from pelasr.nn.defaults import settled
from pelasr.packs.format import PackDescription
from pelasr.packs.pack import Pack, open_pack, read_bound, save_pack
from pelasr.progress import say
from pelasr.storage import check_tensors, save_weights, state_sha256

METHOD = "houlsby"


def import_mms(folder: Path, wanted: list[str] | None, exp: Path) -> None:
    """Make an experiment of an MMS model's folder, or add languages to one that was made of it.

    `wanted`: languages, by the model's codes or by keys; None: all that there are adapters of. Everything is checked
    before anything is written. Raises PelasrError for what is no MMS model, for a language that there is nothing of or
    another pack of, and where another backbone is in the experiment.
    """
    source = read_mms(folder)
    codes = source.choose(wanted)
    if os.path.lexists(exp / "backbone.yaml") or os.path.lexists(exp / "model.yaml"):
        _add(source, codes, exp)
        return
    module = _encoder(source.pretrained)
    check_free(exp)
    for code in codes.values():
        source.read(code)
    with aside(exp) as made:
        save_weights(made / "backbone.safetensors", module.state_dict())
        count = sum(parameter.numel() for parameter in module.parameters())
        del module  # it is read again
        facts = {"training": {"imported": {"from": _name(folder)}}}
        Tokenizer(SPECIAL).save(made / "tokens")
        describe_backbone(made, "ctc", _options(source.pretrained), list(codes), made / "tokens", facts)
        with atomic_write(made / BACKBONE_FACTS) as stream:
            found = {"total_parameters": count, "seed": 0, "config_sha256": pretrained_sha256(folder)}
            json.dump(found, stream, indent=1)
        write_model(made, Source(made))
        backbone = load_backbone(made)
        for key, code in codes.items():
            _write(made / "packs" / key, key, source.read(code), source, backbone)
        made.rename(exp)
    say(f"{exp}: a backbone of {count:,} parameters, {_shown(codes)}")


def _add(source: MMS, codes: dict[str, str], exp: Path) -> None:
    """Packs for an experiment that has a backbone."""
    here = state_sha256(_encoder(source.pretrained).state_dict())  # of two such models one alone is in memory
    backbone = load_backbone(*find_backbone_of(exp))
    _check_backbone(source, here, backbone, exp)
    for path in sorted(exp.glob("packs/*/pack.yaml"))[:1]:
        _check_making(path.parent, read_bound(path.parent, backbone), source.width)
    missing = {}
    for key, code in codes.items():
        pack, language = exp / "packs" / key, source.read(code)
        if not os.path.lexists(pack):
            missing[key] = code
        elif not _is_of(open_pack(pack, backbone, key), language):
            raise PelasrError(f"{pack}: there is another pack of {key!r}; delete it first, or leave {code} out")
    (exp / "packs").mkdir(exist_ok=True)
    for key, code in missing.items():
        with aside(exp / "packs" / key, exp) as made:
            _write(made, key, source.read(code), source, backbone)
            made.rename(exp / "packs" / key)
    there = [key for key in codes if key not in missing]
    if missing:
        say(f"{exp}: {_shown(missing)} added")
    if there:
        say(f"{exp}: {_shown(there)} there already")


def _shown(keys: Iterable[str]) -> str:
    keys = list(keys)
    return f"{counted(len(keys), 'pack')} ({brief(' '.join(keys), 200)})"


def _encoder(pretrained: Pretrained) -> Backbone:
    """The backbone of a folder."""
    module = build_backbone("ctc", _options(pretrained), len(SPECIAL), 1)
    with torch.no_grad():
        module.get_parameter("mask_embedding").zero_()  # which a folder need not have
    load_pretrained(pretrained, module)
    return module


def _options(pretrained: Pretrained) -> dict:
    """Of a backbone that is taken as it is."""
    options: dict = {"encoder": pretrained.encoder, "encoder_conf": pretrained.encoder_conf}
    options |= {"masks": pretrained.mask_conf} if pretrained.mask_conf else {}
    return {**options, "objective": "none", "layers": "last", "normalise": pretrained.normalise}


def _write(folder: Path, key: str, language: Language, source: MMS, backbone: LoadedBackbone) -> None:
    """A language's pack."""
    bank = make_bank(METHOD, {"bottleneck": source.width}, backbone.module)
    bank.add(key, own=OwnParts(backbone.module, language.own_tokens, vector=False))
    check_tensors(language.tensors, bank.tensors(key), f"{source.folder}: {language.code}")
    tensors = {name: language.tensors[name] for name in bank.tensors(key)}
    facts = {"code": language.code, "imported": _origin(source, language)}
    save_pack(folder, bank, key, tensors, backbone, facts)


def _is_of(pack: Pack, language: Language) -> bool:
    """Whether a pack holds a language as the model has it."""
    if pack.description.own_tokens != language.own_tokens or pack.tensors.keys() != language.tensors.keys():
        return False
    return all(torch.equal(tensor, language.tensors[name]) for name, tensor in pack.tensors.items())


def _origin(source: MMS, language: Language) -> dict[str, str]:
    """Where a pack comes from."""
    return {"from": _name(source.folder), "sha256": language.sha256}


def _name(folder: Path) -> str:
    return folder.resolve().name


def _check_backbone(source: MMS, here: str, backbone: LoadedBackbone, exp: Path) -> None:
    """Raise PelasrError if an experiment has another backbone than the folder's, whose hash is `here`."""
    there, said = backbone.sha256, backbone.description
    same = (said.backbone, said.options) == ("ctc", settled(_options(source.pretrained)))
    if there != here or not same:
        what = f"{there[:12]}, with {here[:12]}" if there != here else "the same weights, with other options"
        raise PelasrError(
            f"{exp}: its backbone is not that of {source.folder} ({what}); import the model to another folder"
        )


def _check_making(folder: Path, pack: PackDescription, width: int) -> None:
    """Raise PelasrError for a pack beside which imported ones could not be used."""
    found, wanted = (pack.adapter, pack.adapter_conf), (METHOD, {"bottleneck": width})
    if found != wanted:
        made = f"{brief(found[0])} {brief(found[1])}, not {wanted[0]} {wanted[1]}"
        raise PelasrError(f"{folder}: made by {made}; import the model to another folder")
