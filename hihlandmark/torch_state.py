"""PyTorch's state: what the caller has set does not change our results, and stays as it is.

Also what a forked process must not do with it. Nothing here imports PyTorch before it is used.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from hihlandmark.threads import after_fork

if TYPE_CHECKING:
    import torch

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps")

_dtype_lock = threading.Lock()
_dtype_users = 0
_callers_dtype: torch.dtype | None = None

_THREADED = ("torch", "openvino", "onnxruntime")
"""Packages whose threads do not exist in a forked process."""
_is_used = _is_forked = _has_parents_torch = False


@contextmanager
def default_torch_state() -> Iterator[None]:
    """Run a block in PyTorch's initial state: for loading and converting networks.

    No autocast, gradients enabled, no inference mode, the CPU as default device, and float32 as
    default type. All but the type belong to the thread; the type is changed, where it must be, for
    all threads as long as the block runs.
    """
    import torch

    use_one_thread_if_forked()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # which enables gradients
        stack.enter_context(_float32_by_default())
        stack.enter_context(_no_autocast_and_device())
        yield


@contextmanager
def prediction_state() -> Iterator[None]:
    """Run a block in inference mode, without autocast, and with the CPU as default device.

    All of it belongs to the thread. The default type stays: what is run must not depend on it.
    """
    import torch

    with torch.inference_mode(), _no_autocast_and_device():
        yield


@contextmanager
def _no_autocast_and_device() -> Iterator[None]:
    import torch

    with ExitStack() as stack:
        for kind in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Blocks of several threads share the change, and the last one to end undoes it."""
    global _dtype_users, _callers_dtype
    import torch

    with _dtype_lock:
        if _dtype_users == 0:
            _callers_dtype = torch.get_default_dtype()
            if _callers_dtype != torch.float32:
                torch.set_default_dtype(torch.float32)
        _dtype_users += 1
    try:
        yield
    finally:
        with _dtype_lock:
            _dtype_users -= 1
            if _dtype_users == 0 and _callers_dtype not in (None, torch.float32):
                torch.set_default_dtype(_callers_dtype)


def use_one_thread_if_forked() -> None:
    """Note that this process uses PyTorch for us, in a forked process with one thread.

    The OpenMP threads of the parent do not exist there, and GNU's OpenMP waits for them for ever.
    """
    global _is_used
    _is_used = True
    if _has_parents_torch:
        sys.modules["torch"].set_num_threads(1)


def is_forked() -> bool:
    """Whether this process was forked from one that had loaded a package that runs networks."""
    return _is_forked


@after_fork
def _after_fork() -> None:
    global _is_forked, _has_parents_torch, _dtype_lock, _dtype_users
    _is_forked = _is_forked or any(name in sys.modules for name in _THREADED)
    if "torch" not in sys.modules:
        return  # nothing has used its threads
    if _dtype_users and _callers_dtype is not None:  # a thread that does not exist here
        sys.modules["torch"].set_default_dtype(_callers_dtype)
    _has_parents_torch, _dtype_lock, _dtype_users = True, threading.Lock(), 0
    if _is_used:  # now, in the thread that has forked: only that one has the parent's OpenMP
        use_one_thread_if_forked()
