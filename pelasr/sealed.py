"""Files that hold their own hash, descriptions in YAML and checkpoints: one that was altered or cut off is refused."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

from pelasr.config import FLOAT, LIMIT, parse_yaml
from pelasr.errors import PelasrError, brief
from pelasr.files import atomic_write, no_file, open_file, read_bytes

SEAL = b"sha256: "  # begins the last line of a description: the hash of the lines before
DIGEST = hashlib.sha256().digest_size  # bytes before a checkpoint


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


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training's state, atomically, after the hash of its bytes (torch does not check those it reads)."""
    import torch

    with atomic_write(path, "w+b") as stream:
        stream.write(bytes(DIGEST))
        try:
            torch.save(state, stream)
        except RuntimeError as error:  # of a write that failed, of a full disk say, torch tells where it was
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        stream.seek(DIGEST)
        digest = hashlib.file_digest(stream, "sha256").digest()
        stream.seek(0)
        stream.write(digest)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU, never a pickle of anything but tensors and plain values.

    Raises PelasrError if a bit of the file is not as it was written.
    """
    import torch

    with open_file(path) as stream:
        digest = stream.read(DIGEST)
        if hashlib.file_digest(stream, "sha256").digest() != digest:
            raise PelasrError(f"{path}: cannot go on from it: altered or incomplete; delete it to start again")
        stream.seek(DIGEST)
        return torch.load(stream, map_location="cpu", weights_only=True)
