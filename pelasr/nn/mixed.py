"""How a batch of several languages goes through their adapters at once, without a loop over languages.

The parameters of the languages at a site are stacked, and every row of the batch takes those of its own. A method whose
`forward` works with parameters by row, with a leading dimension B, is called once; any other goes through
`torch.func.vmap`, which takes longer than a small adapter itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from pelasr.errors import PelasrError
from pelasr.nn.active_rows import remaining
from pelasr.nn.frames import counted, inside


class Linear(nn.Linear):
    """A linear map (B, T, D_in) to (B, T, D), whose weight (D, D_in) and bias (D,) may be given by row, (B, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return super().forward(x)
        if self.bias is None:
            return x.bmm(self.weight.mT)
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class LayerNorm(nn.LayerNorm):
    """A layer norm over the last dimension of (B, T, D), whose weight and bias (D,) may be given by row, (B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 1:
            return super().forward(x)
        normal = F.layer_norm(x, self.normalized_shape, eps=self.eps)
        return torch.addcmul(self.bias[:, None], normal, self.weight[:, None])


class Stack:
    """Adapters of several languages at one site as one, their parameters stacked, with zeros at the end of the shorter
    ones; None: a language without one there, whose rows stay as they are. Threads may share it."""

    def __init__(self, path: str, adapters: Sequence[nn.Module | None]):
        self._path = path
        there = [adapter for adapter in adapters if adapter is not None]
        self._adapter: Any = there[0]
        device = next((parameter.device for parameter in there[0].parameters()), None)
        found = [_parameters(there[0] if adapter is None else adapter) for adapter in adapters]
        self._stacks = [_stacked(parameters) for parameters in zip(*found, strict=True)]
        self._has = None
        if len(there) < len(found):
            has = [adapter is not None for adapter in adapters]
            self._has = torch.tensor(has, device=device)

    def __call__(self, index: Tensor, x: Tensor, y: Tensor, **needed: Any) -> Tensor:
        """Row b of x (B, ..., D_in) and y (B, ..., D) by the adapter of number `index[b]`: (B, ..., D). `needed`: see
        `Adapter.needs`, tensors (B, ...) among them."""
        parameters = self._parameters_of(index)
        if self._adapter.by_row:
            rows = (part.reshape(len(part), -1, part.shape[-1]) for part in (x, y))
            adapted = _with_parameters(self._adapter, iter(parameters))(*rows, **needed)
            adapted = adapted.reshape(len(y), *((-1,) if y.dim() == 3 else y.shape[1:-1]), y.shape[-1])
        else:
            names, values = list(needed), [value[:, None] for value in needed.values()]

            def call(x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
                adapter = _with_parameters(self._adapter, iter(rest[len(names) :]))
                return adapter(x, y, **dict(zip(names, rest, strict=False)))

            adapted = vmap(call, randomness="different")(x[:, None], y[:, None], *values, *parameters)[:, 0]
        if self._has is None:
            return adapted
        if adapted.shape != y.shape:
            raise self._lengthened("output")
        return torch.where(self._has[index].reshape(-1, *[1] * (y.dim() - 1)), adapted, y)

    def before(self, index: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """What goes into the host, row b of every tensor (B, ...) by the adapter of number `index[b]`.

        A tensor of another length than B is of the whole batch; a method gets it as it is, and may not change it.
        """
        parameters = self._parameters_of(index)
        if self._adapter.by_row:
            changed = _with_parameters(self._adapter, iter(parameters)).before(args, kwargs)
        else:
            changed = self._before_by_row(len(index), parameters, args, kwargs)
        return changed if self._has is None else self._where(self._has[index], changed, (args, kwargs))

    def _before_by_row(self, count: int, parameters: list[Tensor], args: tuple, kwargs: dict[str, Any]) -> Any:
        """`before` of a batch of one, under vmap."""
        leaves, structure = tree_flatten((args, kwargs))
        places = [n for n, leaf in enumerate(leaves) if _is_by_row(leaf, count)]
        result: list[Any] = []

        def call(rows: list[Tensor], *parameters: Tensor) -> list[Tensor]:
            given = list(leaves)
            for n, row in zip(places, rows, strict=True):
                given[n] = row
            changed = _with_parameters(self._adapter, iter(parameters)).before(*tree_unflatten(given, structure))
            result[:] = tree_flatten(changed)
            return [result[0][n] for n in self._new(result[0], leaves)]

        rows = vmap(call, randomness="different")([leaves[n][:, None] for n in places], *parameters)
        found, structure = result
        for n, tensor in zip(self._new(found, leaves), rows, strict=True):
            found[n] = tensor[:, 0]
        return tree_unflatten(found, structure)

    @staticmethod
    def _new(found: list[Any], leaves: list[Any]) -> list[int]:
        """Which of what `before` returns are tensors by row: those that are none of the whole batch."""
        whole = {id(leaf) for leaf in leaves}
        return [n for n, leaf in enumerate(found) if isinstance(leaf, Tensor) and id(leaf) not in whole]

    def _where(self, has: Tensor, changed: Any, given: Any) -> Any:
        """What was given, for rows without an adapter."""
        (new, structure), (old, before) = tree_flatten(changed), tree_flatten(given)
        if structure != before or any(_shape(a) != _shape(b) for a, b in zip(new, old, strict=True)):
            raise self._lengthened("input")
        rows = [_is_by_row(a, len(has)) and a is not b for a, b in zip(new, old, strict=True)]
        kept = [
            torch.where(has.reshape(-1, *[1] * (a.dim() - 1)), a, b) if by_row else a
            for a, b, by_row in zip(new, old, rows, strict=True)
        ]
        return tree_unflatten(kept, structure)

    def _lengthened(self, what: str) -> PelasrError:
        return PelasrError(
            f"site {self._path}: the {what} gets another shape for some of the batch's languages, the others have no"
            " adapter there: give all of them the same `sites`, or have batches of one language"
        )

    def _parameters_of(self, index: Tensor) -> list[Tensor]:
        # Not `[index]`: its backward pass adds in an order that depends on the threads.
        return [stack.index_select(0, index) for stack in self._stacks]


def _is_by_row(value: Any, count: int) -> bool:
    """Whether it is a tensor with a row for each of so many utterances."""
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


def _parameters(module: nn.Module) -> list[Tensor]:
    """In the order that `_with_parameters` takes them."""
    return [parameter for _, parameter in module.named_parameters(remove_duplicate=False)]


def _stacked(parameters: Sequence[Tensor]) -> Tensor:
    """Of all languages (L, ...)."""
    if len({parameter.shape for parameter in parameters}) > 1:
        most = max(map(len, parameters))
        parameters = [torch.cat([p, p.new_zeros(most - len(p), *p.shape[1:])]) for p in parameters]
    return torch.stack(list(parameters))


def merged_rows(module: nn.Module) -> Any:
    """A copy of a module by row whose parameters (B, S, ...) are (B S, ...): S of its kind for every row."""
    return _with_parameters(module, (parameter.flatten(0, 1) for parameter in _parameters(module)))


def _with_parameters(module: nn.Module, parameters: Iterator[Tensor]) -> Any:
    """A copy of a module that has other tensors for parameters and shares all else: the module itself may be at work in
    another thread. (`torch.func.functional_call` changes the module, and takes longer than a small adapter.)"""
    own, children = module._parameters, module._modules
    if not own and not children:
        return module
    made = object.__new__(type(module))
    vars(made).update(vars(module))
    if own:
        made.__dict__["_parameters"] = {key: None if own[key] is None else next(parameters) for key in own}
    if children:
        made.__dict__["_modules"] = {
            key: None if child is None else _with_parameters(child, parameters) for key, child in children.items()
        }
    return made


class Route:
    """The adapters of a batch: which there are at every site, and which of them each row goes through.

    Args:
        adapters: of each language that is present, by site.
        index: the number of each row's language among these (B,).
        fired: where it notes the sites at which it was asked.
        widths: of the hosts' outputs, by site.
        inputs, outputs: sites at which the method changes what goes into its hosts, and what comes out.
        shared: what the adapters share while the batch is processed.
    """

    def __init__(
        self,
        adapters: Sequence[Mapping[str, nn.Module]],
        index: Tensor,
        fired: set[str],
        widths: Mapping[str, int],
        inputs: frozenset[str],
        outputs: frozenset[str],
        shared: Any = None,
    ):
        self.adapters, self.index, self.fired, self.widths = adapters, index, fired, widths
        sites = frozenset(path for found in adapters for path in found)
        self.inputs, self.outputs, self.shared = sites & inputs, sites & outputs, shared
        self._stacks: dict[str, Stack] = {}

    def before(self, path: str, count: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """What goes into the host at a site of `inputs`, for `count` rows, each by its own language."""
        adapter, index = self._at(path, count)
        return adapter.before(args, kwargs) if index is None else adapter.before(index, args, kwargs)

    def adapt(self, path: str, x: Tensor, y: Tensor) -> Tensor:
        """Every row by its own language at a site of `outputs`: (B, T, D_in), (B, T, D) to (B, T, D)."""
        if not isinstance(y, Tensor) or y.shape[-1] != self.widths[path]:
            raise PelasrError(
                f"site {path}: it was to put out {self.widths[path]} channels, which its module does not: it is no site"
                " for adapters; name others in adapter_conf.sites"
            )
        some: Any = next(found[path] for found in self.adapters if path in found)
        needed = {name: self._needed(path, name, y) for name in some.needs}
        adapter, index = self._at(path, len(y))
        return adapter(x, y, **needed) if index is None else adapter(index, x, y, **needed)

    def _needed(self, path: str, name: str, y: Tensor) -> Any:
        """What a method needs beside x and y (B, T, D)."""
        if name == "shared":
            return self.shared
        frames = counted() if name == "counted" else inside()
        if frames is None or frames.shape != y.shape[:2]:
            raise PelasrError(f"site {path}: its module works on other frames than the encoder's; choose other `sites`")
        return frames

    def _at(self, path: str, count: int) -> tuple[Any, Tensor | None]:
        """What is at a site for `count` rows: the one language's adapter, or a stack and each row's number in it."""
        self.fired.add(path)
        trains = torch.is_grad_enabled()
        if trains:
            self._stacks.pop(path, None)  # whose parameters may be others soon
        # A search goes by row even then, so that a row's numbers do not depend on which languages the others are in.
        if len(self.adapters) == 1 and trains:
            return self.adapters[0][path], None
        rows = remaining()
        index = self.index if rows is None else self.index.index_select(0, rows)
        if len(index) != count:
            raise PelasrError(f"site {path}: its module works on {count} rows, but {len(index)} have a language")
        return self._make(path) if trains else self._stacks.get(path) or self._kept(path), index

    def _kept(self, path: str) -> Stack:
        """For a search, which comes here at every step."""
        with torch.inference_mode(False), torch.no_grad():  # whoever comes next may be in no inference mode
            return self._stacks.setdefault(path, self._make(path))

    def _make(self, path: str) -> Stack:
        return Stack(path, [found.get(path) for found in self.adapters])
