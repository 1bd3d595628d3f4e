"""Adapters: what hangs on a frozen backbone, one set per language.

An adapter is a function y' = f(x, y) of a host module's input x and output y, or changes what goes in, and hangs on the
host by hooks: the backbone's code and the names of its weights never change. A `Bank` holds the adapters of all
languages at all sites and knows, while a batch is processed, which language each row of it is in.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pelasr.adapters.base import Adapter, Shared, find_method, make_adapter, method_options
from pelasr.adapters.hooks import hang, routed_by
from pelasr.adapters.own import OwnParts, routed
from pelasr.adapters.where import KNOWN, NEW, Site, find_sites
from pelasr.config import check_keys
from pelasr.errors import PelasrError, nearest
from pelasr.nn.mixed import Route
from pelasr.nn.parts import Parts


class Bank(nn.Module):
    """The adapters of every language at every site: `bank.adapters[language][site]`.

    Args:
        method: name of a file, see `find_method`.
        options: see `method_options`; one that is a mapping {encoder: ..., decoder: ...} differs between the two sides
            of the backbone. `sites` names other kinds of site than the method's own; as {known: ..., new: ...} those
            of languages that the backbone was trained on, and of others, which have own parts.
        backbone: where the adapters hang, from the first `route` on; its `sites()` is a map {kind: {path: width}}.

    Rows are routed by `with bank.route(languages): ...`. Outside such a block the backbone is itself. What a block
    says is for its thread alone, so that several may use one backbone and its banks at a time. A copy of a bank is a
    bank of a copy of its backbone.
    """

    mixes_languages = True

    def __init__(self, method: str, options: dict[str, Any] | None, backbone: Parts):
        super().__init__()
        self.method, self.options = method, dict(options or {})
        self.cls = find_method(method)
        check_keys(self.options, method_options(method), f"adapter_conf of {method}")
        self._backbone = [backbone]  # in a list: no submodule, its weights are not the bank's
        self._sites = {which: find_sites(method, self.cls, self.options, backbone, which) for which in (KNOWN, NEW)}
        self.adapters = nn.ModuleDict()
        self.own = nn.ModuleDict()
        self._fired: set[str] = set()  # sites that have been seen at work
        sites = (self._sites[KNOWN] | self._sites[NEW]).items()
        self._inputs = frozenset(path for path, site in sites if site.cls.before is not Adapter.before)
        self._outputs = frozenset(path for path, site in sites if site.cls.forward is not Adapter.forward)
        self._hangs = False

    @property
    def sites(self) -> dict[str, int]:
        """Where any language may have an adapter, {path: width}."""
        return _widths(self._sites[KNOWN] | self._sites[NEW])

    def sites_for(self, own: OwnParts | None) -> dict[str, int]:
        """Where a language with these own parts, or without, has adapters, {path: width}."""
        return _widths(self._sites_for(own))

    def _sites_for(self, own: OwnParts | None) -> dict[str, Site]:
        return self._sites[NEW if own is not None and own.sites else KNOWN]

    def touches(self, side: str) -> bool:
        """Whether any adapter is in `encoder` or in `decoder`."""
        return any(self._backbone[0].side(path) == side for path in self.sites)

    def size(self, language: str) -> int:
        """Parameters of a language as its pack holds them, of which those that are never trained do not count."""
        modules = [*map(_packed, self.of(language).values()), *filter(None, [self.own_of(language)])]
        return _count(tensor for module in modules for tensor in module.parameters() if tensor.requires_grad)

    def total_size(self, backbone: nn.Module) -> int:
        """Parameters of all languages together with the backbone."""
        return _count(backbone.parameters()) + _count(self.parameters())

    @property
    def languages(self) -> list[str]:
        return [key.removesuffix("/").replace("/", ".") for key in list(self.adapters)]

    def add(self, language: str, own: OwnParts | None = None, settled: bool = False) -> None:
        """Give a language fresh adapters, and the own parts that it comes with; `settled`: as its pack holds them, and
        those that differ from training's without values."""
        if _key(language) in self.adapters:
            raise PelasrError(f"language {language!r} has adapters already")
        make = self._make_settled if settled else self._make
        made = {_key(path): make(language, path, site) for path, site in self._sites_for(own).items()}
        if own is not None:
            self.own[_key(language)] = own.requires_grad_(not self.cls.fuses)
        self.adapters[_key(language)] = nn.ModuleDict(made)

    def take(self, other: "Bank") -> None:
        """Take the languages of a bank of the same method, options and backbone, as they are."""
        self.own.update(dict(other.own.items()))
        self.adapters.update(dict(other.adapters.items()))

    def own_of(self, language: str) -> OwnParts | None:
        """A language's own parts, if it has any."""
        key = _key(language)
        found: Any = self.own[key] if key in self.own else None  # noqa: SIM401 - a ModuleDict has no `get`
        return found

    def own_tokens(self, language: str) -> list[str]:
        """A language's own tokens."""
        own = self.own_of(language)
        return own.tokens if own is not None else []

    def _make(self, language: str, path: str, site: Site) -> nn.Module:
        """What a new language has at a site."""
        given = site.given(self._backbone[0].get_submodule(path))
        given |= {"path": path, "language": language, "alone": path not in self._sites[KNOWN]}
        try:
            return make_adapter(site.cls, site.options, "adapter_conf", **given)
        except PelasrError as error:
            raise PelasrError(f"site {path}: {error}") from None

    def _make_settled(self, language: str, path: str, site: Site) -> nn.Module:
        """As `_make`, as a pack holds it. What training has beyond that takes no memory: a pack from anywhere says how
        much it would be."""
        if site.cls.settle is Adapter.settle:
            return self._make(language, path, site)
        device = torch.get_default_device()
        with torch.device("meta"):
            made: Any = self._make(language, path, site)
            made.settle()
        return made.to_empty(device=device)

    def of(self, language: str) -> dict[str, nn.Module]:
        """A language's adapters by site. Raises PelasrError if it has none."""
        if _key(language) not in self.adapters:
            raise PelasrError(f"no adapters for language {language!r}; {nearest(language, self.languages)}")
        adapters: Any = self.adapters[_key(language)]
        return {path: adapters[_key(path)] for path in self.sites if _key(path) in adapters}

    def tensors(self, language: str) -> dict[str, Tensor]:
        """A language's parameters (and buffers), own ones included, {"<site path>/<parameter>": tensor}, live."""
        tensors = {
            f"{path}/{name}": tensor
            for path, adapter in self.of(language).items()
            for name, tensor in adapter.state_dict(keep_vars=True).items()
        }
        own = self.own_of(language)
        return tensors | (own.tensors() if own is not None else {})

    @torch.no_grad()
    def settled(self, language: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a language, as training has them, as a pack holds them."""
        result = dict(tensors)
        for path, adapter in self.of(language).items():
            if _settles(adapter):
                made = copy.deepcopy(adapter)
                made.load_state_dict({name: result.pop(f"{path}/{name}") for name in made.state_dict()})
                result |= {f"{path}/{name}": tensor for name, tensor in _packed(made).state_dict().items()}
        return result

    @contextmanager
    def route(self, languages: list[str]) -> Iterator[None]:
        """See `Routes.route`."""
        present = list(dict.fromkeys(languages))
        found = [self.of(language) for language in present]
        own = [self.own_of(language) for language in present]
        modules = chain((adapter for adapters in found for adapter in adapters.values()), filter(None, own))
        device = next((tensor.device for module in modules for tensor in module.parameters()), None)
        position = {language: n for n, language in enumerate(present)}
        index = torch.tensor([position[language] for language in languages], dtype=torch.long, device=device)
        if not self._hangs:
            hang(self._backbone[0], self._inputs, self._outputs)
            self._hangs = True
        adapters = Route(found, index, self._fired, self.sites, self._inputs, self._outputs, Shared())
        with routed_by(adapters), routed(own, index if len(present) > 1 else None):
            yield

    def check_gradients(self, languages: Iterable[str]) -> None:
        """After a backward pass: every site must have fired, and every adapter of these languages have a gradient.

        Raises PelasrError naming the first site that did not: its host is never called, or its output is not used.
        """
        for language in languages:
            for path, adapter in self.of(language).items():
                if path not in self._fired:
                    raise PelasrError(f"site {path}: the hook never fired: the backbone does not call this module")
                for name, parameter in adapter.named_parameters():
                    if parameter.requires_grad and parameter.grad is None:
                        raise PelasrError(f"site {path}: {name} of {language!r} got no gradient from the loss")


def count_parameters(backbone: nn.Module, bank: Bank | None = None) -> dict[str, int]:
    """Integer counts on the live modules."""
    size = _count(backbone.parameters())
    trainable = [*backbone.parameters(), *(bank.parameters() if bank is not None else ())]
    return {
        "backbone": size,
        "adapter_per_language": bank.size(bank.languages[0]) if bank is not None else 0,
        "trainable": _count(p for p in trainable if p.requires_grad),
        "total": bank.total_size(backbone) if bank is not None else size,
    }


def _settles(adapter: nn.Module) -> bool:
    return isinstance(adapter, Adapter) and type(adapter).settle is not Adapter.settle


def _packed(adapter: nn.Module) -> nn.Module:
    """An adapter as its pack holds it."""
    if not _settles(adapter):
        return adapter
    made: Any = copy.deepcopy(adapter)
    made.settle()
    return made


def _widths(sites: Mapping[str, Site]) -> dict[str, int]:
    return {path: site.width for path, site in sites.items()}


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _key(path: str) -> str:
    """Names of modules hold no dots (`zh.Hant`) and are no attribute of a ModuleDict (`to`, Tongan)."""
    return f"{path}/".replace(".", "/")
