"""What every runtime offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hihlandmark.models.network import Heatmaps


class Runtime(Protocol):
    """Runs one network for one layout."""

    def __call__(self, crops: NDArray[np.uint8]) -> Heatmaps:
        """Crops (N, S, S, 3) RGB -> raw `Heatmaps`, (N, P, h, h) and (N, P, b, b), float32."""
        ...
