"""Which frames of the batch that an encoder is at work on are their utterance's own, and which only pad it; and the
same of labels in a decoder, while it trains.

Layers are mostly not told. What is attached to them and looks beyond one frame (a convolution, a mean) asks here.
"""

from contextvars import ContextVar

from torch import Tensor

_inside: ContextVar[Tensor | None] = ContextVar("inside", default=None)
_counted: ContextVar[Tensor | None] = ContextVar("counted", default=None)


def set_inside(inside: Tensor) -> None:
    """From now on, in this thread, these frames (B, T) are their utterances' own: an encoder says so before each of its
    layers whose frames are others than those of the last."""
    _inside.set(inside)
    _counted.set(inside)


def set_labels(labels: Tensor) -> None:
    """From now on a decoder is at work, in a loss, on these labels (B, U) and what pads them."""
    _counted.set(labels)


def inside() -> Tensor | None:
    """Which frames (B, T) the encoder at work has named; None if there was none yet."""
    return _inside.get()


def counted() -> Tensor | None:
    """Which frames (B, T), or labels, the encoder or decoder at work has named; None if there was none yet. A search
    names no labels."""
    return _counted.get()
