"""Mutated packs, backbones and checkpoints: each is refused in a line that names the file, and none loads.

Some mutations are accidents (a flipped bit, a file cut off), others have all hashes right: another hand made them.
"""

import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_exp import make_exp, retensor, rewrite
from torch import nn

from pelasr.backbones.store import load_backbone
from pelasr.errors import PelasrError
from pelasr.files import sha256_file
from pelasr.packs.pack import load_bank
from pelasr.storage import load_weights, read_description, save_weights, write_description
from pelasr.train.checkpoint import load_checkpoint, save_checkpoint
from pelasr.train.kept import BestBackbones
from pelasr.train.loop import Fit
from pelasr.train.options import TrainingOptions

PACK, BACKBONE, CHECKPOINT, KEPT = "A5/packs/uk", "A1", "A1/last.ckpt", "A1/epochs/001.safetensors"
WEIGHT, EMBED, VECTOR = "encoder.layers.1/down.weight", "prediction.embed/weight", "language_vector/vector"
BIAS = "joint.lin_out.bias"


def flip(seed):
    """One bit, anywhere in the file."""

    def change(path):
        content = bytearray(path.read_bytes())
        bit = random.Random(seed).randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)

    return change


def cut(share):
    """What is left of a file; 1: all but its last byte."""

    def change(path):
        content = path.read_bytes()
        path.write_bytes(content[: min(int(share * len(content)), len(content) - 1)])

    return change


def longer(path):
    path.write_bytes(path.read_bytes() + b"\n")


def tensors(change):
    return lambda pack: retensor(pack, change)


def renamed(name):
    return tensors(lambda state: state.update({f"{name}s": state.pop(name)}))


def replaced(name, make):
    return tensors(lambda state: state.update({name: make(state[name])}))


def described(**changes):
    return lambda pack: rewrite(pack, **changes)


def weights(change):
    """Other tensors in a backbone, with the hash that they have."""

    def mutate(folder):
        path = folder / "backbone.safetensors"
        state = load_weights(path)
        change(state)
        save_weights(path, state)
        backbone_says(weights={"backbone": sha256_file(path)})(folder)

    return mutate


def backbone_says(**changes):
    def mutate(folder):
        path = folder / "backbone.yaml"
        write_description(path, {**read_description(path, ""), **changes})

    return mutate


def checkpoint(change):
    """Another state in last.ckpt, with the hash that it has."""

    def mutate(path):
        state = load_checkpoint(path)
        change(state)
        save_checkpoint(path, state)

    return mutate


def nan(tensor):
    return tensor.index_fill(0, torch.tensor([0]), torch.nan)


PACK_HASHES = ("backbone_sha256", "tokens_sha256", "safetensors_sha256")
MUTATIONS = {
    **{f"pack bit {n}": (f"{PACK}/pack.safetensors", flip(n)) for n in range(12)},
    **{f"pack cut {share}": (f"{PACK}/pack.safetensors", cut(share)) for share in (0, 0.01, 0.5, 0.9, 1)},
    **{f"pack.yaml bit {n}": (f"{PACK}/pack.yaml", flip(n)) for n in range(12)},
    **{f"pack.yaml cut {share}": (f"{PACK}/pack.yaml", cut(share)) for share in (0, 0.1, 0.5, 0.9, 1)},
    **{f"{name} longer": (f"{PACK}/{name}", longer) for name in ("pack.safetensors", "pack.yaml")},
    **{f"{name} renamed": (PACK, renamed(name)) for name in (WEIGHT, EMBED, VECTOR)},
    **{f"{name} missing": (PACK, tensors(lambda state, name=name: state.pop(name))) for name in (WEIGHT, EMBED)},
    "surplus": (PACK, tensors(lambda state: state.update(surplus=torch.ones(1)))),
    **{f"{name} longer": (PACK, replaced(name, lambda t: torch.cat([t, t]))) for name in (WEIGHT, EMBED, VECTOR)},
    **{f"{name} flat": (PACK, replaced(name, torch.Tensor.flatten)) for name in (WEIGHT, EMBED)},
    **{f"{dtype}": (PACK, replaced(WEIGHT, lambda t, d=dtype: t.to(d))) for dtype in (torch.half, torch.int32)},
    **{f"{name} NaN": (PACK, replaced(name, nan)) for name in (WEIGHT, EMBED, VECTOR)},
    **{f"other {key}": (PACK, described(**{key: "ab" * 32})) for key in PACK_HASHES},
    "a token less": (PACK, described(own_tokens=["ї"])),
    "a token more": (PACK, described(own_tokens=["ї", "ґ", "є"])),
    "no vector": (PACK, described(own_vector=False)),
    "other method": (PACK, described(adapter="lora", adapter_conf={})),
    "other options": (PACK, described(adapter_conf={"bottleneck": 5})),
    "other sites": (PACK, described(sites={"encoder.layers.0": 6})),
    "other language": (PACK, described(language="be")),
    **{f"backbone bit {n}": (f"{BACKBONE}/backbone.safetensors", flip(n)) for n in range(8)},
    **{f"backbone cut {share}": (f"{BACKBONE}/backbone.safetensors", cut(share)) for share in (0, 0.5, 1)},
    **{f"backbone.yaml bit {n}": (f"{BACKBONE}/backbone.yaml", flip(n)) for n in range(8)},
    **{f"backbone.yaml cut {share}": (f"{BACKBONE}/backbone.yaml", cut(share)) for share in (0, 0.5, 1)},
    **{f"tokens bit {n}": (f"{BACKBONE}/tokens/tokens.txt", flip(n)) for n in range(8)},
    **{f"tokens cut {share}": (f"{BACKBONE}/tokens/tokens.txt", cut(share)) for share in (0, 0.5, 0.9)},
    "backbone tensor renamed": (BACKBONE, weights(lambda state: state.update({f"{BIAS}s": state.pop(BIAS)}))),
    "backbone tensor missing": (BACKBONE, weights(lambda state: state.pop(BIAS))),
    "backbone tensor shorter": (BACKBONE, weights(lambda state: state.update({BIAS: state[BIAS][1:].clone()}))),
    "backbone tensor NaN": (BACKBONE, weights(lambda state: state.update({BIAS: nan(state[BIAS])}))),
    "backbone with other languages": (BACKBONE, backbone_says(languages=["hi", "ur"])),
    "backbone with another hash of tokens": (BACKBONE, backbone_says(tokens_sha256="ab" * 32)),
    "backbone with another hash of weights": (BACKBONE, backbone_says(weights={"backbone": "ab" * 32})),
    # A consistent other backbone loads, but the packs are not its.
    "other backbone": (BACKBONE, weights(lambda state: state[BIAS].add_(1))),
    **{f"checkpoint bit {n}": (CHECKPOINT, flip(n)) for n in range(12)},
    **{f"checkpoint cut {share}": (CHECKPOINT, cut(share)) for share in (0, 0.01, 0.5, 0.9, 1)},
    "checkpoint longer": (CHECKPOINT, longer),
    **{f"kept bit {n}": (KEPT, flip(n)) for n in range(4)},
    **{f"kept cut {share}": (KEPT, cut(share)) for share in (0, 0.5, 1)},
    "kept deleted": (KEPT, Path.unlink),
    "checkpoint without history": (CHECKPOINT, checkpoint(lambda state: state.pop("history"))),
    "checkpoint renamed": (CHECKPOINT, checkpoint(lambda state: state.update(model=state.pop("trained")))),
    "checkpoint tensor renamed": (CHECKPOINT, checkpoint(lambda state: state["trained"].update(w=torch.ones(1)))),
    "checkpoint shapes": (CHECKPOINT, checkpoint(lambda state: state["trained"].update(weight=torch.ones(3, 3)))),
    "checkpoint place": (CHECKPOINT, checkpoint(lambda state: state["place"].update(epok=1))),
    "checkpoint optimizer": (CHECKPOINT, checkpoint(lambda state: state["optimizer"]["param_groups"].pop())),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    exp = make_exp(tmp_path_factory.mktemp("exp"))
    fit = training(exp)
    place = {"epoch": 1, "batch": 0, "step": 4, "loss": 0.0, "utterances": 0, "skips": 0}
    state = {name: getattr(fit, name).state_dict() for name in ("trained", "optimizer", "schedule")}
    save_weights(exp / KEPT, {"weight": torch.ones(3, 4)})
    kept = {"epochs/001.safetensors": sha256_file(exp / KEPT)}
    save_checkpoint(exp / CHECKPOINT, {**state, "place": place, "first": 0, "history": [], "kept": kept})
    return exp


def training(exp):
    """What a training reads a checkpoint into."""
    trained = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(trained.parameters())
    trained(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return SimpleNamespace(
        checkpoint=exp / CHECKPOINT,
        trained=trained,
        optimizer=optimizer,
        schedule=schedule,
        monitor=SimpleNamespace(resume=lambda history: None, say=lambda text: None),
        kept=BestBackbones(exp / "A1", trained, TrainingOptions()),
        _find_decays=lambda: None,
    )


def load(exp):
    """Everything that there is."""
    backbone = load_backbone(exp / BACKBONE)
    bank = load_bank(exp / "A5/packs", ["hi", "uk"], backbone)
    fit = training(exp)
    Fit._load(fit)
    return backbone, bank, fit


def test_the_unmutated_loads(saved):
    backbone, bank, fit = load(saved)
    assert bank.languages == ["hi", "uk"] and bank.own_tokens("uk") == ["ї", "ґ"]
    assert fit.place.step == 4 and backbone.languages == ["hi", "ur", "pa"]


def test_there_are_enough():
    assert len(MUTATIONS) >= 100


@pytest.mark.parametrize(("where", "mutate"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_mutation_is_refused(saved, tmp_path, where, mutate):
    exp = tmp_path / "exp"
    shutil.copytree(saved, exp)
    mutate(exp / where)
    with pytest.raises(PelasrError) as caught:
        load(exp)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 500
    named = exp / ("A5/packs" if mutate is MUTATIONS["other backbone"][1] else where)
    assert str(named) in text or str(named.parent) + ":" in text
