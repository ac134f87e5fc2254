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

import numpy as np

from hihlandmark import Detector
from hihlandmark.crop import tight_boxes
from hihlandmark.datasets import read_faces
from hihlandmark.measures import place_in_eye
from hihlandmark.tables import Table

PUPILS = [96, 97]
"""Left and right pupil of 98 points."""
EYES = {
    "scut86": ("SCUT86", [[46, 42, 58], [53, 50, 59]]),
    "london189": ("LONDON189", [[18, 22, 0], [23, 27, 1]]),
}
"""By folder of the data set: its layout, and left corner, right corner and pupil of both eyes."""


def main() -> None:
    """Measure both data sets and print a table."""
    parser = argparse.ArgumentParser(description="Errors of pupils, and of their labels.")
    parser.add_argument("--data", type=Path, required=True, help="scut86, london189")
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    detector = Detector(98)
    header = ["data set", "faces", "eye, pixels", "error", "error of the labels"]
    rows = []
    for folder, (layout, eyes) in EYES.items():
        faces = read_faces(
            arguments.data / folder, arguments.split, layout=layout, needs_mirror=False
        )
        labeled, found = [], []
        for face in faces.faces:
            center = tight_boxes(face.points).reshape(2, 2).mean(axis=0)
            detected = [each.points for each in detector.predict(face.load_image())]
            if detected:
                distances = [np.linalg.norm(each.mean(axis=0) - center) for each in detected]
                labeled.append(face.points[eyes])
                found.append(face.points[eyes])
                found[-1][:, 2] = detected[int(np.argmin(distances))][PUPILS]
        points = np.stack(labeled)
        places = place_in_eye(points)
        error = np.linalg.norm(place_in_eye(np.stack(found)) - places, axis=-1).mean()
        differences = places[:, 0] - places[:, 1]
        own = (differences - np.median(differences, axis=0)) / np.sqrt(2)
        of_labels = np.linalg.norm(own, axis=1).mean()
        width = np.median(np.linalg.norm(points[:, :, 1] - points[:, :, 0], axis=-1))
        rows.append([folder, len(points), f"{width:.0f}", f"{error:.3f}", f"{of_labels:.3f}"])
    print(Table(arguments.split, header, rows).markdown())
    print("weights:", detector.card.sha256)


if __name__ == "__main__":
    main()
