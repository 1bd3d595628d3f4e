"""A step of training, in which layers are computed again in the backward pass (activation checkpointing)."""

from types import SimpleNamespace

import pytest
import torch
from lightning.fabric import Fabric
from tiny_models import ST_ENCODERS
from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.own import OwnParts, install
from pelasr.errors import PelasrError
from pelasr.train.loop import Fit, Objective

DECODER = {"attention_heads": 2, "linear_units": 8, "num_blocks": 2}


def gradients(make_st, batch, layers: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses, and the gradients of a bank with a new language, with ESPnet's checkpoints in some layers."""
    encoder = {**ST_ENCODERS["e_branchformer"], "gradient_checkpoint_layers": layers}
    model = make_st(
        "e_branchformer", encoder_conf=encoder, decoder_conf={**DECODER, "gradient_checkpoint_layers": layers}
    )
    install(model)
    freeze(model)
    torch.manual_seed(1)
    bank = Bank("houlsby", {"sites": "ffn", "bottleneck": 3, "dropout": 0.5}, model)
    bank.add("hi")
    bank.add("pa", own=OwnParts(model, ["x", "y"], vector=True))
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    objective, fabric = Objective(model, bank), Fabric(accelerator="cpu", devices=1)
    step = SimpleNamespace(objective=objective, wrapped=fabric.setup(objective), fabric=fabric)
    step.wrapped.train()
    torch.manual_seed(2)
    losses = Fit._backward(step, batch, size=len(batch))
    return losses, {name: parameter.grad for name, parameter in bank.named_parameters()}


@pytest.mark.parametrize("languages", [["hi", "pa", "hi"], ["hi", "hi", "hi"]], ids=["mixed", "one"])
def test_checkpointed_layers_in_a_step(languages, make_st, make_batch):
    """They are computed again with adapters, and the same dropout."""
    batch = make_batch(["hi"] * 3)
    batch.languages, batch.prefix = languages, torch.full((3, 1), 5)
    plain, wanted = gradients(make_st, batch, [])
    losses, found = gradients(make_st, batch, [1, 2])
    assert torch.equal(losses, plain)
    assert sum(gradient is not None for gradient in wanted.values()) == 24 * len(set(languages)) + 2 * (
        "pa" in languages
    )
    for name, gradient in wanted.items():
        if gradient is None:
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_a_language_with_nothing_to_train_is_named(make_st):
    """The method `output` trains own parts alone, of which a language of the backbone's has none."""
    bank = Bank("output", {}, make_st())
    bank.add("hi")
    with pytest.raises(PelasrError, match="hi: nothing to train: the method output has no adapters, and"):
        Objective(bank._backbone[0], bank).groups()
