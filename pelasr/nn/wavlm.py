"""WavLM's attention with gated relative positions (Chen et al. 2022, arXiv 2110.13900), its maps called as modules.

transformers gives their weights to a function instead, so that no hook on them would ever fire.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.nn.attention import without_positions


class GatedAttention(nn.Module):
    """Self-attention whose bias by distance, the same in all layers, is gated by what is in a frame.

    Parameters have the names of transformers' `WavLMAttention`.

    Args:
        size, heads: width of the frames and number of heads.
        dropout: of the attention weights.
        num_buckets, max_distance: buckets of distances, and the distance beyond which there is one for all.
        has_embedding: whether it has the bias of each bucket and head: the first layer's attention has it.
    """

    def __init__(self, size: int, heads: int, dropout: float, num_buckets: int, max_distance: int, has_embedding: bool):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.q_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.gru_rel_pos_linear = nn.Linear(size // heads, 8)
        self.rel_attn_embed = nn.Embedding(num_buckets, heads) if has_embedding else None

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        **kwargs: int,
    ) -> tuple[Tensor, None, Tensor]:
        """(B, T, D), keys that may be seen (B, 1, 1, prefix + T) or None for all, bias by distance (H, T, T), or None
        to compute it, to (B, T, D), no weights, and the bias. The maps of keys and values may put a prefix before
        their frames, which has no position. The layer's number, which transformers' layer says, is not used."""
        if position_bias is None:
            position_bias = self.bias_by_distance(x.shape[1])
        q, k, v = (self._split(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        bias = without_positions((self._gate(self._split(x)) * position_bias).to(q.dtype), k)
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask, -math.inf)
        y = F.scaled_dot_product_attention(q, k, v, bias, self.dropout if self.training else 0.0)
        return self.out_proj(y.transpose(1, 2).flatten(2)), None, position_bias

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, H, T, D / H)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _gate(self, x: Tensor) -> Tensor:
        """(B, H, T, D / H) to the factors (B, H, T, 1) of the bias."""
        a, b = self.gru_rel_pos_linear(x).unflatten(3, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)
        return a * (b * self.gru_rel_pos_const - 1.0) + 2.0

    def bias_by_distance(self, frames: int) -> Tensor:
        """Bias (H, T, T) of the frames i that ask and the frames j that are asked, which depends on j - i alone."""
        assert self.rel_attn_embed is not None  # of the first layer, which is never dropped
        distances = torch.arange(1 - frames, frames, device=self.rel_attn_embed.weight.device)
        values = self.rel_attn_embed(self._bucket(distances))  # (2 T - 1, H)
        return values.t().unfold(1, frames, 1).flip(1)  # window n begins with the distance n + 1 - T

    def _bucket(self, distances: Tensor) -> Tensor:
        """The bucket of each distance: one for each short one, then wider and wider ones, in both directions."""
        half = self.num_buckets // 2
        exact = half // 2
        size = distances.abs()
        far = (size.float() / exact).log() / math.log(self.max_distance / exact) * (half - exact)
        # Minus infinity, of no distance at all, is no whole number; it is not used.
        wide = (exact + far.clamp(min=0.0)).long().clamp(max=half - 1)
        return (distances > 0).long() * half + torch.where(size < exact, size, wide)
