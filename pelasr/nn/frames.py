"""Which frames of the batch that an encoder or decoder is at work on are their utterance's own, and which only pad it.

Layers are mostly not told. What is attached to them and looks beyond one frame (a convolution, a mean) asks here.
"""

from contextvars import ContextVar

from torch import Tensor

_inside: ContextVar[Tensor | None] = ContextVar("inside", default=None)


def set_inside(inside: Tensor) -> None:
    """From now on, in this thread, these frames (B, T) are their utterances' own: an encoder says so before each of its
    layers whose frames are others than those of the last, and a decoder in training, of labels."""
    _inside.set(inside)


def inside() -> Tensor | None:
    """Which frames (B, T) the encoder at work has named; None if there was none yet."""
    return _inside.get()
