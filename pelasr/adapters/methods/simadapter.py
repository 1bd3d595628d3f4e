"""SimAdapter (Hou et al. 2022, IEEE/ACM TASLP 30, section IV): attention over the adapters of other languages."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pelasr.adapters import Adapter, Linear, find_method, make_adapter, merged_rows
from pelasr.errors import PelasrError, brief


class SimAdapter(Adapter):
    """y' = y + sum_s a_s W_v f_s, a = softmax_s(q . k_s), q = W_q y + b_q, k_s = W_k f_s + b_k.

    f_s is what the adapter of source s adds to the host's output y: houlsby's is y' = y + f_s. The paper's adapters
    have their residual within, A_s = y + f_s: the attention is the same, as W_k y is alike for all sources, and of the
    values y goes past W_v here. So a single source with W_v = I does what its own adapter does, y + f_1. W_v begins as
    I, with 1e-6 off the diagonal. A fresh fusion does roughly the mean of its sources, with fresh sources nothing.

    The sources are copies of the adapters of packs, which are not trained: the language's own first, then those of the
    `sources` that are others. All have the same method, one that works with parameters by row. Where the backbone's own
    languages have no adapter (`alone`) the language's own stays as it is. Parameters: 3 D^2 + 2 D.

    Args:
        method, method_conf: of the sources.
        sources: languages of the backbone's.
        guide: weight of the guide loss, -log a of the language's own adapter, the mean over the utterance's frames,
            summed over the sites; 0: none.
    """

    fuses = True
    by_row = True

    def __init__(
        self,
        width: int,
        width_in: int,
        host: nn.Module,
        path: str,
        index: int,
        language: str,
        alone: bool,
        method: str,
        sources: Sequence[str],
        method_conf: dict[str, Any] | None = None,
        guide: float = 1.0,
    ):
        super().__init__()
        words = isinstance(sources, list | tuple) and all(isinstance(source, str) for source in sources)
        if not sources or not words or len(set(sources)) < len(sources):
            raise PelasrError(f"sources: {brief(repr(sources))}: want different languages, in a list")
        inner = find_method(method)
        if not inner.by_row or inner.needs or inner.before is not Adapter.before:
            raise PelasrError(f"method: {method}: its adapters do not work on one frame's output by row: none to fuse")
        given = {"width": width, "width_in": width_in, "host": host, "path": path, "index": index, "language": language}
        self.source = make_adapter(inner, method_conf or {}, "method_conf", alone=alone, **given)
        count = 1 if alone else 1 + len(set(sources) - {language})
        for module in self.source.modules():
            for name, one in list(module.named_parameters(recurse=False)):
                several = one.detach()[None].repeat(count, *[1] * one.dim())
                setattr(module, name, nn.Parameter(several, requires_grad=False))
        self.path, self.guide, self.fuses_several = path, guide, not alone
        self.there = nn.Parameter(torch.ones(count), requires_grad=False)  # 0 where another language has more sources
        if not alone:
            self.query, self.key = Linear(width, width), Linear(width, width)
            self.value = Linear(width, width, bias=False)
            with torch.no_grad():
                self.value.weight.fill_(1e-6).fill_diagonal_(1.0)
        self.train()

    def train(self, mode: bool = True) -> "SimAdapter":
        """The sources have no dropout; in training alone there is a guide loss."""
        super().train(mode)
        self.source.eval()
        self.needs = ("counted", "shared") if mode and self.guide and self.fuses_several else ()
        return self

    @torch.no_grad()
    def load(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Take the adapter of a pack, {parameter: tensor}, as source of this number."""
        for name, parameter in self.source.named_parameters():
            parameter[number].copy_(tensors[name])

    def forward(self, x: Tensor, y: Tensor, counted: Tensor | None = None, shared: Any = None) -> Tensor:
        shape, x, y = y.shape, *(part.reshape(len(part), -1, part.shape[-1]) for part in (x, y))
        added = self.added(x, y)
        if not self.fuses_several:
            return (y + added[:, 0]).reshape(shape)
        attention = self.attention(y, added)
        if counted is not None:
            own = attention[:, 0].clamp(min=torch.finfo(attention.dtype).tiny).log()
            shared.losses[self.path] = -self.guide * (own * counted).sum(1) / counted.sum(1)
        fused = self.value((attention[..., None] * added).sum(1))  # W_v of the sum is the sum of W_v f_s
        return (y + fused.to(y.dtype)).reshape(shape)

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """What each source adds to frames (B, N, D), given (B, N, D_in): f (B, S, N, D)."""
        batch, frames, width = y.shape
        parameter = next(self.source.parameters())
        if self.there.dim() == 2:
            count, source = parameter.shape[1], merged_rows(self.source)
            x, y = (part[:, None].expand(-1, count, -1, -1).flatten(0, 1) for part in (x, y))
            added = (source(x, y) - y).unflatten(0, (batch, count))
            return added.masked_fill(self.there[..., None, None] == 0, 0.0)
        count = len(parameter)
        x, y = (part.reshape(1, batch * frames, -1).expand(count, -1, -1) for part in (x, y))
        return (self.source(x, y) - y).reshape(count, batch, frames, width).movedim(1, 0)

    def attention(self, y: Tensor, added: Tensor) -> Tensor:
        """Shares of the sources (B, S, N), by frames (B, N, D) and what each source adds (B, S, N, D)."""
        keys = self.key(added.flatten(1, 2)).reshape(added.shape)
        scores = (self.query(y)[:, None] * keys).sum(-1).float()
        there = self.there if self.there.dim() == 2 else self.there[None]
        return scores.masked_fill(there[..., None] == 0, -torch.inf).softmax(1)
