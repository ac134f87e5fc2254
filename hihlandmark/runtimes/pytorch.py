"""PyTorch on a CPU, a CUDA device or Apple's MPS."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.models.base import Heatmaps
from hihlandmark.runtimes.base import Precision
from hihlandmark.runtimes.graph import CropGraph, folded
from hihlandmark.weights.card import Normalization

logger = logging.getLogger(__name__)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device that a name stands for; "auto" takes CUDA, then MPS, then the CPU.

    Raises `ConfigurationError` for a device that this machine does not have.
    """
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        chosen = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
        logger.info("device: %s", chosen)
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
            f"device {str(resolved)!r} is not there; this machine has {', '.join(present)}. "
            "Use device='auto' to take what there is"
        )
    return resolved


class TorchRuntime:
    """A network on one device, prepared for inference; see `Runtime`.

    Batch norms are folded into convolutions and tensors laid out channels-last. Where a CUDA device
    has no memory left for a batch, halves of it are run, and batches stay as small.

    ``compiled``: by ``torch.compile``, on CUDA with CUDA graphs. Batches are filled up to powers of
    two, each of which is compiled once, at its first use; that takes up to a minute each.
    """

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        layout: str,
        normalization: Normalization,
        device: torch.device,
        precision: Precision = "fp32",
        *,
        compiled: bool = False,
    ) -> None:
        self.device, self.precision = device, precision
        graph = CropGraph(folded(network), layout, normalization).to(device)
        self.graph = graph.to(memory_format=torch.channels_last)
        self._compiled: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] | None = None
        if compiled:
            mode = "reduce-overhead" if device.type == "cuda" else None
            self._compiled = torch.compile(self.graph, dynamic=False, mode=mode)
        self.largest_batch: int | None = None

    @torch.inference_mode()
    def __call__(self, crops: NDArray[np.uint8]) -> Heatmaps:
        """Crops (N, S, S, 3) RGB -> raw `Heatmaps` on the device, float32."""
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
        integer = torch.cat([part[0] for part in parts])
        return Heatmaps(integer, torch.cat([p[1] for p in parts]) if len(parts[0]) > 1 else None)

    def _run(self, crops: NDArray[np.uint8]) -> tuple[torch.Tensor, ...]:
        if self._compiled is not None:
            missing = (1 << (len(crops) - 1).bit_length()) - len(crops)
            filled = np.pad(crops, [(0, missing), (0, 0), (0, 0), (0, 0)])
            # CUDA graphs write every answer to the same place.
            return tuple(each[: len(crops)].clone() for each in self._run_batch(filled))
        return self._run_batch(crops)

    def _run_batch(self, crops: NDArray[np.uint8]) -> tuple[torch.Tensor, ...]:
        batch = torch.from_numpy(crops)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            forward = self.graph if self._compiled is None else self._compiled
            return forward(batch)
