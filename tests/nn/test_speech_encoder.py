"""Pretrained encoders: the numbers of transformers, alone and in batches; every site is called; masks; LayerDrop."""

import copy
import pickle

import pytest
import torch
from tiny_pretrained import LAYERS, TINY, audio_of, make_ours, same_as_theirs, states_of, their_states
from torch import nn

from pelasr.backbones.sites import module_sites
from pelasr.errors import PelasrError, TooShortError
from pelasr.nn import speech_encoder
from pelasr.nn.layers import within
from pelasr.nn.span_masks import SpanMasks
from pelasr.nn.speech_encoder import (
    CONF_KEYS,
    ENCODERS,
    NO_SITES,
    PRETRAINED_SITES,
    default_conf,
    encoder_sites,
    make_encoder,
    make_frontend,
)

LENS = {"wav2vec2_bert": [40, 33, 12, 1]}  # frames; of the others samples
SAMPLES = [9000, 5000, 400, 8999]
DROPPED = {"hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0, "conformer_conv_dropout": 0.0}
BERT = [kind for kind, (name, _) in TINY.items() if name == "wav2vec2_bert"]
LAYER_NORM = [kind for kind in TINY if kind.endswith("_stable")]


def lens_of(kind):
    return LENS.get(TINY[kind][0], SAMPLES)


@pytest.mark.parametrize("kind", TINY)
@torch.inference_mode()
def test_states_are_those_of_the_utterance_alone(kind):
    """In a batch, whose padding is large numbers, as transformers' of the utterance alone."""
    module = same_as_theirs(kind)
    x, lens = audio_of(kind, lens_of(kind))
    states, frames = states_of(module, x, lens)
    assert len(states) == LAYERS["num_hidden_layers"] + 1 == module.encoder.num_layers + 1
    for row, size in enumerate(lens.tolist()):
        theirs = their_states(kind, x[row : row + 1, :size])
        assert len(theirs) == len(states)
        for ours, wanted in zip(states, theirs, strict=True):
            assert frames[row] == wanted.shape[1]
            torch.testing.assert_close(ours[row, : frames[row]], wanted[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*LAYER_NORM, *BERT])
@torch.inference_mode()
def test_states_are_those_of_transformers_batch(kind):
    """Where transformers' own do not depend on the batch."""
    x, lens = audio_of(kind, lens_of(kind), beyond=0.0)
    states, frames = states_of(same_as_theirs(kind), x, lens)
    theirs = their_states(kind, x, within(lens, x.shape[1]).long())
    inside = within(frames, states[0].shape[1])
    for ours, wanted in zip(states, theirs, strict=True):
        torch.testing.assert_close(ours[inside], wanted[inside], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TINY)
@torch.inference_mode()
def test_a_full_batch(kind):
    """Without padding no mask is made."""
    x, lens = audio_of(kind, lens_of(kind)[:1] * 2)
    states, _ = states_of(same_as_theirs(kind), x, lens)
    for ours, wanted in zip(states, their_states(kind, x), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_transformers_group_norm_sees_what_pads_the_batch():
    """The reason for ours; the test of padding could fail."""
    x, lens = audio_of("wav2vec2", [9000, 5000], beyond=0.0)
    theirs = their_states("wav2vec2", x, within(lens, 9000).long())[-1][1]
    alone = their_states("wav2vec2", x[1:, :5000])[-1][0]
    assert (theirs[: len(alone)] - alone).abs().max() > 0.01


@pytest.mark.parametrize("kind", TINY)
def test_every_site_is_called(kind):
    """Hooks on each of them fire, and its output is as wide as the table says."""
    module = make_ours(kind)
    sites = module_sites(module, PRETRAINED_SITES, NO_SITES) | encoder_sites(module.encoder, "encoder")
    wanted = {"linear", "norm", "conv", "q", "k", "v", "out", "ffn_in", "ffn_out", "layer", "ffn", "attention", "embed"}
    wanted |= {"position"} if kind == "bert_relative" else set()
    assert sites.keys() == wanted
    layers = LAYERS["num_hidden_layers"]
    for name in ("q", "k", "v", "out", "layer", "attention"):
        assert len(sites[name]) == layers
    assert len(sites["ffn"]) == len(sites["ffn_in"]) == len(sites["ffn_out"]) == layers * (1 + (kind in BERT))
    widths = {path: width for table in sites.values() for path, width in table.items()}
    for path in widths:
        module.get_submodule(path).register_forward_hook(
            lambda host, args, output, path=path: found.__setitem__(path, (host, output))
        )
    found = {}
    x, lens = audio_of(kind, lens_of(kind))
    states_of(module, x, lens)
    assert found.keys() == widths.keys()
    for path, (host, output) in found.items():
        output = output[0] if isinstance(output, tuple) else output
        channel = 1 if isinstance(host, nn.Conv1d | nn.BatchNorm1d) else -1
        assert len(output) == len(lens) and output.shape[channel] == widths[path], path


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "wavlm_stable", "bert_relative"])
def test_what_hangs_on_an_attentions_map_is_heard(kind):
    module = make_ours(kind)
    x, lens = audio_of(kind, lens_of(kind)[:2])
    before = states_of(module, x, lens)[0][-1]
    for path in module_sites(module, PRETRAINED_SITES, NO_SITES)["v"]:
        handle = module.get_submodule(path).register_forward_hook(lambda host, args, output: output + args[0])
        assert (states_of(module, x, lens)[0][-1] - before).abs().max() > 1e-3
        handle.remove()


def test_sizes_of_published_models():
    """Parameters of the base models as transformers counts them, made on `meta`."""
    sizes = {"wav2vec2": 94_371_712, "hubert": 94_371_712, "wavlm": 94_381_936, "wav2vec2_bert": 580_493_120}
    for name, wanted in sizes.items():
        with torch.device("meta"):
            parts = [part for part in (make_frontend(name, {}), make_encoder(name, {})) if part is not None]
        tensors = [parameter for part in parts for parameter in part.parameters()]
        assert all(tensor.is_meta for part in parts for tensor in part.state_dict().values())
        assert sum(tensor.numel() for tensor in tensors) + parts[-1].output_size == wanted


@pytest.mark.parametrize("kind", TINY)
def test_copies_and_pickles(kind):
    """They give the same, also after a pass in inference mode."""
    module = make_ours(kind)
    x, lens = audio_of(kind, lens_of(kind))
    with torch.inference_mode():
        wanted, _ = states_of(module, x, lens)
    for same in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        states, _ = states_of(same, x, lens)
        for found, before in zip(states, wanted, strict=True):
            torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-5)
        states[-1].sum().backward()


@pytest.mark.parametrize("kind", TINY)
def test_half_precision(kind):
    """In bfloat16 it is as transformers' is, nothing is NaN, and each parameter has a gradient."""
    module = same_as_theirs(kind)
    with torch.autocast("cpu", torch.bfloat16):
        x, lens = audio_of(kind, lens_of(kind)[:1] * 2)
        ours, theirs = states_of(module, x, lens)[0][-1].float(), their_states(kind, x)[-1].float()
        x, lens = audio_of(kind, lens_of(kind))
        states, frames = states_of(module, x, lens)
    assert (ours - theirs).norm() < 0.05 * theirs.norm()
    states[-1][within(frames, states[-1].shape[1])].float().square().sum().backward()
    for path, parameter in module.named_parameters():
        if path != "mask_embedding":
            assert parameter.grad is not None and parameter.grad.isfinite().all(), path


def test_frames():
    frontend = make_frontend("wav2vec2", {})
    assert frontend.subsampling == 320 and frontend.output_size == 512
    assert [frontend.frames(n) for n in (399, 400, 719, 720, 16000)] == [0, 1, 1, 2, 49]
    assert frontend.frames(torch.tensor([399, 400, 16000])).tolist() == [0, 1, 49]
    assert make_frontend("wav2vec2_bert", {"num_hidden_layers": 1}) is None


@pytest.mark.parametrize("kind", ["hubert", "hubert_stable"])
def test_too_short(kind):
    frontend = make_ours(kind).frontend
    x, lens = audio_of(kind, [399, 9000])
    with pytest.raises(TooShortError, match="399 samples are too short for the encoder, which needs 400"):
        frontend(x, lens)
    frames, number = frontend(x[..., 0], torch.tensor([400, 9000]))
    assert frames.shape == (2, 27, 8) and number.tolist() == [1, 27]


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "bert_relative_key"])
def test_layerdrop(kind):
    """Layers are left out in training, by torch's generator; they are computed, so that each parameter has a gradient,
    and not used."""
    known = CONF_KEYS[TINY[kind][0]]
    still = {key: value for key, value in DROPPED.items() if key in known}
    module = make_ours(kind, layerdrop=0.6, **still).train()
    x, lens = audio_of(kind, lens_of(kind))

    def drawn(seed):
        torch.manual_seed(seed)
        return states_of(module, x, lens)[0]

    dropped = set()
    for seed in range(12):
        alone = drawn(seed)
        assert all(torch.equal(*pair) for pair in zip(alone, drawn(seed), strict=True))
        left_out = [layer for layer, (a, b) in enumerate(zip(alone, alone[1:], strict=False)) if torch.equal(a, b)]
        dropped |= set(left_out)
        module.zero_grad()
        alone[-1].square().sum().backward()
        for layer in range(3):
            gradients = [parameter.grad for parameter in module.encoder.layers[layer].parameters()]
            assert all(gradient is not None for gradient in gradients)
            if layer in left_out:
                assert not any(gradient.any() for gradient in gradients)
    assert dropped == ({1, 2} if kind == "wavlm" else {0, 1, 2})
    module.eval()
    assert all(torch.equal(*pair) for pair in zip(drawn(0), drawn(1), strict=True))


def test_masks_of_the_models_own():
    """They change projected frames; padding is zeroed after them."""
    module = make_ours("wav2vec2_stable")
    x, lens = audio_of("wav2vec2_stable", SAMPLES)
    frames, number = module.frontend(x, lens)
    masks = SpanMasks(module.mask_embedding, mask_time_prob=0.5, mask_time_length=2)
    seen = []

    def masking(x, lens):
        seen.append((x, lens, masks(x, lens) + 1))
        return seen[0][2]

    module.encoder(frames, number, masking)
    ((projected, given, masked),) = seen
    assert given is number and projected.shape == (4, 27, 32)
    torch.manual_seed(3)
    first = module.encoder(frames, number, masks)
    torch.manual_seed(3)
    assert torch.equal(first[-1], module.encoder(frames, number, masks)[-1])
    assert not torch.allclose(first[-1], module.encoder(frames, number)[-1])
    first[-1].sum().backward()
    assert module.mask_embedding.grad.any() and masked.shape == projected.shape


def test_default_configurations():
    for name in ENCODERS:
        assert tuple(default_conf(name)) == CONF_KEYS[name]
    assert default_conf("wav2vec2")["layerdrop"] == 0.1


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"hiden_size": 32}, "encoder_conf: unknown key 'hiden_size'; did you mean 'hidden_size'"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size 30 is no multiple of num_attention_heads 4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is below 1"),
        ({"hidden_size": "wide"}, "hidden_size: expected a whole number, found 'wide'"),
        ({"hidden_act": "none"}, "hidden_act: 'none'; "),
        ({"hidden_dropout": 2.0}, "hidden_dropout: 2.0 is not between 0 and 1"),
        ({"attention_dropout": 2.0}, "attention_dropout: 2.0 is not between 0 and 1"),
        ({"layerdrop": -0.1}, "layerdrop: -0.1 is not between 0 and 1"),
        ({"conv_dim": [8]}, "Configuration for convolutional layers is incorrect"),
        ({"feat_extract_norm": "batch"}, "has to be one of"),
        ({"conv_stride": [0] * 7}, "conv_kernel, conv_stride: expected numbers above 0"),
        ({"mask_time_prob": 0.5}, "unknown key 'mask_time_prob'"),
    ],
)
def test_configurations_that_none_can_be_made_of(conf, message):
    with torch.device("meta"), pytest.raises(PelasrError) as error:
        make_encoder("wav2vec2", conf), make_frontend("wav2vec2", conf)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("conf", [{"num_buckets": 3}, {"num_buckets": 320, "max_bucket_distance": 80}])
def test_buckets_that_are_none(conf):
    """The widths of the far ones grow from the last of a frame each to the largest distance."""
    with torch.device("meta"), pytest.raises(PelasrError, match="num_buckets: want 4 or more, and fewer than 4 times"):
        make_encoder("wavlm", {**LAYERS, **conf})


def test_unknown_encoders_and_no_transformers(monkeypatch):
    with pytest.raises(PelasrError, match="encoder: 'wavlmm'; did you mean 'wavlm'"):
        make_encoder("wavlmm", {})

    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(speech_encoder, "import_module", absent)
    with pytest.raises(PelasrError, match="encoder hubert needs transformers; run tools/install.sh hf"):
        make_frontend("hubert", {})
