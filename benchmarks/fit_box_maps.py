"""Fits the maps from boxes of a face detector, and of landmarks, to the canonical crop.

    python benchmarks/fit_box_maps.py --data DIR

The canonical crop is upright; its center is that of the tight box of the face's 68 (or 98) points
and its side 1.4 times the longer side of that box. The printed maps go into `crop.CANONICAL_CROP`.
"dlib" and "mediapipe" (0.10, whose wheel holds the networks) must be installed by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import CANONICAL_CROP, BoxMap, fit_box_map, roll_angles, tight_boxes
from hihlandmark.datasets import AnnotatedFace, read_faces
from hihlandmark.evaluation.protocol import detected_pairs
from hihlandmark.face_detection import Detections, make_face_detector
from hihlandmark.layouts import COFW29, FIVE, W300_68, WFLW98, convert

CANONICAL = CANONICAL_CROP[f"landmarks:{W300_68.name}"]


class Residuals(NamedTuple):
    """Deviations of the squares of a box map from the true ones, over faces.

    Attributes:
        center: standard deviation of x and of y, in sides of the true square.
        log_scale: that of the natural logarithm of the side.
    """

    center: tuple[float, float]
    log_scale: float


def residuals(box_map: BoxMap, boxes: FloatArray, squares: FloatArray) -> Residuals:
    """The residuals of a map on boxes (N, 4) xyxy and their true squares (N, 3)."""
    mapped = box_map.squares(boxes)
    x, y = ((mapped[:, :2] - squares[:, :2]) / squares[:, 2:]).std(axis=0)
    return Residuals((float(x), float(y)), float(np.log(mapped[:, 2] / squares[:, 2]).std()))


def with_mirrored(boxes: FloatArray, squares: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Boxes (N, 4) and squares (N, 3), then those of the mirrored images: (2 N, 4), (2 N, 3).

    For boxes of landmarks, whose map is symmetric. A face detector need not be symmetric.
    """
    mirrored_boxes = boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1)
    return np.concatenate([boxes, mirrored_boxes]), np.concatenate([squares, squares * (-1, 1, 1)])


class Dlib:
    """The HOG face detector of dlib, ``get_frontal_face_detector``."""

    name = "dlib"

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """As `FaceDetector.detect`."""
        import dlib  # type: ignore[import-not-found]

        search = dlib.get_frontal_face_detector()
        found = []
        for image in images:
            rectangles, scores, _ = search.run(image, 0)
            # The last pixel of a rectangle belongs to it.
            boxes = [(r.left(), r.top(), r.right(), r.bottom()) for r in rectangles]
            found.append(Detections(np.reshape(boxes, (-1, 4)), np.array(scores)))
        return found


class MediaPipe:
    """The full-range face detection of MediaPipe."""

    name = "mediapipe"

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """As `FaceDetector.detect`."""
        import mediapipe  # type: ignore[import-not-found]

        search = mediapipe.solutions.face_detection.FaceDetection(model_selection=1)
        found = []
        for image in images:
            size = np.array(image.shape[1::-1] * 2)
            boxes, scores = [], []
            for each in search.process(image).detections or ():
                box = each.location_data.relative_bounding_box
                boxes.append((box.xmin, box.ymin, box.xmin + box.width, box.ymin + box.height))
                scores.append(each.score[0])
            found.append(Detections(np.reshape(boxes, (-1, 4)) * size - 0.5, np.array(scores)))
        return found


OTHERS = {each.name: each for each in (Dlib, MediaPipe)}


def five_points_map(faces: Sequence[AnnotatedFace]) -> BoxMap:
    """The map of the five points that follow from 68 annotated points (N, 68, 2)."""
    points = np.stack([face.points for face in faces])
    five, _ = convert(points, W300_68, FIVE)
    unit = BoxMap((0.0, 0.0), 1.0).squares_of_five(five, FIVE.mean_shape)
    center, half = unit[:, :2], unit[:, 2:3] / 2
    boxes = np.concatenate([center - half, center + half], axis=1)
    upright = np.abs(roll_angles(five, FIVE.mean_shape)) < np.deg2rad(10)
    return fit_box_map(boxes[upright], CANONICAL.squares(tight_boxes(points[upright]))[:, :3])


def main() -> None:
    """Fit the maps of a face detector (300-W train) and of 29 points (WFLW train); print JSON."""
    parser = argparse.ArgumentParser(description="Fit the maps from boxes to the canonical crop.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds w300, wflw98")
    parser.add_argument("--detector", default="mtcnn")
    parser.add_argument("--faces", type=int, default=700, help="random faces for the detector")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    w300 = read_faces(arguments.data / "w300", "train")
    order = np.random.default_rng(arguments.seed).permutation(len(w300))
    chosen = [w300[i] for i in order[: arguments.faces]]
    other = OTHERS.get(arguments.detector)
    detector = other() if other else make_face_detector(arguments.detector)
    pairs = {detector.name: detected_pairs(chosen, detector)}

    wflw = read_faces(arguments.data / "wflw98", "train")
    points = np.stack([face.points for face in wflw])
    points_29, _ = convert(points, WFLW98, COFW29)
    pairs[f"landmarks:{COFW29.name}"] = with_mirrored(
        tight_boxes(points_29), CANONICAL.squares(tight_boxes(points))[:, :3]
    )

    boxes: dict[str, Any] = {
        f"landmarks:{layout.name}": {"shift": CANONICAL.shift, "scale": CANONICAL.scale}
        for layout in (WFLW98, W300_68)
    }
    for kind, (found, squares) in pairs.items():
        box_map = fit_box_map(found, squares)
        center, log_scale = residuals(box_map, found, squares)
        boxes[kind] = {
            "shift": [round(value, 4) for value in box_map.shift],
            "scale": round(box_map.scale, 4),
            "residual_center": [round(value, 4) for value in center],
            "residual_log_scale": round(log_scale, 4),
        }
    five = five_points_map(chosen)
    boxes["five_points"] = {"shift": five.shift, "scale": five.scale}
    print(json.dumps(boxes, indent=2))


if __name__ == "__main__":
    main()
