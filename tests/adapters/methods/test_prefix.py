"""Prefix tuning: its size, what attention does with it in every encoder, packs without the network."""

import pytest
import torch
from adapted_encoders import LANGUAGES, check_rows, heard, make_bank, make_ctc
from tiny_pretrained import TINY
from torch import nn

from pelasr.adapters.methods.prefix import Prefix
from pelasr.backbones.base import build_backbone
from pelasr.errors import PelasrError

ESPNET = [("st", "transformer"), ("st", "conformer"), ("st", "e_branchformer"), ("rnnt", "conformer")]
ESPNET += [("rnnt", "transformer")]


@pytest.mark.parametrize("network", [0, 5])
@pytest.mark.parametrize(("family", "encoder"), ESPNET)
def test_espnets_encoders(family, encoder, network, make_model, make_batch):
    model, batch = make_model(family, {"encoder": encoder}), make_batch(LANGUAGES, frames=[61, 40, 33, 52])
    bank = make_bank(model, "prefix", frames=3, network=network)
    assert all(path.startswith("encoder.") for path in bank.sites)  # none in a decoder, whose search computes its keys
    check_rows(model, bank, LANGUAGES, batch.feats, batch.lens, batch.language_ids)
    with bank.route(LANGUAGES):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        model.loss(enc, lens, batch.targets, batch.target_lens).total.sum().backward()
    bank.check_gradients(LANGUAGES)
    assert all(parameter.grad.any() for parameter in bank.parameters())


@pytest.mark.parametrize("kind", TINY)
def test_pretrained_encoders(kind):
    """With padding and without."""
    model = make_ctc(kind)
    bank = make_bank(model, "prefix", frames=3)
    check_rows(model, bank, LANGUAGES, *heard(kind))
    check_rows(model, bank, LANGUAGES, *heard(kind, padded=False))


def test_padding_never_attends_differently(make_st, make_batch):
    """Whatever stands beyond an utterance's end."""
    model, batch = make_st("conformer"), make_batch(["hi", "ur"], frames=[40, 20])
    bank = make_bank(model, "prefix", frames=3)
    with bank.route(["hi", "ur"]), torch.no_grad():
        enc, lens = model.encode(batch.feats, batch.lens)
        batch.feats[1, 20:] = 1e3
        assert torch.equal(model.encode(batch.feats, batch.lens)[0][1, : lens[1]], enc[1, : lens[1]])


def test_what_settles_does_the_same():
    """To the last bit: P = W_u tanh(W_d E + b_d) + b_u."""
    torch.manual_seed(0)
    adapter = Prefix(width=6, frames=4, network=5)
    y = torch.randn(2, 7, 6)
    p = dict(adapter.named_parameters())
    hidden = (p["prefix"] @ p["network.0.weight"].T + p["network.0.bias"]).tanh()
    wanted = hidden @ p["network.2.weight"].T + p["network.2.bias"]
    before = adapter(y, y)
    assert torch.equal(before[:, 4:], y) and before.shape == (2, 11, 6)
    torch.testing.assert_close(before[:, :4], wanted.expand(2, -1, -1))
    adapter.settle()
    assert torch.equal(adapter(y, y), before)
    assert list(dict(adapter.named_parameters())) == ["prefix"] and adapter.prefix.requires_grad


def test_a_pack_holds_the_flat_prefix(make_st, make_batch):
    """A bank that is given what the pack of another holds gives the same."""
    model, batch = make_st(), make_batch(["hi", "ur"])
    trained, loaded = (make_bank(model, "prefix", languages=(), frames=3, network=5) for _ in range(2))
    for language in ("hi", "ur"):
        trained.add(language)
        loaded.add(language, settled=True)
        tensors = trained.settled(language, trained.tensors(language))
        assert {name.rpartition("/")[2] for name in tensors} == {"prefix"}
        with torch.no_grad():
            for name, tensor in loaded.tensors(language).items():
                tensor.copy_(tensors[name])
    found = []
    for bank in (trained, loaded):
        with bank.route(["hi", "ur"]), torch.no_grad():
            found.append(model.encode(batch.feats, batch.lens)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert trained.size("hi") == loaded.size("hi") == 2 * 2 * 3 * 6


def test_size_of_hubert():
    """30 frames of keys and values in 12 layers of 768: 552,960, with a network in training too."""
    with torch.device("meta"):
        model = build_backbone("ctc", {"encoder": "hubert", "objective": "none"}, 3, 1)
        for network in (0, 512):
            assert make_bank(model, "prefix", languages=["hi"], network=network).size("hi") == 552_960


def test_gradients():
    """By finite differences, of a prefix from a network, through attention."""
    torch.manual_seed(0)
    adapter, y, q = Prefix(width=4, frames=2, network=3).double(), torch.randn(2, 3, 4).double(), torch.randn(2, 5, 4)

    def attend(*parameters):
        named = dict(zip(dict(adapter.named_parameters()), parameters, strict=True))
        kv = torch.func.functional_call(adapter, named, (y, y))
        return nn.functional.scaled_dot_product_attention(q.double(), kv, kv)

    assert torch.autograd.gradcheck(attend, tuple(adapter.parameters()))


def test_no_attention(make_rnnt):
    with pytest.raises(PelasrError, match="adapter prefix needs a site 'k': an LSTM has no attention"):
        make_bank(make_rnnt(), "prefix")


def test_half_precision(make_st, make_batch):
    model, batch = make_st("conformer"), make_batch(["hi", "ur"])
    bank = make_bank(model, "prefix", frames=3)
    with bank.route(["hi", "ur"]), torch.autocast("cpu", torch.bfloat16):
        enc, _ = model.encode(batch.feats, batch.lens)
        enc.sum().backward()
    assert enc.isfinite().all()
    bank.check_gradients(["hi", "ur"])
