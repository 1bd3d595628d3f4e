"""The modules of a backbone that a method may hang on, by kind; see `sites` of a backbone."""

from collections.abc import Iterable

from torch import nn

NAMED = {  # by the last part of the path: ESPnet's names in attention and feed-forward sub-layers
    "linear_q": "q",
    "linear_k": "k",
    "linear_v": "v",
    "linear_out": "out",
    "w_1": "ffn_in",
    "w_2": "ffn_out",
}
TYPED = {
    "linear": (nn.Linear,),
    "norm": (nn.LayerNorm, nn.BatchNorm1d),
    "conv": (nn.Conv1d, nn.Conv2d),
    "lstm": (nn.LSTM,),
}


def module_sites(backbone: nn.Module, left_out: Iterable[str]) -> dict[str, dict[str, int]]:
    """{kind: {path: width of the output}}, only kinds that the backbone has.

    `linear`, `norm`, `conv` and `lstm` are all modules of a type, `attention` the encoder's: a search computes a
    decoder's keys and values without calling it. Of the linear maps `q`, `k`, `v` and `out` are those
    of attention, `ffn_in` and `ffn_out` those of feed-forward sub-layers, `joint` those of a transducer's joint
    network. The paths `left_out` are no sites, nor are relative attention's maps of positions, which the rows of a
    batch share.
    """
    left_out = set(left_out)
    found: dict[str, dict[str, int]] = {}
    for path, module in backbone.named_modules():
        if path not in left_out and not path.endswith(".linear_pos"):
            for kind in _kinds(path, module):
                found.setdefault(kind, {})[path] = _width(module)
    return found


def _kinds(path: str, module: nn.Module) -> list[str]:
    """The kinds that a module belongs to."""
    kinds = [kind for kind, types in TYPED.items() if isinstance(module, types)]
    if hasattr(module, "linear_q") and path.startswith("encoder."):
        return ["attention"]
    if kinds != ["linear"]:
        return kinds
    part, _, name = path.rpartition(".")
    return kinds + (["joint"] if part == "joint" else [NAMED[name]] if name in NAMED else [])


def _width(module: nn.Module) -> int:
    """Width of what a module puts out."""
    if isinstance(module, nn.LSTM):
        return module.proj_size or module.hidden_size
    if hasattr(module, "linear_q"):
        return module.linear_out.out_features
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    names = ("out_features", "out_channels", "num_features")
    return next(getattr(module, name) for name in names if hasattr(module, name))
