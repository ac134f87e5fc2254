"""Bounding boxes: overlap, non-maximum suppression, and checks of boxes given by the caller."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray, IndexArray
from hihlandmark.crop import similarities, transform_points
from hihlandmark.errors import ConfigurationError
from hihlandmark.face_detection.base import Detections
from hihlandmark.layouts import FIVE

OverlapArea = Literal["union", "smaller"]


def overlaps(boxes: FloatArray, box: FloatArray, relative_to: OverlapArea = "union") -> FloatArray:
    """The common area (F,) of boxes (F, 4) with one box (4,), relative to another area: 0..1.

    That is the area of the "union" of the two boxes (IoU), or of the "smaller" one.
    """
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = np.maximum(sides, 0).prod(axis=1)
    areas, area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), (box[2:] - box[:2]).prod()
    whole = np.minimum(areas, area) if relative_to == "smaller" else areas + area - common
    return np.asarray(common / np.maximum(whole, 1e-9))


def best_boxes(
    boxes: FloatArray, scores: FloatArray, max_overlap: float, relative_to: OverlapArea = "union"
) -> IndexArray:
    """Non-maximum suppression: leave out boxes that overlap too much with a better one.

    Args:
        boxes: (F, 4) xyxy.
        scores: (F,) above 0; of equal ones the first is the better.
        max_overlap: the largest overlap of two boxes that are both kept.
        relative_to: see `overlaps`.

    Returns:
        The indices of the boxes that are kept, best first.
    """
    if relative_to == "union":  # OpenCV's is fast, and importing torchvision is slow
        corners_and_sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        indices = cv2.dnn.NMSBoxes(
            corners_and_sides.astype(np.float64),  # type: ignore[arg-type]  # arrays work as well
            scores.astype(np.float32),  # type: ignore[arg-type]
            0.0,
            max_overlap,
        )
        return np.asarray(indices, np.intp).reshape(-1)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not (overlaps(boxes[kept], boxes[index], relative_to) > max_overlap).any():
            kept.append(int(index))
    return np.array(kept, np.intp)


def given_boxes(boxes: Any, image_shape: tuple[int, ...]) -> Detections:
    """Check boxes that the caller has given.

    Args:
        boxes: (F, 4) xyxy, or (4,) for one, in pixels of the image: a list, an array or a tensor;
            [] for none. They may reach beyond the image and are not cut.
        image_shape: (H, W) or (H, W, C).

    Returns:
        The boxes in their order, with scores of 1 and without five points.

    Raises:
        ConfigurationError: a box has a number that is not finite, x1 <= x0 or y1 <= y0, is less
            than a pixel wide or high, lies outside of the image, or is more than ten times as large
            as the image. Names the first such box.
    """
    array = _to_array(boxes, "boxes", (4,), "xyxy in pixels")
    height, width = image_shape[:2]
    low, high = array[:, :2], array[:, 2:]
    size = f"the image of {width} x {height} pixels"
    # In this order, because each check assumes that the earlier ones have passed.
    problems = {
        "has a number that is not finite": ~np.isfinite(array),
        "has x1 <= x0 or y1 <= y0; expected xyxy, not xywh": high <= low,
        "is less than a pixel wide or high; expected pixels, not 0..1": high - low < 1,
        f"lies outside of {size}": (high <= -0.5) | (low >= np.array([width, height]) - 0.5),
        f"is more than 10 times as large as {size}": high - low > 10 * max(height, width),
    }
    for problem, wrong in problems.items():
        if wrong.any():
            index = int(wrong.any(axis=1).argmax())
            numbers = ", ".join(f"{number:g}" for number in array[index])
            raise ConfigurationError(f"box {index} of {len(array)}, ({numbers}), {problem}")
    return Detections(array, np.ones(len(array), np.float32))


def given_five_points(
    five_points: Any, image_shape: tuple[int, ...], detections: Detections | None
) -> NDArray[np.float32]:
    """Check five points that the caller has given.

    Args:
        five_points: (F, 5, 2) left eye, right eye, tip of the nose, left and right corner of the
            mouth, left as in the image; or (5, 2) for one face; [] for none. In pixels.
        image_shape: (H, W) or (H, W, C).
        detections: the boxes of the same faces; None: none are given.

    Returns:
        The points (F, 5, 2).

    Raises:
        ConfigurationError: there is another number of boxes; or a face has a number that is not
            finite, points that coincide, left and right swapped, or all points outside of the
            image. Names the first such face.
    """
    array = _to_array(five_points, "five_points", (5, 2), "x and y in pixels")
    if detections is not None and len(detections) != len(array):
        raise ConfigurationError(f"{len(detections)} boxes, but five_points of {len(array)} faces")
    height, width = image_shape[:2]
    lowest, highest = array.min(axis=2), (array - (width, height)).max(axis=2)
    # In this order, because each check assumes that the earlier ones have passed.
    problems = {
        "have a number that is not finite": lambda: ~np.isfinite(array).all(axis=(1, 2)),
        "lie within a pixel; expected pixels, not 0..1": lambda: (
            np.ptp(array, axis=1).max(axis=1) <= 1
        ),
        f"lie outside of the image of {width} x {height} pixels": lambda: (
            (lowest <= -0.5) | (highest >= -0.5)
        ).all(axis=1),
        "have left and right swapped; left is left in the image": lambda: (
            _misfit(array) > 4 * _misfit(array[:, FIVE.mirror])
        ),
    }
    for problem, wrong in problems.items():
        if wrong().any():
            index = int(wrong().argmax())
            raise ConfigurationError(f"five_points {index} of {len(array)} {problem}")
    return array


def _misfit(five_points: FloatArray) -> FloatArray:
    """Mean squared distances (F,) of five points (F, 5, 2) from upright ones, over their size."""
    points = five_points.astype(np.float64)
    fitted = transform_points(similarities(points, FIVE.mean_shape), points)
    return np.asarray(((fitted - FIVE.mean_shape) ** 2).sum(axis=2).mean(axis=1))


def _to_array(values: Any, name: str, shape: tuple[int, ...], meaning: str) -> NDArray[np.float32]:
    """Values as (F, *shape) float32; numbers too large for it become infinite."""
    if hasattr(values, "detach"):  # a tensor, perhaps of a GPU or with gradients
        values = values.detach().cpu().double().numpy()
    expected = f"(F, {', '.join(map(str, shape))})"
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(values, np.float64).astype(np.float32)
    except (RuntimeError, TypeError, ValueError) as error:  # also of tensors with gradients
        raise ConfigurationError(f"{name} must be numbers of shape {expected}: {error}") from error
    if array.shape in ((0,), shape):
        return array.reshape(-1, *shape)
    if array.shape[1:] != shape:
        raise ConfigurationError(f"{name} must have shape {expected}, {meaning}, not {array.shape}")
    return array
