"""Fits the generic head of `measures.head_pose` to annotated faces.

    python benchmarks/fit_head.py --data DIR

Poses and the head are fitted in turn (rigid structure from motion): the pose of every face by PnP,
then the symmetric head that reprojects best, by linear least squares. Its scale is set by 90 mm
between the outer corners of the eyes. Turning the head changes no reprojection, so that is set by
the median pitch of frontal faces (yaw within 10 degrees), which becomes 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hihlandmark import Face, measures
from hihlandmark.arrays import FloatArray
from hihlandmark.datasets import read_faces
from hihlandmark.layouts import get_layout

SWAPPED = {"left": "right", "right": "left"}
MIRROR = [
    measures.HEAD_POINTS.index("_".join(SWAPPED.get(word, word) for word in name.split("_")))
    for name in measures.HEAD_POINTS
]
OUTER_CORNERS = 90.0  # millimeters
TYPICAL = 0.02  # reprojection error, in sides of the points' box, from which on a face counts less
ROUNDS = 30


def read(folder: Path, split: str) -> list[Face]:
    """The faces of a split of 68 points."""
    layout = get_layout(68)
    scores, covariance, box = np.ones(68), np.zeros((68, 2, 2)), np.zeros(4)
    return [
        Face(face.points, scores, covariance, box, 1.0, layout)
        for face in read_faces(folder, split, layout=layout.name)
    ]


def refit(head: FloatArray, faces: Sequence[FloatArray]) -> tuple[FloatArray, float]:
    """A head (K, 3) that fits the points (K, 2) of faces better, and the error of the old one."""
    count = len(head)
    normal, right = np.zeros((3 * count, 3 * count)), np.zeros(3 * count)
    errors = []
    for points in faces:
        side, center = float(np.ptp(points, axis=0).max()), points.mean(axis=0)
        focal = measures.FOCAL_LENGTH * side
        rotation, position = measures.fit_head(head, points, focal, center)
        rays = (points - center) / focal
        seen = head @ rotation.T + position
        error = np.linalg.norm(seen[:, :2] / seen[:, 2:] - rays, axis=1).mean() * focal / side
        errors.append(error)
        weights = min(1.0, TYPICAL / error) * focal / side / seen[:, 2]
        for axis in (0, 1):
            # (row . X + t) - ray (last row . X + t_z) = 0, for each point X of the head.
            rows = (rotation[axis] - rays[:, axis, None] * rotation[2]) * weights[:, None]
            values = (rays[:, axis] * position[2] - position[axis]) * weights
            for k in range(count):
                part = slice(3 * k, 3 * k + 3)
                normal[part, part] += np.outer(rows[k], rows[k])
                right[part] += rows[k] * values[k]
    return symmetric(np.linalg.solve(normal, right).reshape(count, 3)), float(np.mean(errors))


def symmetric(head: FloatArray) -> FloatArray:
    """The head (K, 3) made symmetric, with its nose tip at 0 and its size normalized."""
    head = (head + head[MIRROR] * (-1, 1, 1)) / 2
    head = head - head[0]
    return head * (OUTER_CORNERS / (head[5, 0] - head[2, 0]))


def median_pitch(faces: Sequence[Face]) -> float:
    """The median pitch of frontal faces in degrees, by the head in use."""
    found = [measures.head_pose(face) for face in faces]
    poses = np.array([(pose.yaw.value, pose.pitch.value) for pose in found])
    return float(np.median(poses[np.abs(poses[:, 0]) < 10, 1]))


def turned(head: FloatArray, degrees: float) -> FloatArray:
    """The head (K, 3) looking down by an angle."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return head @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def main() -> None:
    """Fit the head to 300-W train; print it, and the median pitch of both splits."""
    parser = argparse.ArgumentParser(description="Fit the generic head of head_pose.")
    parser.add_argument("--data", type=Path, required=True, help="folder of 300-W")
    parser.add_argument("--test", default="helen_test", help="split to report")
    arguments = parser.parse_args()
    train, test = read(arguments.data, "train"), read(arguments.data, arguments.test)
    points = [measures.head_points(face) for face in train]
    head = measures.HEAD
    for _ in range(ROUNDS):
        head, error = refit(head, points)
    print(f"mean error {error:.5f} of the side of the points' box")
    for _ in range(5):
        measures.HEAD = symmetric(head)
        head = turned(measures.HEAD, median_pitch(train))
    measures.HEAD = np.round(symmetric(head), 1)
    for name, point in zip(measures.HEAD_POINTS, measures.HEAD.tolist(), strict=True):
        print(f'    "{name}": {tuple(point)},')
    for split, faces in (("train", train), (arguments.test, test)):
        print(f"median pitch of {split}: {median_pitch(faces):.2f} degrees")


if __name__ == "__main__":
    main()
