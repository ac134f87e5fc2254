"""A CUDA device without a GPU: tensors that say they are on it, with their numbers on the CPU.

An operation between tensors of the two devices raises as it does on a GPU, and so does NumPy's view
of a tensor that is not on the CPU. What CUDA computes differently, how fast it is and the backward
pass, for which PyTorch asks the driver, stay untested.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

BETWEEN_DEVICES = {torch.ops.aten.copy_.default, torch.ops.aten.index.Tensor}
"""Operations that take tensors of both: copies, and the CPU's numbers as an index."""


class _There(torch.Tensor):
    """A tensor on the device."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> _There:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="cuda:0",
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        return _run(operation, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """Sees tensors being made, too."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    goes_there = any(isinstance(each, _There) for each in tensors)
    here = [each for each in tensors if not isinstance(each, _There) and each.dim()]
    if goes_there and here and operation not in BETWEEN_DEVICES:
        raise RuntimeError(f"{operation}: tensors on cuda:0 and the CPU")
    device = kwargs.get("device")
    if device is not None:
        goes_there = torch.device(device).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = operation(*tree_map(_held, args), **tree_map(_held, kwargs))
    if not goes_there:
        return result
    given = {id(each.held): each for each in tensors if isinstance(each, _There)}

    def there(value: Any) -> Any:
        if type(value) is not torch.Tensor:
            return value
        # What an operation in place gives back is what it was given.
        return given[id(value)] if id(value) in given else _There(value)

    return tree_map(there, result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, _There) else value


@contextmanager
def simulated_cuda() -> Iterator[None]:
    """Within it, in threads of pools too, "cuda" is a device of this machine."""
    torch._C._ensureCUDADeviceGuardSet()  # of PyTorch's builds without CUDA
    submit = ThreadPoolExecutor.submit

    def submit_there(pool: Any, function: Any, *args: Any) -> Any:
        def run() -> Any:
            with _Dispatch():
                return function(*args)

        return submit(pool, run)

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(ThreadPoolExecutor, "submit", submit_there)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        # `torch.tensor` is to make its tensor on the CPU and to send it, which can be seen.
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        # `Module.to` is to make new parameters: these are of another class.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(_Dispatch())
        yield
