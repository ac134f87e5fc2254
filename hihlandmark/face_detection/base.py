"""What a face detector is, and the steps that every detector shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.errors import ConfigurationError, ImageError, is_number


@dataclass(frozen=True, eq=False)
class Detections:
    """The F faces found in one image, in its pixels: the center of the top-left pixel is (0, 0).

    The arrays are read-only float32 copies of what is given.

    Attributes:
        boxes: (F, 4) bounding boxes, xyxy.
        scores: (F,) in 0..1.
        five_points: (F, 5, 2) left eye, right eye, tip of the nose, left and right corner of the
            mouth, where left is left in the (rotated) image; None when the detector has none.
        angles: (F,) radians by which the crop of each face is rotated clockwise, so about how far
            the face is. None: unknown. Boxes and points are in pixels of the image as given.

    Raises:
        ConfigurationError: an array has another shape.
    """

    boxes: FloatArray
    scores: FloatArray
    five_points: FloatArray | None = None
    angles: FloatArray | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        sizes = {"boxes": (4,), "scores": (), "five_points": (5, 2), "angles": ()}
        for name, size in sizes.items():
            if getattr(self, name) is None:
                continue
            array = np.array(getattr(self, name), np.float32)
            if array.shape != (count, *size):
                raise ConfigurationError(
                    f"{name} must have shape {(count, *size)}, not {array.shape}"
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def none(cls, *, five_points: bool = False) -> Detections:
        """No face; with ``five_points`` an empty (0, 5, 2) array instead of None."""
        return cls(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)) if five_points else None)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: slice | Sequence[int] | NDArray[Any]) -> Detections:
        """Some of the detections: by a slice, by indices or by a mask (F,) bool."""
        points = None if self.five_points is None else self.five_points[which]
        angles = None if self.angles is None else self.angles[which]
        return Detections(self.boxes[which], self.scores[which], points, angles)


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces in images. ``name`` is the key of its box map in the model cards.

    `Detector.predict_many` calls `detect` from several threads at once.
    """

    name: str

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """The faces of each of the RGB images (H, W, 3) uint8 of any mixed sizes, best first.

        An image gives the same detections whatever other images are in the call. It may be a
        read-only array.

        Raises:
            ImageError: an array is not such an image.
        """
        ...


def checked_detections(face_detector: FaceDetector, image: Image) -> Detections:
    """What a face detector, perhaps one of a user's own, finds in an image (H, W, 3).

    Raises:
        ConfigurationError: it gives no `Detections`, or a box that is none.
    """
    results = face_detector.detect([image])
    name = f"the face detector {face_detector.name!r}"
    is_one = isinstance(results, Sequence) and len(results) == 1
    if not is_one or not isinstance(results[0], Detections):
        raise ConfigurationError(f"{name} must give one Detections for one image: {results!r:.200}")
    (found,) = results
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    is_box = (low < high).all(axis=1) & np.isfinite(found.boxes).all(axis=1)
    is_box &= np.isfinite(found.scores)
    if not is_box.all():
        index = int(is_box.argmin())
        raise ConfigurationError(
            f"{name} gave the box {found.boxes[index].tolist()} with a score of "
            f"{found.scores[index]:g}: need x1 < x2, y1 < y2 (xyxy) and finite numbers"
        )
    if found.angles is not None and not np.isfinite(found.angles).all():
        raise ConfigurationError(f"{name} gave the angles {found.angles.tolist()}: need radians")
    return found


class PickledByArguments:
    """A face detector whose networks another process loads itself; `copy.copy` shares them.

    ``_network_options``: the arguments of the constructor that are not among its attributes.
    """

    detection_size: int
    min_face: float
    min_score: float
    _network_options: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its arguments."""
        options = {
            name: getattr(self, name) for name in ("detection_size", "min_face", "min_score")
        }
        return partial(type(self), **self._network_options, **options), ()

    def __copy__(self) -> Any:
        """With the same networks, which `__reduce__` would load again."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other


def check_image(image: Image) -> None:
    """Raise `ImageError` for what is not an RGB image (H, W, 3) uint8 with at least one pixel."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        found = f"shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"need an RGB array of shape (H, W, 3), not {found}: use load_image")
    if image.dtype != np.uint8:
        raise ImageError(f"need uint8 values in 0..255, not {image.dtype}: use load_image")
    if image.size == 0:
        raise ImageError(f"an array of shape {image.shape} has no pixel")


def check_options(
    detection_size: int, min_face: float, min_score: float, smallest_size: float
) -> None:
    """Raise `ConfigurationError` for options of a face detector that are out of range."""
    if not (is_number(detection_size) and detection_size >= smallest_size):
        raise ConfigurationError(
            f"detection_size must be {smallest_size:.0f} pixels or more, not {detection_size}"
        )
    if not (is_number(min_face) and min_face > 0):
        raise ConfigurationError(f"min_face must be more than 0 pixels, not {min_face}")
    if not (is_number(min_score) and 0 <= min_score <= 1):
        raise ConfigurationError(
            f"min_score (of `Detector`: min_box_score) must lie in 0..1, not {min_score}"
        )


def downscale(image: Image, longest: int, multiple: int = 1) -> tuple[Image, FloatArray]:
    """An image (H, W, 3) with sides of at most ``longest`` pixels, by area averaging.

    Sides are rounded to whole pixels, or up to multiples of ``multiple``, which may exceed
    ``longest``. Returns the image, and the factors (2,), x and y, from the old to the new size.
    """
    height, width = image.shape[:2]
    ratio = min(1.0, longest / max(height, width))
    sides = (max(1, round(side * ratio)) for side in (width, height))
    size = tuple(-(-side // multiple) * multiple for side in sides)
    small = np.ascontiguousarray(image)
    if size != (width, height):
        small = np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_AREA), np.uint8)
    return small, np.array(size) / (width, height)


def upscale_detections(
    boxes: FloatArray,
    scores: FloatArray,
    points: FloatArray,
    factors: FloatArray,
    image: Image,
    min_face: float,
) -> Detections:
    """What was found in an image from `downscale`, in pixels of the original image, best first.

    Boxes (F, 4) are cut at the centers of the image's outermost pixels, and dropped when their
    longer side is then shorter than ``min_face``.
    """
    height, width = image.shape[:2]
    boxes = (boxes.reshape(-1, 2, 2) + 0.5) / factors - 0.5
    boxes = boxes.clip(0, (width - 1, height - 1)).reshape(-1, 4)
    points = (points + 0.5) / factors - 0.5
    sides = boxes[:, 2:] - boxes[:, :2]
    wanted = (sides.min(axis=1) >= 1) & (sides.max(axis=1) >= min_face)
    order = np.argsort(-scores, kind="stable")
    return Detections(boxes, scores, points)[order[wanted[order]]]
