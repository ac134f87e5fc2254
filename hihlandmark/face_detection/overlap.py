"""Boxes that overlap: which of them to keep."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def best_boxes(
    boxes: NDArray[np.floating], scores: NDArray[np.floating], overlap: float
) -> NDArray[np.intp]:
    """Boxes (F, 4) xyxy without those whose IoU with a better one is larger: indices, best first.

    Scores (F,) are above 0; among equal ones the first box is the better. By OpenCV, because to
    import torchvision takes as long as to import PyTorch.
    """
    corners_and_sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxes(
        corners_and_sides.astype(np.float64),  # type: ignore[arg-type]  # takes arrays, too
        scores.astype(np.float32),  # type: ignore[arg-type]
        0.0,
        overlap,
    )
    return np.asarray(kept, np.intp).reshape(-1)
