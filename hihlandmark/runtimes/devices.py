"""Devices, their precision and threads, found without importing PyTorch where possible.

PyTorch takes seconds to import, and a CPU with OpenVINO or ONNX Runtime does not need it.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from hihlandmark.torch_state import is_forked

logger = logging.getLogger(__name__)

_DEVICE_FILES = Path("/dev")
_GPU_NODES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
"""Device files of NVIDIA's drivers (on PCs, on Jetson boards, in WSL) and of AMD's."""
_BF16_FLAGS = {"amx_tile", "avx512_bf16"}
_INT8_FLAGS = {"amx_int8", "avx512_vnni", "avx_vnni"}


class AnyDevice(Protocol):
    """A `Device` or a `torch.device`."""

    @property
    def type(self) -> str:
        """Such as "cpu" or "cuda"."""

    @property
    def index(self) -> int | None:
        """Which of several devices of the type."""


@dataclass(frozen=True)
class Device:
    """A device as PyTorch names it, of which ``torch.device(str(device))`` makes one of PyTorch's.

    Attributes:
        type: "cpu", "cuda" or "mps".
        index: which of several devices of the type; None: the current one.
    """

    type: str
    index: int | None = None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


CPU = Device("cpu")


def resolve_device(device: str | AnyDevice = "auto") -> Device:
    """The device of a name; "auto" takes CUDA, then MPS, then the CPU.

    PyTorch is imported unless the device is known without it.

    Raises:
        ConfigurationError: this machine does not have the device.
    """
    if str(device) == "cpu":
        return CPU
    if device == "auto" and "torch" not in sys.modules and _is_without_gpu():
        logger.info("device: cpu")
        return CPU
    from hihlandmark.runtimes import torch_devices

    found = torch_devices.resolve_device(str(device))
    return Device(found.type, found.index)


def has_native_bf16(device: AnyDevice) -> bool:
    """Whether a device computes in bfloat16 natively: a CPU by AMX or AVX512-BF16, or a GPU."""
    if device.type == "cpu" and "torch" not in sys.modules and _processors():
        return _has_flag(_BF16_FLAGS)
    import torch

    from hihlandmark.runtimes import torch_devices

    return torch_devices.has_native_bf16(torch.device(str(device)))


def has_native_int8(device: AnyDevice) -> bool:
    """Whether a CPU multiplies integers of 8 bits faster than numbers of 16: by AMX or VNNI."""
    if device.type != "cpu":
        return False
    if _processors():
        return _has_flag(_INT8_FLAGS)
    from hihlandmark.runtimes import torch_devices

    return torch_devices.has_native_int8()


def default_threads() -> int:
    """The number of threads of a runtime on the CPU: PyTorch's, once that is imported.

    Before, as PyTorch does: OMP_NUM_THREADS, or one thread per core that the process may use. One
    thread in a forked process, where the parent's do not exist.
    """
    if is_forked():
        return 1
    if "torch" in sys.modules:
        import torch

        return torch.get_num_threads()
    if found := re.match(r"\s*([1-9]\d*)", os.environ.get("OMP_NUM_THREADS", "")):
        return int(found[1])
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    usable = {str(number) for number in os.sched_getaffinity(0)}
    # Two processors of one core would compete for the same units.
    cores = {
        (each.get("physical id"), each.get("core id", each["processor"]))
        for each in _processors()
        if each.get("processor") in usable
    }
    return len(cores) or len(usable)


def _is_without_gpu() -> bool:
    """Whether there is certainly no GPU. False where that is not known."""
    return sys.platform == "linux" and not any(
        any(_DEVICE_FILES.glob(pattern)) for pattern in _GPU_NODES
    )


def _has_flag(flags: set[str]) -> bool:
    return any(flags & set(each.get("flags", "").split()) for each in _processors())


def processor_name() -> str:
    """The processor's model; its architecture where the system does not state the model."""
    name = next((each["model name"] for each in _processors() if "model name" in each), None)
    return name or platform.processor() or platform.machine()


@cache
def _processors() -> list[dict[str, str]]:
    """The rows that Linux's /proc/cpuinfo states of each processor; [] elsewhere."""
    try:
        blocks = Path("/proc/cpuinfo").read_text(encoding="utf-8").strip().split("\n\n")
    except (OSError, UnicodeDecodeError):
        return []
    rows = ([line.partition(":") for line in block.splitlines()] for block in blocks)
    return [{key.strip(): value.strip() for key, _, value in each} for each in rows]
