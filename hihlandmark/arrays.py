"""Aliases of array types and of the progress callback, declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.floating]
IndexArray: TypeAlias = NDArray[np.intp]
BoolArray: TypeAlias = NDArray[np.bool_]
Image: TypeAlias = NDArray[Any]
"""An RGB image (H, W, 3) uint8. The dtype is left open because OpenCV's stubs name none."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of units done and the number of all units."""
