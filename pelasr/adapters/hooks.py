"""The hooks by which adapters hang on a backbone's modules, and how a module's arguments and output are read."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pelasr.errors import PelasrError
from pelasr.nn.mixed import Route
from pelasr.nn.parts import instead

CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d)  # hosts that work on (B, D, T) or (B, D, T, F)
_route: ContextVar[Route | None] = ContextVar("route", default=None)
_hanging = Lock()


def hang(backbone: nn.Module, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Hang hooks on modules, where none hang yet, that let the route change what goes into some, and comes out of some.

    They stay there, and ask the route whenever the module is called. To take them off after each batch would be no
    cheaper, and unsafe: torch reads the entries of a hook one by one, while another thread would change them. They
    are the backbone's own modules, also within a block in which it has others in their place.
    """
    with _hanging, instead(None):
        for path in inputs:
            host = backbone.get_submodule(path)
            if not _hangs(_before, path, host._forward_pre_hooks):
                host.register_forward_pre_hook(partial(_before, path), with_kwargs=True)
        for path in outputs:
            host = backbone.get_submodule(path)
            if not _hangs(_adapt, path, host._forward_hooks):
                # First of all hooks: an output layer's own tokens are added to what the adapter makes of the others.
                host.register_forward_hook(partial(_adapt, path), with_kwargs=True, prepend=True)


def _hangs(hook: Any, path: str, hooks: Mapping[int, Any]) -> bool:
    return any(isinstance(other, partial) and other.func is hook and other.args == (path,) for other in hooks.values())


@contextmanager
def routed_by(route: Route, copies: Mapping[str, nn.Module] | None = None) -> Iterator[None]:
    """Inside the block, and in this thread, the hooks ask this route, and the backbone has these parts."""
    token = _route.set(route)
    try:
        # A backward pass in here, which may compute modules again (checkpoints), must be in this thread too.
        with instead(copies), torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _route.reset(token)


def added_losses() -> list[Tensor]:
    """What the adapters of the batch add to what is minimised, (B,) each."""
    route = _route.get()
    return list(route.shared.losses.values()) if route is not None else []


def shifted(path: str, bias: Tensor, count: int) -> Tensor:
    """The bias (V,) of an output layer that is not called: with what adapters add to it in each of the batch's `count`
    rows (B, V), or as it is."""
    route = _current(path)
    if route is None or path not in route.outputs:
        return bias
    y = bias.expand(count, 1, -1)
    return route.adapt(path, y, y)[:, 0]


def _current(path: str) -> Route | None:
    route = _route.get()
    if route is None and torch._C._current_graph_task_id() != -1:
        raise PelasrError(
            f"site {path}: computed again in a backward pass (activation checkpointing) outside of `route`, which"
            " would leave its adapters out of the gradients; call backward() inside the block"
        )
    return route


def _before(path: str, host: nn.Module, args: tuple, *rest: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """The hook on what goes into a site. (Another thread that is about to hang it may not have said yet that it takes
    keyword arguments; then no route of this thread's has the site.)"""
    route = _current(path)
    if route is None or path not in route.inputs:
        return None
    (kwargs,) = rest
    x = _input_of(host, args, kwargs)
    changed = route.before(path, len(x), args, kwargs)
    if _input_of(host, *changed).shape != x.shape:
        _check_lengths(path, x, (args, kwargs), changed)
    return changed


def _adapt(path: str, host: nn.Module, args: tuple, *rest: Any) -> Any:
    """The hook on what comes out of a site; see `_before`."""
    route = _current(path)
    if route is None or path not in route.outputs:
        return None
    kwargs, output = rest
    x, y = _input_of(host, args, kwargs), _tensor_of(output)
    if isinstance(host, CHANNELS_FIRST):
        return route.adapt(path, x.movedim(1, -1), y.movedim(1, -1)).movedim(-1, 1)
    return _with_tensor(output, route.adapt(path, x, y))


def _check_lengths(path: str, x: Tensor, given: Any, changed: Any) -> None:
    """Raise PelasrError if nothing that goes into a site beside `x` has been changed with x's shape."""
    before, after = tree_leaves(given), tree_leaves(changed)
    pairs = [(old, new) for old, new in zip(before, after, strict=False) if old is not x and isinstance(old, Tensor)]
    if len(before) == len(after) and all(torch.equal(old, new) for old, new in pairs):
        raise PelasrError(
            f"site {path}: the input gets another length, but no frames or mask with it: let `before` change them too,"
            " at a site whose module is given them"
        )


def _input_of(host: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a module is given: its first argument, which may be called by its name."""
    if args:
        return _tensor_of(args[0])
    names = iter(inspect.signature(type(host).forward).parameters)
    next(names)  # self
    return _tensor_of(kwargs[next(names)])


def _tensor_of(value: Any) -> Tensor:
    """The hidden states of what a layer takes or returns: x, (x, mask) or ((x, pos), mask)."""
    while isinstance(value, tuple):
        value = value[0]
    return value


def _with_tensor(value: Any, tensor: Tensor) -> Any:
    """`value` with its hidden states replaced."""
    if isinstance(value, tuple):
        return (_with_tensor(value[0], tensor), *value[1:])
    return tensor
