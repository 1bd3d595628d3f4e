"""Parameters by row: the layers that take them, and adapters of several languages as one."""

import copy

import pytest
import torch
from torch import nn

from pelasr.adapters.methods.adapterbias import AdapterBias
from pelasr.adapters.methods.bitfit import BitFit
from pelasr.adapters.methods.houlsby import Houlsby
from pelasr.adapters.methods.lora import Lora
from pelasr.adapters.methods.parallel import Parallel
from pelasr.nn.mixed import LayerNorm, Linear, Stack

INDEX = torch.tensor([2, 0, 2, 1, 0])
HOST = nn.Linear(4, 6)
ADAPTERS = {
    "houlsby": lambda: Houlsby(6, 3),
    "houlsby without norm": lambda: Houlsby(6, 3, norm=False, activation="gelu"),
    "parallel": lambda: Parallel(4, 6, 3),
    "adapterbias": lambda: AdapterBias(4, 6),
    "adapterbias of the input": lambda: AdapterBias(4, 6, "intermediate"),
    "lora": lambda: Lora(nn.Linear(4, 6), rank=3),
    "dora": lambda: Lora(HOST, rank=3, dora=True),
    "bitfit": lambda: BitFit(nn.Linear(4, 6)),
}


def drawn(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize(
    "layer", [Linear(6, 4), Linear(6, 4, bias=False), LayerNorm(6, eps=0.1)], ids=["linear", "no bias", "norm"]
)
def test_layers_with_parameters_by_row(layer):
    """Each row by a layer of its own; values and gradients. With one set they are torch's."""
    torch.manual_seed(0)
    x = torch.randn(5, 7, 6)
    rows = [drawn(copy.deepcopy(layer)) for _ in range(5)]
    wanted = torch.cat([row(part[None]) for row, part in zip(rows, x, strict=True)])
    wanted.square().sum().backward()
    for name in dict(layer.named_parameters()):
        layer._parameters[name] = torch.stack([row.get_parameter(name).detach() for row in rows]).requires_grad_()
    found = layer(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    for name, parameter in layer.named_parameters():
        gradient = torch.stack([row.get_parameter(name).grad for row in rows])
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)
    theirs = {Linear: nn.Linear, LayerNorm: nn.LayerNorm}[type(layer)]
    assert torch.equal(rows[0](x), theirs.forward(rows[0], x))


@pytest.mark.parametrize("by_row", [True, False], ids=["by_row", "vmap"])
@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 7, 2)], ids=["frames", "rows", "maps"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_stack_is_its_adapters(name, shape, by_row, monkeypatch):
    """Whatever comes between row and width; the first adapter has its own parameters again afterwards."""
    torch.manual_seed(0)
    adapters = [drawn(ADAPTERS[name]()).eval() for _ in range(3)]
    monkeypatch.setattr(type(adapters[0]), "by_row", by_row)
    own = list(adapters[0].parameters())
    x, y = torch.randn(*shape, 4), torch.randn(*shape, 6)
    found = Stack("host", adapters)(INDEX, x, y)
    for row, number in enumerate(INDEX):
        torch.testing.assert_close(found[[row]], adapters[number](x[[row]], y[[row]]), rtol=1e-5, atol=1e-5)
    assert all(now is before for now, before in zip(adapters[0].parameters(), own, strict=True))
    with pytest.raises(RuntimeError):
        Stack("host", adapters)(INDEX, x, y[..., :5])
    assert all(now is before for now, before in zip(adapters[0].parameters(), own, strict=True))
