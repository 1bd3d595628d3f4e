"""Files that are never half written, what is said of files that are, and hashes of what a stage read."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pelasr.errors import PelasrError, brief


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


def read_text(path: str | Path, cure: str) -> str:
    """The text of a file. Raises PelasrError, which ends in the cure, if it is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PelasrError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); {cure}") from None


def read_json(path: str | Path, cure: str, keys: Iterable[str] = (), kind: type = dict) -> Any:
    """The value of a JSON file. Raises PelasrError, which ends in the cure, if it is cut off or otherwise no JSON, no
    `kind`, or lacks one of the `keys`."""
    try:
        value = json.loads(read_text(path, cure))
    except (ValueError, RecursionError) as error:
        raise PelasrError(f"{path}: not valid JSON ({brief(error, 80)}): cut off or altered; {cure}") from None
    if not isinstance(value, kind):
        raise PelasrError(f"{path}: expected a {kind.__name__}, found {brief(value)}; {cure}")
    for key in keys:
        if key not in value:
            raise PelasrError(f"{path}: the key {key!r} is missing; {cure}")
    return value


def read_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """The lines of a file of JSON, as number (from 1) and value; None for one that is no JSON."""
    content = Path(path).read_bytes().removesuffix(b"\n")
    # Bytes are split at newlines alone: str.splitlines would also cut at U+2028 and the like within a text.
    for number, line in enumerate(content.split(b"\n") if content else [], 1):
        try:
            yield number, json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            yield number, None


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


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON-like value, independent of the order of its keys. Strings may hold the bytes of file names
    that are not UTF-8."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
