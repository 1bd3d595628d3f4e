"""What a run says: lines, warnings, and how far it is: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0


def say(message: str) -> None:
    """What a stage has found or made, on standard output."""
    print(f"{message}\n", end="", flush=True)  # in one write: experiments may run side by side


def log(message: str) -> None:
    """What happens meanwhile, on standard error."""
    print(f"{message}\n", end="", file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """What should be looked at, though the run goes on."""
    log(f"warning: {message}")


class Meter:
    """How much of `total` is done and the time left, on standard error; a context manager around the work.

    What is printed inside goes where it would go without.
    """

    def __init__(self, what: str, total: float):
        self.what, self.total = what, total
        self._bar: Any = None

    def __enter__(self) -> "Meter":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
            # The bar makes room for what is printed on its terminal, but would take what goes into a file or a pipe.
            self._bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
            self._task = self._bar.add_task(self.what, total=self.total)
            self._bar.start()
        self.begin(0)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, done: float) -> None:
        """The work begins now, so much of it `done` before: what the time left is reckoned from."""
        self._before, self._start = done, time.monotonic()
        self._shown = self._start
        if self._bar is not None:
            self._bar.reset(self._task, completed=done)

    def update(self, done: float, details: str = "") -> None:
        """So much is done now; `details` are words about it."""
        details = f", {details}" if details else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"{self.what}{details}")
            return
        now = time.monotonic()
        if now - self._shown > SECONDS_BETWEEN_LINES and done > self._before:
            left = (now - self._start) / (done - self._before) * max(0, self.total - done)
            log(f"{self.what}: {round(done, 2)}/{self.total}{details}, {_time(left)} left")
            self._shown = now


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def track(items: Iterable[Item], total: int, what: str, size: Callable[[Item], float] = lambda _: 1) -> Iterator[Item]:
    """Yield `items`, showing how much of `total` is done; `size`: how much of it an item is."""
    done: float = 0
    with Meter(what, total) as meter:
        for item in items:
            yield item
            done += size(item)
            meter.update(done)
