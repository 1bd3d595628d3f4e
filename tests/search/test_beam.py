"""Beam search against ESPnet's, against all sequences there are, and by itself."""

import itertools

import pytest
import torch
from espnet.nets.beam_search import BeamSearch
from espnet.nets.scorer_interface import ScorerInterface

from pelasr.search.attention import CachedDecoder
from pelasr.search.beam import beam_search

TAG, END = 7, 9


class AfterStart(ScorerInterface):
    """ESPnet's decoder, told that a hypothesis begins with `start`: its search knows of the last of them alone."""

    def __init__(self, decoder, start):
        self.decoder, self.start = decoder, start

    def score(self, y, state, x):
        return self.decoder.score(torch.cat([self.start, y[1:]]), state, x)


def espnet_search(decoder, enc, start, max_len, beam_size, end=END):
    """ESPnet's best hypothesis of one utterance (T, D): tokens, normalised score, whether the limit ended it."""
    search = BeamSearch(
        {"decoder": AfterStart(decoder, start)},
        {"decoder": 1.0},
        beam_size,
        vocab_size=end + 1,
        sos=int(start[-1]),
        eos=end,
        normalize_length=True,
    )
    best = search(enc, maxlenratio=-max_len)[0]
    tokens = best.yseq[1:].tolist()
    score = float(best.score) / len(tokens)
    return tokens[: tokens.index(end)], score, tokens.index(end) == max_len


def encoded(batch_size, seed, frames=(11, 4, 8, 6)):
    draw = torch.Generator().manual_seed(seed)
    enc = torch.randn(batch_size, max(frames[:batch_size]), 6, generator=draw)
    return enc, torch.tensor(frames[:batch_size])


def search(decoder, enc, lens, start, max_lens, beam_size, end=END):
    return beam_search(CachedDecoder(decoder, enc, lens), start, max_lens, end, beam_size)


@pytest.mark.parametrize("beam_size", [1, 3, 5])
@pytest.mark.parametrize("start", [[END], [END, TAG], [END, TAG, 2]])
@torch.no_grad()
def test_as_espnet_finds(beam_size, start, make_st):
    """The same hypotheses and scores on every utterance of a padded batch, ended by themselves and by the limit."""
    lengths, limited = [], []
    for seed in range(6):
        decoder = make_st(seed=seed).decoder
        enc, lens = encoded(4, seed)
        max_lens = torch.tensor([12, 5, 9, 1])
        found = search(decoder, enc, lens, torch.tensor([start] * 4), max_lens, beam_size)
        for row, hypothesis in enumerate(found):
            wanted = espnet_search(decoder, enc[row, : lens[row]], torch.tensor(start), int(max_lens[row]), beam_size)
            assert (hypothesis.tokens, hypothesis.limited) == (wanted[0], wanted[2]), (seed, row)
            assert hypothesis.score == pytest.approx(wanted[1], abs=1e-4)
            lengths.append(len(hypothesis.tokens))
            limited.append(hypothesis.limited)
    assert len(set(lengths)) >= 5 and any(limited) and not all(limited)


@torch.no_grad()
def test_a_wide_beam_finds_the_best_of_all_sequences(make_st):
    """Of 3 labels and the end, 4 tokens at most; at the limit one end more is counted."""
    end, max_len, kinds = 3, 4, set()
    sequences = torch.tensor(list(itertools.product(range(end + 1), repeat=max_len)))
    for seed in range(20):
        decoder = make_st(seed=seed, vocab_size=4).decoder
        enc, lens = encoded(2, seed)
        found = search(decoder, enc, lens, torch.full((2, 1), end), torch.tensor([max_len] * 2), 4**4, end)
        for row, hypothesis in enumerate(found):
            scores = {}
            for tokens, log_probs in zip(
                sequences.tolist(), scored(decoder, enc[row], lens[row], sequences), strict=True
            ):
                count = tokens.index(end) + 1 if end in tokens else max_len
                total = float(log_probs[:count].sum())
                scores[*tokens[:count]] = total / (count + (count == max_len))
            best = max(scores, key=scores.get)
            assert hypothesis.tokens == [token for token in best if token != end]
            assert hypothesis.limited == (end not in best)
            assert hypothesis.score == pytest.approx(scores[best], abs=1e-5)
            kinds.add("limited" if hypothesis.limited else len(best))
    assert "limited" in kinds and len(kinds) >= 4


def scored(decoder, enc, frames, sequences):
    """Log probability of every token of sequences (N, U) after `<sos/eos>`, the last of the vocabulary: (N, U)."""
    count, size = sequences.shape
    given = torch.nn.functional.pad(sequences, (1, 0), value=decoder.output_layer.out_features - 1)[:, :-1]
    logits, _ = decoder(enc.expand(count, -1, -1), frames.expand(count), given, torch.full((count,), size))
    return logits.log_softmax(-1).gather(-1, sequences[..., None])[..., 0]


@pytest.mark.parametrize("beam_size", [1, 4])
@torch.no_grad()
def test_alone_and_in_a_batch(beam_size, make_st):
    """An utterance's hypothesis does not depend on the others, on padding, or on its place."""
    decoder = make_st(seed=3).decoder
    enc, lens = encoded(4, 5)
    start, max_lens = torch.tensor([[END, TAG], [END, 8], [END, TAG], [END, 8]]), torch.tensor([40, 7, 3, 20])
    together = search(decoder, enc, lens, start, max_lens, beam_size)
    turned = search(decoder, *(x.flip(0) for x in (enc, lens, start, max_lens)), beam_size)[::-1]
    for row in range(4):
        one = slice(row, row + 1)
        alone = search(decoder, enc[one, : lens[row]], lens[one], start[one], max_lens[one], beam_size)[0]
        for other in (together[row], turned[row]):
            assert (other.tokens, other.limited) == (alone.tokens, alone.limited)
            assert other.score == pytest.approx(alone.score, abs=1e-5)


@torch.no_grad()
def test_greedy_follows_the_likeliest_token(make_st):
    decoder = make_st(seed=1).decoder
    enc, lens = encoded(3, 1)
    found = search(decoder, enc, lens, torch.full((3, 1), END), torch.full((3,), 10), 1)
    for row, hypothesis in enumerate(found):
        tokens = []
        while len(tokens) < 10 and tokens[-1:] != [END]:
            given = torch.tensor([[END, *tokens]])
            logits, _ = decoder(
                enc[row : row + 1, : lens[row]], lens[row : row + 1], given, torch.tensor([given.numel()])
            )
            tokens.append(int(logits[0, -1].argmax()))
        assert hypothesis.tokens == [token for token in tokens if token != END]
        assert hypothesis.limited == (tokens[-1] != END)


@torch.no_grad()
def test_ties(make_st):
    """Of equally probable hypotheses the same one is taken every time, alone and in a batch."""
    decoder = make_st(sharpness=0.0).decoder
    enc, lens = encoded(4, 0)
    start, max_lens = torch.full((4, 1), END), torch.full((4,), 6)
    first = search(decoder, enc, lens, start, max_lens, 3)
    assert first == search(decoder, enc, lens, start, max_lens, 3)
    assert first[2:3] == search(decoder, enc[2:3], lens[2:3], start[2:3], max_lens[2:3], 3)


@torch.no_grad()
def test_it_stops_when_nothing_can_get_better(make_st):
    """The bound is exact, and reached long before the limit where the end is certain."""
    decoder = make_st(sharpness=60.0).decoder
    enc, lens = encoded(4, 0)
    cached, taken = CachedDecoder(decoder, enc, lens), []
    step, cached.step = cached.step, lambda tokens: (taken.append(len(tokens)), step(tokens))[1]
    found = beam_search(cached, torch.full((4, 1), END), torch.full((4,), 300), END, 2)
    longest = max(len(hypothesis.tokens) for hypothesis in found)
    assert not any(hypothesis.limited for hypothesis in found)
    assert longest < len(taken) < 100
    assert taken[0] == 4 and sorted(taken, reverse=True) == taken and taken[-1] < 4
