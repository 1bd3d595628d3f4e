"""ESPnet's modules keep what a forward pass computes: attention its weights, positions what they are extended to.

The pass reads it again, and another thread's may have come between. It would also be copied, pickled and held in
memory, with autograd's graph; and positions are kept in the type of what they were last added to, so that half
precision would round them for good. So every pass has a module of its own, which shares all else.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

KEPT = {"attn", "pe"}  # attributes that are written


def for_one_pass(module: Any, device: torch.device) -> Any:
    """A module that shares all that another has, submodules and parameters included, until it is given something else.
    Positions are on the device."""
    if "pe" in vars(module) and module.pe.device != device:
        with torch.inference_mode(False):
            module.pe = module.pe.to(device)  # once and for all
    made = object.__new__(type(module))
    vars(made).update(vars(module))
    return made


def make_stateless(module: nn.Module) -> None:
    """Forward passes of a module, and of those in it, leave nothing behind."""
    for part in module.modules():
        if KEPT & vars(part).keys():
            part.forward = partial(_forward, part)


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    return type(module).forward(for_one_pass(module, device), *args, **kwargs)
