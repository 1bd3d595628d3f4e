"""What backbones share: the subsampler's arithmetic, encoders that padding cannot reach, CTC's loss."""

import itertools

import pytest
import torch
from tiny_models import ST_ENCODERS, TAGS
from torch import nn

from pelasr.errors import PelasrError, TooShortError
from pelasr.nn.defaults import settled
from pelasr.nn.espnet import ESPnetEncoder
from pelasr.nn.layers import ConvSubsampler, ctc_loss, within

WIDTH = 16  # of frames and encoders; ESPnet's positions by convolution want a multiple of 16
CONV2D = {"conv2d1": 1, "conv2d2": 2, "conv2d": 4, "conv2d6": 6, "conv2d8": 8}  # and the factor of the subsampling
CONV1D = {"conv1d1": 1, "conv1d2": 2, "conv1d3": 3}
INPUTS = {
    "transformer": {None: 1, "linear": 1, "wav2vec": 1, "conv1d2": 2, **CONV2D},
    "conformer": {None: 1, "linear": 1, **CONV2D},
    "e_branchformer": {None: 1, "linear": 1, **CONV1D, **CONV2D},
}
ABSOLUTE = ("abs_pos", "scaled_abs_pos", "conv")
ATTENTION = {"conformer": "selfattention_layer_type", "e_branchformer": "attention_layer_type"}
POSITIONS = {
    "transformer": [{"pos_enc_layer_type": kind} for kind in ("abs_pos", "conv")],
    **{
        name: [{}, *({"pos_enc_layer_type": kind, attention: "selfattn"} for kind in ABSOLUTE)]
        for name, attention in ATTENTION.items()
    },
}
POSITIONS["e_branchformer"].append({"pos_enc_layer_type": "abs_pos", "attention_layer_type": "fast_selfattn"})


def wide(name, input_layer):
    """Of ESPnet's encoders whose input and output are as wide."""
    return {**ST_ENCODERS[name], "output_size": WIDTH, "input_layer": input_layer}


def offered(name):
    """Configurations of an encoder with each input layer and each type of positions."""
    for input_layer, position in itertools.product(INPUTS[name], POSITIONS[name]):
        yield {**wide(name, input_layer), "num_blocks": 1, **position}
    for kind in ("conv1d", "conv1d-linear") if name != "e_branchformer" else ():
        yield {**wide(name, "conv2d"), "positionwise_layer_type": kind, "positionwise_conv_kernel_size": 3}


def padded(lens, width, seed=0):
    """Noise (B, T, width) with large numbers beyond each end."""
    x = torch.randn(len(lens), max(lens), width, generator=torch.Generator().manual_seed(seed))
    lens = torch.tensor(lens)
    return x.where(within(lens, x.shape[1])[..., None], 50.0), lens


def check_alone(module, x, lens):
    """Every utterance gives the same by itself as in the batch (B, T, D)."""
    found, found_lens = module(x, lens)
    for row, size in enumerate(lens):
        alone, alone_lens = module(x[row : row + 1, :size], size[None])
        assert alone_lens.item() == found_lens[row] == alone.shape[1]
        torch.testing.assert_close(found[row, : found_lens[row]], alone[0], rtol=1e-5, atol=1e-5)


def test_within():
    assert within(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


@torch.no_grad()
def test_subsampled_lengths():
    subsampler = ConvSubsampler(input_size=2, output_size=3, channels=4)
    for frames in range(1, 201):
        once = (frames - 1) // 2 + 1
        wanted = (once - 1) // 2 + 1
        x, lens = subsampler(torch.zeros(2, frames, 2), torch.tensor([frames, 1]))
        assert x.shape == (2, wanted, 3) and lens.tolist() == [wanted, 1]


def test_subsampler_is_two_gated_convolutions():
    """By hand, on one utterance: convolution, first half times the sigmoid of the second, twice."""
    subsampler = ConvSubsampler(input_size=2, output_size=3, channels=4, kernel_size=3)
    x = torch.randn(1, 7, 2)
    found, _ = subsampler(x, torch.tensor([7]))
    for conv in subsampler.convs:
        y = torch.zeros(1, (x.shape[1] + 1) // 2, conv.out_channels)
        framed = nn.functional.pad(x, (0, 0, 1, 1))
        for t in range(y.shape[1]):
            y[0, t] = conv.bias + torch.einsum("ki,oik->o", framed[0, 2 * t : 2 * t + 3], conv.weight)
        x = y[..., : y.shape[2] // 2] * y[..., y.shape[2] // 2 :].sigmoid()
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_subsampler_does_not_see_padding():
    check_alone(ConvSubsampler(input_size=2, output_size=3, channels=4), *padded([17, 16, 15, 14, 5, 1], 2))


@pytest.mark.parametrize("name", ST_ENCODERS)
@pytest.mark.parametrize("input_layer", [None, "linear"])
@torch.no_grad()
def test_encoders_do_not_see_padding(name, input_layer):
    torch.manual_seed(0)
    encoder = ESPnetEncoder(name, 6, {**ST_ENCODERS[name], "input_layer": input_layer}).eval()
    assert encoder.subsampling == 1 and encoder.output_size == 6
    check_alone(encoder, *padded([9, 8, 3, 1], 6))


@torch.no_grad()
def test_the_test_of_padding_can_fail():
    """Without the mask of the convolution ESPnet's Conformer does see what pads the batch."""
    torch.manual_seed(0)
    encoder = ESPnetEncoder("conformer", 6, {**ST_ENCODERS["conformer"], "input_layer": None}).eval()
    for module in encoder.modules():
        module._forward_pre_hooks.clear()
    with pytest.raises(AssertionError, match="not close"):
        check_alone(encoder, *padded([9, 3], 6))


@pytest.mark.parametrize("family", ["rnnt", "st"])
@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_an_utterance_alone_is_the_utterance_in_a_batch(name, family, make_model):
    """With every input layer and every type of positions: output, frames and greedy hypothesis."""
    feats, lens = padded([31, 28, 17], WIDTH)
    front = {"stack": 1, "stride": 1, "language_vector": "none"} if family == "rnnt" else {}
    lengths = set()
    for conf in offered(name):
        model = make_model(family, {"encoder": name, "encoder_conf": conf, "num_mels": WIDTH, **front})
        prefix = None
        if family == "rnnt":
            for parameter in model.joint.parameters():
                parameter *= 5
            model.joint.lin_out.bias[0] += 4
        else:
            prefix = torch.full((len(lens), 1), TAGS[0])
        ids = torch.zeros_like(lens)
        enc, frames = model.encode(feats, lens, ids)
        found = model.search(enc, frames, prefix)
        for row, size in enumerate(lens):
            one = slice(row, row + 1)
            alone, alone_frames = model.encode(feats[one, :size], lens[one], ids[one])
            assert alone_frames.item() == frames[row] == alone.shape[1], conf
            torch.testing.assert_close(alone[0], enc[row, : frames[row]], rtol=1e-5, atol=1e-5, msg=str(conf))
            (hypothesis,) = model.search(alone, alone_frames, None if prefix is None else prefix[one])
            assert hypothesis.tokens == found[row].tokens, conf
        lengths |= {len(hypothesis.tokens) for hypothesis in found}
    assert len(lengths) > 3  # there were hypotheses to compare


@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_subsampling_of_espnets_input_layers(name):
    """The factor, and how many frames there are at least."""
    for input_layer, factor in INPUTS[name].items():
        encoder = ESPnetEncoder(name, WIDTH, wide(name, input_layer)).eval()
        assert encoder.subsampling == factor
        first, second = (encoder(torch.zeros(1, n, WIDTH), torch.tensor([n]))[1].item() for n in (100, 100 + factor))
        assert 100 / factor - 4 <= first <= 100 / factor and second == first + 1


def test_legacy_positions_are_refused():
    legacy = "with ESPnet's old positions .* use `rel_pos_type: latest`"
    for name in ATTENTION:
        for given in ({"rel_pos_type": "legacy"}, {"pos_enc_layer_type": "legacy_rel_pos"}):
            with pytest.raises(PelasrError, match=f"encoder_conf: {next(iter(given))}: legacy.*: {legacy}"):
                ESPnetEncoder(name, 6, {**ST_ENCODERS[name], **given})
        layer = ESPnetEncoder(name, 6, {**ST_ENCODERS[name], "input_layer": "linear"}).encoder.encoders[0]
        kinds = {type(module).__name__ for module in layer.modules()}
        assert "RelativeAttention" in kinds and "LegacyRelPositionMultiHeadedAttention" not in kinds


def test_positions_are_settled_where_espnet_has_another_default():
    said = {"encoder": "conformer", "encoder_conf": {"num_blocks": 2, "rel_pos_type": "latest"}}
    assert settled({"encoder": "conformer", "encoder_conf": {"num_blocks": 2}}) == said == settled(said)
    assert settled({"encoder": "conformer"})["encoder_conf"] == {"rel_pos_type": "latest"}
    for options in ({}, {"encoder": "e_branchformer"}, {"encoder": "transformer", "encoder_conf": {"num_blocks": 2}}):
        assert settled(options) == options


def positions_of(model):
    return [module for module in model.modules() if hasattr(module, "extend_pe")]


@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_a_longer_utterance_before_changes_nothing(name, make_st):
    """ESPnet's positions grow and are kept."""
    (short, lens), (long, long_lens) = padded([33, 21], WIDTH), padded([1001], WIDTH)
    for input_layer in (None, "linear", "conv2d2"):
        model = make_st(name, encoder_conf=wide(name, input_layer), num_mels=WIDTH)
        before, _ = model.encode(short, lens)
        for positions in positions_of(model.encoder):
            positions.pe = None
            positions.extend_pe(torch.empty(1, 3))
        model.encode(long, long_lens)
        after, _ = model.encode(short, lens)
        assert positions_of(model.encoder) and torch.equal(before, after)


@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_half_precision_before_changes_nothing(name, make_st):
    """As when a validation in float32 comes after steps in bfloat16."""
    short, lens = padded([33, 21], WIDTH)
    for input_layer in (None, "conv2d2"):
        model = make_st(name, encoder_conf=wide(name, input_layer), num_mels=WIDTH)
        before, _ = model.encode(short, lens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not torch.equal(model.encode(short, lens)[0].float(), before)
        after, _ = model.encode(short, lens)
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_too_short_is_too_short_in_a_batch_too(name):
    """An utterance has no frames of what pads its batch, so it is refused, and one that has a frame is not."""
    for input_layer in INPUTS[name]:
        encoder = ESPnetEncoder(name, WIDTH, wide(name, input_layer)).eval()
        needed = next(n for n in itertools.count(1) if is_enough(encoder, [n]))
        assert is_enough(encoder, [needed, 40]) and encoder(*padded([needed, 40], WIDTH))[1][0] == 1
        assert input_layer in (None, "linear", "wav2vec") or needed >= 5
        if needed > 1:
            with pytest.raises(TooShortError, match=f"{needed - 1} frames are too short .* needs {needed}"):
                encoder(*padded([40, needed - 1], WIDTH))


def is_enough(encoder, lens):
    try:
        encoder(*padded(lens, WIDTH))
    except TooShortError:
        return False
    return True


def test_unknown_options():
    with pytest.raises(PelasrError, match="encoder_conf: unknown key 'num_block'; did you mean 'num_blocks'"):
        ESPnetEncoder("transformer", 6, {"num_block": 2})


def test_ctc_loss_is_a_sum_over_paths():
    torch.manual_seed(0)
    logits, lens = torch.randn(2, 4, 3), torch.tensor([4, 3])
    targets, target_lens = torch.tensor([[1, 1], [2, 0]]), torch.tensor([2, 1])
    losses = ctc_loss(logits, lens, targets, target_lens)
    for row in range(2):
        wanted, total = targets[row, : target_lens[row]].tolist(), 0.0
        log_probs = logits[row].log_softmax(-1)
        for path in itertools.product(range(3), repeat=int(lens[row])):
            if [label for label, _ in itertools.groupby(path) if label] == wanted:
                total += float(log_probs[range(len(path)), path].sum().exp())
        assert losses[row].item() == pytest.approx(-torch.tensor(total).log().item(), rel=1e-5)


def test_ctc_loss_of_more_labels_than_frames_is_left_out():
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([2]), torch.tensor([[1, 2, 1]]), torch.tensor([3]))
    loss.sum().backward()
    assert loss.tolist() == [0.0] and not logits.grad.any()
