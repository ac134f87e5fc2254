"""Errors of pupils on SCUT86, LONDON189 and synth70, beside those of the labels themselves.

    python benchmarks/pupils.py --data DATA [--split val]

Errors are distances in widths of the eye, of the face detected nearest to the annotated one. People
look in one direction with both eyes, so that both pupils lie at the same place between the corners
of their eye, but for a constant. What the labels of both eyes differ beyond that, divided by the
square root of 2, is taken as the error of one label: a network that always finds the true pupil
would have it as well. Turned heads differ a little more; errors that both labels share do not show.

Slope and correlation are those of `evaluation.eyes`, of the pupil's place along the eye, between
the corners that were found, for eyes that are wide enough. The labels of synth70 are rendered.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hihlandmark import Detector
from hihlandmark.crop import tight_boxes
from hihlandmark.datasets import read_faces
from hihlandmark.evaluation.eyes import MAX_OFFSET, MIN_WIDTH
from hihlandmark.measures import place_in_eye
from hihlandmark.tables import Table

OWN_EYES = [[60, 64, 96], [68, 72, 97]]
"""Left corner, right corner and pupil of both eyes, of 98 points."""
EYES: dict[str, tuple[str | None, list[list[int]]]] = {
    "scut86": ("SCUT86", [[46, 42, 58], [53, 50, 59]]),
    "london189": ("LONDON189", [[18, 22, 0], [23, 27, 1]]),
    "synth70": (None, [[36, 39, 68], [42, 45, 69]]),
}
"""By folder of the data set: its layout (None: its own), and left corner, right corner and pupil of
both eyes."""


def main() -> None:
    """Measure the data sets and print a table."""
    parser = argparse.ArgumentParser(description="Errors of pupils, and of their labels.")
    parser.add_argument("--data", type=Path, required=True, help="scut86, london189, synth70")
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    detector = Detector(98)
    header = ["data set", "faces", "eye, pixels", "error", "error of the labels"]
    header += [f"eyes of {MIN_WIDTH:g} pixels", "slope", "correlation"]
    rows = []
    for folder, (layout, eyes) in EYES.items():
        faces = read_faces(
            arguments.data / folder, arguments.split, layout=layout, needs_mirror=False
        )
        labeled, found, whole = [], [], []
        for face in faces.faces:
            center = tight_boxes(face.points).reshape(2, 2).mean(axis=0)
            detected = [each.points for each in detector.predict(face.load_image())]
            if detected:
                distances = [np.linalg.norm(each.mean(axis=0) - center) for each in detected]
                labeled.append(face.points[eyes])
                whole.append(detected[int(np.argmin(distances))][OWN_EYES])
                found.append(face.points[eyes])
                found[-1][:, 2] = whole[-1][:, 2]
        points = np.stack(labeled)
        places = place_in_eye(points)
        predicted = place_in_eye(np.stack(found))
        error = np.linalg.norm(predicted - places, axis=-1).mean()
        differences = places[:, 0] - places[:, 1]
        own = (differences - np.median(differences, axis=0)) / np.sqrt(2)
        of_labels = np.linalg.norm(own, axis=1).mean()
        widths = np.linalg.norm(points[:, :, 1] - points[:, :, 0], axis=-1)
        clear = (widths >= MIN_WIDTH) & (np.abs(places[..., 0]) <= MAX_OFFSET)
        x, y = places[clear][:, 0], place_in_eye(np.stack(whole))[clear][:, 0]
        slope, correlation = np.polyfit(x, y, 1)[0], np.corrcoef(x, y)[0, 1]
        width = f"{np.median(widths):.0f}"
        row = [folder, len(points), width, f"{error:.3f}", f"{of_labels:.3f}"]
        rows.append([*row, int(clear.sum()), f"{slope:.3f}", f"{correlation:.3f}"])
    print(Table(arguments.split, header, rows).markdown())
    print("weights:", detector.card.sha256)


if __name__ == "__main__":
    main()
