"""Beam search over a batch of utterances at once; the results are those of ESPnet's BeamSearch on each alone.

A hypothesis that emits the end leaves the beam, and the most probable ones that go on fill it. The finished are
compared by the sum of their log probabilities divided by the number of their tokens, the end included. At the length
limit every hypothesis is given one end more, which costs nothing and counts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pelasr.search.attention import CachedDecoder
from pelasr.search.hypothesis import Hypothesis


@torch.no_grad()
def beam_search(decoder: CachedDecoder, start: Tensor, max_lens: Tensor, end: int, beam_size: int) -> list[Hypothesis]:
    """The best hypothesis found for each utterance, beam by beam as wide as `beam_size`; 1 is greedy search.

    Args:
        decoder: fresh, of B utterances.
        start: tokens that every hypothesis begins with, `<sos/eos>` first (B, S); neither scored nor returned.
        max_lens: tokens at most (B,), at least 1.
        end: the token that ends a hypothesis; not returned.

    Returns:
        Hypotheses with their normalised log probability; `limited` where the limit came before an end.
    """
    for position in range(start.shape[1]):
        log_probs = decoder.step(start[:, position, None])
    best = _Best.of(max_lens)
    rows = torch.arange(len(start), device=start.device)  # of the utterances that are not done
    scores = log_probs.new_zeros(len(rows), 1)  # of the running hypotheses (n, k); -inf: there is none
    tokens = start.new_empty(len(rows), 1, 0)
    length = 0
    while len(rows):
        length += 1
        scores, origin, token = _extend(scores, log_probs, beam_size)
        tokens = torch.cat([tokens.gather(1, origin[..., None].expand(-1, -1, length - 1)), token[..., None]], dim=-1)
        last, ends = max_lens[rows] == length, token == end
        finished = ends | last[:, None]
        best.offer(rows, (scores / (length + last[:, None])).masked_fill(~finished, -torch.inf), tokens, ~ends)
        scores = scores.masked_fill(finished, -torch.inf)
        # Log probabilities are negative: at best a hypothesis adds nothing and is divided by the largest length.
        going = (scores.amax(1) / (max_lens[rows] + 1) > best.score[rows]).nonzero()[:, 0]
        rows, scores, tokens, origin = rows[going], scores[going], tokens[going], origin[going]
        if len(rows):
            decoder.select(going, origin)
            log_probs = decoder.step(tokens[..., -1])
    return best.hypotheses()


def _extend(scores: Tensor, log_probs: Tensor, beam_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of hypotheses with scores (n, k) by one token, log probabilities (n, k, V): their scores,
    the hypotheses that they continue and their tokens, (n, k') each, best first."""
    added, token = log_probs.topk(min(beam_size, log_probs.shape[-1]), dim=-1)
    total = (scores[..., None] + added).flatten(1)
    scores, chosen = total.topk(min(beam_size, total.shape[1]), dim=-1)
    return scores, chosen // added.shape[-1], token.flatten(1).gather(1, chosen)


@dataclass
class _Best:
    """The best finished hypothesis of every utterance: score (B,), tokens (B, U), their number (B,), whether the limit
    ended it (B,)."""

    score: Tensor
    tokens: Tensor
    count: Tensor
    limited: Tensor

    @classmethod
    def of(cls, max_lens: Tensor) -> "_Best":
        """None yet, with room for the longest."""
        score = torch.full(max_lens.shape, -torch.inf, device=max_lens.device)
        tokens = max_lens.new_zeros(len(max_lens), int(max_lens.max()))
        return cls(score, tokens, torch.zeros_like(max_lens), torch.zeros_like(max_lens, dtype=torch.bool))

    def offer(self, rows: Tensor, scores: Tensor, tokens: Tensor, limited: Tensor) -> None:
        """Take the best of the hypotheses (n, k) of the utterances `rows`, with tokens (n, k, length), if it is better
        than what there is."""
        length = tokens.shape[-1]
        score, index = scores.max(1)
        each = torch.arange(len(rows), device=rows.device)
        better, limited = score > self.score[rows], limited[each, index]
        self.score[rows] = torch.where(better, score, self.score[rows])
        self.limited[rows] = torch.where(better, limited, self.limited[rows])
        self.count[rows] = torch.where(better, length - 1 + limited.long(), self.count[rows])
        self.tokens[rows, :length] = torch.where(better[:, None], tokens[each, index], self.tokens[rows, :length])

    def hypotheses(self) -> list[Hypothesis]:
        columns = (column.tolist() for column in (self.tokens, self.count, self.score, self.limited))
        return [
            Hypothesis(tokens[:count], score, limited) for tokens, count, score, limited in zip(*columns, strict=True)
        ]
