"""Recall of a face detector on images in which every face has a bounding box, such as WIDER FACE's.

Landmarks are not part of it: see `hihlandmark.evaluation.protocol`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, Image, Progress
from hihlandmark.errors import DataError
from hihlandmark.face_detection import FaceDetector, overlaps
from hihlandmark.image import load_image

MIN_OVERLAP = 0.4
"""A face is found by a box that overlaps its own by this intersection over union, or more.

Lower than WIDER FACE's 0.5: the boxes of face detectors differ in how much forehead they hold.
"""
MIN_SIDES = (20, 40)
"""Shorter sides in pixels from which on faces are counted, by default."""

_FILES = ("boxes.jsonl", "wider_face_split/wider_face_val_bbx_gt.txt", "wider_face_val_bbx_gt.txt")
_IMAGE_FOLDERS = (".", "images", "WIDER_val/images", "WIDER_train/images")


@dataclass(frozen=True, eq=False)
class BoxedImage:
    """An image and the bounding boxes of its faces.

    Attributes:
        path: file of the image.
        boxes: (F, 4) xyxy in pixels; the center of the top-left pixel is (0, 0).
        ignored: (F,) faces that need not be found.
    """

    path: Path
    boxes: FloatArray
    ignored: BoolArray


def read_boxes(path: Path) -> list[BoxedImage]:
    """Read bounding boxes in the format of WIDER FACE or as JSON lines.

    - WIDER FACE, ``wider_face_val_bbx_gt.txt``: per image its path, the number of faces, and a line
      ``x y w h blur expression illumination invalid occlusion pose`` for each. Invalid faces, and
      those without an area, are ignored.
    - JSON lines: ``image``, ``boxes`` (F, 4) xyxy, and optionally ``difficulty`` (F,), of which
      the value "ignored" is used.

    Args:
        path: such a file, or a folder that holds one. Images are looked for relative to the file,
            and in ``images``, ``WIDER_val/images`` and ``WIDER_train/images`` beside it or one
            folder further up.

    Raises:
        DataError: there is no such file, it has another format, or its first image is missing.
    """
    if path.is_dir():
        files = [path / name for name in _FILES if (path / name).is_file()]
        if not files:
            raise DataError(f"{path} holds none of the files {', '.join(_FILES)}")
        path = files[0]
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = list((_wider_rows if path.suffix == ".txt" else _json_rows)(lines))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} does not hold bounding boxes: {error}") from error
    if not rows:
        raise DataError(f"{path} holds no image")
    parents = (path.parent, path.parent.parent)
    folders = [parent / name for parent in parents for name in _IMAGE_FOLDERS]
    first = rows[0][0]
    folder = next((each for each in folders if (each / first).is_file()), None)
    if folder is None:
        raise DataError(f"{first} of {path} is not in {folders[0]}, nor in the other image folders")
    return [BoxedImage(folder / name, boxes, ignored) for name, boxes, ignored in rows]


_Row = tuple[str, FloatArray, BoolArray]


def _json_rows(lines: Sequence[str]) -> Iterator[_Row]:
    for line in filter(str.strip, lines):
        row: dict[str, Any] = json.loads(line)
        if not isinstance(row["image"], str):
            raise ValueError(f"{row['image']!r:.80} is no path of an image")
        boxes = np.array(row["boxes"], np.float64).reshape(-1, 4)
        difficulty = row.get("difficulty", [""] * len(boxes))
        ignored = np.array([each == "ignored" for each in difficulty], bool)
        if len(ignored) != len(boxes):
            raise ValueError(f"{row['image']}: {len(boxes)} boxes, {len(ignored)} difficulties")
        yield row["image"], boxes, ignored


def _wider_rows(lines: Sequence[str]) -> Iterator[_Row]:
    lines = [line for line in lines if line.strip()]
    position = 0
    while position < len(lines):
        name, count = lines[position].strip(), int(lines[position + 1])
        # An image without a face has one row of zeros.
        rows = [line.split() for line in lines[position + 2 : position + 2 + max(count, 1)]]
        numbers = np.array(rows, np.float64)[:count].reshape(count, 10)
        position += 2 + max(count, 1)
        low, sides = numbers[:, :2] - 0.5, numbers[:, 2:4]
        ignored = (numbers[:, 7] != 0) | (sides <= 0).any(axis=1)
        yield name, np.concatenate([low, low + sides], axis=1), ignored


class Recall(NamedTuple):
    """How many of the faces with a shorter side of ``min_side`` pixels or more are found."""

    min_side: float
    faces: int
    found: int


@dataclass(frozen=True)
class DetectionReport:
    """What a face detector finds in a set of images.

    Attributes:
        recalls: by size of the faces.
        images: number of images.
        boxes_per_image: mean number of boxes found, right or wrong.
        milliseconds: (images,) CPU time of the process per image.
    """

    recalls: tuple[Recall, ...]
    images: int
    boxes_per_image: float
    milliseconds: FloatArray

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON has them; times as median and 90th percentile."""
        return {
            "recall": [
                {**each._asdict(), "share": each.found / each.faces if each.faces else None}
                for each in self.recalls
            ],
            "images": self.images,
            "boxes_per_image": self.boxes_per_image,
            "cpu_ms_median": float(np.median(self.milliseconds)),
            "cpu_ms_90": float(np.percentile(self.milliseconds, 90)),
        }


def is_found(faces: FloatArray, boxes: FloatArray, min_overlap: float = MIN_OVERLAP) -> BoolArray:
    """Which faces (F, 4) are found by boxes (B, 4), best first: (F,).

    Each box finds at most one face: the one of those left that it overlaps most.
    """
    found = np.zeros(len(faces), bool)
    for box in boxes:
        overlap = np.where(found, 0, overlaps(faces, box))
        if len(faces) and overlap.max() >= min_overlap:
            found[overlap.argmax()] = True
    return found


def evaluate_face_detector(
    face_detector: FaceDetector,
    images: Sequence[BoxedImage],
    *,
    min_sides: Sequence[float] = MIN_SIDES,
    min_overlap: float = MIN_OVERLAP,
    progress: Progress | None = None,
) -> DetectionReport:
    """Search images one by one, and count the faces that are found.

    Args:
        face_detector: see `make_face_detector`.
        images: of `read_boxes`.
        min_sides: shorter sides in pixels from which on faces are counted.
        min_overlap: intersection over union from which on a box finds a face.
        progress: called with the number of images done and of all images.

    Raises:
        ImageError: an image cannot be read.
    """
    shorter, found, count, milliseconds = [], [], 0, []
    for done, each in enumerate(images, start=1):
        boxes, elapsed = _search(face_detector, load_image(each.path))
        milliseconds.append(elapsed)
        count += len(boxes)
        counted = ~each.ignored
        # Boxes of ignored faces take part, so that they find no other face.
        found.append(is_found(each.boxes, boxes, min_overlap)[counted])
        shorter.append((each.boxes[:, 2:] - each.boxes[:, :2]).min(axis=1)[counted])
        if progress is not None:
            progress(done, len(images))
    sides, hits = np.concatenate(shorter), np.concatenate(found)
    recalls = [Recall(s, int((sides >= s).sum()), int(hits[sides >= s].sum())) for s in min_sides]
    return DetectionReport(
        tuple(recalls), len(images), count / max(len(images), 1), np.array(milliseconds)
    )


def _search(face_detector: FaceDetector, image: Image) -> tuple[FloatArray, float]:
    """The boxes of one image, best first, and the CPU time of the search in milliseconds."""
    start = time.process_time()
    boxes = face_detector.detect([image])[0].boxes
    return boxes, (time.process_time() - start) * 1000
