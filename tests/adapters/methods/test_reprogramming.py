"""Reprogramming: a signal that is added to what is heard, cut to each utterance."""

import pytest
import torch
from adapted_encoders import LANGUAGES, check_rows, heard, make_bank, make_ctc
from tiny_models import ENCODERS, MELS
from torch import nn

from pelasr.adapters.methods.reprogramming import Reprogramming
from pelasr.backbones.base import build_backbone
from pelasr.errors import PelasrError


@pytest.mark.parametrize("frames", [3, 7, 9])
def test_it_is_added_to_the_utterance(frames):
    """Nothing beyond its end or the signal's."""
    adapter = Reprogramming(width_in=2, frames=frames, mean=1.0, std=1.0)
    x, lens = torch.randn(2, 7, 2), torch.tensor([7, 4])
    (found, same, rest), kwargs = adapter.before((x, lens, None), {"a": 1})
    assert same is lens and rest is None and kwargs == {"a": 1}
    for row, size in enumerate(lens.tolist()):
        for t in range(7):
            wanted = x[row, t] + adapter.signal[t] if t < min(size, frames) else x[row, t]
            assert torch.equal(found[row, t], wanted)


def test_what_it_is_drawn_from():
    torch.manual_seed(0)
    signal = Reprogramming(80, mean=0.35, std=0.35).signal
    assert signal.shape == (3000, 80)
    assert signal.mean().item() == pytest.approx(0.35, abs=0.005) == signal.std().item()
    assert not Reprogramming(80).signal.any()


@pytest.mark.parametrize("family", ["rnnt", "st", "ctc"])
def test_fresh_is_the_identity_and_rows_are_alone(family, make_rnnt, make_st, make_batch):
    batch = make_batch(LANGUAGES, frames=[31, 20, 23, 28])
    if family == "ctc":
        torch.manual_seed(0)
        encoder = {**ENCODERS["conformer"], "input_layer": "linear"}
        conf = {"encoder": "conformer", "encoder_conf": encoder, "num_mels": MELS}
        model = build_backbone("ctc", conf, 7, 3).eval()
    else:
        model = make_rnnt("transformer") if family == "rnnt" else make_st()
    bank = make_bank(model, "reprogramming", frames=25)
    channels = {"rnnt": 2 * MELS + 3, "st": MELS, "ctc": MELS}[family]  # two stacked frames, three languages
    assert bank.size("hi") == 25 * channels
    given = batch.feats, batch.lens, batch.language_ids
    with bank.route(LANGUAGES):
        assert torch.equal(model.encode(*given)[0], model.encode(*given)[0])
        found = model.encode(*given)[0]
    assert torch.equal(found, model.encode(*given)[0])
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    check_rows(model, bank, LANGUAGES, *given)
    with bank.route(LANGUAGES):
        model.encode(*given)[0].square().sum().backward()
    bank.check_gradients(LANGUAGES)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert_stable", "bert_rotary"])
def test_pretrained_encoders(kind):
    """Of a waveform samples."""
    model = make_ctc(kind)
    bank = make_bank(model, "reprogramming", frames=6000)
    assert bank.size("hi") == 6000 * (160 if kind.startswith("bert") else 1)
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    check_rows(model, bank, LANGUAGES, *heard(kind))
    check_rows(model, bank, LANGUAGES, *heard(kind, padded=False))


def test_size_of_hubert():
    with torch.device("meta"):
        model = build_backbone("ctc", {"encoder": "hubert", "objective": "none"}, 3, 1)
        assert make_bank(model, "reprogramming", languages=["hi"], frames=240_000).size("hi") == 240_000


def test_gradients():
    adapter, lens = Reprogramming(width_in=2, frames=4).double(), torch.tensor([5, 3])

    def call(x, signal):
        return torch.func.functional_call(Before(adapter), {"inner.signal": signal}, (x, lens))

    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, adapter.signal))


class Before(nn.Module):
    """What `before` makes of x, as a module's output."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, lens):
        return self.inner.before((x, lens), {})[0][0]


def test_what_it_cannot_be(make_rnnt):
    with pytest.raises(PelasrError, match="sites: reprogramming has nothing for 'layer'"):
        make_bank(make_rnnt(), "reprogramming", sites="layer")
    for options in ({"frames": 0}, {"std": -1.0}):
        with pytest.raises(PelasrError, match="site encoder: adapter_conf: want frames above 0 and std of 0 or more"):
            make_bank(make_rnnt(), "reprogramming", **options)
    with pytest.raises(PelasrError, match="reprogramming: the signal has 3 channels, what is heard 5"):
        Reprogramming(width_in=3).before((torch.randn(1, 4, 5), torch.tensor([4])), {})
