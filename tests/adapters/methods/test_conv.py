"""SURE's convolutional adapter: its size, its sums by hand, and that padding is not heard."""

import pytest
import torch
from adapted_encoders import LANGUAGES, check_rows, heard, make_bank, make_ctc
from torch import nn

from pelasr.adapters.methods.conv import Conv
from pelasr.backbones.base import build_backbone
from pelasr.errors import PelasrError


def drawn(width=6, reduction=2):
    torch.manual_seed(0)
    adapter = Conv(width, reduction)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    return adapter


def test_fresh_is_the_identity():
    torch.manual_seed(0)
    adapter = Conv(width=6, reduction=2)
    y = torch.randn(2, 5, 6) * torch.tensor([1e-6, 1.0, 1e6, 0.0, -1.0, 3.0])
    assert torch.equal(adapter(y, y, torch.ones(2, 5, dtype=torch.bool)), y)
    assert adapter.first.weight.any() and adapter.excite.weight.any()


def test_formula():
    """Frame by frame and channel by channel, in float64."""
    adapter, y = drawn().double(), torch.randn(1, 7, 6).double()
    p, frames = dict(adapter.named_parameters()), range(7)
    z = nn.functional.layer_norm(y[0], (6,), p["norm.weight"], p["norm.bias"])

    def over_time(z, weight, channels_in):
        """Output channel o hears the `channels_in` of its group, as many frames on either side."""
        per_group, taps = len(weight) // 3, weight.shape[2]
        out = torch.zeros(7, len(weight), dtype=torch.float64)
        for t in frames:
            for o in range(len(weight)):
                for tap in range(taps):
                    if 0 <= t + tap - taps // 2 < 7:
                        group = slice(o // per_group * channels_in, (o // per_group + 1) * channels_in)
                        out[t, o] += weight[o, :, tap] @ z[t + tap - taps // 2, group]
        return out

    z = over_time(z, p["first.weight"], 2).clamp(min=0)
    z = over_time(over_time(z, p["second.weight"], 1), p["third.weight"], 1)
    gate = (p["excite.weight"] @ (p["squeeze.weight"] @ z.mean(0)).clamp(min=0)).sigmoid()
    found = adapter(y, y, torch.ones(1, 7, dtype=torch.bool))[0]
    torch.testing.assert_close(found, y[0] + z * gate)


def test_padding_is_not_heard():
    """To the last bit, whatever it is: nothing of it is in the convolutions or the mean."""
    adapter, y = drawn(), torch.randn(2, 9, 6)
    inside = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    found = adapter(y, y, inside)
    y[1, 4:] = 1e4
    assert torch.equal(adapter(y, y, inside)[1, :4], found[1, :4])
    alone = adapter(y[1:, :4], y[1:, :4], inside[1:, :4])
    torch.testing.assert_close(found[1:, :4], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoder", ["lstm", "conformer", "transformer"])
def test_rows_of_an_rnnt(encoder, make_rnnt, make_batch):
    """After the time reduction too; not in the prediction network."""
    model, batch = make_rnnt(encoder), make_batch(LANGUAGES, frames=[61, 40, 33, 52])
    bank = make_bank(model, "conv", reduction=2)
    assert list(bank.sites) == list(model.sites()["layer"])
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    check_rows(model, bank, LANGUAGES, batch.feats, batch.lens, batch.language_ids)
    with bank.route(LANGUAGES):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        model.loss(enc, lens, batch.targets, batch.target_lens).total.sum().backward()
    bank.check_gradients(LANGUAGES)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert_stable", "wavlm", "bert_relative_key"])
def test_rows_of_a_pretrained_encoder(kind):
    model = make_ctc(kind)
    bank = make_bank(model, "conv", reduction=4)
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    check_rows(model, bank, LANGUAGES, *heard(kind))


def test_sizes():
    """141,824 in a layer of 1024, of which there are 24 in a large encoder: 3,403,776."""
    with torch.device("meta"):
        conf = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        model = build_backbone("ctc", {"encoder": "wav2vec2", "encoder_conf": conf, "objective": "none"}, 3, 1)
        bank = make_bank(model, "conv", languages=["hi"])
        assert sum(p.numel() for p in Conv(1024).parameters()) == 141_824
    assert bank.size("hi") == 24 * 141_824 == 3_403_776


def test_gradients():
    adapter, y = drawn(width=4).double(), torch.randn(2, 3, 4).double()
    inside = torch.tensor([[True] * 3, [True, True, False]])

    def call(y, *parameters):
        named = dict(zip(dict(adapter.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(adapter, named, (y, y, inside))

    assert torch.autograd.gradcheck(call, (y.requires_grad_(), *adapter.parameters()))


@pytest.mark.parametrize(
    ("width", "reduction", "message"),
    [
        (7, 2, "conv adapters work in groups of 2 channels, of which 7 are no multiple"),
        (6, 16, "reduction: 16 is not between 1 and the 6 channels"),
        (6, 0, "reduction: 0 is not between 1 and the 6 channels"),
    ],
)
def test_what_it_cannot_be(width, reduction, message):
    with pytest.raises(PelasrError, match=message):
        Conv(width, reduction)
