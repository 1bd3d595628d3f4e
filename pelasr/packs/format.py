"""What `pack.yaml` may say: the keys, and what their values must be, whoever wrote them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelasr.backbones.format import FACTS
from pelasr.config import check_keys, require_keys
from pelasr.data.language import is_language, split_pair
from pelasr.data.tokenizer import can_be_own
from pelasr.errors import PelasrError, brief
from pelasr.storage import has_names, is_count, is_finite, is_hash, read_description

FORMAT = 2
FUSED = "method_conf"  # of a pack that fuses others: their options
CURE = "restore it, or fit the language again"


@dataclass(frozen=True)
class PackDescription:
    """What `pack.yaml` says. `adapter_conf`: the method's options; `sites`: widths of the hosts by their paths;
    `own_tokens` and `own_vector`: what a language has that is new to the backbone; `training`: facts by name."""

    format: int
    language: str
    adapter: str
    adapter_conf: dict[str, Any]
    sites: dict[str, int]
    own_tokens: list[str]
    own_vector: bool
    backbone_sha256: str
    tokens_sha256: str
    safetensors_sha256: str
    parameters: int
    training: dict[str, Any]


def _is_option(value: Any) -> bool:
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
    return all(each is None or isinstance(each, str) or is_finite(each) for each in inner)


def _is_conf(value: Any) -> bool:
    return (
        has_names(value, lambda each: True)
        and _is_kinds(value.get("sites", ""))
        and all(_is_option(each) for key, each in value.items() if key != "sites")
    )


def _is_kinds(value: Any) -> bool:
    """Kinds of site: one, several, or by whose they are."""
    parts = value.values() if isinstance(value, dict) and has_names(value, lambda each: True) else [value]
    return all(isinstance(each, str) or (isinstance(each, list) and all(map(_is_string, each))) for each in parts)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # of a description: what is expected, and whether it is
    "format": (f"{FORMAT}", lambda value: value == FORMAT),
    "language": ("a language such as hi or en-de", is_language),
    "adapter": ("a method's name", lambda value: isinstance(value, str)),
    "adapter_conf": (
        "options of the method",
        lambda value: (
            _is_conf({key: each for key, each in value.items() if key != FUSED} if isinstance(value, dict) else value)
            and _is_conf(value.get(FUSED, {}))
        ),
    ),
    "sites": ("widths by path", lambda value: has_names(value, is_count)),
    "own_tokens": ("a list of tokens", lambda value: isinstance(value, list)),
    "own_vector": ("true or false", lambda value: isinstance(value, bool)),
    "backbone_sha256": ("a hash", is_hash),
    "tokens_sha256": ("a hash", is_hash),
    "safetensors_sha256": ("a hash", is_hash),
    "parameters": ("a count", is_count),
    "training": ("facts by name", lambda value: has_names(value, lambda fact: True)),
}


def read_checked(path: Path) -> PackDescription:
    """The description in a `pack.yaml`. Raises PelasrError if it is not one of this format."""
    return check_description(read_description(path, CURE), path)


def check_description(description: dict[str, Any], path: Path) -> PackDescription:
    """What a `pack.yaml` says, checked. Raises PelasrError for the first key that is missing, unknown or of another
    kind."""
    if description.get("format", FORMAT) != FORMAT:
        raise PelasrError(f"{path}: format {brief(description['format'])}, this version reads {FORMAT}; {CURE}")
    require_keys(description, KINDS, str(path))
    check_keys(description, KINDS, str(path))
    for kinds, values in ((KINDS, description), (FACTS, description["training"])):
        for key, (what, is_kind) in kinds.items():
            if key in values and not is_kind(values[key]):
                raise PelasrError(f"{path}: {key}: expected {what}, found {brief(values[key])}; {CURE}")
    _check_own(description["own_tokens"], description["language"], f"{path}: own_tokens")
    return PackDescription(**description)


def again(description: PackDescription) -> str:
    """How a pack is made again."""
    shares = [f"{share['weight']:.3g} {share['language']}" for share in description.training.get("merged", [])]
    return f"merge it again (it is the average of {' and '.join(shares)})" if shares else "fit it again"


def _check_own(tokens: list[Any], language: str, where: str) -> None:
    """Raise PelasrError for an own token that cannot be one and is not the tag of the language's target, or twice."""
    (_, target), seen = split_pair(language), set()
    for token in tokens:
        tag = target is not None and token == f"<lang:{target}>"
        if not tag and not (isinstance(token, str) and can_be_own(token)):
            raise PelasrError(f"{where}: {brief(token)!r} is no token of text and not the tag of {language}; {CURE}")
        if token in seen:
            raise PelasrError(f"{where}: {brief(token)!r} is listed twice; {CURE}")
        seen.add(token)
