"""Adapters, and how they hang on a frozen backbone; here what a method imports."""

from pelasr.adapters.activations import find_activation
from pelasr.adapters.base import Adapter
from pelasr.nn.mixed import LayerNorm, Linear

__all__ = ["Adapter", "LayerNorm", "Linear", "find_activation"]
