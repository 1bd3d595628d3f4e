"""CHAPTER's CNN adapters: their size, their sums by hand, frames and rows; with bottleneck adapters above."""

import copy

import pytest
import torch
from adapted_encoders import LANGUAGES, check_rows, heard, make_bank, make_ctc
from tiny_pretrained import audio_of, make_ours
from torch import nn

from pelasr.adapters.methods.cnn import Cnn, TimeNorm
from pelasr.backbones.base import build_backbone
from pelasr.errors import PelasrError
from pelasr.nn.layers import within

KINDS = ["wav2vec2", "wavlm_stable", "hubert_batch_norm"]  # a group norm first, layer norms, a group norm


def drawn(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("method", ["cnn", "chapter"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()  # torch's attention of WavLM differs in the last bit where there are gradients
def test_fresh_is_the_identity(kind, method):
    model, (x, lens) = make_ctc(kind), heard(kind)
    options = {} if method == "cnn" else {"bottleneck": 4}
    bank = make_bank(model, method, **options)
    for languages in (LANGUAGES, ["hi"] * 4):
        with bank.route(languages):
            found = model.encode(x, lens)
        wanted = model.encode(x, lens)
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_is_the_block_of_the_utterance_alone(kind):
    """With other weights, on each utterance of a padded batch by itself, as transformers' block computes it."""
    frontend = drawn(make_ours(kind)).frontend
    x, lens = audio_of(kind, [900, 500, 650])
    for block, kernel, stride in zip(frontend.conv_layers, frontend.kernels, frontend.strides, strict=True):
        after = (lens - kernel) // stride + 1
        inside = within(after, int(after.max()))
        y, adapter = block(x, after), drawn(Cnn(block, scale=0.5))
        other = copy.deepcopy(block)
        other.conv.load_state_dict(adapter.conv.state_dict())
        if adapter.norm is not None:
            other.layer_norm.load_state_dict(adapter.norm.state_dict())
        found = adapter(x, y, inside)
        assert found.shape == y.shape
        for row, size in enumerate(lens.tolist()):
            alone = y[row, : after[row]] + 0.5 * other(x[row : row + 1, :size], None)[0]
            torch.testing.assert_close(found[row, : after[row]], alone, rtol=1e-4, atol=1e-5)
        x, lens = y, after
        if int(lens.min()) < 20:
            return


@pytest.mark.parametrize("method", ["cnn", "chapter"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch(kind, method):
    """As many frames as without, in each language, and gradients of all."""
    model = make_ctc(kind)
    bank = make_bank(model, method, scale=1.0, **({} if method == "cnn" else {"bottleneck": 4}))
    drawn(bank)
    x, lens = heard(kind)
    check_rows(model, bank, LANGUAGES, x, lens)
    with bank.route(LANGUAGES):
        found, frames = model.encode(x, lens)
        found.square().sum().backward()
    assert frames.tolist() == model.encode(x, lens)[1].tolist()
    bank.check_gradients(LANGUAGES)


def test_sizes_of_hubert():
    """Of the copies 4,200,448; with bottlenecks of 32 on the feed-forward sub-layers 599,424 more: 4.80 M."""
    with torch.device("meta"):
        model = build_backbone("ctc", {"encoder": "hubert", "objective": "none"}, 3, 1)
        cnn = make_bank(model, "cnn", languages=["hi"])
        chapter = make_bank(model, "chapter", languages=["hi"], bottleneck=32, norm=False)
    assert cnn.size("hi") == sum(p.numel() for p in model.frontend.parameters()) == 4_200_448
    assert chapter.size("hi") == 4_200_448 + 599_424


def test_gradients():
    norm, inside = drawn(TimeNorm(3, 1e-5)).double(), torch.tensor([[True] * 4, [True, True, False, False]])
    x = torch.randn(2, 4, 3, dtype=torch.float32).double().requires_grad_()

    def call(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x, inside))

    assert torch.autograd.gradcheck(call, (x, norm.weight, norm.bias))


def test_where_there_are_no_such_convolutions(make_rnnt):
    why = "only pretrained encoders that hear a waveform begin with such convolutions"
    for model in (make_rnnt(), make_ctc("bert_relative")):
        with pytest.raises(PelasrError, match=f"needs a site 'conv_layer': {why}"):
            make_bank(model, "cnn")
    with pytest.raises(PelasrError, match="sites: cnn has nothing for 'layer'"):
        make_bank(make_ctc("hubert"), "cnn", sites="layer")
