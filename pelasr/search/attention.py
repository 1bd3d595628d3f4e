"""ESPnet's Transformer decoder, one token at a time for many hypotheses of many utterances.

Keys and values are computed once: of the encoder output for each utterance, whose hypotheses share them, and of every
token when it comes. The hypotheses of an utterance share the tokens' too: `step` appends an entry for each hypothesis,
and a mask says which entries are a hypothesis's own past. So going on with other hypotheses copies the mask alone, and
what they have in common is there once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pelasr.errors import PelasrError
from pelasr.nn.active_rows import only
from pelasr.nn.layers import within
from pelasr.nn.stateless import for_one_pass

ROOM = 64  # entries of the cache at least


class CachedDecoder:
    """Log probabilities of the next token, for K hypotheses of each of B utterances.

    Args:
        decoder: ESPnet's TransformerDecoder in evaluation mode, normalised before its sub-layers (as by default).
        memory: encoder output (B, T, D).
        memory_lens: its frames (B,), at least 1.

    The decoder's modules see (B, K, D): a row for each utterance. Raises PelasrError for other kinds of decoder.
    """

    def __init__(self, decoder: Any, memory: Tensor, memory_lens: Tensor):
        if not decoder.normalize_before or any(layer.concat_after for layer in decoder.decoders):
            raise PelasrError("decoder_conf: the search needs normalize_before: true and concat_after: false")
        self._decoder = decoder
        heads = [_keys_and_values(layer.src_attn, memory) for layer in decoder.decoders]
        self._memory = torch.stack([part for pair in heads for part in pair])  # (2 * layers, B, T, heads, d)
        self._memory_mask = self._mask(within(memory_lens, memory.shape[1]))[:, None, None]  # (B, 1, 1, T)
        self._cache = torch.empty_like(self._memory[:, :, :0])  # (2 * layers, B, room, heads, d)
        self._own = self._memory_mask[:, 0, :, :0]  # (B, K, entries): 0 for those of a hypothesis's past, else -inf
        self._positions = for_one_pass(decoder.embed[1], memory.device)  # extended by steps
        self._position = 0
        self._rows: Tensor | None = None

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every hypothesis (B, K) to log probabilities (B, K, V) of the one after it, float32."""
        embedding, positions = self._decoder.embed[0], self._positions
        with only(self._rows):
            x = embedding(tokens)
        positions.extend_pe(x.new_empty(1, self._position + 1))
        x = x * positions.xscale + positions.pe[:, self._position]
        self._position += 1
        entries = self._add_entries(tokens.shape[1])
        with only(self._rows):
            for n, layer in enumerate(self._decoder.decoders):
                x = x + self._attend_to_past(layer.self_attn, layer.norm1(x), self._cache[2 * n : 2 * n + 2], entries)
                x = x + self._attend_to_memory(layer.src_attn, layer.norm2(x), self._memory[2 * n : 2 * n + 2])
                x = x + layer.feed_forward(layer.norm3(x))
            logits = self._decoder.output_layer(self._decoder.after_norm(x))
        return logits.float().log_softmax(-1)

    def select(self, rows: Tensor, origin: Tensor) -> None:
        """Go on with the utterances `rows` (n,) of those there are, ascending, and of each with the hypotheses `origin`
        (n, K'), where a hypothesis may come several times."""
        self._own = self._own[rows[:, None], origin]
        if len(rows) < self._memory.shape[1]:
            self._memory = self._memory.index_select(1, rows)
            self._memory_mask = self._memory_mask[rows]
            self._cache = self._cache.index_select(1, rows)
            self._rows = rows if self._rows is None else self._rows[rows]

    def _mask(self, visible: Tensor) -> Tensor:
        """Bool to what is added to the attention's scores."""
        return torch.zeros_like(visible, dtype=self._memory.dtype).masked_fill_(~visible, -torch.inf)

    def _add_entries(self, count: int) -> slice:
        """Make room for an entry of each of `count` hypotheses, seen by itself alone; where they are."""
        if self._own.shape[-1] + count > self._cache.shape[2]:
            self._make_room(count)
        batch, first = len(self._own), self._own.shape[-1]
        itself = self._mask(torch.eye(count, dtype=torch.bool, device=self._own.device))
        self._own = torch.cat([self._own, itself.expand(batch, -1, -1)], dim=-1)
        return slice(first, first + count)

    def _make_room(self, count: int) -> None:
        """Forget the entries that are in no hypothesis's past, and leave room for `count` more and as many again.

        The hypotheses of an utterance soon have most of their past in common, so that few entries are left."""
        seen = self._own.isfinite().any(1)
        kept = int(seen.sum(1).max()) if seen.shape[1] else 0
        order = seen.byte().sort(dim=1, descending=True, stable=True).indices[:, :kept]
        self._own = self._own.gather(2, order[:, None].expand(-1, self._own.shape[1], -1))
        old, room = self._cache, max(ROOM, 2 * (kept + count))
        self._cache = old.new_empty(*old.shape[:2], room, *old.shape[3:])
        index = order[None, :, :, None, None].expand(len(old), -1, -1, *old.shape[3:])
        self._cache[:, :, :kept] = old.gather(2, index)

    def _attend_to_past(self, attention: Any, x: Tensor, cache: Tensor, entries: slice) -> Tensor:
        cache[0, :, entries], cache[1, :, entries] = _keys_and_values(attention, x)
        keys, values = cache[:, :, : entries.stop]
        return _attend(attention, x, keys, values, self._own[:, None])

    def _attend_to_memory(self, attention: Any, x: Tensor, memory: Tensor) -> Tensor:
        keys, values = memory
        return _attend(attention, x, keys, values, self._memory_mask)


def _keys_and_values(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, D) to keys and values by head, (B, N, heads, d) each."""
    heads = attention.h, attention.d_k
    return attention.k_norm(attention.linear_k(x).unflatten(-1, heads)), attention.linear_v(x).unflatten(-1, heads)


def _attend(attention: Any, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """What `x` (B, K, D) takes from keys and values (B, N, heads, d); the mask (B, 1, 1 or K, N) is added to scores."""
    query = attention.q_norm(attention.linear_q(x).unflatten(-1, (attention.h, attention.d_k)))
    query, keys, values = (part.transpose(1, 2) for part in (query, keys, values))
    found = F.scaled_dot_product_attention(query, keys, values, mask)
    return attention.linear_out(found.transpose(1, 2).flatten(2))
