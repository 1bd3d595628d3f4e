"""The modules of a backbone that a method may hang on, by kind; see `sites` of a backbone."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from pelasr.adapters.own import OUTPUT
from pelasr.nn.parts import Parts
from pelasr.nn.positions import PositionBias

TYPED = {
    "linear": (nn.Linear,),
    "norm": (nn.LayerNorm, nn.BatchNorm1d),
    "conv": (nn.Conv1d, nn.Conv2d),
    "lstm": (nn.LSTM,),
    "position": (PositionBias,),
}


def module_sites(backbone: nn.Module, names: Mapping[str, str], left_out: Iterable[str]) -> dict[str, dict[str, int]]:
    """{kind: {path: width of the output}}, only kinds that the backbone has.

    `linear`, `norm`, `conv`, `lstm` and `position`, the biases of relative attention, are all modules of a type.
    `names` tells further kinds of linear maps, as {linear_q: q}; in it and in `left_out`, what is no site, a module is
    called by its path or the last part of that.
    """
    left_out = set(left_out)
    found: dict[str, dict[str, int]] = {}
    for path, module in backbone.named_modules():
        last = path.rpartition(".")[2]
        if left_out & {path, last}:
            continue
        kinds = [kind for kind, types in TYPED.items() if isinstance(module, types)]
        if "linear" in kinds:
            kinds += [names[name] for name in dict.fromkeys([path, last]) if name in names]
        for kind in kinds:
            found.setdefault(kind, {})[path] = _width(module)
    return found


def layer_norms(sites: dict[str, dict[str, int]], layers: Iterable[str]) -> dict[str, dict[str, int]]:
    """{layer_norm: {path: width}}, those of the sites `norm` that are within these layers; {} where none is."""
    inside = tuple(f"{path}." for path in layers)
    found = {path: width for path, width in sites.get("norm", {}).items() if path.startswith(inside)}
    return {"layer_norm": found} if found else {}


def output_sites(backbone: Parts) -> dict[str, dict[str, int]]:
    """{output: {path: width}}, the output layers that all languages share, as far as they have a bias; {} if none."""
    layers: dict[str, Any] = {
        p: backbone.get_submodule(p) for p, kind in backbone.own_sites().items() if kind == OUTPUT
    }
    found = {path: layer.out_features for path, layer in layers.items() if layer.bias is not None}
    return {OUTPUT: found} if found else {}


def _width(module: Any) -> int:
    """Width of what a module puts out."""
    if isinstance(module, nn.LSTM):
        return module.proj_size or module.hidden_size
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    widths: Iterator[Any] = (getattr(module, name, None) for name in ("out_features", "out_channels", "num_features"))
    return next(width for width in widths if width is not None)
