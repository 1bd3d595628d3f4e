"""Fine-tuning behind the interface of adapters: a language's copy of parts of the backbone, in the place of a bank.

Its packs hold whole modules. A batch holds one language, since each has weights of its own.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.base import Shared, find_method
from pelasr.adapters.hooks import routed_by
from pelasr.adapters.own import routed
from pelasr.adapters.where import Site
from pelasr.errors import PelasrError
from pelasr.nn.mixed import Route
from pelasr.nn.parts import Parts


class FineTuned(Bank):
    """Copies of the backbone's modules at the method's sites, `adapters[language][site]`; see `Bank`."""

    mixes_languages = False

    def __init__(self, method: str, options: dict[str, Any] | None, backbone: Parts):
        super().__init__(method, options, backbone)
        if not isinstance(backbone, Parts) or any("." in path for path in self.sites):
            raise PelasrError(
                f"{method} fine-tuning needs whole parts (`sites()`) of a backbone, whose class is a `Parts`"
            )
        self._hosts = {path: backbone.get_submodule(path) for path in self.sites}

    def _make(self, language: str, path: str, site: Site) -> nn.Module:
        return copy.deepcopy(self._hosts[path]).requires_grad_(True)

    def total_size(self, backbone: Parts) -> int:
        """Every language is served by a whole model of its own, as Le et al. 2021 count."""
        return len(self.languages) * sum(parameter.numel() for parameter in backbone.parameters())

    @contextmanager
    def route(self, languages: list[str]) -> Iterator[None]:
        """Inside the block the backbone's parts are the language's. Raises PelasrError for several languages."""
        if len(set(languages)) > 1:
            raise PelasrError(f"{self.method} fine-tuning takes one language a batch, not {' '.join(set(languages))}")
        copies = self.of(languages[0])
        self._fired.update(self.sites)
        nothing = Route([], torch.zeros(0), set(), {}, frozenset(), frozenset(), Shared())  # no bank's adapters
        with routed_by(nothing, copies), routed([self.own_of(languages[0])], None):
            yield


def make_bank(method: str, options: dict[str, Any] | None, backbone: Parts) -> Bank:
    """The bank of a method on a backbone."""
    if find_method(method).copies:
        return FineTuned(method, options, backbone)
    return Bank(method, options, backbone)
