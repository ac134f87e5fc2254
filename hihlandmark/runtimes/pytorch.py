"""PyTorch on a CPU, a CUDA device or Apple's MPS."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from hihlandmark.arrays import Image
from hihlandmark.models.base import AnyHeatmaps
from hihlandmark.runtimes.base import CropLandmarks, Outputs, Precision, Run
from hihlandmark.runtimes.devices import AnyDevice
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.runtimes.torch_devices import require_usable
from hihlandmark.torch_state import prediction_state

logger = logging.getLogger(__name__)


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
        device: AnyDevice,
        precision: Precision = "fp32",
        *,
        compiled: bool = False,
    ) -> None:
        device = self.device = torch.device(str(device))
        self.precision = precision
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
        while True:
            size = self.largest_batch or len(crops)
            try:
                parts = [self._run(crops[i : i + size]) for i in range(0, len(crops), size)]
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Not in `except`: until its end, the error keeps what the batch has allocated.
            self.largest_batch = (size + 1) // 2
            logger.warning(
                "%s has no memory for %d crops at once: going on with %d",
                self.device,
                size,
                self.largest_batch,
            )
            torch.cuda.empty_cache()
        if len(parts) == 1:
            return parts[0]
        arrays = zip(*(part.arrays() for part in parts), strict=True)
        return CropLandmarks(*map(np.concatenate, arrays))

    def _run(self, crops: Image) -> CropLandmarks:
        require_usable(self.device)
        count = len(crops)
        if self._compiled:
            missing = (1 << (count - 1).bit_length()) - count
            crops = np.pad(crops, [(0, missing), (0, 0), (0, 0), (0, 0)])
        batch = _tensor_of(crops)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            heatmaps = self._heatmaps(batch)
        decoded = self.graph.decode(heatmaps)
        return CropLandmarks(*(each[:count].float().cpu().numpy() for each in decoded.tensors()))


def run_module(module: nn.Module, device: AnyDevice | str = "cpu") -> Run:
    """A module itself, in PyTorch."""
    place = torch.device(str(device))
    module = module.to(place)

    def run(pixels: Image) -> Outputs:
        require_usable(place)
        with prediction_state():
            outputs = module(_tensor_of(pixels).to(place))
            return [each.float().cpu().numpy() for each in outputs]

    return run


def _tensor_of(pixels: Image) -> torch.Tensor:
    """The same memory, or a copy of what PyTorch does not take: read-only or negative strides."""
    return torch.from_numpy(np.require(pixels, requirements=("C", "W")))
