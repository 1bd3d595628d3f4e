"""What `pelasr packs` does: list, show, verify, merge, fold, export and import packs."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from pelasr.adapters.fold import fold
from pelasr.backbones.source import find_backbone_of
from pelasr.backbones.store import LoadedBackbone, describe_backbone, load_backbone
from pelasr.data.language import check_language
from pelasr.errors import PelasrError, brief
from pelasr.files import atomic_write, sha256_file, sha256_json
from pelasr.packs.card import TaskOf, dev_score, figures_of, make_card
from pelasr.packs.format import again
from pelasr.packs.pack import (
    Pack,
    bank_for,
    check_making,
    load_pack,
    open_pack,
    own_parts,
    read_bound,
    read_pack,
    save_pack,
)
from pelasr.storage import check_tensors, load_weights, save_weights, sizes, state_sha256

FILES = ("pack.safetensors", "pack.yaml")
ALONE = 1 << 32  # bytes of a pack's tensors at most, where no model says how many they are
COLUMNS = ("language", "method", "parameters", "dev", "own tokens", "pack")


def list_packs(folders: Sequence[Path]) -> None:
    """Print a table of all packs below some folders. Raises PelasrError if one has an unreadable description."""
    found = [path.parent for folder in folders for path in sorted(folder.rglob("pack.yaml"))]
    if not found:
        raise PelasrError(f"{' '.join(map(str, folders))}: no packs here")
    rows: list[tuple[str, ...]] = [COLUMNS]
    refused = []
    for folder in found:
        try:
            pack = read_pack(folder)
        except PelasrError as error:
            refused.append(f"refused: {error}")
            continue
        own = f"{len(pack.own_tokens)} {brief(' '.join(pack.own_tokens))}".strip()
        rows.append((pack.language, brief(pack.adapter), f"{pack.parameters:,}", dev_score(pack), own, str(folder)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    _finish(refused, len(found))


def show_pack(folder: Path) -> None:
    """Print a pack's description."""
    print(yaml.safe_dump(asdict(read_pack(folder)), sort_keys=False, allow_unicode=True), end="")


def verify_packs(folders: Sequence[Path], model: Path | None) -> None:
    """Check packs by themselves, and with `model` whether they belong to it; print a line for each, and which hold the
    same tensors. Raises PelasrError if any is refused."""
    backbone = _backbone(model) if model is not None else None
    refused, seen = [], {}
    for folder in folders:
        try:
            pack = _open(folder, backbone)
        except PelasrError as error:
            refused.append(f"refused: {error}")
            print(refused[-1])
            continue
        against = f"belongs to {model}" if model is not None else "not compared with a model"
        said = pack.description
        print(f"ok: {folder}: {said.language}, {brief(said.adapter)}, {said.parameters:,} parameters, {against}")
        same = seen.setdefault(state_sha256(pack.tensors), folder)
        if same is not folder:
            print(f"{folder}: holds the same tensors as {same}")
    _finish(refused, len(folders), say=False)


def _finish(refused: list[str], count: int, say: bool = True) -> None:
    if say:
        for line in refused:
            print(line)
    if refused:
        raise PelasrError(f"{len(refused)} of {count} packs refused")


def merge_packs(
    packs: Sequence[Path], weights: Sequence[float] | None, language: str, output: Path, model: Path
) -> None:
    """Write the weighted average of packs of the same making as a pack of `language`.

    Weights are divided by their sum; None: all alike. Raises PelasrError for packs that differ in anything but tensors
    and language.
    """
    if weights is None:
        weights = [1.0] * len(packs)
    if len(weights) != len(packs) or len(packs) < 2:
        raise PelasrError(f"merge: {len(packs)} packs and {len(weights)} weights; want at least two, a weight for each")
    if not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise PelasrError(f"merge: weights {' '.join(map(str, weights))}: want numbers from 0 on, not all 0")
    check_language(language, "merge: --language")
    _check_free(output)
    backbone = _backbone(model)
    opened = [open_pack(folder, backbone) for folder in packs]
    bank, first = bank_for(opened[0], backbone), opened[0].description
    if bank.cls.fuses:
        raise PelasrError(f"merge: {first.adapter}: packs that are made of others' adapters have no average")
    for pack in opened:
        check_making(pack, first.adapter, first.adapter_conf)
        for key in ("own_tokens", "own_vector"):
            found, wanted = getattr(pack.description, key), getattr(first, key)
            if found != wanted:
                raise PelasrError(
                    f"{pack.folder}/pack.yaml: {key} is {brief(found)}, of {packs[0]} {brief(wanted)};"
                    " packs can be merged if all but their tensors is alike"
                )
    shares = [weight / sum(weights) for weight in weights]
    said = [pack.description for pack in opened]
    merged = [
        {"language": each.language, "weight": share, "safetensors_sha256": each.safetensors_sha256}
        for each, share in zip(said, shares, strict=True)
    ]
    training = {"merged": merged, "seed": 0, "config_sha256": sha256_json(merged)}
    bank.add(language, own=own_parts(first, backbone), settled=True)
    save_pack(output, bank, language, _average([pack.tensors for pack in opened], shares), backbone, training)
    print(f"{output}: {language}, the average of {' '.join(map(str, packs))}")


def _average(states: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """In float64; what is not floating-point is rounded."""
    found = {}
    for name, tensor in states[0].items():
        mean: Any = sum(share * state[name].double() for state, share in zip(states, shares, strict=True))
        found[name] = (mean if tensor.is_floating_point() else mean.round()).to(tensor.dtype)
    return found


def fold_pack(folder: Path, output: Path, model: Path) -> None:
    """Write a backbone whose weights do alone what the model's do with a pack: `backbone.safetensors` and the rest of a
    backbone's folder. Raises PelasrError, see `pelasr.adapters.fold`, for packs that no weights can express."""
    _check_free(output)
    source, weights = find_backbone_of(model)
    backbone = load_backbone(source, weights)
    pack = open_pack(folder, backbone)
    bank = bank_for(pack, backbone)
    load_pack(pack, bank, backbone)
    fold(backbone.module, bank, pack.description.language)
    save_weights(output / "backbone.safetensors", backbone.module.state_dict())
    keys = ("language", "adapter", "backbone_sha256", "safetensors_sha256")
    describe_backbone(
        output,
        backbone.description.backbone,
        backbone.description.options,
        backbone.languages,
        source / "tokens",
        {
            "folded": {key: getattr(pack.description, key) for key in keys},
            **({"task": task} if (task := backbone.description.task) else {}),
        },
    )
    print(f"{output}: the backbone {source} with {folder} folded into its weights")


def export_pack(pack: Path, output: Path, task_of: TaskOf) -> None:
    """Write a folder for a model hub: the pack's files, and a card with what the results of its experiment say;
    `task_of`: see `make_card`."""
    _check_free(output)
    description = _open(pack, None).description
    output.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(pack / name, output / name)
    with atomic_write(output / "README.md") as stream:
        stream.write(make_card(description, figures_of(pack, description), task_of))
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


def import_pack(source: Path, model: Path) -> None:
    """Copy a pack into `<model>/packs/<language>`, in one step, if it belongs to the model and is of one making with
    the packs that are there. Raises PelasrError if there is another pack of the language."""
    backbone, packs = _backbone(model), model / "packs"
    pack = open_pack(source, backbone)
    description = pack.description
    if first := next(iter(sorted(packs.glob("*/pack.yaml"))), None):
        other = read_bound(first.parent, backbone)
        check_making(pack, other.adapter, other.adapter_conf)
    target = packs / description.language
    if os.path.lexists(target):
        if all(_same(target / name, source / name) for name in FILES):
            print(f"{target}: is this pack already")
            return
        there = "another pack of" if target.exists() else "a link that leads nowhere in the place of a pack of"
        raise PelasrError(f"{target}: there is {there} {description.language!r}; delete it first")
    aside = model / f".import.{os.getpid()}"
    try:
        aside.mkdir()
        for name in FILES:
            shutil.copyfile(source / name, aside / name)
        packs.mkdir(exist_ok=True)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(f"{target}: {description.adapter}, {description.parameters:,} parameters")


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and sha256_file(one) == sha256_file(other)


def _backbone(model: Path) -> LoadedBackbone:
    return load_backbone(*find_backbone_of(model))


def _open(folder: Path, backbone: LoadedBackbone | None) -> Pack:
    """A pack, checked against its backbone as far as that is given."""
    if backbone is not None:
        return open_pack(folder, backbone)
    description, path = read_pack(folder), folder / "pack.safetensors"
    cure = f"restore it, or {again(description)}"
    if sizes(path, cure)[1] > ALONE:
        raise PelasrError(f"{path}: more than {ALONE} bytes; compare it with the --model that it is for")
    tensors = load_weights(path, description.safetensors_sha256, cure)
    check_tensors(tensors, tensors, str(path))
    return Pack(folder, description, tensors)


def _check_free(output: Path) -> None:
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        raise PelasrError(f"{output}: exists already; delete it, or name another folder")
