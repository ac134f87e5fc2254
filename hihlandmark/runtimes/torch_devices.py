"""Devices as PyTorch reports them; `devices` calls this where it has to."""

from __future__ import annotations

import logging

import torch

from hihlandmark.errors import ConfigurationError

logger = logging.getLogger(__name__)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device of a name; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigurationError: this machine does not have the device.
    """
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        chosen = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
        logger.info("device: %s", chosen)
        require_usable(torch.device(chosen))
        return torch.device(chosen)
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(
            f"device {device!r} is not a device; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"
        ) from error
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (resolved.index or 0) >= available.get(resolved.type, 0):
        present = [f"{kind} ({count})" for kind, count in available.items() if count]
        raise ConfigurationError(
            f"device {str(resolved)!r} is not available; this machine has {', '.join(present)}. "
            "Use device='auto' to take one of them"
        )
    require_usable(resolved)
    return resolved


def require_usable(device: torch.device) -> None:
    """Raise `ConfigurationError` for a GPU in a process that was forked after CUDA had started."""
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise ConfigurationError(
            f"{device} cannot be used in a forked process: start it by 'spawn' or 'forkserver'"
        )


def has_native_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively: a CPU by AMX or AVX512-BF16, or a GPU."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def has_native_int8() -> bool:
    """Whether the CPU multiplies integers of 8 bits natively: by AMX or VNNI."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_vnni_supported()
