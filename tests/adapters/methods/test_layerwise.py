"""E- and L-adapters: what the output layer sees, by hand; where they hang and where they cannot."""

import pytest
import torch
from tiny_pretrained import CONV, TINY, audio_of
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pelasr.adapters.bank import Bank
from pelasr.adapters.fold import fold
from pelasr.adapters.freeze import freeze
from pelasr.adapters.methods.layerwise import EAdapter
from pelasr.adapters.own import OwnParts
from pelasr.backbones.base import build_backbone
from pelasr.errors import PelasrError

D, LAYERS, WIDTH = CONV["hidden_size"], CONV["num_hidden_layers"], 20
OPTIONS = {"bottleneck": 5, "features": WIDTH}
LANGUAGES = ["hi", "ta", "ta", "hi"]


def make(kind="hubert", **options):
    torch.manual_seed(0)
    name, conf = TINY[kind]
    conf = {**conf, "feature_projection_input_dim": 160} if name == "wav2vec2_bert" else conf
    model = build_backbone("ctc", {"encoder": name, "encoder_conf": conf, "objective": "none", **options}, 3, 2).eval()
    freeze(model)
    return model


def make_bank(model, trained=True, **options):
    torch.manual_seed(1)
    bank = Bank("layerwise", OPTIONS | options, model)
    for language in ("hi", "ta"):
        bank.add(language, OwnParts(model, ["क", "ख"], vector=False))
    if trained:
        for parameter in bank.parameters():
            nn.init.normal_(parameter, std=0.3)
    return bank


def run(model, bank, languages, rows=slice(None)):
    x, lens = audio_of("hubert", [4000, 2500, 6000, 3300])
    with bank.route(languages):
        return model.encode(x[rows], lens[rows], None)


def test_what_the_output_layer_sees():
    """Of layers that begin as they are: LN(gelu(W h + b)) of each layer's output, by a softmax, and zeros."""
    model = make()
    bank = make_bank(model, trained=False)
    for path in model.sites()["layer"]:
        for parameter in bank.of("hi")[path].parameters():
            nn.init.normal_(parameter)
    x, lens = audio_of("hubert", [4000, 2500])
    states = model.encoder(*model.frontend(x, lens))[1:]
    weights = torch.stack([bank.of("hi")[f"encoder.layers.{n}"].weight[0] for n in range(LAYERS)]).softmax(0)
    wanted = 0
    for n, state in enumerate(states):
        p = bank.of("hi")[f"encoder.layers.{n}"]
        feature = F.gelu(state @ p.map.weight.T + p.map.bias)
        wanted += weights[n] * F.layer_norm(feature, (WIDTH,), p.norm.weight, p.norm.bias)
    with bank.route(["hi", "hi"]):
        enc, _ = model.encode(x, lens)
    torch.testing.assert_close(enc[..., :WIDTH], wanted, rtol=1e-5, atol=1e-5)
    assert enc.shape[-1] == D and not enc[..., WIDTH:].any()


def test_formula_of_an_e_adapter():
    torch.manual_seed(0)
    adapter, y = EAdapter(6, bottleneck=3), torch.randn(2, 5, 6)
    assert torch.equal(adapter(None, y), y)
    assert adapter.down.weight.any() and adapter.down.weight.std() < 0.01
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    p = dict(adapter.named_parameters())
    z = F.gelu(y @ p["down.weight"].T + p["down.bias"]) @ p["up.weight"].T + p["up.bias"]
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(adapter(None, y), y + z * p["norm.weight"] + p["norm.bias"], rtol=1e-5, atol=1e-5)


def test_where_they_hang():
    """Two in a layer of Wav2Vec2-BERT; none in the last layer, unless there are no L-adapters."""
    for kind, each in (("hubert", 1), ("bert_relative_key", 2)):
        model = make(kind)
        ffn, layers = list(model.sites()["ffn"]), list(model.sites()["layer"])
        norms = [path for path in model.sites()["layer_norm"] if isinstance(model.get_submodule(path), nn.LayerNorm)]
        assert len(ffn) == each * LAYERS
        assert set(make_bank(model).sites) == {*ffn[:-each], *layers, "top", *norms}
        alone = Bank("layerwise", {"sites": ["ffn", "layer_norm"]}, model)
        assert set(alone.sites) == {*ffn, *norms}
    bank, m, d = make_bank(make()), WIDTH, OPTIONS["bottleneck"]
    size = (LAYERS - 1) * (2 * D * d + d + 3 * D) + LAYERS * (D * m + 3 * m + 1) + LAYERS * 2 * 2 * D
    assert bank.size("hi") - sum(map(torch.numel, bank.own_of("hi").parameters())) == size


def test_e_adapters_alone_begin_as_the_identity():
    model = make()
    bank = make_bank(model, trained=False, sites=["ffn", "layer_norm"])
    x, lens = audio_of("hubert", [4000, 2500])
    with bank.route(["hi", "ta"]):
        adapted, _ = model.encode(x, lens)
    assert torch.equal(adapted, model.encode(x, lens)[0])


@pytest.mark.parametrize("layers", ["last", "sum"])
def test_a_mixed_batch_is_each_alone(layers):
    model = make(layers=layers)
    bank = make_bank(model)
    mixed, frames = run(model, bank, LANGUAGES)
    for row, language in enumerate(LANGUAGES):
        alone, _ = run(model, bank, [language] * 4)
        torch.testing.assert_close(alone[row, : frames[row]], mixed[row, : frames[row]], rtol=1e-5, atol=1e-5)


def losses_and_gradients(languages):
    """Of a fresh model with random adapters."""
    model = make()
    bank = make_bank(model)
    labels = torch.tensor([[1, 2]] * 4), torch.tensor([2] * 4)
    x, lens = audio_of("hubert", [4000, 2500, 6000, 3300])
    with bank.route(languages):
        enc, frames = model.encode(x, lens, None)
        losses = model.loss(enc, frames, *labels).total
        losses.sum().backward()
    bank.check_gradients(set(languages))
    found = {(language, *item) for language in set(languages) for item in bank.tensors(language).items()}
    return losses, {(language, name): tensor.grad for language, name, tensor in found}


@pytest.mark.parametrize("languages", [LANGUAGES, ["hi"] * 4])
def test_gradients(languages, monkeypatch):
    """Of everything, and the same where whole layers are computed again in the backward pass."""
    losses, gradients = losses_and_gradients(languages)
    assert all(bool(gradient.any()) for gradient in gradients.values())
    calls = []

    def again(layer, x, given, dropped):
        calls.append(layer)
        return checkpoint(layer, x, use_reentrant=False, **given)

    monkeypatch.setattr("pelasr.nn.speech_encoder._through", again)
    same, others = losses_and_gradients(languages)
    assert len(calls) == LAYERS and torch.equal(same, losses)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, msg=str(name))


def test_nothing_is_folded_by_half(make_st):
    """Its norms could be."""
    model = make_st()
    bank = Bank("layerwise", {"sites": ["layer_norm", "ffn"]}, model)
    bank.add("en-de")
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PelasrError, match="eadapter adapters cannot be folded"):
        fold(model, bank, "en-de")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_in_a_translator_as_in_any_other_backbone(make_st):
    """E-adapters have no output layer of their own; features are refused."""
    model = make_st()
    assert Bank("layerwise", {"sites": ["ffn", "layer_norm"]}, model).sites
    for each in (model, make(objective="ctc")):
        with pytest.raises(PelasrError, match="adapter layerwise: .* a shared output layer or decoder has never seen"):
            Bank("layerwise", {}, each)


def test_what_it_refuses(make_rnnt):
    with pytest.raises(PelasrError, match="adapter layerwise needs a site 'ffn': it is for layers with feed-forward"):
        Bank("layerwise", {}, make_rnnt())
    with pytest.raises(PelasrError, match="of layerwise layer, top go together; .* is missing"):
        Bank("layerwise", {"sites": ["layer"]}, make())
    with pytest.raises(PelasrError, match=f"site encoder.layers.0: features: 512: the output layer sees {D} channels"):
        make_bank(make(), features=512)
