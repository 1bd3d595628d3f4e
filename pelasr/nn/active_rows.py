"""Which utterances of a batch a search is still at work on.

A search drops the utterances that it is done with, so that modules see fewer rows than the batch has. What is attached
to them and differs between rows (adapters) asks here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_remaining: ContextVar[Tensor | None] = ContextVar("remaining", default=None)


@contextmanager
def only(rows: Tensor | None) -> Iterator[None]:
    """Inside the block modules see the rows (n,) of the batch, in this order; None: all of it."""
    token = _remaining.set(rows)
    try:
        yield
    finally:
        _remaining.reset(token)


def remaining() -> Tensor | None:
    """Indices (n,) of the batch's rows that modules see now; None: all of them."""
    return _remaining.get()
