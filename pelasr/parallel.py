"""The same work on many items in a few processes, with progress."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

from pelasr.errors import PelasrError
from pelasr.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    work: Callable[[list[Item]], list[Result]], items: Sequence[Item], nj: int, what: str, batch: int = 32
) -> Iterator[Result]:
    """Yield the results of `work`, which takes a list of items and gives a result for each, in the order of the items.

    `nj` processes at most are used, none for a single batch or `nj` 1. `work` and its items must be picklable. Raises
    what `work` raises, and PelasrError if a process dies.
    """
    batches = [list(items[first : first + batch]) for first in range(0, len(items), batch)]
    nj = min(nj, len(batches))
    if nj <= 1:
        yield from track(chain.from_iterable(map(work, batches)), len(items), what)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # A forked child of a process whose torch has started threads can hang: start the workers afresh.
    with ProcessPoolExecutor(nj, mp_context=get_context("spawn")) as pool:
        try:
            yield from track(chain.from_iterable(pool.map(work, batches)), len(items), what)
        except BrokenProcessPool as error:
            raise PelasrError(f"{what}: a worker process died (out of memory?); cure: use a smaller nj") from error
