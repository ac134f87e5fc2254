"""Errors of crops that are placed by five points, beside those of crops around the true points.

    python benchmarks/five_points.py --data DATA/w300 --split helen_test

The five points follow from the annotated points ("labels"), or are those of a face detector, whose
face nearest to the annotated one is taken; faces that it does not find are left out of both
columns. Prints a table of the inter-ocular NME and writes it as JSON with ``--json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from hihlandmark import Detector
from hihlandmark.arrays import FloatArray
from hihlandmark.crop import tight_boxes
from hihlandmark.datasets import AnnotatedFace, read_faces
from hihlandmark.face_detection import FaceDetector, make_face_detector
from hihlandmark.layouts import FIVE, Layout, convert, get_layout
from hihlandmark.tables import Table


def five_points(
    face: AnnotatedFace, layout: Layout, search: FaceDetector | None
) -> FloatArray | None:
    """Five points (5, 2) of a face, from its labels without a face detector; None: not found."""
    if search is None:
        return convert(face.points[None], layout, FIVE)[0][0]
    found = search.detect([face.load_image()])[0]
    x0, y0, x1, y1 = tight_boxes(face.points)
    centers = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    distances = np.linalg.norm(centers - ((x0 + x1) / 2, (y0 + y1) / 2), axis=1)
    if not len(found) or distances.min() > max(x1 - x0, y1 - y0) / 2:
        return None
    assert found.five_points is not None
    return found.five_points[distances.argmin()]


def main() -> None:
    """Measure the split with five points from labels and from face detectors."""
    parser = argparse.ArgumentParser(description="Errors of crops placed by five points.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--sources", nargs="+", default=["labels", "mtcnn", "centerface"])
    parser.add_argument("--refine", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="measure every n-th face only")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    faces = read_faces(arguments.data, arguments.split)
    layout = get_layout(faces.layout)
    detector = Detector(layout, refine=arguments.refine)
    searches = {
        name: None if name == "labels" else make_face_detector(name) for name in arguments.sources
    }
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in searches}
    for face in list(faces)[:: arguments.every]:
        image = face.load_image()
        truth = face.points.astype(np.float64)

        def error(predicted: FloatArray, truth: FloatArray = truth) -> float:
            distances = np.linalg.norm(predicted - truth, axis=1)
            return float(100 * distances.mean() / layout.interocular(truth))

        box = tight_boxes(truth)
        (expected,) = detector.predict(image, boxes=box, box_kind="landmarks")
        for name, search in searches.items():
            points = five_points(face, layout, search)
            if points is not None:
                (found,) = detector.predict(image, five_points=points)
                errors[name].append((error(expected.points), error(found.points)))
    rows = []
    for name, pairs in errors.items():
        boxes, five = np.array(pairs).mean(axis=0)
        rows.append([name, len(pairs), round(boxes, 3), round(five, 3), round(five / boxes, 3)])
    header = ("five points of", "faces", "NME, label boxes", "NME, five points", "ratio")
    print(Table(f"{arguments.split}, refine={arguments.refine}", header, rows).markdown())
    print("weights:", detector.card.sha256)
    if arguments.json:
        arguments.json.write_text(json.dumps({"weights": detector.card.sha256, "rows": rows}))


if __name__ == "__main__":
    main()
