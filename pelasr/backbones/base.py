"""What a backbone is: a family is one file beside this one."""

from typing import Any

from pelasr.adapters.own import install
from pelasr.backbones.format import check_options
from pelasr.config import arguments_of, construct, find_module

OTHERS = ("__init__", "base", "format", "sites", "source", "store")  # files here that are no families
GIVEN = ("vocab_size", "num_languages")  # what the data decide, not the configuration


def find_backbone(name: str) -> type:
    """The class `BACKBONE` of `pelasr/backbones/<name>.py`, or of a recipe's `local/backbones/<name>.py`; an unknown
    name is an error that lists them."""
    return find_module("pelasr.backbones", name, "backbone: no family", OTHERS).BACKBONE


def backbone_options(name: str) -> list[str]:
    """Configuration keys of a family: the arguments of its constructor."""
    return [key for key in arguments_of(find_backbone(name)) if key not in GIVEN]


def build_backbone(name: str, options: dict[str, Any], vocab_size: int, num_languages: int) -> Any:
    """A fresh backbone with random weights."""
    cls = find_backbone(name)
    check_options(options, f"backbone {name}")
    module = construct(cls, options, f"backbone {name}", vocab_size=vocab_size, num_languages=num_languages)
    install(module)
    return module
