"""The decoder token by token: every prefix of every hypothesis as ESPnet's decoder has it in one pass."""

import pytest
import torch

from pelasr.errors import PelasrError
from pelasr.search import attention
from pelasr.search.attention import CachedDecoder

DECODER = {"attention_heads": 2, "linear_units": 8, "num_blocks": 2}


def memory(utterances, frames, seed=0):
    """Encoder output with rubbish beyond each utterance's end."""
    return torch.randn(utterances, max(frames), 6, generator=torch.Generator().manual_seed(seed)), torch.tensor(frames)


def full(decoder, enc, lens, histories):
    """Log probabilities (B, K, V) after the histories (B, K, U), in one pass over them all."""
    width, size = histories.shape[1:]
    enc, lens = enc.repeat_interleave(width, 0), lens.repeat_interleave(width, 0)
    logits, _ = decoder(enc, lens, histories.flatten(0, 1), torch.full((len(enc),), size))
    return logits[:, -1].log_softmax(-1).unflatten(0, (-1, width))


@pytest.mark.parametrize("room", [1, 64])
@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_every_prefix_is_as_in_one_pass(room, qk_norm, make_st, monkeypatch):
    """Hypotheses multiply, swap, come twice and die, utterances are dropped."""
    monkeypatch.setattr(attention, "ROOM", room)
    decoder = make_st(decoder_conf={**DECODER, "qk_norm": qk_norm}).decoder
    enc, lens = memory(4, [7, 3, 9, 1])
    cached = CachedDecoder(decoder, enc, lens)
    draw = torch.Generator().manual_seed(1)
    histories = torch.empty(4, 1, 0, dtype=torch.long)
    widths = [1, 1, 3, 3, 5, 2, 4, 4, 4, 4, 1, 3]
    kept = {5: [0, 2, 3], 8: [1, 2], 10: [1]}
    for step, width in enumerate(widths):
        if step:
            rows = torch.tensor(kept.get(step, range(len(histories))))
            origin = torch.randint(histories.shape[1], (len(rows), width), generator=draw)
            cached.select(rows, origin)
            enc, lens, histories = enc[rows], lens[rows], histories[rows[:, None], origin]
        tokens = torch.randint(10, (len(histories), width), generator=draw)
        histories = torch.cat([histories, tokens[..., None]], dim=-1)
        found = cached.step(tokens)
        torch.testing.assert_close(found, full(decoder, enc, lens, histories), rtol=1e-5, atol=1e-5)
    assert histories.shape == (1, 3, 12)


@torch.no_grad()
def test_entries_of_nobody_are_forgotten(make_st):
    """Three hypotheses that always go on from the first: 100 tokens in common, not 300 entries."""
    decoder = make_st().decoder
    enc, lens = memory(2, [7, 3])
    cached = CachedDecoder(decoder, enc, lens)
    cached.step(torch.full((2, 1), 9))
    draw, past = torch.Generator().manual_seed(0), torch.full((2, 1), 9)
    for _ in range(100):
        cached.select(torch.arange(2), torch.zeros(2, 3, dtype=torch.long))
        tokens = torch.randint(10, (2, 3), generator=draw)
        found = cached.step(tokens)
        histories = torch.cat([past[:, None].expand(-1, 3, -1), tokens[..., None]], dim=-1)
        past = histories[:, 0]
    torch.testing.assert_close(found, full(decoder, enc, lens, histories), rtol=1e-5, atol=1e-5)
    assert cached._cache.shape[2] < 220


@torch.no_grad()
def test_what_lies_beyond_an_utterance_is_not_seen(make_st):
    decoder = make_st().decoder
    enc, lens = memory(2, [8, 3])
    other = enc.clone()
    other[1, 3:] = 1e4
    for one, two in zip(*(steps(CachedDecoder(decoder, x, lens)) for x in (enc, other)), strict=True):
        assert torch.equal(one, two)


def steps(cached):
    return [cached.step(torch.tensor([[1], [2]])) for _ in range(4)]


@torch.no_grad()
def test_more_tokens_than_espnet_has_positions(make_st):
    """ESPnet prepares 5000 positions; here 3, and the others are made when they are needed."""
    decoder = make_st().decoder
    enc, lens = memory(2, [5, 2])
    wanted = steps(CachedDecoder(decoder, enc, lens))
    decoder.embed[1].pe = decoder.embed[1].pe[:, :3]
    for one, two in zip(steps(CachedDecoder(decoder, enc, lens)), wanted, strict=True):
        assert torch.equal(one, two)


@torch.no_grad()
def test_hooks_fire(make_st):
    """On the feed-forward parts and on the projections at every step; the memory's keys and values once."""
    decoder, calls = make_st().decoder, []
    for n in range(2):
        names = ["feed_forward"] + [f"{a}_attn.linear_{x}" for a in ("self", "src") for x in ("q", "k", "v", "out")]
        for name in names:
            path = f"decoders.{n}.{name}"
            decoder.get_submodule(path).register_forward_hook(lambda m, args, y, path=path: calls.append(path))
    cached = CachedDecoder(decoder, *memory(2, [5, 4]))
    once = [f"decoders.{n}.src_attn.linear_{x}" for n in range(2) for x in "kv"]
    assert calls == once
    for _ in range(2):
        calls.clear()
        cached.step(torch.tensor([[1], [2]]))
        assert len(calls) == 14 and not set(calls) & set(once)


@pytest.mark.parametrize("option", [{"normalize_before": False}, {"concat_after": True}])
def test_other_decoders_are_refused(option, make_st):
    decoder = make_st(decoder_conf={**DECODER, **option}).decoder
    with pytest.raises(PelasrError, match="needs normalize_before: true and concat_after: false"):
        CachedDecoder(decoder, *memory(1, [4]))
