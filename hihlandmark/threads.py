"""Work that is done ahead in threads and handed out in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_WORKERS = 8


def default_workers() -> int:
    """One a core that this process may use, eight at most: each holds an image."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, _MOST_WORKERS)


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """``function`` of each item, in order, computed by threads while the caller uses the last one.

    Items are taken in the caller's thread, ``workers`` of them ahead. What a call raises is raised
    in its place, and nothing more is computed then. A sequence of one item needs no thread.
    """
    if isinstance(items, Sequence) and len(items) == 1:
        yield function(items[0])
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, "hihlandmark") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
