"""Errors of pupils on SCUT86 and LONDON189, beside those that the labels themselves have.

    python benchmarks/pupils.py --data DATA [--split val]

Errors are distances in widths of the eye, of the face detected nearest to the annotated one. People
look in one direction with both eyes, so that both pupils lie at the same place between the corners
of their eye, but for a constant. What the labels of both eyes differ beyond that, divided by the
square root of 2, is taken as the error of one label: a network that always finds the true pupil
would have it as well. Turned heads differ a little more; errors that both labels share do not show.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hihlandmark import Detector
from hihlandmark.arrays import FloatArray
from hihlandmark.crop import tight_boxes
from hihlandmark.datasets import read_faces
from hihlandmark.tables import Table

PUPILS = [96, 97]
"""Left and right pupil of 98 points."""


class Eyes(NamedTuple):
    """A layout: its name, its pupils (2), and the left and right corner of both eyes (2, 2)."""

    layout: str
    pupils: list[int]
    corners: list[list[int]]


EYES = {
    "scut86": Eyes("SCUT86", [58, 59], [[46, 42], [53, 50]]),
    "london189": Eyes("LONDON189", [0, 1], [[18, 22], [23, 27]]),
}
"""By folder of the data set."""


def widths(points: FloatArray, eyes: Eyes) -> FloatArray:
    """The widths (..., 2) of the eyes of points (..., P, 2)."""
    ends = points[..., eyes.corners, :]
    return np.linalg.norm(ends[..., 1, :] - ends[..., 0, :], axis=-1)


def places(points: FloatArray, eyes: Eyes) -> FloatArray:
    """Where the labeled pupils of faces (F, P, 2) lie: (F, 2, 2), along and across the eye.

    From the middle of the eye, in its widths.
    """
    left, right = np.moveaxis(points[:, eyes.corners], 2, 0)
    along = right - left
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    offset = points[:, eyes.pupils] - (left + right) / 2
    return np.stack([(offset * axis).sum(axis=-1) for axis in (along, across)], axis=-1) / (
        np.square(along).sum(axis=-1, keepdims=True)
    )


def main() -> None:
    """Measure both data sets and print a table."""
    parser = argparse.ArgumentParser(description="Errors of pupils, and of their labels.")
    parser.add_argument("--data", type=Path, required=True, help="scut86, london189")
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    detector = Detector(98)
    header = ["data set", "faces", "eye, pixels", "error", "error of the labels"]
    rows = []
    for folder, eyes in EYES.items():
        faces = read_faces(
            arguments.data / folder, arguments.split, layout=eyes.layout, needs_mirror=False
        )
        errors, labels = [], []
        for face in faces.faces:
            center = tight_boxes(face.points).reshape(2, 2).mean(axis=0)
            found = [each.points for each in detector.predict(face.load_image())]
            if found:
                distances = [np.linalg.norm(each.mean(axis=0) - center) for each in found]
                nearest = found[int(np.argmin(distances))]
                missed = np.linalg.norm(nearest[PUPILS] - face.points[eyes.pupils], axis=1)
                errors.append(missed / widths(face.points, eyes))
                labels.append(face.points)
        points = np.stack(labels)
        differences = np.subtract(*np.moveaxis(places(points, eyes), 1, 0))
        own = (differences - np.median(differences, axis=0)) / np.sqrt(2)
        width, error = np.median(widths(points, eyes)), np.mean(errors)
        of_labels = np.linalg.norm(own, axis=1).mean()
        rows.append([folder, len(errors), f"{width:.0f}", f"{error:.3f}", f"{of_labels:.3f}"])
    print(Table(arguments.split, header, rows).markdown())
    print("weights:", detector.card.sha256)


if __name__ == "__main__":
    main()
