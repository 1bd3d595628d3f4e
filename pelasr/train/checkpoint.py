"""Checkpoints that hold their own hash: one that was altered or cut off is refused."""

import hashlib
from pathlib import Path
from typing import Any

from pelasr.errors import PelasrError
from pelasr.files import atomic_write, open_file

CHECKPOINT = "last.ckpt"  # of a run, in its folder
DIGEST = hashlib.sha256().digest_size  # bytes before a checkpoint


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training's state, atomically, after the hash of its bytes (torch does not check those it reads)."""
    import torch

    stream: Any
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

    stream: Any
    with open_file(path) as stream:
        digest = stream.read(DIGEST)
        if hashlib.file_digest(stream, "sha256").digest() != digest:
            raise PelasrError(f"{path}: cannot go on from it: altered or incomplete; delete it to start again")
        stream.seek(DIGEST)
        return torch.load(stream, map_location="cpu", weights_only=True)
