"""Adapters, and how they hang on a frozen backbone; here what a method imports."""

from pelasr.adapters.activations import find_activation
from pelasr.adapters.base import Adapter, Shared, find_method, make_adapter
from pelasr.nn.layers import within
from pelasr.nn.mixed import LayerNorm, Linear, merged_rows

__all__ = [
    "Adapter",
    "LayerNorm",
    "Linear",
    "Shared",
    "find_activation",
    "find_method",
    "make_adapter",
    "merged_rows",
    "within",
]
