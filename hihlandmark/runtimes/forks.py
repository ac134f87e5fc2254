"""Opened networks in forked processes: the threads of the parent's do not exist there."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from hihlandmark.arrays import Image
from hihlandmark.errors import ConfigurationError
from hihlandmark.runtimes.base import Outputs, Run
from hihlandmark.threads import after_fork

_opened: WeakSet[ReopenedRun] = WeakSet()


class ReopenedRun:
    """A run that a forked process opens again at its first use. May be called by several threads.

    Args:
        open_: opens the network.
    """

    def __init__(self, open_: Callable[[], Run]) -> None:
        self._open, self._lock = open_, threading.Lock()
        self._run: Run | None = open_()
        _opened.add(self)

    def __call__(self, pixels: Image) -> Outputs:
        """See `base.Run`."""
        run = self._run
        if run is None:
            with self._lock:
                run = self._run = self._run or self._open_again()
        return run(pixels)

    def _open_again(self) -> Run:
        try:
            return self._open()
        except Exception as error:
            raise ConfigurationError(
                "the network cannot be opened again in a forked process: start it by 'spawn' or "
                f"'forkserver', or make the Detector in it ({error})"
            ) from error

    def after_fork(self) -> None:
        """Keep what the parent opened, and use it no more."""
        keep_for_ever(self._run)
        self._run, self._lock = None, threading.Lock()


def keep_for_ever(value: Any) -> None:
    """Never free an object: in a forked process, its destructor waits for the parent's threads."""
    increase = ctypes.pythonapi.Py_IncRef
    increase.argtypes, increase.restype = [ctypes.py_object], None
    increase(value)


@after_fork
def _after_fork() -> None:
    for run in list(_opened):
        run.after_fork()
