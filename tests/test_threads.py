"""`map_ahead` keeps the order, is bounded, and ends with its reader."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from hihlandmark.threads import map_ahead


def test_results_keep_the_order_of_the_items() -> None:
    def slow_when_even(number: int) -> int:
        time.sleep(0.02 * (number % 2 == 0))
        return number * 10

    assert list(map_ahead(slow_when_even, range(9), 3)) == [n * 10 for n in range(9)]


def test_items_are_computed_concurrently() -> None:
    both = threading.Barrier(2, timeout=10)
    assert list(map_ahead(lambda n: (both.wait(), n)[1], range(4), 2)) == [0, 1, 2, 3]


def test_at_most_one_item_per_worker_is_taken_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = map_ahead(lambda n: n, items(), 3)
    assert next(results) == 1
    assert taken <= 4
    results.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("hihlandmark")]


def test_errors_are_raised_in_their_place() -> None:
    def fails_at_two(number: int) -> float:
        return 1 / (2 - number)

    results = map_ahead(fails_at_two, range(5), 2)
    assert [next(results), next(results)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
