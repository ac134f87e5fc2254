"""Face boxes that the caller has already: checked, so that a wrong one is named and not cropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hihlandmark.errors import ConfigurationError
from hihlandmark.face_detection.base import Detections

# A box so many times larger than the image holds no face that can be seen in it.
_LARGEST_BOX = 10


def given_boxes(boxes: Any, image_shape: tuple[int, ...]) -> Detections:
    """The caller's boxes as `Detections` in their order, with scores of 1 and no five points.

    ``boxes``: (F, 4) xyxy, or (4,) for one, in pixels of the image: a list, an array or a tensor;
    [] for none. They may reach beyond the image and are not cut. ``image_shape``: (H, W) or
    (H, W, C). Raises `ConfigurationError` that names the first wrong box: a number that is not
    finite, x1 <= x0, y1 <= y0, less than a pixel wide or high, wholly outside of the image, or
    more than ten times as large as the image.
    """
    array = _to_array(boxes)
    height, width = image_shape[:2]
    low, high = array[:, :2], array[:, 2:]
    # In this order: a later problem is only understood when the earlier ones are out of the way.
    problems = {
        "has a number that is not finite: leave such boxes out": ~np.isfinite(array).all(axis=1),
        "has x1 <= x0 or y1 <= y0: xyxy expected; got xywh? Then give (x, y, x + w, y + h)": (
            (high <= low).any(axis=1)
        ),
        "is less than a pixel wide or high: pixels expected; got parts of the image in 0..1? Then "
        "multiply by its width and height": (high - low < 1).any(axis=1),
        f"lies wholly outside of the image, which is {width} wide and {height} high: give pixels "
        "of this image": ((high <= -0.5) | (low >= np.array([width, height]) - 0.5)).any(axis=1),
        f"is more than {_LARGEST_BOX} times as large as the image, which is {width} wide and "
        f"{height} high: give pixels of this image": (
            high - low > _LARGEST_BOX * max(height, width)
        ).any(axis=1),
    }
    for problem, wrong in problems.items():
        if wrong.any():
            index = int(wrong.argmax())
            numbers = ", ".join(f"{number:g}" for number in array[index])
            raise ConfigurationError(f"box {index} of {len(array)}, ({numbers}), {problem}")
    return Detections(array, np.ones(len(array), np.float32))


def _to_array(boxes: Any) -> NDArray[np.float32]:
    """Boxes as (F, 4) float32; numbers too large for it become infinite."""
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().double().numpy()
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(boxes, np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"boxes must be numbers of shape (F, 4), xyxy in pixels; this cannot be read: {error}"
        ) from error
    if array.shape == (0,):
        return array.reshape(0, 4)
    if array.shape == (4,):
        return array.reshape(1, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ConfigurationError(
            f"boxes must have shape (F, 4), xyxy in pixels, or (4,) for one; got {array.shape}"
        )
    return array
