"""How well weights of the mesh's 478 points agree with meshes and with manual points, held back.

    python benchmarks/mesh.py --data DIR --json OUT [--weights hih-open]

DIR is the data folder of the configuration ``hih-open``. Errors are in per cent of the distance of
the outer eye corners, on crops around the labels, without refinement.

- "mesh": the images that the configuration holds back, with a disagreement below 4 %: all vertices
  against the mesh of MediaPipe, which is a machine's label.
- "manual": the images of the split val of the London and Canada sets: points that the manual
  templates and the mesh share.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from hihlandmark import Detector
from hihlandmark.arrays import FloatArray
from hihlandmark.crop import crop_matrix, cut_crop, invert, tight_boxes, transform_points
from hihlandmark.datasets import read_faces
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.layouts import MESH478
from hihlandmark.training.config import read_configuration
from hihlandmark.training.data import read_face_set

# Point of the manual template: vertex of the mesh.
SHARED = {
    "pupils": {0: 468, 1: 473},
    "eye corners": {18: 33, 22: 133, 23: 362, 27: 263},
    "mouth corners": {87: 61, 93: 291},
    "lids": {20: 159, 25: 386, 29: 145, 32: 374},
    "lips": {90: 0, 96: 13, 101: 14, 106: 17},
}


def mesh_points(detector: Detector, faces: AnnotatedFaces, boxed: list[int] | None) -> FloatArray:
    """(N, 478, 2) in pixels of the images, on crops around the points ``boxed`` of the labels."""
    box_map = detector.box_map("landmarks" if boxed is None else "landmarks:W300_68")
    found = []
    for face in faces:
        points = face.points if boxed is None else face.points[boxed]
        square = box_map.squares(tight_boxes(points))[0]
        size = detector.landmarker.crop_size
        crop = cut_crop(face.load_image(), square, size)
        result = detector.predict_crops(crop[None]).points[0]
        found.append(transform_points(invert(crop_matrix(square, size)), result))
    return np.array(found)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--weights", default="hih-open")
    arguments = parser.parse_args()
    configuration = read_configuration("hih-open")
    detector = Detector(478, weights=arguments.weights, refine=0)
    report: dict[str, object] = {"weights": detector.card.sha256}

    (held,) = configuration.validation.sets
    faces = read_face_set(arguments.data, held, configuration.mesh)
    truth = np.array([face.points for face in faces])
    errors = np.linalg.norm(mesh_points(detector, faces, None) - truth, axis=-1)
    errors *= 100 / MESH478.interocular(truth)[:, None]
    report["mesh"] = {"faces": len(faces), "all": errors.mean()} | {
        part: errors[:, list(vertices)].mean() for part, vertices in MESH478.parts.items()
    }

    manual = read_faces(arguments.data / "london189", "val")
    chosen = [face for face in manual if "3dsk" not in face.name]
    predicted = mesh_points(
        detector, AnnotatedFaces("", "", manual.mirror, chosen), [*range(18, 134)]
    )
    truth = np.array([face.points for face in chosen])
    unit = np.linalg.norm(truth[:, 18] - truth[:, 27], axis=-1)[:, None]
    report["manual"] = {"faces": len(chosen)} | {
        name: (
            np.linalg.norm(predicted[:, [*table.values()]] - truth[:, [*table]], axis=-1) / unit
        ).mean()
        * 100
        for name, table in SHARED.items()
    }
    print(json.dumps(report, indent=1))
    arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
