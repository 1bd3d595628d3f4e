"""Every method on every family, in every operation; `method_matrix.METHODS` says what is expected."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from documents import ROOT
from method_matrix import BEGIN, END, FAMILIES, LANGUAGES, METHODS, PAGE, ROWS, Family, family, table
from method_pages import write_methods
from tiny_exp import retensor
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pelasr.adapters import Adapter
from pelasr.adapters.hooks import added_losses
from pelasr.backbones.store import LoadedBackbone
from pelasr.data.tokenizer import SPECIAL, Tokenizer
from pelasr.errors import PelasrError
from pelasr.nn.frames import inside, set_inside
from pelasr.packs.pack import load_bank, save_pack
from pelasr.storage import state_sha256

EVERY = list(range(len(ROWS)))


@pytest.fixture(autouse=True, scope="module")
def _methods(tmp_path_factory) -> Iterator[None]:
    """A recipe's folder, with the methods of the page."""
    with pytest.MonkeyPatch.context() as patch:
        write_methods(folder := tmp_path_factory.mktemp("recipe"))
        patch.chdir(folder)
        patch.setattr(os, "fsync", lambda number: None)  # of hundreds of packs
        yield


@dataclass(frozen=True)
class Cell:
    """A method on a family, with random values; `before`: what the model puts out and holds without."""

    method: str
    family: Family
    bank: Any
    before: Tensor
    state: dict[str, Tensor]

    @property
    def mixes(self) -> bool:
        return self.bank.mixes_languages

    @property
    def settles(self) -> bool:
        classes = {type(adapter) for adapter in self.bank.of("pa").values()}
        return any(issubclass(each, Adapter) and each.settle is not Adapter.settle for each in classes)

    @property
    def languages(self) -> list[str]:
        """Of the rows; a method that does not mix languages has one."""
        return ROWS if self.mixes else ["ur"] * len(ROWS)

    @contextmanager
    def losses(self, languages: list[str]) -> Iterator[Tensor]:
        """Of rows in these languages (B,), within the route."""
        self.bank.zero_grad()
        with self.bank.route(languages):
            yield sum(added_losses(), self.family.loss(EVERY))

    def gradients(self, languages: list[str] | None = None, rows: list[int] = EVERY) -> dict[str, Tensor]:
        """Of the loss of some rows of a batch in these languages, by parameter; default: the usual ones."""
        with self.losses(languages or self.languages) as losses:
            if losses.requires_grad:  # without own tokens, `output` has nothing to train
                losses[rows].sum().backward()
        return {
            name.replace(".layer.", "."): p.grad.clone()
            for name, p in self.bank.named_parameters()
            if p.grad is not None
        }


@lru_cache(maxsize=1)
def cell(method: str, name: str) -> Cell:
    """Made once for all operations."""
    found = family(name)
    with torch.no_grad():
        before = found.out(EVERY)
    state = {key: tensor.clone() for key, tensor in found.model.state_dict().items()}
    bank = found.bank(method)
    for parameter in bank.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return Cell(method, found, bank, before, state)


def attach(cell: Cell) -> None:
    """What comes out is changed, by every language in its own way."""
    with torch.no_grad(), cell.bank.route(cell.languages):
        changed = cell.family.out(EVERY)
    assert changed.isfinite().all()
    if cell.bank.sites:
        assert not any(torch.equal(a, b) for a, b in zip(changed, cell.before, strict=True))


def identity(cell: Cell) -> None:
    """A fresh one changes nothing, or is expected to."""
    bank = cell.family.bank(cell.method)
    with torch.no_grad(), bank.route(cell.languages):
        found = cell.family.out(EVERY)
    if METHODS[cell.method].differs:
        assert not torch.allclose(found, cell.before)
    elif cell.bank.cls.copies:  # whose weights lie elsewhere in memory, which kernels may heed
        torch.testing.assert_close(found, cell.before, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(found, cell.before)


def gradients(cell: Cell) -> None:
    """Of every parameter of the languages, and of none of the backbone's."""
    gradients = cell.gradients()
    cell.bank.check_gradients(set(cell.languages))
    assert cell.bank.method == "output" or any(gradient.any() for gradient in gradients.values())
    assert all(parameter.grad is None for parameter in cell.family.model.parameters())


def pack(cell: Cell, folder) -> None:
    """What is saved does the same when it is loaded; with a tensor less it is refused."""
    tokenizer = Tokenizer(SPECIAL)
    languages = [] if cell.family.heads else LANGUAGES[:2]
    sha256 = state_sha256(cell.family.model.state_dict())
    backbone = LoadedBackbone(cell.family.model, tokenizer, languages or LANGUAGES, sha256, {})
    for language in LANGUAGES:
        save_pack(folder / language, cell.bank, language, cell.bank.tensors(language), backbone, {})
    loaded = load_bank(folder, LANGUAGES, backbone)
    with torch.no_grad():
        with cell.bank.route(cell.languages):
            wanted = cell.family.out(EVERY)
        with loaded.route(cell.languages):
            found = cell.family.out(EVERY)
    if cell.settles:  # the pack has what a network had computed
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(found, wanted)
    names = list(loaded.tensors("hi"))
    if names:
        retensor(folder / "hi", lambda tensors: tensors.pop(names[-1]))
        with pytest.raises(PelasrError, match=names[-1]):
            load_bank(folder, ["hi"], backbone)


def taken_away(cell: Cell) -> None:
    """Outside of the route the backbone is itself, bit for bit."""
    with torch.no_grad():
        with cell.bank.route(cell.languages):
            cell.family.out(EVERY)
        assert torch.equal(cell.family.out(EVERY), cell.before)


def mixed(cell: Cell) -> None:
    """A batch of several languages is what batches of one are, in values and gradients."""
    if not cell.mixes:
        with pytest.raises(PelasrError, match="takes one language a batch"), cell.bank.route(ROWS):
            pass
        return
    with torch.no_grad(), cell.bank.route(ROWS):
        wanted = cell.family.out(EVERY)
    total: dict[str, Tensor] = {}
    for language in LANGUAGES:
        rows = [row for row in EVERY if ROWS[row] == language]
        with torch.no_grad(), cell.bank.route([language] * len(ROWS)):
            torch.testing.assert_close(cell.family.out(EVERY)[rows], wanted[rows], rtol=1e-5, atol=1e-5)
        total |= cell.gradients([language] * len(ROWS), rows)
    same(cell.gradients(), total)


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        size = max(float(wanted[name].abs().max()), 1.0)
        torch.testing.assert_close(
            gradient, wanted[name], rtol=1e-4, atol=1e-5 * size, msg=lambda m, n=name: f"{n} {m}"
        )


def attached_twice(cell: Cell) -> None:
    with pytest.raises(PelasrError, match="'hi' has adapters already"):
        cell.bank.add("hi")


def wrong_site(cell: Cell) -> None:
    """Sites that there are none of are refused, with those that there are."""
    if cell.bank.cls.copies or cell.bank.cls.fuses:
        with pytest.raises(PelasrError, match="unknown key 'sites'"):
            cell.family.bank(cell.method, sites="nowhere")
    if cell.bank.cls.copies:
        return
    sites = {"sites": "nowhere"}
    with pytest.raises(PelasrError, match="'nowhere'.*known: ") as caught:
        cell.family.bank(cell.method, **({"method_conf": sites} if cell.bank.cls.fuses else sites))
    known = set(cell.bank.cls.parts or cell.family.model.sites())
    assert set(re.split(", | ", str(caught.value).split("known: ")[1])) >= known


def train_mode(cell: Cell) -> None:
    """`train()` and a step change no number of the backbone, running statistics too."""
    cell.family.model.train()
    cell.bank.train()
    try:
        parameters = [p for p in cell.bank.parameters() if p.requires_grad]
        kept = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        with cell.losses(cell.languages) as losses:
            losses.sum().backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
    finally:
        cell.family.model.eval()
        cell.bank.eval()
    state = cell.family.model.state_dict()
    assert state.keys() == cell.state.keys()
    assert all(torch.equal(tensor, cell.state[name]) for name, tensor in state.items())


class Checkpointed(nn.Module):
    """A layer that is computed again in the backward pass, among the same frames."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        frames = inside()

        def run(*args: Any, **kwargs: Any) -> Any:
            if frames is not None:
                set_inside(frames)
            return self.layer(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)


@contextmanager
def checkpointed(model: nn.Module, copies: nn.Module) -> Iterator[None]:
    """Layers of encoders and decoders, and of languages' copies of them."""
    lists = ("layers", "encoders", "decoders")
    parts = [part for top in (model, copies) for part in top.modules() if type(part).__name__ != "LSTMPrediction"]
    found = [child for part in parts for name, child in part.named_children() if name in lists]
    for layers in found:
        for name, layer in list(layers.named_children()):
            setattr(layers, name, Checkpointed(layer))
    try:
        yield
    finally:
        for layers in found:
            for name, layer in list(layers.named_children()):
                setattr(layers, name, layer.layer)


def recomputed(cell: Cell) -> None:
    """Activation checkpointing leaves the gradients as they are."""
    wanted = cell.gradients()
    with cell.bank.route(cell.languages):  # hooks hang on the layers themselves
        pass
    with checkpointed(cell.family.model, cell.bank.adapters):
        found = cell.gradients()
    same(found, wanted)


def half(cell: Cell) -> None:
    """bf16 autocast: finite values and gradients of float32."""
    with torch.autocast("cpu", torch.bfloat16):
        found = cell.gradients()
        with torch.no_grad(), cell.bank.route(cell.languages):
            out = cell.family.out(EVERY)
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in found.values())


OPERATIONS = [attach, identity, gradients, taken_away, mixed, attached_twice, wrong_site, train_mode, recomputed, half]
POSSIBLE = [(method, name) for method in METHODS for name in FAMILIES if name not in METHODS[method].refused]
FIRST = {method: name for method, name in reversed(POSSIBLE)}
HANGING = [method for method in METHODS if method not in ("output", "decoder", "full")]
REFUSED = [(method, name, why) for method in METHODS for name, why in METHODS[method].refused.items()]


@pytest.mark.parametrize("operation", [*OPERATIONS, pack], ids=lambda operation: operation.__name__)
@pytest.mark.parametrize(("method", "name"), POSSIBLE)
def test_method(method, name, operation, request):
    more = [request.getfixturevalue("tmp_path")] if operation is pack else []
    operation(cell(method, name), *more)


@pytest.mark.parametrize("method", HANGING)
def test_compiled(method):
    """The first module that an adapter hangs on, compiled with it, does the same; on one family, as it takes long."""
    found = cell(method, FIRST[method])
    path = next(iter(found.bank.sites))
    host, calls = found.family.model.get_submodule(path), []
    handle = host.register_forward_pre_hook(lambda host, *given: calls.append((*given, inside())), with_kwargs=True)
    with torch.no_grad(), found.bank.route(found.languages):
        found.family.out(EVERY)
        handle.remove()
        args, kwargs, frames = calls[0]
        if frames is not None:
            set_inside(frames)
        wanted = host(*args, **kwargs)
        torch._dynamo.reset()
        compiled = torch.compile(host, backend="eager")(*args, **kwargs)
    torch.testing.assert_close(compiled, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "name", "why"), REFUSED)
def test_refused(method, name, why):
    """When the bank is made, with the reason in one line."""
    with pytest.raises(PelasrError) as caught:
        family(name).bank(method, [])
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_every_method_is_in_the_table():
    files = {path.stem for path in (ROOT / "pelasr/adapters/methods").glob("[a-z]*.py")}
    assert {method.file or name for name, method in METHODS.items() if not method.own} == files


def test_the_page_has_the_table():
    text = PAGE.read_text(encoding="utf-8")
    how = "PYTHONPATH=.:tests/helpers python tests/helpers/method_matrix.py writes it anew"
    assert BEGIN + table() + END in text, f"docs/methods.md has another table: {how}"
