"""Activations by name, as options of methods."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pelasr.errors import PelasrError, nearest

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": F.gelu, "swish": F.silu}


def find_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of this name. Raises PelasrError for an unknown one."""
    if name not in ACTIVATIONS:
        raise PelasrError(f"activation: {name!r}; {nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]
