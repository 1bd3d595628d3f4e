"""ESPnet's attention with relative positions (Dai et al. 2019) that takes a prefix. To be imported when it is needed:
ESPnet prints when it is."""

import math

from espnet.nets.pytorch_backend.transformer.attention import RelPositionMultiHeadedAttention
from torch import Tensor
from torch.nn import functional as F

from pelasr.nn.positions import PositionBias


class RelativeAttention(RelPositionMultiHeadedAttention):
    """Its maps of keys and values may put out more frames than they are given, of which the first have no position. All
    queries see them. Without any the numbers are ESPnet's own."""

    bias_u: PositionBias
    bias_v: PositionBias

    def forward(self, query: Tensor, key: Tensor, value: Tensor, pos_emb: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) each, sinusoids of the distances (1, 2 T - 1, D), which keys may be seen (B, 1, prefix + T), to
        (B, T, D)."""
        q, k, v = self.forward_qkv(query, key, value)
        p = self.linear_pos(pos_emb).view(pos_emb.size(0), -1, self.h, self.d_k).transpose(1, 2)
        by_content = self._biased(q, self.bias_u) @ k.transpose(-2, -1)
        by_distance = self.rel_shift(self._biased(q, self.bias_v) @ p.transpose(-2, -1))
        by_distance = F.pad(by_distance, (k.shape[2] - by_distance.shape[-1], 0))
        return self.forward_attention(v, (by_content + by_distance) / math.sqrt(self.d_k), mask)

    def _biased(self, q: Tensor, bias: PositionBias) -> Tensor:
        """(B, H, T, D / H) and a bias."""
        return bias(q.transpose(1, 2).flatten(2)).unflatten(2, (self.h, self.d_k)).transpose(1, 2)
