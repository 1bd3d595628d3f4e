"""Fine-tuning behind the interface of adapters: copies in the place of the backbone's parts, one language a batch."""

import pytest
import torch

from pelasr.adapters.bank import count_parameters
from pelasr.adapters.finetune import FineTuned, make_bank
from pelasr.adapters.freeze import check_frozen, freeze
from pelasr.errors import PelasrError


def loss(model, batch):
    enc, lens = model.encode(batch.feats, batch.lens)
    return model.loss(enc, lens, batch.targets, batch.target_lens, batch.prefix).total


@pytest.fixture
def tuned(make_st, make_batch):
    """A frozen model, its bank of a method for two pairs, and a batch of the first."""

    def make(method: str, **options):
        model = make_st(**options)
        freeze(model)
        bank = make_bank(method, {}, model)
        for language in ("en-de", "en-fr"):
            bank.add(language)
        return model, bank, make_batch(["hi", "ur"])

    return make


@pytest.mark.parametrize("method", ["full", "decoder"])
def test_a_fresh_copy_is_the_backbone(tuned, method):
    model, bank, batch = tuned(method)
    assert isinstance(bank, FineTuned)
    before = loss(model, batch)
    bank.eval()
    with bank.route(["en-de", "en-de"]):
        assert torch.equal(loss(model, batch), before)
    assert torch.equal(loss(model, batch), before)


@pytest.mark.parametrize("encoder", ["transformer", "conformer"])
def test_training_one_language_leaves_the_others_and_the_backbone(tuned, encoder):
    model, bank, batch = tuned("full", encoder=encoder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {name: tensor.clone() for name, tensor in bank.tensors("en-fr").items()}
    optimizer = torch.optim.SGD(bank.parameters(), lr=0.1)
    bank.train()
    with bank.route(["en-de", "en-de"]):
        first = loss(model, batch)
    first.sum().backward()
    bank.check_gradients(["en-de"])
    optimizer.step()
    check_frozen(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, other[name]) for name, tensor in bank.tensors("en-fr").items())
    bank.eval()
    with bank.route(["en-de", "en-de"]):
        changed = loss(model, batch)
    with bank.route(["en-fr", "en-fr"]):
        assert torch.equal(loss(model, batch), loss(model, batch))
        same = loss(model, batch)
    assert not torch.allclose(changed, same)
    assert torch.equal(same, loss(model, batch))


def test_the_decoder_alone(tuned):
    model, bank, batch = tuned("decoder")
    assert bank.touches("decoder") and not bank.touches("encoder")
    assert all(name.startswith("decoder/") for name in bank.tensors("en-de"))
    with bank.route(["en-de"]):
        encoder = model.encoder
        assert model.decoder is not bank._hosts["decoder"]
    assert encoder is model.encoder and model.decoder is bank._hosts["decoder"]
    with bank.route(["en-de", "en-de"]):
        loss(model, batch).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_error_inside_restores_the_backbone(tuned):
    model, bank, _ = tuned("full")
    with pytest.raises(ZeroDivisionError), bank.route(["en-fr"]):
        raise ZeroDivisionError
    assert model.encoder is bank._hosts["encoder"]


def test_a_batch_holds_one_language(tuned):
    _, bank, _ = tuned("full")
    assert not bank.mixes_languages
    with (
        pytest.raises(PelasrError, match="full fine-tuning takes one language a batch"),
        bank.route(["en-de", "en-fr"]),
    ):
        pass
    with pytest.raises(PelasrError, match="no adapters for language 'en-es'; .*known: en-de, en-fr"):
        bank.route(["en-es"]).__enter__()


def test_a_ctc_branch_is_part_of_the_whole_model(tuned):
    model, bank, _ = tuned("full", ctc_weight=0.3)
    assert bank.size("en-de") == sum(parameter.numel() for parameter in model.parameters())


def test_counts(tuned):
    """Each language's share is trained; each is served by a model of its own (Le et al. 2021, rows 7 and 8)."""
    model, bank, _ = tuned("decoder", encoder="conformer")
    report = count_parameters(model, bank)
    size = sum(parameter.numel() for parameter in model.parameters())
    decoder = sum(parameter.numel() for parameter in model.decoder.parameters())
    assert report == {
        "backbone": size,
        "adapter_per_language": decoder,
        "trainable": 2 * decoder,
        "total": 2 * size,
    }


def test_fine_tuning_has_no_options(make_st):
    with pytest.raises(PelasrError, match="adapter_conf of full: unknown key 'bottleneck'"):
        make_bank("full", {"bottleneck": 64}, make_st())


def test_adapters_hang_on_the_backbone_itself(tuned):
    """Also when they are first asked for within a block that has copies in the place of its parts."""
    model, bank, batch = tuned("full")
    adapters = make_bank("houlsby", {"bottleneck": 2, "sites": "ffn"}, model)
    adapters.add("en-de")
    torch.nn.init.normal_(next(iter(adapters.of("en-de").values())).up.bias)
    before = loss(model, batch)
    with bank.route(["en-de", "en-de"]), adapters.route(["en-de", "en-de"]):
        pass
    with adapters.route(["en-de", "en-de"]):
        assert not torch.equal(loss(model, batch), before)
