"""Bounds within which hostile input must be refused or do no harm: it runs nothing, and takes neither a gigabyte nor
ten seconds."""

import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pelasr.errors import PelasrError

RUNS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class")
MEMORY, SECONDS = 1 << 30, 10

_watched: list[str] | None = None


class TooLongError(BaseException):
    """Nobody catches it."""


def _watch(event: str, arguments: tuple) -> None:
    if _watched is not None and event in RUNS:
        _watched.append(f"{event} {arguments}")


sys.addaudithook(_watch)


@contextmanager
def bounds() -> Iterator[None]:
    """An error for what runs programs or unpickles, and for what goes beyond the bounds."""
    global _watched

    def stop(*_: object) -> None:
        raise TooLongError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    _watched = []
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
        assert not _watched
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)
        _watched = None


def refusal(call: Callable[[], object]) -> str:
    """What a call within the bounds is refused with, in lines that can be printed; empty if it does no harm."""
    try:
        with bounds():
            call()
    except PelasrError as error:
        lines = str(error).split("\n")
        assert all(line and line.isprintable() and len(line) < 2000 for line in lines), lines
        assert "llocate" not in str(error) and "MemoryError" not in str(error), lines
        return lines[0]
    return ""
