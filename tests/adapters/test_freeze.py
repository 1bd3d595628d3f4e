"""A frozen backbone: what freezing does, and that training adapters changes nothing in it."""

import pytest
import torch
from torch import nn
from toy_banks import ENCODERS, LANGUAGES, METHODS, Toy, logits, loss, make_bank, train

from pelasr.adapters.freeze import check_frozen, freeze
from pelasr.errors import PelasrError
from pelasr.storage import state_sha256


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", METHODS)
def test_training_adapters_never_changes_the_backbone(encoder, method, make_rnnt, make_batch):
    """Every tensor, statistics of BatchNorm included, and only the tensors of the batch's languages have a gradient."""
    model, batch = make_rnnt(encoder), make_batch(["hi", "ur"] * 2)
    before = state_sha256(model.state_dict())
    freeze(model)
    bank = make_bank(model, trained=False, method=method)
    nn.ModuleList([model, bank]).train()
    with bank.route(batch.languages):
        first = loss(model, batch).detach()
    train(model, bank, batch, steps=6)
    with bank.route(batch.languages):
        assert loss(model, batch).sum() < first.sum() - 0.5
    assert state_sha256(model.state_dict()) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    each = len(bank.sites) * {"houlsby": 6, "lora": 2, "bitfit": 1}[method]
    for language, count in (("hi", each), ("ur", each), ("pa", 0)):
        assert sum(tensor.grad is not None for tensor in bank.tensors(language).values()) == count
    bank.check_gradients(["hi", "ur"])
    with pytest.raises(PelasrError, match="'pa' got no gradient"):
        bank.check_gradients(["hi", "pa"])


def test_check_frozen():
    model = Toy()
    with pytest.raises(PelasrError, match="8 tensors of the backbone would train, linear.weight first"):
        check_frozen(model)
    freeze(model)
    check_frozen(model)
    model.norm.bias.requires_grad_(True)
    with pytest.raises(PelasrError, match="1 tensors of the backbone would train, norm.bias first"):
        check_frozen(model)


def test_frozen_stays_in_evaluation_mode():
    """Through `train()` of the module that holds it: dropout stays off and BatchNorm's statistics stay fixed."""
    model = Toy()
    freeze(model)
    holder = nn.ModuleDict({"backbone": model, "other": nn.Dropout(0.5)})
    before = state_sha256(model.state_dict())
    x = torch.randn(3, 5, 4)
    wanted = model(x)
    for mode in (True, False, True):
        holder.train(mode)
        assert holder["other"].training == mode and not any(module.training for module in model.modules())
        assert torch.equal(model(x), wanted)
    assert state_sha256(model.state_dict()) == before
    unfrozen = Toy().train()
    unfrozen(x)
    assert unfrozen.norm.num_batches_tracked == 1  # what freezing prevents


def test_frozen_recurrent_layers_do_not_change_with_the_mode(make_rnnt, make_batch):
    """They are left in training mode for cuDNN's sake, which must make no difference."""
    model, batch = make_rnnt(), make_batch(LANGUAGES)
    freeze(model)
    for module in model.modules():
        module.training = False
    wanted = logits(model, batch)
    for mode in (True, False):
        model.train(mode)
        assert torch.equal(logits(model, batch), wanted)
        assert all(module.training == isinstance(module, nn.LSTM) for module in model.modules())
