"""Adapters on a backbone: identity, isolation of languages, names and counts, and what is refused."""

import pytest
import torch
from tiny_models import ROOT
from toy_banks import ENCODERS, LANGUAGES, METHODS, Toy, logits, loss, make_bank, search, train

from pelasr.adapters.bank import Bank, count_parameters
from pelasr.adapters.base import find_method
from pelasr.adapters.freeze import freeze
from pelasr.errors import PelasrError


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", METHODS)
def test_fresh_adapters_are_the_identity(encoder, method, make_rnnt, make_batch):
    model, batch = make_rnnt(encoder), make_batch(LANGUAGES * 2)
    before, losses, found = logits(model, batch), loss(model, batch), search(model, batch)
    bank = make_bank(model, trained=False, method=method)
    for languages in (batch.languages, ["ur"] * 6, ["pa"] * 6, list(reversed(batch.languages))):
        with bank.route(languages):
            assert torch.equal(logits(model, batch), before)
            assert torch.equal(loss(model, batch), losses)
            assert search(model, batch) == found


@pytest.mark.parametrize("method", METHODS)
def test_the_bank_is_silent_outside_a_route(method, make_rnnt, make_batch):
    model, batch = make_rnnt(), make_batch(LANGUAGES)
    before = logits(model, batch)
    bank = make_bank(model, method=method)
    with bank.route(batch.languages):
        assert not torch.allclose(logits(model, batch), before, atol=0.1)
    assert torch.equal(logits(model, batch), before)
    with pytest.raises(RuntimeError, match="inside"), bank.route(batch.languages):
        raise RuntimeError("inside")
    assert torch.equal(logits(model, batch), before)


def test_backbone_keys_never_change(make_rnnt):
    model = make_rnnt()
    before = list(model.state_dict())
    make_bank(model)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("others", [["ur"], ["ur", "pa"]])
@pytest.mark.parametrize("method", METHODS)
def test_training_one_language_leaves_another_untouched(others, method, make_rnnt, make_batch):
    """Bit for bit, though the optimizer holds all languages and decays weights; `hi` was trained before as well."""
    model = make_rnnt()
    freeze(model)
    bank = make_bank(model, method=method)
    optimizer = train(model, bank, make_batch(LANGUAGES), steps=2)  # all have moments in the optimizer now
    hindi, batch = make_batch(["hi", "hi"], seed=5), make_batch(others * 2)
    with bank.route(hindi.languages):
        before = logits(model, hindi)
    tensors = {name: tensor.clone() for name, tensor in bank.tensors("hi").items()}
    urdu = {name: tensor.clone() for name, tensor in bank.tensors("ur").items()}
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        with bank.route(batch.languages):
            loss(model, batch).sum().backward()
        assert all(tensor.grad is None for tensor in bank.tensors("hi").values())
        optimizer.step()
    with bank.route(hindi.languages):
        assert torch.equal(logits(model, hindi), before)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in bank.tensors("hi").items())
    assert all(not torch.equal(tensor, urdu[name]) for name, tensor in bank.tensors("ur").items())


def test_what_is_unknown_is_refused_with_a_list(make_rnnt):
    model = make_rnnt()
    bank = make_bank(model)
    with (
        pytest.raises(PelasrError, match="no adapters for language 'de'; .*known: hi, pa, ur"),
        bank.route(["hi", "de"]),
    ):
        pass
    known = ", ".join(sorted(path.stem for path in (ROOT / "pelasr/adapters/methods").glob("[!_]*.py")))
    with pytest.raises(PelasrError, match=f"did you mean 'houlsby'.*known: {known}"):
        find_method("houlsbi")
    with pytest.raises(PelasrError, match="houlsby needs a site 'q'; known: idle, layer"):
        Bank("houlsby", {"sites": "q"}, Toy())
    with pytest.raises(PelasrError, match="'hi' has adapters already"):
        bank.add("hi")
    with pytest.raises(PelasrError, match="unknown key 'botleneck'; did you mean 'bottleneck'"):
        make_bank(model, botleneck=3)
    with pytest.raises(PelasrError, match="unknown key 'width'"):
        make_bank(model, width=3)


@pytest.mark.parametrize("language", ["to", "cpu", "zh.Hant", "en-de", "pa_Guru"])
def test_any_language_code_will_do(language, make_rnnt, make_batch):
    """`to` is Tongan, and a method of every module."""
    model, batch = make_rnnt(), make_batch(["hi", "ur"])
    bank = make_bank(model, languages=["hi", language])
    assert bank.languages == ["hi", language]
    with bank.route(["hi", language]):
        logits(model, batch)
    assert len(bank.tensors(language)) == 18


def test_tensors_are_named_by_site_and_parameter(make_rnnt):
    bank = make_bank(make_rnnt())
    parameters = ["down.bias", "down.weight", "norm.bias", "norm.weight", "up.bias", "up.weight"]
    wanted = {f"encoder.layers.{layer}/{name}" for layer in range(3) for name in parameters}
    assert set(bank.tensors("ur")) == wanted
    assert {id(tensor) for tensor in bank.tensors("ur").values()} < {id(parameter) for parameter in bank.parameters()}


def test_languages_start_from_weights_of_their_own(make_rnnt):
    bank = make_bank(make_rnnt(), trained=False)
    hindi, urdu = (bank.tensors(language)["encoder.layers.0/down.weight"] for language in ("hi", "ur"))
    assert not torch.equal(hindi, urdu)
    assert hindi.data_ptr() != urdu.data_ptr()


def test_count_parameters(make_rnnt):
    model = make_rnnt()
    size = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(model) == {"backbone": size, "adapter_per_language": 0, "trainable": size, "total": size}
    freeze(model)
    each = 3 * (2 * 6 * 4 + 4 + 3 * 6)
    assert count_parameters(model, make_bank(model)) == {
        "backbone": size,
        "adapter_per_language": each,
        "trainable": 3 * each,
        "total": size + 3 * each,
    }
