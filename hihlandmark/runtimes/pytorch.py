"""PyTorch, eager, on a CPU, a CUDA device or Apple's MPS."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.models.network import Heatmaps

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
    """A network in eval mode on one device; see `Runtime`."""

    def __init__(
        self,
        network: nn.Module,
        layout: str,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self.device, self.layout = device, layout
        self.network = network.eval().to(device).to(memory_format=torch.channels_last)
        self.mean = torch.tensor(mean, device=device)
        self.std = torch.tensor(std, device=device)

    @torch.inference_mode()
    def __call__(self, crops: NDArray[np.uint8]) -> Heatmaps:
        """Crops (N, S, S, 3) RGB -> raw `Heatmaps` on the device, float32."""
        return self.network(
            normalise(torch.from_numpy(crops).to(self.device), self.mean, self.std)
        )[self.layout]


def normalise(crops: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Crops (N, S, S, 3) uint8 -> (N, 3, S, S) float32 with zero mean and unit spread."""
    return ((crops.float() / 255 - mean) / std).permute(0, 3, 1, 2)
