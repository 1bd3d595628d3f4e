"""Masks of spans: as many as transformers', in the same places on average, never beyond an utterance's end."""

import numpy as np
import pytest
import torch

from pelasr.errors import PelasrError
from pelasr.nn.layers import within
from pelasr.nn.span_masks import SpanMasks, time_mask

LENS = torch.tensor([100, 57, 9, 10, 11, 25])


@pytest.mark.parametrize("arguments", [(0.05, 10, 2), (0.65, 10, 2), (0.8, 10, 0), (0.05, 10, 0), (0.3, 3, 1)])
def test_shares_are_those_of_transformers(arguments):
    """Of masked frames, for each length and for each place in an utterance."""
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

    prob, length, least = arguments
    torch.manual_seed(0)
    np.random.seed(0)
    draws = 1500
    ours = torch.stack([time_mask(LENS, *arguments) for _ in range(draws)]).float().mean(0)
    for row, size in zip(ours, LENS.tolist(), strict=True):
        assert not row[size:].any()
        if size < length:
            assert not row.any()
            continue
        theirs = _compute_mask_indices((1, size), prob, length, min_masks=least)
        theirs = np.mean([_compute_mask_indices((1, size), prob, length, min_masks=least) for _ in range(draws)], 0)[0]
        assert abs(row[:size].mean().item() - theirs.mean()) < 0.02
        assert np.abs(row[:size].numpy() - theirs).max() < 0.09


def test_spans():
    """Whole spans, at least so many where they fit, as many as asked otherwise; none in what is shorter."""
    torch.manual_seed(0)
    for _ in range(50):
        mask = time_mask(LENS, 0.0, 10, 2)
        assert mask.dtype == torch.bool and mask.shape == (6, 100)
        assert mask.sum(1)[0] in range(11, 21) and mask.sum(1).tolist()[2:5] == [0, 10, 10]
        edges = torch.diff(mask.int(), dim=1, prepend=torch.zeros(6, 1), append=torch.zeros(6, 1)).ne(0)
        for row in edges:
            begins = row.nonzero().flatten().view(-1, 2)
            assert ((begins[:, 1] - begins[:, 0]) >= 10).all()
    assert not time_mask(torch.tensor([4, 3]), 0.5, 5, 2).any()
    assert time_mask(torch.tensor([4, 3]), 0.5, 5, 2).shape == (2, 4)
    assert not time_mask(LENS, 0.0, 10).any()


def test_masks_are_drawn_by_torch():
    torch.manual_seed(5)
    first = time_mask(LENS, 0.3, 5, 1)
    state = torch.get_rng_state()
    second = time_mask(LENS, 0.3, 5, 1)
    assert not torch.equal(first, second)
    np.random.seed(0)
    torch.set_rng_state(state)
    assert torch.equal(time_mask(LENS, 0.3, 5, 1), second)


def test_frames_and_channels():
    """Masked frames are the embedding, masked channels zero, all else is as it was."""
    torch.manual_seed(0)
    embedding = torch.nn.Parameter(torch.full((40,), 7.0))
    x = torch.randn(6, 103, 40)
    y = SpanMasks(embedding, mask_time_prob=0.3)(x, LENS)
    masked = (y == 7.0).all(-1)
    assert masked.any() and not (masked & ~within(LENS, 103)).any()
    assert torch.equal(y[~masked], x[~masked])
    y.sum().backward()
    assert embedding.grad is not None and embedding.grad[0] == masked.sum()
    y = SpanMasks(embedding, 0.0, mask_feature_prob=0.5, mask_feature_length=4)(x, LENS)
    zeroed = (y == 0.0).all(1)
    assert zeroed.any(1).all() and not torch.equal(zeroed[0], zeroed[1])
    assert torch.equal(y, x.masked_fill(zeroed[:, None], 0.0))
    assert torch.equal(SpanMasks(embedding, 0.0)(x, LENS), x)


@pytest.mark.parametrize("conf", [{"mask_time_prob": 1.5}, {"mask_feature_length": 0}, {"mask_time_min_masks": -1}])
def test_impossible_masks(conf):
    with pytest.raises(PelasrError, match=next(iter(conf))):
        SpanMasks(torch.zeros(4), **conf)
