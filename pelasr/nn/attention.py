"""Attention of transformers' encoders that takes a prefix: its maps of keys and values may put out more frames than
they are given, of which the first are of no frame and have no position. All queries see them. Without any the numbers
are transformers' own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.nn.positions import PositionBias


class SpeechAttention(nn.Module):
    """What the attention of wav2vec 2.0 and of HuBERT becomes: it has the same attributes."""

    k_proj: nn.Linear
    v_proj: nn.Linear
    q_proj: nn.Linear
    out_proj: nn.Linear
    head_dim: int
    dropout: float
    scaling: float

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, None]:
        """(B, T, D), which keys may be seen (B, 1, 1, prefix + T) or None for all, to (B, T, D) and no weights."""
        q, k, v = (_heads(proj(hidden_states), self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attention_mask, dropout, scale=self.scaling)
        return self.out_proj(_together(y)), None


def without_positions(bias: Tensor, keys: Tensor) -> Tensor:
    """What positions add to scores (..., T, T), with zeros before it for the prefix of keys (B, H, prefix + T, .)."""
    return F.pad(bias, (keys.shape[2] - bias.shape[-1], 0))


def _heads(x: Tensor, size: int) -> Tensor:
    """(B, T, D) to (B, H, T, size)."""
    return x.unflatten(2, (-1, size)).transpose(1, 2)


def _together(x: Tensor) -> Tensor:
    """(B, H, T, size) to (B, T, D)."""
    return x.transpose(1, 2).contiguous().flatten(2)


class BertAttention(nn.Module):
    """What the attention of Wav2Vec2-BERT becomes: it has the same attributes.

    Positions, of whichever type, are those of the frames that the maps are given.
    """

    linear_q: nn.Linear
    linear_k: nn.Linear
    linear_v: nn.Linear
    linear_out: nn.Linear
    linear_pos: nn.Linear
    bias_u: PositionBias
    bias_v: PositionBias
    distance_embedding: nn.Embedding
    dropout: nn.Dropout
    head_size: int
    position_embeddings_type: str | None
    left_max_position_embeddings: int
    right_max_position_embeddings: int
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        relative_position_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """(B, T, D), which keys may be seen (B, 1, 1, prefix + T) or None for all, sinusoids of the distances
        (1, 2 T - 1, D) or rotations (2, T, 1, 1, D / H), to (B, T, D) and no weights."""
        x, kind = hidden_states, self.position_embeddings_type
        if kind == "rotary":  # before the maps, so that what these put before is not rotated
            assert relative_position_embeddings is not None
            x = self._rotated(x, relative_position_embeddings)
        q, k = (_heads(proj(x), self.head_size) for proj in (self.linear_q, self.linear_k))
        v, mask = _heads(self.linear_v(hidden_states), self.head_size), attention_mask
        if kind in ("relative", "relative_key"):
            if kind == "relative":
                assert relative_position_embeddings is not None
                flat = _together(q)
                q, by_place = (_heads(bias(flat), self.head_size) for bias in (self.bias_u, self.bias_v))
                bias = self._by_distance(by_place, relative_position_embeddings)
            else:
                bias = self._by_near_distance(q)
            bias = without_positions(bias, k)
            mask = (bias if mask is None else torch.where(mask, bias, torch.finfo(k.dtype).min)).contiguous()
        dropout = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scaling)
        return self.linear_out(_together(y)), None

    def _rotated(self, x: Tensor, rotations: Tensor) -> Tensor:
        """(B, T, D), every head's halves rotated (Su et al. 2021)."""
        cosine, sine = (part.transpose(0, 1) for part in rotations)  # (1, T, 1, size)
        heads = x.unflatten(2, (-1, self.head_size))
        begin, end = heads.chunk(2, dim=-1)
        return ((heads * cosine) + (torch.cat([-end, begin], dim=-1) * sine)).flatten(2)

    def _by_distance(self, q: Tensor, sinusoids: Tensor) -> Tensor:
        """Scores (B, H, T, T) of the distances j - i (Dai et al. 2019): window i of the queries' products with all."""
        frames = q.shape[2]
        positions = self.linear_pos(sinusoids).unflatten(2, (-1, self.head_size)).permute(0, 2, 3, 1)
        scores = q @ positions  # (B, H, T, 2 T - 1), the largest distance to the left first
        shifted = F.pad(scores, (1, 0)).view(*scores.shape[:2], 2 * frames, frames)[..., 1:, :]
        return shifted.reshape(scores.shape)[..., :frames] * self.scaling

    def _by_near_distance(self, q: Tensor) -> Tensor:
        """Scores (B, H, T, T) of the distances, of which those beyond a bound are alike (Shaw et al. 2018)."""
        left, right = self.left_max_position_embeddings, self.right_max_position_embeddings
        times = torch.arange(q.shape[2], device=q.device)
        distances = (times - times[:, None]).clamp(-left, right)
        return torch.einsum("bhld,lrd->bhlr", q, self.distance_embedding(distances + left).to(q.dtype)) * self.scaling
