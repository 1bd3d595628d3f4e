"""AdapterBias against its formula: shifts of rank 1."""

import pytest
import torch
from tiny_models import TAGS

from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.methods.adapterbias import AdapterBias
from pelasr.errors import PelasrError

INPUTS = ["hidden", "intermediate"]


def trained(alpha_input, width_in=8, width=6):
    torch.manual_seed(0)
    adapter = AdapterBias(width_in, width, alpha_input)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return adapter


@pytest.mark.parametrize("alpha_input", INPUTS)
def test_fresh_is_the_identity(alpha_input):
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 8), torch.randn(2, 5, 6) * 1e3
    adapter = AdapterBias(8, 6, alpha_input)
    assert torch.equal(adapter(x, y), y)
    assert adapter.alpha.weight.any()  # or nothing would ever train
    ones = AdapterBias(8, 6, alpha_input, start="ones")
    shift = (ones(x, y) - y).unbind(-1)
    torch.testing.assert_close(shift[0], ones.alpha(y if alpha_input == "hidden" else x)[..., 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("alpha_input", INPUTS)
def test_formula_and_rank(alpha_input):
    adapter, x, y = trained(alpha_input).double(), torch.randn(2, 5, 8).double(), torch.randn(2, 5, 6).double()
    h = y if alpha_input == "hidden" else x
    alpha = h @ adapter.alpha.weight[0] + adapter.alpha.bias
    torch.testing.assert_close(adapter(x, y), y + torch.einsum("bt,d->btd", alpha, adapter.v))
    shift = (adapter(x, y) - y).flatten(0, 1)
    assert torch.linalg.matrix_rank(shift, rtol=1e-9) == 1
    assert torch.linalg.matrix_rank(y.flatten(0, 1), rtol=1e-9) == 6
    assert sum(map(torch.numel, adapter.parameters())) == 6 + h.shape[-1] + 1


@pytest.mark.parametrize("alpha_input", INPUTS)
def test_gradients(alpha_input):
    """Against finite differences."""
    adapter = trained(alpha_input).double()
    x, y = (torch.randn(2, 3, width, dtype=torch.float64, requires_grad=True) for width in (8, 6))
    names, values = zip(*adapter.named_parameters(), strict=True)

    def run(x, y, *values):
        return torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), (x, y))

    assert torch.autograd.gradcheck(run, (x, y, *values))


def test_in_a_translator(make_st, make_batch):
    """At every second map of a feed-forward sub-layer, decoder included; the first one's activations are its input."""
    model, batch = make_st(), make_batch(["hi", "ur", "hi"])
    freeze(model)
    bank = Bank("adapterbias", {"alpha_input": "intermediate"}, model)
    for language in ("hi", "ur"):
        bank.add(language)
    assert bank.size("hi") == 4 * (6 + 8 + 1)
    with bank.route(batch.languages):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        prefix = torch.full((3, 1), TAGS[0])
        model.loss(enc, lens, batch.targets, batch.target_lens, prefix).total.sum().backward()
    bank.check_gradients(["hi", "ur"])


def test_what_it_refuses(make_rnnt):
    with pytest.raises(PelasrError, match="adapter adapterbias needs a site 'ffn_out': an LSTM has no feed-forward"):
        Bank("adapterbias", {}, make_rnnt())
    with pytest.raises(PelasrError, match="alpha_input: 'inside'; known: hidden, intermediate"):
        AdapterBias(8, 6, "inside")
    with pytest.raises(PelasrError, match="start: 'one'; did you mean 'ones'"):
        AdapterBias(8, 6, start="one")
