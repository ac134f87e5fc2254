"""What a face detector is and what it hands over. Each detector has a file beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hihlandmark.errors import ConfigurationError, ImageError


@dataclass(frozen=True, eq=False)
class Detections:
    """The F faces found in one image, in its pixels: the center of the top-left pixel is (0, 0).

    Attributes:
        boxes: (F, 4) float32, xyxy.
        scores: (F,) float32 in 0..1.
        five_points: (F, 5, 2) float32: the eyes, the tip of the nose and the corners of the mouth,
            what lies left in the image first (left eye, right eye, nose, left and right corner);
            None when the detector has no such points.
        angles: (F,) float32: radians by which the image stood turned, counter-clockwise, when the
            face was found upright in it, so by which the face is turned clockwise, roughly. Boxes
            and points are in pixels of the image as given all the same; what lies left and right
            is meant as seen in the turned one. None when nobody looked at turned images.

    The arrays are read-only float32 copies of what is given.
    Raises `ConfigurationError` when a shape is another.
    """

    boxes: NDArray[np.floating]
    scores: NDArray[np.floating]
    five_points: NDArray[np.floating] | None = None
    angles: NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = {
            "boxes": (count, 4),
            "scores": (count,),
            "five_points": (count, 5, 2),
            "angles": (count,),
        }
        for name, shape in shapes.items():
            if getattr(self, name) is None:
                continue
            array = np.array(getattr(self, name), np.float32)
            if array.shape != shape:
                raise ConfigurationError(
                    f"{name} of {count} detections must have shape {shape}, not {array.shape}"
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def none(cls, *, five_points: bool = False) -> Detections:
        """No face; with ``five_points`` an empty (0, 5, 2) array instead of None."""
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros((0, 5, 2), np.float32) if five_points else None,
        )

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

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """RGB images (H, W, 3) uint8 of any mixed sizes -> the `Detections` of each.

        An image gives the same detections whatever else is in the call.
        """
        ...


def check_image(image: NDArray[np.uint8]) -> None:
    """Raises `ImageError` for what is not an RGB image (H, W, 3) uint8 with at least one pixel."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        found = f"shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        problem = f"need an array of shape (H, W, 3), not {found}"
    elif image.dtype != np.uint8:
        problem = f"need uint8 values in 0..255, not {image.dtype}"
    elif image.size == 0:
        problem = f"there is no pixel in an array of shape {image.shape}"
    else:
        return
    raise ImageError(f"cannot look for faces: {problem}. hihlandmark.load_image converts images")
