"""How a batch of several languages goes through their adapters at once, without a loop over languages.

The parameters of the languages at a site are stacked, and every row of the batch takes those of its own. A method whose
`forward` works with parameters by row, with a leading dimension B, is called once; any other goes through
`torch.func.vmap`, which takes longer than a small adapter itself.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F


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
    """Adapters of several languages at one site as one, their parameters stacked."""

    def __init__(self, adapters: Sequence[nn.Module]):
        self._adapter = adapters[0]
        names = [name for name, _ in self._adapter.named_parameters(remove_duplicate=False)]
        parts = [name.rpartition(".") for name in names]
        self._places = [(self._adapter.get_submodule(path), name) for path, _, name in parts]
        self._stacks = [torch.stack([adapter.get_parameter(name) for adapter in adapters]) for name in names]

    def __call__(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Row b of x (B, ..., D_in) and y (B, ..., D) by the adapter of number `index[b]`: (B, ..., D)."""
        # Not `[index]`: its backward pass adds in an order that depends on the threads.
        parameters = [stack.index_select(0, index) for stack in self._stacks]
        if self._adapter.by_row:
            rows = (part.reshape(len(part), -1, part.shape[-1]) for part in (x, y))
            return self._call(*rows, *parameters).reshape(y.shape)
        return vmap(self._call, randomness="different")(x[:, None], y[:, None], *parameters)[:, 0]

    def _call(self, x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
        """The adapter with other parameters. (`torch.func.functional_call` takes longer than a small adapter.)"""
        own = [module._parameters[name] for module, name in self._places]
        self._put(parameters)
        try:
            return self._adapter(x, y)
        finally:
            self._put(own)

    def _put(self, parameters: Iterable[Tensor]) -> None:
        for (module, name), parameter in zip(self._places, parameters, strict=True):
            module._parameters[name] = parameter
