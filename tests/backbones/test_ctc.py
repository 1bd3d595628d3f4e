"""CTC on speech encoders: sizes, output layers of a language's own, every method at every site, pretraining."""

import copy

import pytest
import torch
from tiny_pretrained import CONV, TINY, audio_of
from torch import nn
from torch.nn import functional as F

from pelasr.adapters.bank import Bank
from pelasr.adapters.finetune import make_bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.own import OwnParts
from pelasr.backbones.base import build_backbone, find_backbone
from pelasr.config import load_yaml
from pelasr.data.hears import Extracted, LogMel, Waveform
from pelasr.data.tokenizer import SPECIAL
from pelasr.errors import PelasrError
from pelasr.stages.params import count

BERT = {"feature_projection_input_dim": 160}
KINDS = {kind: (name, conf | BERT if name == "wav2vec2_bert" else conf) for kind, (name, conf) in TINY.items()}
OF_EACH = ["wav2vec2", "wav2vec2_stable", "hubert", "wavlm", "wavlm_stable", "bert_relative_key"]
CONFORMER = {
    "output_size": 8,
    "attention_heads": 2,
    "linear_units": 8,
    "num_blocks": 2,
    "cnn_module_kernel": 3,
    "input_layer": "conv2d2",
}
TOKENS = {"hi": ["<space>", "क", "ख"], "ta": ["க"]}
LENS = [4000, 2500, 6000, 3300]
LANGUAGES = ["hi", "ta", "ta", "hi"]


def make(kind, seed=0, **options):
    """A backbone of this kind in eval mode, whose languages have output layers of their own unless told otherwise."""
    torch.manual_seed(seed)
    name, conf = KINDS[kind]
    options = {"encoder": name, "encoder_conf": conf, "objective": "none", **options}
    return build_backbone("ctc", options, len(SPECIAL), 2).eval()


def speech(kind):
    """What a kind hears of four utterances (B, T, C), and its rows (B,)."""
    if KINDS[kind][0] != "wav2vec2_bert":
        return audio_of(kind, LENS)
    lens = [size // 100 for size in LENS]
    return torch.randn(len(lens), max(lens), 160, generator=torch.Generator().manual_seed(1)), torch.tensor(lens)


def make_languages(backbone, method="houlsby", **options):
    """A bank of two languages with random values."""
    bank = make_bank(method, options, backbone)
    torch.manual_seed(1)
    for language, tokens in TOKENS.items():
        bank.add(language, OwnParts(backbone, tokens, vector=True))
    for parameter in bank.parameters():
        nn.init.normal_(parameter, std=0.3)
    return bank.eval()


def logits_of(backbone, bank, x, lens, languages):
    with torch.no_grad(), bank.route(languages):
        enc, lens = backbone.encode(x, lens, None)
        return backbone.ctc(enc), lens


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("hubert_base", 94_371_712),
        ("wav2vec2_base", 94_371_712),
        ("wavlm_base", 94_381_936),
        ("mms_1b", 962_497_408),
    ],
)
def test_sizes_of_the_published_encoders(name, size):
    config = load_yaml(f"conf/{name}.yaml")
    assert count(config, None, name, 500, 2)["backbone"] == size


def test_size_of_adapters_of_mms():
    adapter = {"adapter": "houlsby", "adapter_conf": {"bottleneck": 16}}
    config = load_yaml("conf/mms_1b.yaml")
    for tokens in (28, 60):
        found = count(config, adapter, "mms", tokens, 3)
        assert found["adapter_per_language"] == 2_151_168 + 1281 * tokens
        assert found["trainable"] == 3 * found["adapter_per_language"]


def test_what_they_hear():
    assert make("hubert").hears == Waveform(True)
    assert make("hubert", normalise=False).hears == Waveform(False)
    assert make("bert_relative").hears == Extracted(kind="seamless", channels=160)
    options = {"encoder": "conformer", "encoder_conf": CONFORMER, "num_mels": 40}
    assert build_backbone("ctc", options, 7, 2).hears == LogMel(40)
    assert [make(kind).subsampling for kind in ("hubert", "bert_relative")] == [2, 2]
    assert make("hubert", encoder_conf={**CONV, "conv_stride": [5, 2, 2, 2, 1, 1, 1]}).subsampling == 1


@pytest.mark.parametrize("layers", ["last", "sum"])
@pytest.mark.parametrize("kind", OF_EACH)
def test_mixed_languages_are_what_each_is_alone(kind, layers):
    backbone = make(kind, layers=layers)
    bank = make_languages(backbone, bottleneck=3)
    x, lens = speech(kind)
    mixed, frames = logits_of(backbone, bank, x, lens, LANGUAGES)
    assert mixed.shape[-1] == len(SPECIAL) + 3
    for row, language in enumerate(LANGUAGES):
        size = len(SPECIAL) + len(TOKENS[language])
        alone, _ = logits_of(backbone, bank, x[row : row + 1, : lens[row]], lens[row : row + 1], [language])
        torch.testing.assert_close(alone[0], mixed[row, : frames[row], :size], atol=1e-4, rtol=1e-4)
        assert (mixed[row, :, size:] == -torch.inf).all()


def test_own_output_layer_is_a_plain_one():
    backbone = make("hubert_stable", layers="last")
    bank = make_languages(backbone, "output")
    x, lens = speech("hubert_stable")
    own = bank.own_of("hi").at("ctc")
    found, _ = logits_of(backbone, bank, x, lens, ["hi"] * 4)
    enc, _ = backbone.encode(x, lens, None)
    torch.testing.assert_close(found, F.linear(enc, own["weight"], own["bias"]))
    assert bank.size("hi") == own["weight"].numel() + own["bias"].numel() == 6 * 33
    assert bank.of("hi") == {}


def test_layers_are_summed_by_shares_of_each_language():
    backbone = make("wav2vec2", layers="sum")
    bank = make_languages(backbone, "output")
    x, lens = speech("wav2vec2")
    frames, number = backbone.frontend(x, lens)
    states = torch.stack(backbone.encoder(frames, number))
    with torch.no_grad(), bank.route(LANGUAGES):
        enc, _ = backbone.encode(x, lens, None)
    for row, language in enumerate(LANGUAGES):
        shares = bank.own_of(language).at("layer_sum")["weights"].softmax(0)
        torch.testing.assert_close(enc[row], torch.einsum("l,ltd->td", shares, states[:, row]))
    with torch.no_grad():  # without a language: their mean
        torch.testing.assert_close(backbone.encode(x, lens, None)[0], states.mean(0))


def test_a_backbone_without_packs_says_what_is_missing():
    backbone = make("hubert")
    x, lens = speech("hubert")
    enc, frames = backbone.encode(x, lens, None)
    with pytest.raises(PelasrError, match="no output layer, each language's pack has one: fit it with stage 5"):
        backbone.search(enc, frames)


METHODS = {"houlsby": {"bottleneck": 3}, "lora": {"rank": 2}, "bitfit": {}, "output": {}, "full": {}}


@pytest.mark.parametrize("kind", OF_EACH)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(kind, method):
    backbone = make(kind, layers="sum")
    freeze(backbone)
    bank = make_languages(backbone, method, **METHODS[method])
    x, lens = speech(kind)
    languages = LANGUAGES if bank.mixes_languages else ["hi"] * 4
    with bank.route(languages):
        enc, frames = backbone.encode(x, lens, None)
        backbone.loss(enc, frames, torch.full((4, 2), 3), torch.tensor([2, 1, 2, 2])).total.sum().backward()
    trained = [parameter for language in set(languages) for parameter in bank.tensors(language).values()]
    assert all(parameter.grad is not None for parameter in trained if parameter.requires_grad)
    bank.check_gradients(set(languages))
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("kind", OF_EACH)
def test_every_site_works(kind):
    """Adapters at each kind of site change what comes out, and get gradients."""
    backbone = make(kind)
    freeze(backbone)
    x, lens = speech(kind)
    before, _ = logits_of(backbone, make_languages(backbone, "output"), x, lens, LANGUAGES)
    kinds = backbone.sites()
    named = {"layer", "ffn", "q", "k", "v", "out", "ffn_in", "ffn_out", "norm", "conv", "embed", "attention"}
    assert named <= kinds.keys()
    for site in sorted(kinds.keys() - {"encoder", "input"}):
        other = copy.deepcopy(backbone)
        bank = make_languages(other, "houlsby", bottleneck=2, sites=[site])
        with bank.route(LANGUAGES):
            enc, _ = other.encode(x, lens, None)
            (other.ctc(enc)[..., 0] ** 2).sum().backward()
        bank.check_gradients(LANGUAGES)
        for path, adapter in bank.of("hi").items():
            assert any(float(p.grad.abs().max()) > 0 for p in adapter.parameters()), path
    assert before.isfinite().any()


def test_lora_on_wavlm_is_not_dead():
    """transformers' own attention never calls the maps that it hangs on."""
    backbone = make("wavlm")
    x, lens = speech("wavlm")
    bank = make_languages(backbone, "lora", rank=2, sites=["q", "v"])
    plain = make_languages(backbone, "output")
    with bank.route(LANGUAGES):
        adapted = backbone.encode(x, lens, None)[0]
    with plain.route(LANGUAGES):
        assert not torch.allclose(adapted, backbone.encode(x, lens, None)[0], atol=1e-3)


def test_shared_tokens_and_espnets_encoders():
    options = {"encoder": "conformer", "encoder_conf": CONFORMER, "num_mels": 20}
    backbone = build_backbone("ctc", options, 7, 2).eval()
    assert backbone.own_sites() == {"ctc": "output"}
    backbone.set_feature_stats(torch.ones(20), 2 * torch.ones(20))
    x, lens = torch.randn(2, 60, 20), torch.tensor([60, 41])
    enc, frames = backbone.encode(x, lens, None)
    alone, _ = backbone.encode(x[1:, :41], lens[1:], None)
    torch.testing.assert_close(enc[1:, : frames[1]], alone, atol=1e-5, rtol=1e-4)
    loss = backbone.loss(enc, frames, torch.tensor([[2, 3], [4, 1]]), torch.tensor([2, 1]))
    expected = F.ctc_loss(
        backbone.ctc(enc).log_softmax(-1).transpose(0, 1),
        torch.tensor([[2, 3], [4, 1]]),
        frames,
        torch.tensor([2, 1]),
        reduction="none",
    )
    torch.testing.assert_close(loss.total, expected)
    bank = Bank("houlsby", {"bottleneck": 2}, backbone)
    bank.add("hi")
    with bank.route(["hi", "hi"]):
        assert len(backbone.search(*backbone.encode(x, lens, None))) == 2


def test_masked_frames_alone_are_learnt_from():
    backbone = make("hubert", objective="masked", num_clusters=5, mask_prob=0.5, mask_length=2)
    x, lens = speech("hubert")
    frames = backbone.frontend.frames(lens)
    units = torch.randint(5, (4, int(frames.max())), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss, wrong, count = backbone.masked_loss(x, lens, units, [1, 2, 3, 4])
        mask = backbone._mask(frames.tolist(), [1, 2, 3, 4])
        other = units.where(mask, 4 - units)  # of frames that are not masked
        assert torch.equal(backbone.masked_loss(x, lens, other, [1, 2, 3, 4])[0], loss)
        assert count.tolist() == mask.sum(1).tolist()
        assert ((wrong > 0) & (wrong <= count)).all()
        assert not torch.equal(backbone.masked_loss(x, lens, units, [9, 9, 9, 9])[0], loss)
        # The loss of an utterance follows from it and its seed alone.
        alone = backbone.masked_loss(x[1:2, : lens[1]], lens[1:2], units[1:2, : frames[1]], [2])
        torch.testing.assert_close(alone[0], loss[1:2], atol=1e-4, rtol=1e-4)
        assert alone[2].tolist() == count[1:2].tolist()
    backbone.unmasked_weight = 1.0
    with torch.no_grad():
        assert (backbone.masked_loss(x, lens, units, [1, 2, 3, 4])[0] > loss).all()


def test_pretraining_trains_all_of_it():
    backbone = make("hubert", objective="masked", num_clusters=5, train_frontend=True)
    x, lens = speech("hubert")
    units = torch.zeros(4, 18, dtype=torch.long)
    backbone.train()
    backbone.masked_loss(x, lens, units, [1, 2, 3, 4])[0].sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def test_what_it_learns_from():
    assert make("hubert").learns_from == "nothing"
    assert make("hubert", objective="masked").learns_from == "audio"
    assert make("hubert", objective="ctc", layers="last").learns_from == "texts"
    assert find_backbone("rnnt").learns_from == "texts"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("hubert", {"objective": "maskd"}, "objective: 'maskd'; did you mean 'masked'"),
        ("hubert", {"objective": "ctc", "layers": "sum"}, "layers: sum: each language's weights go with own outputs"),
        ("hubert", {"layers": "all"}, "layers: 'all'"),
        ("hubert", {"encoder": "huber"}, "encoder: 'huber'; did you mean 'hubert'"),
        ("hubert", {"objective": "masked", "mask_prob": 1.5}, "mask_prob, mask_length: want"),
        ("bert_relative", {"objective": "masked"}, "wav2vec2_bert hears no waveform"),
        (
            "bert_relative",
            {"encoder_conf": KINDS["bert_relative"][1] | {"feature_projection_input_dim": 80}},
            "feature_projection_input_dim: 80, but 160 channels are heard",
        ),
        ("hubert", {"objective": "masked", "num_clusters": 1}, "num_clusters: 1: want 2 or more"),
        (
            "hubert",
            {"objective": "masked", "encoder_conf": {**CONV, "conv_stride": [5, 2, 2, 2, 2, 2, 1]}},
            "clusters are of frames of 320 samples, those of this conv_stride are of 160",
        ),
        ("hubert", {"encoder_conf": {"conv_dims": [8]}}, "conv_dims"),
    ],
)
def test_options_that_cannot_be(kind, options, message):
    with pytest.raises(PelasrError, match=message):
        make(kind, **options)


def test_masks_of_its_own():
    backbone = make("hubert", masks={"mask_time_prob": 0.3, "mask_time_length": 4})
    assert backbone.make_augment({"mask_time_length": 2}).time == (0.3, 2, 2)
    with pytest.raises(PelasrError, match="specaug_conf: unknown key 'num_time_mask'"):
        backbone.make_augment({"num_time_mask": 2})
    x, lens = speech("hubert")
    torch.manual_seed(0)
    masked, _ = backbone.encode(x, lens, None, backbone.make_augment({}))
    assert not torch.allclose(masked, backbone.encode(x, lens, None)[0], atol=1e-2)
