"""Folders that are whole or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pelasr.errors import PelasrError


def check_free(folder: Path) -> None:
    """Raise PelasrError if there is anything but an empty folder."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise PelasrError(f"{folder}: exists already; delete it, or name another folder")


@contextmanager
def aside(target: Path, beside: Path | None = None) -> Iterator[Path]:
    """A folder to fill, and to rename to its `target` when all is in it; gone after the block otherwise. `beside`: the
    folder that it is made in, if not the target's."""
    parent = beside or target.parent
    parent.mkdir(parents=True, exist_ok=True)
    made = parent / f".{target.name}.{os.getpid()}.tmp"
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
