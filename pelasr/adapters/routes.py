"""What stands in the place of a bank."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.own import OwnParts, routed
from pelasr.nn.parts import Parts


class Routes(Protocol):
    """What changes a backbone's modules for the languages of a batch: a `Bank`, or what stands in its place."""

    mixes_languages: bool  # whether a batch may hold several languages

    def touches(self, side: str) -> bool:
        """Whether anything differs between languages in `encoder` or in `decoder`."""
        ...

    def route(self, languages: list[str]) -> AbstractContextManager[None]:
        """Inside the block, and in this thread, row b of every batch belongs to `languages[b]`. Of several blocks the
        innermost counts."""
        ...


class Unadapted(nn.Module):
    """In the place of a bank for a backbone without adapters: languages that it does not know get the mean of the
    language vectors that it knows, and no tokens of their own."""

    mixes_languages = True

    def __init__(self, backbone: Parts, known: Sequence[str]):
        super().__init__()
        self.known = list(known)
        self.own = OwnParts(backbone, [], vector=True)
        self.own.start_from(backbone, [], range(len(self.known)))

    def touches(self, side: str) -> bool:
        return False

    @contextmanager
    def route(self, languages: list[str]) -> Iterator[None]:
        """See `Bank.route`."""
        index = [0 if language in self.known else 1 for language in languages]
        if 1 not in index:
            yield
            return
        device = next((parameter.device for parameter in self.parameters()), None)
        with routed([None, self.own], torch.tensor(index, device=device)):
            yield


class Served(nn.Module):
    """In the place of a bank: every language is served by the adapters of one, to see what these do to the others.
    Own parts stay with those that have them."""

    mixes_languages = True

    def __init__(self, bank: Bank, language: str):
        super().__init__()
        self.bank, self.language = bank, language

    def touches(self, side: str) -> bool:
        return self.bank.touches(side)

    @contextmanager
    def route(self, languages: list[str]) -> Iterator[None]:
        """See `Bank.route`."""
        index = [1 if language == self.language else 0 for language in languages]
        parts = [None, self.bank.own_of(self.language)]
        device = next(self.parameters()).device
        with self.bank.route([self.language] * len(languages)), routed(parts, torch.tensor(index, device=device)):
            yield
