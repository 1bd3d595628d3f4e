"""The parallel adapter against its formula, at the sites of an RNN-T and of a pretrained encoder."""

import pytest
import torch

from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.methods.parallel import Parallel
from pelasr.errors import PelasrError


@pytest.fixture
def trained():
    torch.manual_seed(0)
    adapter = Parallel(width_in=4, width=6, bottleneck=3, scale=2.5).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return adapter


def test_fresh_is_the_identity():
    """As the authors begin: W_d of a fresh linear map, all else zero; s is 4."""
    torch.manual_seed(0)
    adapter = Parallel(width_in=4, width=6, bottleneck=3)
    y = torch.randn(2, 5, 6) * torch.tensor([1e-6, 1.0, 1e6, 0.0, -1.0, 3.0])
    assert torch.equal(adapter(torch.randn(2, 5, 4), y), y)
    torch.manual_seed(0)
    assert torch.equal(adapter.down.weight, torch.nn.Linear(4, 3).weight)
    assert adapter.scale == 4.0 and not adapter.down.bias.any()


def test_formula(trained):
    x, y = torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    p = {name: parameter.double() for name, parameter in trained.named_parameters()}
    hidden = (x.double() @ p["down.weight"].T + p["down.bias"]).clamp(min=0)
    wanted = y.double() + 2.5 * (hidden @ p["up.weight"].T + p["up.bias"])
    torch.testing.assert_close(trained(x, y).double(), wanted, rtol=1e-5, atol=1e-5)
    assert sum(map(torch.numel, p.values())) == 4 * 3 + 3 + 3 * 6 + 6


def test_gradients(trained):
    """Against finite differences."""
    adapter = trained.double()
    x, y = (torch.randn(2, 3, width, dtype=torch.float64, requires_grad=True) for width in (4, 6))
    names, values = zip(*adapter.named_parameters(), strict=True)

    def run(x, y, *values):
        return torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), (x, y))

    assert torch.autograd.gradcheck(run, (x, y, *values))


def test_it_sees_what_its_host_sees(make_rnnt, make_batch):
    """Beside an LSTM layer, which has another width of input than of output."""
    model, batch = make_rnnt(), make_batch(["hi", "hi"])
    freeze(model)
    with pytest.raises(PelasrError, match="adapter parallel needs a site 'ffn': an LSTM has no feed-forward"):
        Bank("parallel", {}, model)
    bank = Bank("parallel", {"sites": "layer", "bottleneck": 3}, model)
    bank.add("hi")
    sizes = [layer.input_size for layer in model.encoder.layers]
    assert len(set(sizes)) == 3
    assert bank.size("hi") == sum(size * 3 + 3 + 3 * 6 + 6 for size in sizes)
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter)
    layer, adapter, seen = model.encoder.layers[2], bank.of("hi")["encoder.layers.2"], []
    with bank.route(batch.languages):
        layer.register_forward_hook(lambda host, args, y: seen.append((args[0], y)))
        model.encode(batch.feats, batch.lens, batch.language_ids)
    ((x, y),) = seen
    torch.testing.assert_close(y, adapter(x, layer.step(x)[0]))
