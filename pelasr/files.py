"""Files that are never half written, files that are none, what is said of those that are, and hashes of what a stage
read."""

import fcntl
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pelasr.errors import PelasrError, brief

INSTEAD = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
ABSENT = "no such file"
LINE = 1 << 20  # bytes of a line of text at most
MOST = 1 << 24  # bytes of a file that is read as a whole, if nothing else is said


@contextmanager
def naming(path: str | Path, aside: Path | None = None) -> Iterator[None]:
    """Give an OSError of the block this file's name if it has none, as that of a write to an open file, or that of
    `aside`, which is written in its place."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(aside)):
            error.filename = os.fspath(path)
        raise


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file beside `path` for writing and rename it onto `path` when the block ends without an error.

    A reader, or a run that was killed, sees the old content or the new one, never a part. Of a full disk the OSError
    names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path, aside), open(aside, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def append(path: str | Path, text: str) -> None:
    """Add text to the end of a file in one write."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), open(path, "a", encoding="utf-8") as stream:
        stream.write(text)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Inside the block no other process is inside one with the same file; waits for that."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def openable(path: str) -> str | bytes:
    """A path for a library that encodes it by itself: one that is not UTF-8 as its bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def no_file(path: str | Path) -> str:
    """What keeps a path from being read: `no such file`, or what is there instead, as in `no such file, but a folder`;
    empty for a file. Nothing is opened: a pipe that nobody writes to would wait for ever, a device may do anything."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return ABSENT
    except OSError as error:
        return f"{ABSENT} ({error.strerror})"
    return "" if kind == stat.S_IFREG else f"{ABSENT}, but {INSTEAD.get(kind, 'something else')}"


def check_holes(path: str | Path) -> None:
    """Raise ValueError for a large file of which most is nowhere on the disk: what costs nothing to send would be read
    as gigabytes of zeros."""
    found = os.stat(path)
    if found.st_size > 1 << 30 and 0 < 512 * found.st_blocks < found.st_size // 16:  # 0: they are not counted
        raise ValueError(f"{found.st_size:,} bytes, of which most are not there, but holes")


def open_file(path: str | Path, cure: str = "correct the path") -> io.BufferedIOBase:
    """A file for reading its bytes. Raises PelasrError for what is no file or may not be read.

    One without a size is empty, and is not opened: some of /proc that call themselves files would be waited at.
    """
    if missing := no_file(path):
        raise PelasrError(f"{path}: {missing}; {cure}")
    try:
        return open(path, "rb") if os.stat(path).st_size else io.BytesIO()
    except OSError as error:
        raise PelasrError(f"{path}: cannot be read: {error.strerror}") from None


def read_bytes(path: str | Path, most: int = MOST, cure: str = "correct the path") -> bytes:
    """A file's bytes. Raises PelasrError as `open_file` does, and for a file of more than `most` bytes."""
    with open_file(path, cure) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise PelasrError(f"{path}: more than {most} bytes, no file of ours; {cure}")
    return content


def text_bytes(path: str | Path, cure: str = "correct the path") -> bytes:
    """The bytes of a text file of any length. Raises PelasrError as `open_file` does, and for a line of more than a
    megabyte: it is no text."""
    with open_file(path, cure) as stream:
        lines = []
        while line := stream.readline(LINE + 1):
            lines.append(line)
            if len(line) > LINE:
                raise PelasrError(f"{path}: line {len(lines)} has more than {LINE} bytes, this is no text file; {cure}")
    return b"".join(lines)


def read_text(path: str | Path, cure: str) -> str:
    """The text of a file. Raises PelasrError as `text_bytes` does, and if it is not UTF-8."""
    try:
        return text_bytes(path, cure).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PelasrError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); {cure}") from None


def read_json(path: str | Path, cure: str, keys: Iterable[str] = (), kind: type = dict) -> Any:
    """The value of a JSON file. Raises PelasrError as `read_bytes` does, and if it is cut off or otherwise no JSON, no
    `kind`, or lacks one of the `keys`."""
    try:
        value = json.loads(read_bytes(path, cure=cure).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PelasrError(f"{path}: not valid JSON ({brief(error, 80)}): cut off or altered; {cure}") from None
    if not isinstance(value, kind):
        raise PelasrError(f"{path}: expected a {kind.__name__}, found {brief(value)}; {cure}")
    for key in keys:
        if key not in value:
            raise PelasrError(f"{path}: the key {key!r} is missing; {cure}")
    return value


def read_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """The lines of a file of JSON, as number (from 1) and value; None for one that is no JSON. Raises PelasrError as
    `text_bytes` does."""
    content = text_bytes(path).removesuffix(b"\n")
    # Bytes are split at newlines alone: str.splitlines would also cut at U+2028 and the like within a text.
    for number, line in enumerate(content.split(b"\n") if content else [], 1):
        try:
            yield number, json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            yield number, None


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes. Raises PelasrError for what is no file."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_text(path: str | Path) -> str:
    """The same of a text file. Raises PelasrError as `text_bytes` does, before it has read much of what is none."""
    return hashlib.sha256(text_bytes(path)).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON-like value, independent of the order of its keys. Strings may hold the bytes of file names
    that are not UTF-8."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
