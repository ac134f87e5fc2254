"""Work done ahead in threads, with results in order, and what forks do to threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Output = TypeVar("Output")


def after_fork(function: Callable[[], None]) -> Callable[[], None]:
    """Decorates a function that every forked process calls first; Windows does not fork.

    Locks may be held there by threads of the parent, which do not exist in it.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


def default_workers() -> int:
    """One thread per core that this process may use, at most eight: each holds an image."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 8)


def map_ahead(
    function: Callable[[Item], Output], items: Iterable[Item], workers: int
) -> Iterator[Output]:
    """Like ``map``, computed by threads while the caller uses the previous result.

    Items, which may be endless, are taken in the caller's thread, ``workers`` of them ahead. A
    call's error is raised in its place and ends the work, and so is that of the iterator of the
    items. One item is computed without a thread.
    """
    if isinstance(items, Sequence) and len(items) == 1:
        yield function(items[0])
        return
    waiting: deque[Future[Output]] = deque()
    with ThreadPoolExecutor(workers, "hihlandmark") as pool:
        try:
            held: list[Exception] = []
            for item in until_error(items, held):
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            if held:
                raise held[0]
        finally:
            for future in waiting:
                future.cancel()


def until_error(items: Iterable[Item], held: list[Exception]) -> Iterator[Item]:
    """The items; an error of their iterator ends them and is appended to ``held``."""
    try:
        yield from items
    except Exception as error:
        held.append(error)
