"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0


def track(items: Iterable[Item], total: int, what: str, size: Callable[[Item], float] = lambda _: 1) -> Iterator[Item]:
    """Yield `items`, showing how much of `total` is done and the time left; `size`: how much of it an item is.

    What is printed between the items goes where it would go without.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        # The bar makes room for what is printed on its terminal, but would take what goes into a file or a pipe too.
        with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bar:
            task = bar.add_task(what, total=total)
            for item in items:
                yield item
                bar.advance(task, size(item))
        return
    start = last = time.monotonic()
    done: float = 0
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            left = (now - start) / done * max(0, total - done)
            print(f"{what}: {round(done, 2)}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
            last = now


def say(message: str) -> None:
    print(message, flush=True)
