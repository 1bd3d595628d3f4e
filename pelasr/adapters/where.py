"""Where the adapters of a method hang, and which of its classes hangs there."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pelasr.adapters.base import SIDES, Adapter, find_method, method_options, options_of
from pelasr.adapters.own import OUTPUT
from pelasr.config import check_keys, require_keys
from pelasr.errors import PelasrError, brief, nearest
from pelasr.nn.parts import Parts

KNOWN, NEW = "known", "new"  # languages that the backbone was trained on, and others, which have own parts


@dataclass(frozen=True)
class Site:
    """A module of the backbone: its kind, the width of its output, and its number among those of its kind, from 0; what
    hangs there; and the method's options there."""

    kind: str
    width: int
    index: int
    cls: type[Adapter]
    options: dict[str, Any]

    def given(self, host: nn.Module) -> dict[str, Any]:
        """What a constructor may be given beside its options; see `Adapter`."""
        width_in = getattr(host, "in_features", getattr(host, "input_size", self.width))
        return {"width": self.width, "width_in": width_in, "host": host, "index": self.index}


def find_sites(
    method: str, cls: type[Adapter], options: dict[str, Any], backbone: Parts, which: str
) -> dict[str, Site]:
    """{path: site} of known or of new languages.

    Raises PelasrError for a kind of site that the backbone does not have, or the method cannot hang on, for two classes
    of a method at one module, for one of parts that go together without the others, and where there would be no adapter
    at all.
    """
    if cls.fuses:
        return _fused_sites(method, cls, options, backbone, which)
    there, found = backbone.sites(), {}
    for kind in _kinds(cls, options, there, which):
        if kind not in there:
            why = f": {cls.because}" if cls.because else ""
            raise PelasrError(f"adapter {method} needs a site {kind!r}{why}; {nearest(kind, there)}")
        part = _part(method, cls, kind)
        if kind == OUTPUT and not part.shifts:
            raise PelasrError(
                f"adapter_conf: sites: {OUTPUT}: losses take the weights of output layers and do not call them: only a"
                f" method that shifts what they put out (bitfit) can be there, not {method}"
            )
        for index, (path, width) in enumerate(there[kind].items()):
            site = Site(kind, width, index, part, _options_at(path, part, options, backbone))
            if _is_wanted(path, site, backbone):
                if path in found and found[path].cls is not part:
                    raise PelasrError(f"adapter_conf: sites: {method} would hang on {path} twice, as {kind} too")
                found.setdefault(path, site)
    if not found and _kinds(cls, options, there, which):
        what = f"{cls.size} 0 everywhere" if cls.size else f"{method} at these sites"
        raise PelasrError(f"adapter_conf: {what} leaves no adapter")
    kinds = {site.kind for site in found.values()}
    if kinds & {*cls.together} and (missing := [kind for kind in cls.together if kind not in kinds]):
        raise PelasrError(
            f"adapter_conf: sites: of {method} {', '.join(cls.together)} go together; {missing[0]} is missing"
        )
    return dict(cls.choose(found, backbone))


def _fused_sites(
    method: str, cls: type[Adapter], options: dict[str, Any], backbone: Parts, which: str
) -> dict[str, Site]:
    """Where the adapters hang that a method fuses, with its own class."""
    if "method" not in options:
        raise PelasrError(f"adapter {method} is made of another experiment's packs: name that with `fuse: EXPERIMENT`")
    name, conf = options["method"], options.get("method_conf") or {}
    inner, where = find_method(name), f"adapter_conf: method_conf of {name}"
    if inner.copies or inner.fuses:
        raise PelasrError(f"adapter_conf: method: {method} fuses adapters, which {name} is not made of")
    if not isinstance(conf, dict):
        raise PelasrError(f"{where}: expected `key: value` lines")
    check_keys(conf, method_options(name), where)
    found = find_sites(name, inner, conf, backbone, which)
    own = {key: value for key, value in options.items() if key != "method_conf"}
    for path, site in found.items():
        if site.cls is not inner or site.kind == OUTPUT:
            raise PelasrError(
                f"adapter_conf: method: {method} cannot fuse {name} at {path}: several methods, or no module"
            )
        found[path] = replace(site, cls=cls, options=own | {"method_conf": site.options})
    return found


def _kinds(cls: type[Adapter], options: dict[str, Any], there: dict[str, Any], which: str) -> list[str]:
    """The kinds of site that are wanted: those of the options, or else the method's own, as far as they are there."""
    usual = tuple(cls.parts) or tuple(kind for kind in cls.sites if kind in there) or cls.sites
    kinds = options.get("sites", usual)
    if isinstance(kinds, dict):
        check_keys(kinds, (KNOWN, NEW), "adapter_conf: sites")
        require_keys(kinds, (KNOWN, NEW), "adapter_conf: sites")
        kinds = kinds[which]
    if kinds is None or kinds in ("", []):
        raise PelasrError(f"adapter_conf: sites is empty: name at least one; known: {', '.join(sorted(there))}")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
        raise PelasrError(f"adapter_conf: sites: {brief(repr(kinds))}: want kinds of site, in a list")
    return list(kinds)


def _part(method: str, cls: type[Adapter], kind: str) -> type[Adapter]:
    """The class of a method that hangs on a kind of site."""
    if cls.parts and kind not in cls.parts:
        raise PelasrError(f"adapter_conf: sites: {method} has nothing for {kind!r}; {nearest(kind, cls.parts)}")
    return cls.parts.get(kind, cls)


def _options_at(path: str, part: type[Adapter], options: dict[str, Any], backbone: Parts) -> dict[str, Any]:
    """The options of a class at a site: of those that are mappings by side, the entry of its side."""
    found = {}
    for key in options_of(part):
        if key not in options:
            continue
        value = options[key]
        if isinstance(value, dict):
            side = backbone.side(path)
            check_keys(value, SIDES, f"adapter_conf: {key}")
            require_keys(value, [side], f"adapter_conf: {key}")
            value = value[side]
        found[key] = value
    return found


def _is_wanted(path: str, site: Site, backbone: Parts) -> bool:
    is_off = bool(site.cls.size) and site.options.get(site.cls.size) == 0
    elsewhere = site.cls.sides != SIDES and backbone.side(path) not in site.cls.sides
    return not (is_off or elsewhere) and site.cls.wants(backbone.get_submodule(path))
