"""Folding a language's adapters into the backbone's weights: a model of that language that needs no adapters."""

from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.base import Adapter
from pelasr.errors import PelasrError


def fold(backbone: nn.Module, bank: Bank, language: str) -> None:
    """Change the backbone's weights so that outside of `bank.route` it does what it did within it for the language.

    Raises PelasrError, before anything is changed, for a method that no weights can express, and for a language with
    tokens or a language vector of its own.
    """
    if bank.own_of(language) is not None:
        raise PelasrError(f"{language!r} has tokens or a language vector of its own, which no folding can express")
    # Those that cannot come first: of a method's parts some may.
    for path, adapter in sorted(bank.of(language).items(), key=lambda item: _can(item[1])):
        host = backbone.get_submodule(path)
        if bank.cls.copies:
            host.load_state_dict(adapter.state_dict())
        else:
            assert isinstance(adapter, Adapter)
            adapter.fold(host)


def _can(adapter: nn.Module) -> bool:
    return not isinstance(adapter, Adapter) or type(adapter).fold is not Adapter.fold
