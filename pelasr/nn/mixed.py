"""How a batch of several languages goes through their adapters at once, without a loop over languages.

The parameters of the languages at a site are stacked, and every row of the batch takes those of its own. A method whose
`forward` works with parameters by row, with a leading dimension B, is called once; any other goes through
`torch.func.vmap`, which takes longer than a small adapter itself.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from pelasr.errors import PelasrError
from pelasr.nn.active_rows import remaining


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
    """Adapters of several languages at one site as one, their parameters stacked; None: a language without one there,
    whose rows stay as they are. Threads may share it."""

    def __init__(self, adapters: Sequence[nn.Module | None]):
        there = [adapter for adapter in adapters if adapter is not None]
        self._adapter = there[0]
        found = [_parameters(there[0] if adapter is None else adapter) for adapter in adapters]
        self._stacks = [torch.stack(parameters) for parameters in zip(*found, strict=True)]
        self._has = None
        if len(there) < len(found):
            has = [adapter is not None for adapter in adapters]
            self._has = torch.tensor(has, device=self._stacks[0].device)

    def __call__(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Row b of x (B, ..., D_in) and y (B, ..., D) by the adapter of number `index[b]`: (B, ..., D)."""
        # Not `[index]`: its backward pass adds in an order that depends on the threads.
        parameters = [stack.index_select(0, index) for stack in self._stacks]
        if self._adapter.by_row:
            rows = (part.reshape(len(part), -1, part.shape[-1]) for part in (x, y))
            adapted = self._call(*rows, *parameters).reshape(y.shape)
        else:
            adapted = vmap(self._call, randomness="different")(x[:, None], y[:, None], *parameters)[:, 0]
        if self._has is None:
            return adapted
        return torch.where(self._has[index].reshape(-1, *[1] * (y.dim() - 1)), adapted, y)

    def _call(self, x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
        return _with_parameters(self._adapter, iter(parameters))(x, y)


def _parameters(module: nn.Module) -> list[Tensor]:
    """In the order that `_with_parameters` takes them."""
    return [parameter for _, parameter in module.named_parameters(remove_duplicate=False)]


def _with_parameters(module: nn.Module, parameters: Iterator[Tensor]) -> nn.Module:
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
    """

    def __init__(
        self, adapters: Sequence[Mapping[str, nn.Module]], index: Tensor, fired: set[str], widths: Mapping[str, int]
    ):
        self.adapters, self.index, self.fired, self.widths = adapters, index, fired, widths
        self.sites = {path for found in adapters for path in found}
        self._stacks: dict[str, Stack] = {}

    def adapt(self, path: str, x: Tensor, y: Tensor) -> Tensor:
        """Every row by its own language at one of the sites: (B, T, D_in), (B, T, D) to (B, T, D)."""
        self.fired.add(path)
        if not isinstance(y, Tensor) or y.shape[-1] != self.widths[path]:
            raise PelasrError(
                f"site {path}: it was to put out {self.widths[path]} channels, which its module does not: it is no site"
                " for adapters; name others in adapter_conf.sites"
            )
        trains = torch.is_grad_enabled()
        if trains:
            self._stacks.pop(path, None)  # whose parameters may be others soon
        # A search goes by row even then, so that a row's numbers do not depend on which languages the others are in.
        if len(self.adapters) == 1 and trains:
            return self.adapters[0][path](x, y)
        rows = remaining()
        index = self.index if rows is None else self.index.index_select(0, rows)
        if len(index) != len(y):
            raise PelasrError(f"site {path}: its module works on {len(y)} rows, but {len(index)} have a language")
        stack = self._make(path) if trains else self._stacks.get(path) or self._kept(path)
        return stack(index, x, y)

    def _kept(self, path: str) -> Stack:
        """For a search, which comes here at every step."""
        with torch.inference_mode(False), torch.no_grad():  # whoever comes next may be in no inference mode
            return self._stacks.setdefault(path, self._make(path))

    def _make(self, path: str) -> Stack:
        return Stack([found.get(path) for found in self.adapters])
