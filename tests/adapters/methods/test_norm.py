"""Tuned layer norms against training the norms themselves."""

import copy

import pytest
import torch
from tiny_models import TAGS
from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.fold import fold
from pelasr.adapters.freeze import freeze
from pelasr.adapters.methods.norm import Norm
from pelasr.errors import PelasrError
from pelasr.nn.mixed import Stack


def drawn(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def loss(model, batch):
    enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    prefix = torch.full((len(batch), 1), TAGS[0]) if hasattr(model, "end") else None
    return model.loss(enc, lens, batch.targets, batch.target_lens, prefix).total


def test_fresh_is_the_identity():
    torch.manual_seed(0)
    host, x = drawn(nn.LayerNorm(6)), torch.randn(2, 5, 6) * 1e3
    adapter, y = Norm(host), host(x)
    assert torch.equal(adapter(x, y), y)
    assert sum(map(torch.numel, adapter.parameters())) == 2 * 6


def test_formula_and_fold():
    """The host's own norm with other gain and bias, with an epsilon that matters."""
    torch.manual_seed(0)
    host, x = drawn(nn.LayerNorm(6, eps=0.5)), torch.randn(2, 5, 6)
    adapter = drawn(Norm(host))
    z = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 0.5).sqrt()
    wanted = z * (host.weight + adapter.gain) + host.bias + adapter.bias
    found = adapter(x, host(x))
    torch.testing.assert_close(found, wanted)
    adapter.fold(host)
    torch.testing.assert_close(host(x), found)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 5, 2)])
def test_rows_of_several_languages(shape):
    torch.manual_seed(0)
    host, x = drawn(nn.LayerNorm(6)), torch.randn(*shape, 6)
    adapters, index = [drawn(Norm(host)) for _ in range(2)], torch.tensor([1, 0, 1])
    found = Stack("host", adapters)(index, x, host(x))
    for row, number in enumerate(index):
        one = x[row : row + 1]
        torch.testing.assert_close(found[row : row + 1], adapters[number](one, host(one)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "options"),
    [("rnnt", {}), ("st", {}), ("st", {"encoder": "conformer"})],
    ids=["rnnt", "st", "st conformer"],
)
def test_it_is_training_the_norms(family, options, make_model, make_batch):
    """Losses and gradients of a model whose norms train, after a step each; then folded."""
    model, batch = make_model(family, options), make_batch(["hi", "hi", "hi"])
    free = copy.deepcopy(model)
    freeze(model)
    bank = Bank("norm", {}, model)
    bank.add("hi")
    norms = [path for path in model.sites()["layer_norm"] if isinstance(model.get_submodule(path), nn.LayerNorm)]
    assert list(bank.sites) == norms and bank.size("hi") == 2 * sum(bank.sites.values())
    parameters = [tensor for path in norms for tensor in free.get_submodule(path).parameters()]
    optimizers = [torch.optim.SGD(each, lr=1e-2) for each in (bank.parameters(), parameters)]
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        with bank.route(batch.languages):
            ours = loss(model, batch)
            ours.sum().backward()
        wanted = loss(free, batch)
        wanted.sum().backward()
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
        for path in norms:
            for name, theirs in (("gain", "weight"), ("bias", "bias")):
                gradient = bank.tensors("hi")[f"{path}/{name}"].grad
                torch.testing.assert_close(
                    gradient, free.get_submodule(path)._parameters[theirs].grad, rtol=1e-3, atol=1e-4
                )
        for optimizer in optimizers:
            optimizer.step()
    with bank.route(batch.languages):
        adapted = loss(model, batch)
    fold(model, bank, "hi")
    torch.testing.assert_close(loss(model, batch), adapted, rtol=1e-5, atol=1e-5)


def test_what_is_no_layer_norm(make_st):
    """Batch norms have none, other modules are refused."""
    model = make_st("conformer")
    kinds = {type(model.get_submodule(path)).__name__ for path in model.sites()["norm"]}
    assert "BatchNorm1d" in kinds
    assert all(
        isinstance(model.get_submodule(path), nn.LayerNorm) for path in Bank("norm", {"sites": "norm"}, model).sites
    )
    with pytest.raises(PelasrError, match="norm at these sites leaves no adapter"):
        Bank("norm", {"sites": "ffn"}, model)
    with pytest.raises(PelasrError, match="norm adapts layer norms that have gain and bias, not LayerNorm"):
        Norm(nn.LayerNorm(6, elementwise_affine=False))
