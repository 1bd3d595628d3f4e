"""What `backbone.yaml` may say: the keys, and what their values must be, whoever wrote them."""

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from pelasr.config import check_keys
from pelasr.data.codes import is_code
from pelasr.data.hears import Hears, hearing
from pelasr.data.language import is_language, of_one_kind
from pelasr.errors import PelasrError, brief
from pelasr.nn.defaults import settled
from pelasr.storage import has_names, is_count, is_finite, is_hash, is_number, read_description

CURE = "restore it, or delete the folder and train again"
LARGEST = 1 << 14  # of sizes and counts among the options: layers are at most so wide that a batch has room


@dataclass(frozen=True)
class BackboneDescription:
    """What `backbone.yaml` says: the family and its options, hashes of the tokens and of each file of weights by name,
    what it hears (nothing: log-mel), facts of the training, or of the pack that is `folded` in, and the task where the
    languages do not tell it."""

    backbone: str
    options: dict[str, Any]
    languages: list[str]
    tokens_sha256: str
    weights: dict[str, str]
    hears: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    folded: dict[str, Any] = field(default_factory=dict)
    task: str | None = None

    @property
    def heard(self) -> Hears | None:
        """What it hears, where that is known."""
        return hearing(self.hears) if self.hears else None


KINDS = {"backbone": str, "options": dict, "languages": list, "tokens_sha256": str, "weights": dict}
KINDS |= {"hears": dict, "training": dict, "folded": dict, "task": str}


def _are_languages(value: list[Any]) -> bool:
    """Languages or pairs, not both, each once."""
    if not value or not all(map(is_language, value)):
        return False
    return len(set(value)) == len(value) and of_one_kind(value)


def _is_hearing(value: dict[str, Any]) -> bool:
    try:
        hearing(value)
    except PelasrError:
        return False
    return True


VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {  # what is expected, and whether it is
    "languages": ("languages such as hi, or pairs such as en-de, each once", _are_languages),
    "hears": ("what a backbone can hear", _is_hearing),
    "tokens_sha256": ("a hash", is_hash),
    "weights": ("hashes by name", lambda value: has_names(value, is_hash)),
}


def read_backbone(folder: Path) -> BackboneDescription:
    """A backbone's description. Raises PelasrError for the first key that is missing, unknown or of another kind."""
    path = folder / "backbone.yaml"
    description = read_description(path, CURE)
    for each in fields(BackboneDescription):
        if each.name not in description and each.default is each.default_factory is MISSING:
            raise PelasrError(f"{path}: the key {each.name!r} is missing; {CURE}")
    check_keys(description, KINDS, str(path))
    for key, kind in KINDS.items():
        if key in description and not isinstance(description[key], kind):
            raise _error(path, key, f"a {kind.__name__}", description[key])
    training = description.get("training", {})
    for kinds, values, inner in ((VALUES, description, ""), (FACTS, training, "training: ")):
        for key, (what, is_kind) in kinds.items():
            if key in values and not is_kind(values[key]):
                raise _error(path, f"{inner}{key}", what, values[key])
    if settled(description["options"]) != description["options"]:
        raise PelasrError(
            f"{path}: options: encoder_conf says no rel_pos_type: the Conformer is of a time when the default were"
            " ESPnet's old positions, by which an utterance's output depends on what pads its batch; delete the folder"
            " and train again"
        )
    return BackboneDescription(**description)


def check_options(options: dict[str, Any], where: str) -> None:
    """Raise PelasrError for what no option of a backbone is, such as a size that no weights have."""
    for name, value in _leaves(options, "options"):
        if value is not None and not isinstance(value, str) and not (is_finite(value) and abs(value) <= LARGEST):
            raise PelasrError(f"{where}: {name}: expected a value, and no number above {LARGEST}, found {brief(value)}")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The values in options, with their names."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in inner:
            yield from _leaves(each, f"{name}: {brief(key)}")
    else:
        yield name, value


def _error(path: Path, key: str, what: str, value: Any) -> PelasrError:
    return PelasrError(f"{path}: {key}: expected {what}, found {brief(value)}; {CURE}")


def _is_share(value: Any) -> bool:
    return isinstance(value, dict) and is_language(value.get("language")) and is_finite(value.get("weight"))


FACTS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # of `training`, as far as it has them
    "epoch": ("a count", is_count),
    "step": ("a count", is_count),
    "utterances": ("a count", is_count),
    "seed": ("a whole number", lambda value: type(value) is int),
    "hours": ("a number", is_finite),
    "dev": ("numbers by name", lambda value: has_names(value, is_number)),
    "config_sha256": ("a hash", lambda value: isinstance(value, str)),
    "fitted_with": ("languages", lambda value: isinstance(value, list) and all(map(is_language, value))),
    "code": ("a model's code of a language", is_code),
    "imported": ("values by name", lambda value: has_names(value, lambda each: isinstance(each, str))),
    "merged": ("languages and weights", lambda value: isinstance(value, list) and all(map(_is_share, value))),
}
BACKBONE_FACTS = "facts.json"  # beside a backbone: what the results say of it
