"""What a language that the backbone was not trained on brings beside its adapters: tokens and a language vector.

Its own tokens come after the backbone's V: rows for each embedding and each output layer. Rows of a batch that are in
the language see V + P tokens, the others' own columns are minus infinity, and what the backbone computes for the shared
ones is not touched. So nothing that another language is given changes by a bit.

A backbone may also have no output layer: then a language brings a whole one, for all V + P tokens, and with it the
weights by which the layers of the encoder are summed, where they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.errors import PelasrError
from pelasr.nn.active_rows import remaining
from pelasr.nn.parts import Parts

VECTOR, EMBEDDING, OUTPUT = "vector", "embedding", "output"  # kinds of site, see `own_sites` of a backbone
HEAD, LAYERS = "head", "layers"  # whole output layers, and weights of layers: modules of this file


class OwnParts(nn.Module):
    """One language's own parts, as `parts[site][name]`.

    `tokens`: its P own tokens. Parameters: `weight` (P, D) at an embedding; `weight` (P, D) and `bias` (P,) at an
    output layer, as far as it has a bias, (V + P, D) and (V + P,) at a whole one; `weights` (N,) of N layers; `vector`
    (size,) at the language vector, if `vector`. All begin as zeros.
    """

    def __init__(self, backbone: Parts, tokens: Sequence[str], vector: bool):
        super().__init__()
        self.tokens = list(tokens)
        self.vector = vector and VECTOR in backbone.own_sites().values()
        found: dict[str, dict[str, Tensor]] = {}
        for path, kind in backbone.own_sites().items():
            host: Any = backbone.get_submodule(path)
            if kind == VECTOR and self.vector:
                found[path] = {"vector": torch.zeros(host.size)}
            elif kind in (HEAD, LAYERS) and self.tokens:
                found[path] = host.parts(len(self.tokens))
            elif kind in (EMBEDDING, OUTPUT) and self.tokens:
                names = [name for name in ("weight", "bias") if getattr(host, name, None) is not None]
                shared = {name: getattr(host, name) for name in names}
                found[path] = {name: torch.zeros(len(self.tokens), *shared[name].shape[1:]) for name in names}
        self.sites = list(found)
        self.parts = nn.ModuleList(nn.ParameterDict(part) for part in found.values())

    def at(self, path: str) -> nn.ParameterDict | None:
        """The parameters at a site, if there are any."""
        found: Any = self.parts[self.sites.index(path)] if path in self.sites else None
        return found

    def tensors(self) -> dict[str, Tensor]:
        """{"<site>/<parameter>": tensor}, live."""
        parts: Any = zip(self.sites, self.parts, strict=True)
        return {f"{path}/{name}": tensor for path, part in parts for name, tensor in part.items()}

    @torch.no_grad()
    def start_from(self, backbone: Parts, tokens: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        """Take values of the backbone's: each own token the mean of the rows of some shared `tokens`, the vector the
        mean of those of some languages' `slots`. What the backbone has nothing of stays zero."""
        parts: Any = zip(self.sites, self.parts, strict=True)
        for path, part in parts:
            host: Any = backbone.get_submodule(path)
            if "vector" in part:
                part["vector"].copy_(host.rows()[list(slots)].mean(0))
                continue
            if isinstance(host, OwnOutput | LayerSum):
                continue
            for name, parameter in part.items():
                shared = getattr(host, name)
                parameter.copy_(torch.stack([shared[list(ids)].mean(0) for ids in tokens]))


class Routed:
    """The own parts of a batch: `parts` of the languages present, `index` (B,) of each row's; None: the first's."""

    def __init__(self, parts: Sequence[OwnParts | None], index: Tensor | None):
        self.parts, self.index = parts, index
        self._stacks: dict[str, dict[str, Tensor]] = {}

    def rows(self, path: str, count: int) -> dict[str, Tensor]:
        """Parameters of a site for each of the `count` rows that a module sees: (B, P, D), a bias (B, P) that is minus
        infinity where the row's language has fewer than P tokens; of a vector (B, size), or weights (B, N), and whether
        there are any (B,). Empty if no language has any."""
        stack = self._stack(path)
        if self.index is None:
            return {name: tensor[:1].expand(count, *tensor.shape[1:]) for name, tensor in stack.items()}
        rows = remaining()
        index = self.index if rows is None else self.index.index_select(0, rows)
        return {name: tensor.index_select(0, index) for name, tensor in stack.items()}

    def _stack(self, path: str) -> dict[str, Tensor]:
        """As `rows`, for each language that is present; kept as in `mixed.Route`."""
        if torch.is_grad_enabled():
            self._stacks.pop(path, None)
            return self._make(path)
        stack = self._stacks.get(path)
        if stack is None:
            with torch.inference_mode(False), torch.no_grad():
                stack = self._stacks.setdefault(path, self._make(path))
        return stack

    def _make(self, path: str) -> dict[str, Tensor]:
        """(L, P, D) and so on."""
        found = [part.at(path) if part is not None else None for part in self.parts]
        there = [part for part in found if part is not None]
        if not there:
            return {}
        if "weight" not in there[0]:
            ((name, first),) = there[0].items()
            has = torch.tensor([part is not None for part in found], device=first.device)
            return {name: torch.stack([torch.zeros_like(first) if p is None else p[name] for p in found]), "has": has}
        most = max(len(part["weight"]) for part in there)
        empty = there[0]["weight"][:0]
        weights = [empty if part is None else part["weight"] for part in found]
        biases = [
            weight.new_zeros(len(weight)) if part is None or "bias" not in part else part["bias"]
            for weight, part in zip(weights, found, strict=True)
        ]
        return {
            "weight": torch.stack([F.pad(weight, (0, 0, 0, most - len(weight))) for weight in weights]),
            "bias": torch.stack([F.pad(bias, (0, most - len(bias)), value=-torch.inf) for bias in biases]),
        }


_routed: ContextVar[Routed | None] = ContextVar("own", default=None)
_ids: ContextVar[Tensor | None] = ContextVar("ids", default=None)  # what an embedding at work was given


@contextmanager
def routed(parts: Sequence[OwnParts | None], index: Tensor | None) -> Iterator[None]:
    """Inside the block a batch's rows have their languages' own parts; see `Routed`."""
    token = _routed.set(Routed(parts, index) if any(part is not None and part.sites for part in parts) else None)
    try:
        yield
    finally:
        _routed.reset(token)


def own_output(path: str, count: int) -> tuple[Tensor, Tensor] | None:
    """Weight (B, P, D) and bias (B, P) that the rows of the batch add to the output layer at `path`."""
    current = _routed.get()
    found = current.rows(path, count) if current is not None else {}
    return (found["weight"], found["bias"]) if found else None


class OwnOutput(nn.Module):
    """In the place of an output layer that a backbone has none of: every language brings a whole one.

    Args:
        path: of this module in its backbone.
        shared: V, tokens that all languages have.
        size: D, of what comes in.
    """

    def __init__(self, path: str, shared: int, size: int):
        super().__init__()
        self.path, self.shared, self.in_features = path, shared, size

    def parts(self, tokens: int) -> dict[str, Tensor]:
        """Of a language with so many tokens of its own."""
        count = self.shared + tokens
        return {"weight": torch.zeros(count, self.in_features), "bias": torch.zeros(count)}

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to logits (B, T, V + P), minus infinity where a row's language has fewer tokens. Raises PelasrError
        where no language has an output layer, for want of packs."""
        own = own_output(self.path, len(x))
        if own is None:
            raise PelasrError("the backbone has no output layer, each language's pack has one: fit it with stage 5")
        weight, bias = own
        return torch.baddbmm(bias[:, None].to(x.dtype), x, weight.to(x.dtype).mT)


class LayerSum(nn.Module):
    """The layers of an encoder, summed by a softmax of weights that every language has of its own (Yang et al. 2021,
    SUPERB); without, their mean."""

    def __init__(self, path: str, count: int):
        super().__init__()
        self.path, self.count = path, count

    def parts(self, tokens: int) -> dict[str, Tensor]:
        """Of a language: a weight for each layer."""
        return {"weights": torch.zeros(self.count)}

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Layers' outputs (B, T, D) to their sum (B, T, D)."""
        current = _routed.get()
        found = current.rows(self.path, len(states[0])) if current is not None else {}
        weights = found["weights"] if found else states[0].new_zeros(len(states[0]), self.count)
        shares = weights.softmax(-1).to(states[0].dtype)
        total = states[0] * shares[:, 0, None, None]
        for number, state in enumerate(states[1:], 1):
            total = torch.addcmul(total, state, shares[:, number, None, None])
        return total


def install(backbone: Parts) -> None:
    """Make a backbone's embeddings, output layers and language vector look at the own parts of a batch."""
    for path, kind in backbone.own_sites().items():
        if kind not in HOOKS:
            continue
        host = backbone.get_submodule(path)
        if kind == EMBEDDING:
            host.register_forward_pre_hook(_hide_own)
        host.register_forward_hook(partial(HOOKS[kind], path))


def _hide_own(host: nn.Embedding, args: tuple[Tensor]) -> tuple[Tensor] | None:
    """The embedding is asked for its own tokens alone."""
    current = _routed.get()
    if current is None:
        return None
    _ids.set(args[0])
    return (args[0].where(args[0] < host.num_embeddings, 0),)


def _embed(path: str, host: nn.Embedding, args: tuple, y: Tensor) -> Tensor:
    """(B, U, D), with the rows of own tokens."""
    current = _routed.get()
    found = current.rows(path, len(y)) if current is not None else {}
    ids = _ids.get()
    if not found or ids is None:
        return y
    own = ids - host.num_embeddings
    # Gathered, not indexed: an index's backward pass adds in an order that depends on the threads.
    index = own.clamp(min=0)[..., None].expand(*own.shape, y.shape[-1])
    return torch.where((own >= 0)[..., None], found["weight"].gather(1, index).to(y.dtype), y)


def _replace_vector(path: str, host: nn.Module, args: tuple, y: Tensor) -> Tensor:
    """(B, T, D + size), with the languages' own vectors in the last places."""
    current = _routed.get()
    found = current.rows(path, len(y)) if current is not None else {}
    if not found:
        return y
    width = found["vector"].shape[-1]
    tail = torch.where(found["has"][:, None, None], found["vector"][:, None].to(y.dtype), y[..., -width:])
    return torch.cat([y[..., :-width], tail], dim=-1)


def _extend(path: str, host: nn.Module, args: tuple, y: Tensor) -> Tensor:
    """Logits (B, ..., V) to (B, ..., V + P)."""
    own = own_output(path, len(y))
    if own is None:
        return y
    weight, bias = own
    x = args[0].reshape(len(y), -1, args[0].shape[-1])
    logits = torch.baddbmm(bias[:, None], x.to(weight.dtype), weight.transpose(1, 2))
    return torch.cat([y, logits.to(y.dtype).reshape(*y.shape[:-1], -1)], dim=-1)


HOOKS = {EMBEDDING: _embed, VECTOR: _replace_vector, OUTPUT: _extend}
