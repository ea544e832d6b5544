"""A few threads for what waits on the disk or hashes: both let the other threads run."""

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 8


def each(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[Result, None, None]:
    """Yield `function(item)` of every item, in their order; what it raises is raised in its turn.

    Several are at work at once, so one that comes after a failed one may have been done. Who stops
    before the end closes it: left to itself it would wait for the threads in whichever lets it go.
    """
    waiting = list(items)
    threads = min(len(waiting), _MOST, 2 * _cores())  # while one waits for the disk, one hashes
    if threads < 2:
        yield from map(function, waiting)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="store") as pool:
        yield from pool.map(function, waiting)


def _cores() -> int:
    """Processors that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
