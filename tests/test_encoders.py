"""What backbones share: the subsampler's arithmetic, encoders that padding cannot reach, CTC's loss."""

import itertools

import pytest
import torch
from conftest import ENCODERS, ST_ENCODERS
from torch import nn

from pelasr.encoders import ConvSubsampler, ESPnetEncoder, ctc_loss, within
from pelasr.errors import PelasrError


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


def test_subsampling_of_espnets_input_layers():
    for name, factor in (("conv2d2", 2), ("conv2d", 4), ("conv2d6", 6)):
        encoder = ESPnetEncoder("transformer", 80, {**ENCODERS["transformer"], "input_layer": name})
        assert encoder.subsampling == factor
        frames = encoder(torch.zeros(1, 400, 80), torch.tensor([400]))[1].item()
        assert 400 / factor - 3 <= frames <= 400 / factor


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
