"""What every runtime offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hihlandmark.models.base import Heatmaps

Precision = Literal["fp32", "bf16"]
Outputs = list[NDArray[np.floating]]
Run = Callable[[NDArray[Any]], Outputs]
"""Runs a network: pixels -> the tensors it returns. May be called from several threads."""


class Runtime(Protocol):
    """Runs one network for one layout. May be called from several threads."""

    name: str
    """As in `runtimes.RUNTIMES`."""
    precision: Precision
    """In which the network computes; what goes in and comes out is the same in both."""

    def __call__(self, crops: NDArray[np.uint8]) -> Heatmaps:
        """Crops (N, S, S, 3) RGB -> raw `Heatmaps`, (N, P, h, h) and (N, P, b, b), float32."""
        ...
