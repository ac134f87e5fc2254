"""PyTorch on a CPU, a CUDA device or Apple's MPS."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from hihlandmark.arrays import Image
from hihlandmark.errors import ConfigurationError
from hihlandmark.models.base import AnyHeatmaps
from hihlandmark.runtimes.base import CropLandmarks, Outputs, Precision, Run
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.torch_state import prediction_state

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


class TorchRuntime:
    """A network with its decoding on one device; see `base.Runtime`.

    Tensors are laid out channels-last. Where a CUDA device has no memory for a batch, halves of it
    are run, and later batches stay as small.

    Args:
        graph: the network, best with `graph.folded` batch norms.
        device: where it runs.
        precision: of the network; decoding is in fp32 always.
        compiled: by ``torch.compile``, on CUDA with CUDA graphs. Batches are padded to powers of
            two, each of which is compiled once, at its first use; that takes up to a minute each.
    """

    name = "torch"

    def __init__(
        self,
        graph: CropGraph,
        device: torch.device,
        precision: Precision = "fp32",
        *,
        compiled: bool = False,
    ) -> None:
        self.device, self.precision = device, precision
        self.graph = graph.to(device).to(memory_format=torch.channels_last)
        self._heatmaps: Callable[[torch.Tensor], list[AnyHeatmaps]] = self.graph.heatmaps
        self._compiled = compiled
        if compiled:
            mode = "reduce-overhead" if device.type == "cuda" else None
            self._heatmaps = torch.compile(self.graph.heatmaps, dynamic=False, mode=mode)
        self.largest_batch: int | None = None

    @prediction_state()
    def __call__(self, crops: Image) -> CropLandmarks:
        """Crops (N, S, S, 3) uint8 RGB -> `CropLandmarks` in float32."""
        size = self.largest_batch or len(crops)
        try:
            parts = [self._run(crops[i : i + size]) for i in range(0, len(crops), size)]
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            self.largest_batch = (size + 1) // 2
            logger.warning(
                "%s has no memory for %d crops at once: going on with %d",
                self.device,
                size,
                self.largest_batch,
            )
            torch.cuda.empty_cache()
            return self(crops)
        if len(parts) == 1:
            return parts[0]
        return CropLandmarks(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _run(self, crops: Image) -> CropLandmarks:
        require_usable(self.device)
        count = len(crops)
        if self._compiled:
            missing = (1 << (count - 1).bit_length()) - count
            crops = np.pad(crops, [(0, missing), (0, 0), (0, 0), (0, 0)])
        batch = torch.from_numpy(crops)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            heatmaps = self._heatmaps(batch)
        decoded = self.graph.decode(heatmaps)
        return CropLandmarks(*(each[:count].float().cpu().numpy() for each in decoded))


def run_module(module: nn.Module, device: torch.device | str = "cpu") -> Run:
    """A module itself, in PyTorch."""
    device = torch.device(device)
    module = module.to(device)

    def run(pixels: Image) -> Outputs:
        require_usable(device)
        with prediction_state():
            outputs = module(torch.from_numpy(pixels).to(device))
            return [each.float().cpu().numpy() for each in outputs]

    return run
