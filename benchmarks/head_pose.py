"""Measures `measures.head_pose` on predicted faces: without an image size, level faces, mirrored.

    python benchmarks/head_pose.py --data DATA/w300 [--images 60]

Prints for images spread evenly over a split (but for the pitch), with the packaged weights:

- "size": difference of angles between `head_pose(face)` and `head_pose(face, image_size)`, and
  with a focal length of the image's longer side as well;
- "pitch": the median pitch of faces whose yaw is within 10 degrees, on all images of the split,
  with crops around the annotated points;
- "mirror": the sum of the yaw of a face and of that in the mirrored image, which should be 0, for
  points found in the mirrored image and for the mirrored points.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from hihlandmark import Detector, Face
from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import tight_boxes
from hihlandmark.datasets import read_faces
from hihlandmark.face import transform_face
from hihlandmark.measures import head_pose

LEVEL = 10.0  # degrees of yaw
BOXES = "landmarks:W300_68"


def angles(face: Face, *arguments: object) -> FloatArray:
    """Yaw, pitch and roll (3,) in degrees."""
    return np.array([angle.value for angle in head_pose(face, *arguments)[:3]])  # type: ignore[arg-type]


def nearest(detector: Detector, image: Image, points: FloatArray) -> Face | None:
    """The face that lies at annotated points; None if it is not found."""
    reach = np.ptp(points, axis=0).max() / 4
    faces = detector.predict(image)
    apart = [np.linalg.norm(face.points.mean(axis=0) - points.mean(axis=0)) for face in faces]
    return faces[int(np.argmin(apart))] if apart and min(apart) < reach else None


def mirrored(face: Face, width: int) -> Face:
    """The face as it would be in the mirrored image."""
    moved = transform_face(face, np.array([[-1.0, 0, width - 1], [0, 1, 0]]))
    order = list(face.layout.mirror)
    return replace(moved, points=moved.points[order], covariance=moved.covariance[order])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure head_pose on predicted faces.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="helen_test")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--model", default="hih-small")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--refine", type=int, default=0)
    chosen = parser.parse_args()
    detector = Detector(
        68, chosen.model, device="cpu", precision=chosen.precision, refine=chosen.refine
    )
    found = read_faces(chosen.data, chosen.split)
    rows = np.linspace(0, len(found) - 1, min(chosen.images, len(found))).round().astype(int)
    sizes, lenses, sums, exact = [], [], [], []
    for row in rows:
        image, points = found[row].load_image(), found[row].points
        size = image.shape[1], image.shape[0]
        face = nearest(detector, image, points)
        there = points * (-1, 1) + (size[0] - 1, 0)
        other = nearest(detector, np.ascontiguousarray(image[:, ::-1]), there)
        if face is None or other is None:
            continue
        pose = angles(face)
        sizes.append(np.abs(pose - angles(face, size)).max())
        lenses.append(np.abs(pose - angles(face, size, float(max(size)))).max())
        sums.append(abs(pose[0] + angles(other)[0]))
        exact.append(abs(pose[0] + angles(mirrored(face, size[0]))[0]))
    print(f"{len(sizes)} of {len(rows)} faces; weights {detector.card.sha256[:8]}")
    for name, values in (
        ("image size given, degrees", sizes),
        ("focal length given as well, degrees", lenses),
        ("yaw + yaw in the mirrored image, degrees", sums),
        ("the same of mirrored points, degrees", exact),
    ):
        listed = np.percentile(values, (50, 90, 100)).round(2)
        within = np.mean(np.array(values) <= 1)
        print(f"{name}: median, 90 %, maximum {listed}; within 1 degree {within:.0%}")
    level = []
    for annotated in found:
        box = tight_boxes(annotated.points)
        (face,) = detector.predict(annotated.load_image(), boxes=[box], box_kind=BOXES)
        yaw, pitch, _ = angles(face)
        if abs(yaw) < LEVEL:
            level.append(pitch)
    error = 1.25 * np.std(level) / np.sqrt(len(level))
    print(
        f"median pitch of {len(level)} level faces, degrees: {np.median(level):.2f} +- {error:.2f}"
    )


if __name__ == "__main__":
    main()
