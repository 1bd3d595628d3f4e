"""What is kept in files: descriptions in YAML that hold their own hash, and tensors. What was altered or cut off is
refused."""

import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pelasr.config import FLOAT, LIMIT, parse_yaml
from pelasr.errors import PelasrError, brief
from pelasr.files import atomic_write, no_file, read_bytes

SEAL = b"sha256: "  # begins the last line of a description: the hash of the lines before


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(*FLOAT)


def write_description(path: Path, description: dict[str, Any]) -> None:
    """Write a mapping as YAML, its hash in the last line."""
    body = yaml.dump(description, Dumper=_Dumper, sort_keys=False, allow_unicode=True).encode()
    with atomic_write(path, "wb") as stream:
        stream.write(body + SEAL + hashlib.sha256(body).hexdigest().encode() + b"\n")


def read_description(path: Path, cure: str) -> dict[str, Any]:
    """Read a mapping that `write_description` wrote.

    Raises PelasrError, which ends in the cure, if the file is not as it was written, and for what no description holds
    and a hostile one might: more than a megabyte, aliases, tags, deep nesting, values that YAML stumbles over.
    """
    if missing := no_file(path):
        raise PelasrError(f"{path}: {missing}; run the stage that makes it")
    content = read_bytes(path, LIMIT, cure)
    body, _, seal = content.rpartition(SEAL)
    if not body.endswith(b"\n") or seal != hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise PelasrError(
            f"{path}: altered, incomplete or of another version: its last line is not the hash of those before; {cure}"
        )
    try:
        description = parse_yaml(body.decode("utf-8"))
    except ValueError as error:
        raise PelasrError(f"{path}: no valid description: {brief(error, 200)}; {cure}") from None
    if not isinstance(description, dict):
        raise PelasrError(f"{path}: expected `key: value` lines, found {type(description).__name__}; {cure}")
    return description


def is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def has_names(value: Any, is_value: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and is_value(each) for key, each in value.items())
