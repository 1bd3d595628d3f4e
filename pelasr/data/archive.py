"""Entries of Kaldi archives, `file.ark:offset`: audio, and matrices of numbers.

kaldiio writes them. What it would read as well, such as pickles, or run, such as `command |`, is refused here, and what
a header says is compared with the file before anything is allocated.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pelasr.errors import DataError, PelasrError, brief
from pelasr.files import check_holes, no_file, open_file

ENTRY = re.compile(r"(.+):([0-9]{1,18})", re.DOTALL)
MATRIX = 15  # bytes of a matrix's header: \0BFM, rows and columns
TYPES = {b"\0BFM ": np.dtype("<f4"), b"\0BDM ": np.dtype("<f8")}
OTHERS = {  # what else an archive may hold, by its first bytes
    b"PKL": "a pickle, which may run anything",
    b"NPY": "an array in numpy's format",
    b"\0BCM": "a compressed matrix",
    b"\0BFM": "a matrix",
    b"\0BDM": "a matrix",
    b"RIFF": "audio",
    b"fLaC": "audio",
    b"AUDIO": "audio",
}


class Part(io.RawIOBase):
    """`size` bytes of a file from `start` on, as a file of their own."""

    def __init__(self, stream: io.BufferedIOBase, start: int, size: int):
        super().__init__()
        self._stream, self._start, self.size, self._position = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray) -> int:
        count = max(0, min(len(buffer), self.size - self._position))
        self._stream.seek(self._start + self._position)
        found = self._stream.readinto(memoryview(buffer)[:count])
        self._position += found
        return found


@contextmanager
def open_audio(path: str, offset: int) -> Iterator[Part]:
    """The bytes of a WAV or FLAC file, or of another that kaldiio wrote with soundfile, in an archive.

    Raises ValueError for anything else, and for an entry that is longer than the archive.
    """
    with _open_entry(path, offset) as (stream, left):
        head = stream.read(14)
        start, size = 0, left  # of FLAC nothing tells where it ends, but its decoder knows
        if head.startswith(b"RIFF"):
            size = 8 + int.from_bytes(head[4:8], "little")
        elif head.startswith(b"AUDIO"):
            start = 6 + int.from_bytes(head[5:6])
            size = int.from_bytes(head[6:start], "little")
        elif not head.startswith(b"fLaC"):
            raise ValueError(f"the archive holds no audio at this offset, but {_what(head)}")
        if start + size > left:
            raise ValueError(f"the audio has {size:,} bytes by its header, the archive {left - start:,} from there on")
        yield Part(stream, offset + start, size)


def read_matrix(spec: str) -> np.ndarray:
    """The matrix (rows, columns) of float32 or float64 at a `file.ark:offset`. Raises DataError for anything else."""
    try:
        found = ENTRY.fullmatch(spec)
        if found is None:
            raise ValueError("want an entry of an archive, such as feats.ark:12")
        if missing := no_file(found[1]):
            raise ValueError(missing)
        with _open_entry(found[1], int(found[2])) as (stream, left):
            return _read_matrix(stream, left)
    except (ValueError, PelasrError) as error:
        raise DataError(f"{brief(spec, 300)}: {error}; cure: make the archive again") from None


def _read_matrix(stream: io.BufferedIOBase, left: int) -> np.ndarray:
    head = stream.read(MATRIX)
    kind = TYPES.get(head[:5])
    if kind is None or len(head) < MATRIX or head[5] != 4 or head[10] != 4:
        raise ValueError(f"the archive holds no matrix of floats at this offset, but {_what(head)}")
    rows, columns = (int.from_bytes(head[first : first + 4], "little", signed=True) for first in (6, 11))
    size = rows * columns * kind.itemsize
    if rows < 0 or columns < 0 or size > left - MATRIX:
        raise ValueError(f"a matrix of {rows:,} rows and {columns:,} columns is more than the archive holds")
    return np.frombuffer(stream.read(size), dtype=kind).reshape(rows, columns)


@contextmanager
def _open_entry(path: str, offset: int) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """An archive, at an entry, and how many bytes there are from there to its end."""
    with open_file(path) as stream:
        check_holes(path)
        left = stream.seek(0, io.SEEK_END) - offset
        if left <= 0:
            raise ValueError(f"the archive ends before this offset, after {left + offset:,} bytes")
        stream.seek(offset)
        yield stream, left


def _what(head: bytes) -> str:
    return next((what for start, what in OTHERS.items() if head.startswith(start)), "something else")
