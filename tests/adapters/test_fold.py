"""Adapters folded into the backbone: the same model without them; and what cannot be folded."""

import copy

import pytest
import torch
from tiny_models import TAGS
from torch import nn

from pelasr.adapters.finetune import make_bank
from pelasr.adapters.fold import fold
from pelasr.adapters.freeze import freeze
from pelasr.adapters.own import OwnParts
from pelasr.errors import PelasrError
from pelasr.storage import state_sha256

MODELS = {
    "rnnt lstm": ("rnnt", {"ctc_weight": 0.3}),
    "rnnt conformer": ("rnnt", {"encoder": "conformer"}),
    "st transformer": ("st", {}),
    "st conformer": ("st", {"encoder": "conformer", "ctc_weight": 0.3}),
}
METHODS = {"lora": {"rank": 2, "alpha": 3.0}, "bitfit": {}, "full": {}, "houlsby": {"bottleneck": 2}}


@pytest.fixture
def make(make_model):
    """Factory of a frozen model and a bank of two languages with random weights."""

    def build(name, method):
        model = make_model(*MODELS[name])
        freeze(model)
        torch.manual_seed(0)
        options = METHODS[method] | ({"sites": "linear"} if method == "houlsby" else {})
        bank = make_bank(method, options, model)
        for language in ("hi", "ur"):
            bank.add(language)
        for parameter in bank.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        return model, bank.eval()

    return build


def run(model, batch):
    """Logits, losses and hypotheses."""
    prefix = torch.full((len(batch), 1), TAGS[0]) if hasattr(model, "end") else None
    labels = batch.targets, batch.target_lens, prefix
    with torch.no_grad():
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        found = model.search(enc, lens, prefix)
        return model.logits(enc, lens, *labels), model.loss(enc, lens, *labels).total, found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["lora", "bitfit", "full"])
def test_the_folded_model_is_the_same(name, method, make, make_batch):
    model, bank = make(name, method)
    batch = make_batch(["ur", "ur", "ur"])
    plain = run(model, batch)
    with bank.route(batch.languages):
        logits, losses, found = run(model, batch)
    tensors = copy.deepcopy(bank.tensors("ur"))
    fold(model, bank, "ur")
    folded = run(model, batch)
    torch.testing.assert_close(folded[0], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded[1], losses, rtol=1e-4, atol=1e-4)
    assert [each.tokens for each in folded[2]] == [each.tokens for each in found]
    assert not torch.allclose(plain[0], logits, atol=1e-2)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in bank.tensors("ur").items())


def test_lora_folds_as_pefts_merges():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    host = nn.Linear(6, 8)
    theirs = get_peft_model(nn.Sequential(copy.deepcopy(host)), LoraConfig(r=3, lora_alpha=5.0, target_modules=["0"]))
    layer = theirs.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.host = host

        def sites(self):
            return {"linear": {"host": 8}}

    model = Model()
    bank = make_bank("lora", {"rank": 3, "alpha": 5.0}, model)
    bank.add("hi")
    bank.tensors("hi")["host/a.weight"].data.copy_(layer.lora_A["default"].weight)
    bank.tensors("hi")["host/b.weight"].data.copy_(layer.lora_B["default"].weight)
    fold(model, bank, "hi")
    torch.testing.assert_close(host.weight, theirs.merge_and_unload()[0].weight, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_folded(make):
    """The backbone is as it was."""
    model, bank = make("rnnt lstm", "houlsby")
    before = state_sha256(model.state_dict())
    with pytest.raises(PelasrError, match="houlsby adapters cannot be folded"):
        fold(model, bank, "hi")
    model, bank = make("rnnt lstm", "lora")
    bank.add("pa", own=OwnParts(model, ["ਕ"], vector=True))
    with pytest.raises(PelasrError, match="'pa' has tokens or a language vector of its own"):
        fold(model, bank, "pa")
    with pytest.raises(PelasrError, match="no adapters for language 'de'"):
        fold(model, bank, "de")
    assert state_sha256(model.state_dict()) == before
