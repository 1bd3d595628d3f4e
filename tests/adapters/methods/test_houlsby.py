"""The residual adapter against its formula, and its size against the paper's."""

import pytest
import torch
from torch.nn import functional as F

from pelasr.adapters.methods.houlsby import Houlsby
from pelasr.errors import PelasrError


@pytest.fixture
def trained():
    torch.manual_seed(0)
    adapter = Houlsby(width=6, bottleneck=3).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return adapter


def test_fresh_is_the_identity():
    torch.manual_seed(0)
    adapter = Houlsby(width=6, bottleneck=3)
    y = torch.randn(2, 5, 6) * torch.tensor([1e-6, 1.0, 1e6, 0.0, -1.0, 3.0])
    assert torch.equal(adapter(torch.randn(2, 5, 4), y), y)
    assert adapter.down.weight.any()  # or nothing would ever train


def test_formula(trained):
    """y + W_u relu(W_d LN(y) + b_d) + b_u, written out in float64."""
    y = torch.randn(2, 5, 6)
    p = {name: parameter.double() for name, parameter in trained.named_parameters()}
    y64 = y.double()
    z = (y64 - y64.mean(-1, keepdim=True)) / (y64.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    z = z * p["norm.weight"] + p["norm.bias"]
    hidden = (z @ p["down.weight"].T + p["down.bias"]).clamp(min=0)
    wanted = y64 + hidden @ p["up.weight"].T + p["up.bias"]
    torch.testing.assert_close(trained(None, y).double(), wanted, rtol=1e-5, atol=1e-5)


def test_frames_and_rows_are_independent(trained):
    """Adapters are local to a frame, so a streaming encoder stays one."""
    y = torch.randn(3, 5, 6)
    before = trained(None, y)
    changed = y.clone()
    changed[1, 2] += 1.0
    same = trained(None, changed) == before
    assert not same[1, 2].all()
    same[1, 2] = True
    assert same.all()


@pytest.mark.parametrize(("width", "bottleneck"), [(640, 256), (640, 240), (640, 128), (6, 3)])
def test_size(width, bottleneck):
    with torch.device("meta"):
        adapter = Houlsby(width, bottleneck)
    tensors = list(adapter.parameters())
    assert len(tensors) == 6
    assert sum(t.numel() for t in tensors) == 2 * width * bottleneck + bottleneck + 3 * width


def test_dropout_in_training_only(trained):
    trained.dropout.p = 0.5
    y = torch.randn(2, 5, 6)
    assert torch.equal(trained(None, y), trained(None, y))
    trained.train()
    assert not torch.equal(trained(None, y), trained(None, y))


@pytest.mark.parametrize(
    ("activation", "function"), [("relu", lambda h: h.clamp(min=0)), ("gelu", F.gelu), ("swish", F.silu)]
)
def test_formula_without_norm(activation, function):
    torch.manual_seed(0)
    adapter = Houlsby(width=6, bottleneck=3, norm=False, activation=activation)
    y = torch.randn(2, 5, 6)
    assert torch.equal(adapter(None, y), y)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    p = dict(adapter.named_parameters())
    assert set(p) == {"down.weight", "down.bias", "up.weight", "up.bias"}
    assert sum(map(torch.numel, p.values())) == 2 * 6 * 3 + 3 + 6
    wanted = y + function(y @ p["down.weight"].T + p["down.bias"]) @ p["up.weight"].T + p["up.bias"]
    torch.testing.assert_close(adapter(None, y), wanted)


def test_gradients():
    """Of a start that is not zero, against finite differences."""
    torch.manual_seed(0)
    adapter = Houlsby(width=4, bottleneck=3, activation="swish").double()
    torch.nn.init.normal_(adapter.up.weight)
    y = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    names, values = zip(*adapter.named_parameters(), strict=True)

    def run(y, *values):
        return torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), (None, y))

    assert torch.autograd.gradcheck(run, (y, *values))


def test_an_unknown_activation():
    with pytest.raises(PelasrError, match="activation: 'gleu'; did you mean 'gelu'"):
        Houlsby(width=6, activation="gleu")
