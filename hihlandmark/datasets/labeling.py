"""Images without labels -> a data set with the landmarks that a network finds in them.

For self-training, which takes them to know where to crop, and as a start for annotators.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hihlandmark.datasets.project import ANNOTATIONS
from hihlandmark.detector import Detector
from hihlandmark.errors import DataError, ImageError
from hihlandmark.face import Face
from hihlandmark.face_detection import Detections
from hihlandmark.writing import write_atomically

SPLIT = "train"


@dataclass(frozen=True)
class FaceInTheMiddle:
    """A `FaceDetector` for images that were cut around one face each, by their known margin.

    ``scale``: the image's longer side, in longer sides of the box; ``name``: of the face detector
    that the boxes came from.
    """

    scale: float
    name: str

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """One box in the middle of every image (H, W, 3), with the score 1."""
        return [Detections(self._box(image), np.ones(1)) for image in images]

    def _box(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        height, width = image.shape[:2]
        half = max(height, width) / self.scale / 2
        x, y = (width - 1) / 2, (height - 1) / 2
        return np.array([[x - half, y - half, x + half, y + half]])


class Labeled(NamedTuple):
    """What `label` wrote: numbers of images and faces, and why images were left out."""

    images: int
    faces: int
    without_face: int
    unreadable: list[str]


def label(images: Iterable[Path], detector: Detector, out: Path) -> Labeled:
    """Writes ``annotations.jsonl`` in the folder ``out`` with every face found in the images.

    The images stay where they are; the list names them relative to ``out``. Each face has its
    ``points``, ``scores`` and ``covariance`` and is marked as ``made_by`` the weights. Raises
    `DataError` when the folder has a list already, or no face is found.
    """
    target = out / ANNOTATIONS
    if target.exists():
        raise DataError(f"{target} is there already; remove it or choose another folder")
    rows: list[str] = []
    unreadable: list[str] = []
    count = without_face = 0
    for path, faces in _predicted(images, detector):
        if isinstance(faces, ImageError):
            unreadable.append(f"{path}: {faces}")
            continue
        count += 1
        without_face += not faces
        image = os.path.relpath(path, out)
        rows += [json.dumps(_row(image, face, detector)) for face in faces]
    if not rows:
        raise DataError(
            f"no face was found in {count} images, {len(unreadable)} are unreadable: take others"
        )
    write_atomically(target, "".join(f"{row}\n" for row in rows).encode())
    return Labeled(count, len(rows), without_face, unreadable)


def _predicted(
    images: Iterable[Path], detector: Detector
) -> Iterator[tuple[Path, list[Face] | ImageError]]:
    waiting: deque[Path] = deque()

    def remembered() -> Iterator[Path]:
        for path in images:
            waiting.append(path)
            yield path

    for faces in detector.predict_many(remembered(), on_error="yield"):
        yield waiting.popleft(), faces


def _row(image: str, face: Face, detector: Detector) -> dict[str, object]:
    return {
        "image": image,
        "split": SPLIT,
        "points": face.points.round(2).tolist(),
        "scores": face.scores.round(4).tolist(),
        "covariance": face.covariance.round(3).tolist(),
        "made_by": detector.card.files,
    }
