"""A bound for what a configuration from anywhere makes, before its weights are read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pelasr.config import LIMIT
from pelasr.errors import PelasrError
from pelasr.storage import sizes

TENSOR = 50  # bytes of a tensor in the header of a file of weights, at least
STEPS = 10  # calls of torch to make a tensor and its first values, at most


class Bounds(TorchFunctionMode):
    """Inside the block a PelasrError ends what makes more tensors, or larger ones, than these files of weights can
    hold: options from anywhere may ask for any number of layers of any size. To be used on torch's `meta` device."""

    def __init__(self, paths: Iterable[Path]):
        super().__init__()
        found = [sizes(path) for path in paths]
        self.steps = 1000 + STEPS * sum(min(header, size, LIMIT) // TENSOR for header, size in found)
        self.elements = (1 << 26) + 4 * sum(size for _, size in found)  # tables of positions are in no file

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.steps -= 1
        if isinstance(made, torch.Tensor):
            self.elements -= made.numel()
        if self.steps < 0 or self.elements < 0:
            raise PelasrError("its options ask for more or larger tensors than its file of weights has")
        return made
