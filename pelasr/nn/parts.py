"""What stands in the place of a backbone's parts, such as its encoder, while a batch is processed.

A fine-tuned language has parts of its own. They are not put into the backbone, which may be at work for others in other
threads: it looks here for its parts whenever it uses them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

_copies: ContextVar[Mapping[str, nn.Module] | None] = ContextVar("copies", default=None)


@contextmanager
def instead(copies: Mapping[str, nn.Module] | None) -> Iterator[None]:
    """Inside the block, and in this thread, backbones have these parts, by name; None: their own."""
    token = _copies.set(copies)
    try:
        yield
    finally:
        _copies.reset(token)


class Parts(nn.Module):
    """Base of backbones: `self.encoder` is what stands in the encoder's place, where anything does."""

    def __getattr__(self, name: str) -> Any:
        copies = _copies.get()
        return copies[name] if copies and name in copies else super().__getattr__(name)
