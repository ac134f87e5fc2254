"""Unlabeled images -> a data set with the landmarks that a network finds in them.

For self-training, which uses them to place crops, and as a start for annotators.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.datasets.project import ANNOTATIONS
from hihlandmark.detector import Detector
from hihlandmark.errors import DataError, ImageError
from hihlandmark.face_detection import Detections
from hihlandmark.image import load_image
from hihlandmark.pipeline import Found
from hihlandmark.threads import default_workers, map_ahead
from hihlandmark.writing import write_atomically


@dataclass(frozen=True)
class CenteredFaceDetector:
    """A `FaceDetector` for crops around one face each, whose margin is known.

    Attributes:
        scale: longer side of the image, in longer sides of the box.
        name: of the face detector that made the boxes.
    """

    scale: float
    name: str

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """One box with score 1 in the center of every image (H, W, 3)."""
        found = []
        for image in images:
            center = (np.array(image.shape[1::-1]) - 1) / 2
            half = max(image.shape[:2]) / self.scale / 2
            box = np.concatenate([center - half, center + half])
            found.append(Detections(box[None], np.ones(1)))
        return found


class Labeled(NamedTuple):
    """Numbers of labeled images and faces, and the error of each unreadable image."""

    images: int
    faces: int
    without_face: int
    unreadable: list[str]


def label(images: Iterable[Path], detector: Detector, out: Path) -> Labeled:
    """Write ``annotations.jsonl`` with every face found in the images.

    The images are not moved; the file names them relative to its folder. Each face has its
    ``points``, ``scores`` and ``covariance``, and ``made_by`` identifies the weights.

    Raises:
        DataError: the folder has such a file already, or no face is found.
    """
    target = out / ANNOTATIONS
    if target.exists():
        raise DataError(f"{target} exists already: remove it or choose another folder")

    def find(path: Path) -> Found[tuple[Path, str | None]]:
        try:
            image = load_image(path)
        except ImageError as error:
            return Found((path, f"{path}: {error}"), None, Detections.none())
        return Found((path, None), image, detector.find_faces(image))

    lines: list[str] = []
    unreadable: list[str] = []
    count = without_face = 0
    found = map_ahead(find, images, default_workers())
    box_map = detector.box_map(detector.face_detector.name)
    for (path, problem), faces in detector.pipeline.run(found, box_map):
        if problem is not None:
            unreadable.append(problem)
            continue
        count += 1
        without_face += not faces
        for face in faces:
            row = {
                "image": os.path.relpath(path, out),
                "split": "train",
                "points": face.points.round(2).tolist(),
                "scores": face.scores.round(4).tolist(),
                "covariance": face.covariance.round(3).tolist(),
                "made_by": detector.card.sha256,
            }
            lines.append(json.dumps(row) + "\n")
    if not lines:
        raise DataError(
            f"no face was found in {count} images, {len(unreadable)} are unreadable: choose others"
        )
    write_atomically(target, "".join(lines).encode())
    return Labeled(count, len(lines), without_face, unreadable)
