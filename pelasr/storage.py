"""What is kept in files: descriptions in YAML that hold their own hash, and tensors. What was altered or cut off is
refused."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pelasr.config import FLOAT, LIMIT, parse_yaml
from pelasr.errors import PelasrError, brief
from pelasr.files import atomic_write, check_holes, no_file, open_file, read_bytes, sha256_file

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


def is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def has_names(value: Any, is_value: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and is_value(each) for key, each in value.items())


def state_sha256(state: Mapping[str, Any]) -> str:
    """Hash of names, types, shapes and bytes of tensors, wherever they are stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().numpy().tobytes())
    return digest.hexdigest()


def save_weights(path: Path, state: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically. `metadata`: to be in the file's header."""
    from safetensors.torch import save

    with atomic_write(path, "wb") as stream:
        stream.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, metadata))


def load_weights(
    path: Path, sha256: str | None = None, cure: str = "restore it, or delete it and run the stage that makes it"
) -> dict[str, Any]:
    """Read tensors from safetensors.

    Raises PelasrError if the file is absent or damaged, or its bytes do not have the hash that is asked for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if missing := no_file(path):
        raise PelasrError(f"{path}: {missing}; run the stage that makes it")
    try:
        check_holes(path)
        if sha256 is not None and sha256_file(path) != sha256:
            raise PelasrError(f"{path}: not the file that was described: incomplete or altered; {cure}")
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise PelasrError(f"{path}: damaged ({brief(error, 200)}); {cure}") from None


def sizes(path: Path, cure: str = "run the stage that makes it") -> tuple[int, int]:
    """Bytes of the header of a file of weights, as it says, and of the file. Raises PelasrError if there is none."""
    if missing := no_file(path):
        raise PelasrError(f"{path}: {missing}; {cure}")
    with open_file(path) as stream:
        return int.from_bytes(stream.read(8), "little"), path.stat().st_size


def check_size(path: Path, expected: dict[str, Any], cure: str) -> None:
    """Raise PelasrError for a file that is larger than its tensors and a header can be, before it is read."""
    header, size = sizes(path, cure)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    if header > LIMIT or size > 8 + LIMIT + needed:
        raise PelasrError(
            f"{path}: damaged: {size} bytes with a header of {header}, where the tensors need {needed}; {cure}"
        )


def check_tensors(found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """Strict in both directions: PelasrError naming the first missing, unexpected, misshapen or non-finite one."""
    for name in sorted({*found, *expected}):
        if name not in found:
            raise PelasrError(f"{where}: tensor {name} is missing")
        if name not in expected:
            raise PelasrError(f"{where}: tensor {brief(name, 100)} is unexpected")
        if found[name].shape != expected[name].shape or found[name].dtype != expected[name].dtype:
            shapes = [f"{tuple(t.shape)} {t.dtype}" for t in (found[name], expected[name])]
            raise PelasrError(f"{where}: tensor {name} is {shapes[0]}, expected {shapes[1]}")
        if found[name].is_floating_point() and not bool(found[name].isfinite().all()):
            raise PelasrError(f"{where}: tensor {name} holds NaN or infinity")


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
