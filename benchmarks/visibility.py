"""Measures `Face.visibility` on faces that neither training nor calibration has seen.

    python benchmarks/visibility.py --data DATA [--weights WEIGHTS | --write CARD]

Pasted occluders give exact labels: each face is measured covered and uncovered, in crops around its
annotated points. The area under the ROC curve compares covered and uncovered points of the same
landmark; points that are half covered are left out, and so are uncovered ones where something may
hide them already (faces with WFLW's attributes "occlusion" or "pose", points marked as hidden in
COFW). Then come points that annotators marked as hidden (COFW), and faces with and without WFLW's
attribute "occlusion", by their mean visibility.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hihlandmark import Detector
from hihlandmark.arrays import BoolArray, FloatArray, Image
from hihlandmark.calibration.metrics import (
    area_under_roc,
    bootstrap_area_under_roc,
    expected_calibration_error,
)
from hihlandmark.crop import crop_matrix, cut_crop, tight_boxes, transform_points
from hihlandmark.datasets import AnnotatedFaces, read_faces
from hihlandmark.datasets.augmentation import generator
from hihlandmark.datasets.faces import AnnotatedFace
from hihlandmark.datasets.occluders import SHAPES, cover, covered_at
from hihlandmark.layouts import Layout
from hihlandmark.runtimes.base import CropLandmarks
from hihlandmark.weights.card import Figure, ModelCard
from hihlandmark.writing import write_atomically

SPLITS = (("w300", "helen_test"), ("wflw98", "val"), ("cofw29", "val"))
CROPS = 600
"""Covered crops of each split, at least one of each face; as many are uncovered."""
BATCH_SIZE = 16
MEAN = "AUC, mean over landmarks"
METRIC = "visibility: AUC of points under pasted occluders, mean over landmarks"
"""Metric of the figures in a card."""


class Measured(NamedTuple):
    """What was found on N crops.

    Visibilities and scores (N, P), how much is covered (N, P), the number of the face (N,), and the
    occluder (N,), "" of uncovered crops.
    """

    visibility: FloatArray
    scores: FloatArray
    covered: FloatArray
    face: Any
    kind: Any


class Crop(NamedTuple):
    """A crop (S, S, 3), how much of its points (P,) is covered, and by what."""

    image: Image
    covered: FloatArray
    face: int
    kind: str


def crops_of(faces: AnnotatedFaces, detector: Detector) -> Iterator[Crop]:
    """Each face covered and uncovered, in turn, with textures of other faces of the split."""
    size, layout = detector.landmarker.crop_size, detector.layout
    box_map = detector.box_map(f"landmarks:{faces.layout}")

    def cut(index: int) -> tuple[Image, FloatArray]:
        (square,) = box_map.squares(tight_boxes(faces[index].points))
        matrix = crop_matrix(square, size)
        return (
            cut_crop(faces[index].load_image(), square, size),
            transform_points(matrix, faces[index].points),
        )

    for number in range(max(CROPS, len(faces))):
        rng = generator(0, number)
        index = number % len(faces)
        image, points = cut(index)
        visible = is_visible(faces[index])
        yield Crop(image, np.where(visible, 0, np.nan), index, "")
        other, _ = cut(int(rng.integers(len(faces))))
        # One occluder at a time, so that its kind can be named.
        kind = list(SHAPES)[number % len(SHAPES)]
        image, alpha = cover(image, other, rng, eyes_of(points, layout), (kind,))
        covered = covered_at(alpha, points)
        yield Crop(image, np.where(visible | (covered > 0.9), covered, np.nan), index, kind)


def is_visible(face: AnnotatedFace) -> BoolArray:
    """(P,): whether a point is known to be visible in the image as it is."""
    if face.visible is not None:
        return face.visible
    return np.full(len(face.points), not face.subsets & {"occlusion", "pose"})


def eyes_of(points: FloatArray, layout: Layout) -> FloatArray:
    """The left and the right eye (2, 2) of points (P, 2)."""
    return np.stack([points[list(eye)].mean(axis=0) for eye in layout.pupils])


def probabilities(detector: Detector, found: CropLandmarks) -> tuple[FloatArray, FloatArray]:
    """Calibrated visibilities and scores (N, P) of crops."""
    calibration = detector.pipeline.calibration
    interocular = detector.layout.interocular(found.points)
    return (
        calibration.visibilities(found.visibility, found.mass.shape),
        calibration.scores(found.covariance, found.mass, interocular),
    )


def measure(detector: Detector, faces: AnnotatedFaces) -> Measured:
    """Run the detector on the crops of a split."""
    rows: list[tuple[Any, ...]] = []
    batch: list[Crop] = []

    def run() -> None:
        found = detector.predict_crops(np.stack([crop.image for crop in batch]))
        for crop, *values in zip(batch, *probabilities(detector, found), strict=True):
            rows.append((*values, crop.covered, crop.face, crop.kind))
        batch.clear()

    for crop in crops_of(faces, detector):
        batch.append(crop)
        if len(batch) == BATCH_SIZE:
            run()
    if batch:
        run()
    return Measured(*map(np.array, zip(*rows, strict=True)))


def pasted_figures(measured: Measured) -> dict[str, Any]:
    """The areas under the ROC curve for pasted occluders, and the calibration error."""
    visibility, covered = measured.visibility, measured.covered
    plain = (covered < 0.1) | (covered > 0.9)  # neither where it is unknown
    hidden = covered > 0.5
    areas = np.array(
        [
            area_under_roc(-visibility[own, point], hidden[own, point])
            for point, own in enumerate(plain.T)
        ]
    )
    landmark = np.broadcast_to(np.arange(plain.shape[1]), plain.shape)
    by_kind = {}
    for kind in SHAPES:
        own = plain & np.isin(measured.kind, ("", kind))[:, None]
        if hidden[own].any():
            area = area_under_roc(-visibility[own], hidden[own], landmark[own])
            by_kind[kind] = round(area, 4)
    by_score = area_under_roc(-measured.scores[plain], hidden[plain], landmark[plain])
    return {
        "crops": len(visibility),
        "points hidden %": round(100 * float(hidden[plain].mean()), 1),
        MEAN: round(float(np.nanmean(areas)), 4),
        "AUC, lowest landmark": round(float(np.nanmin(areas)), 4),
        "lowest landmark": int(np.nanargmin(areas)),
        "AUC by the score": round(by_score, 4),
        "ECE %": round(100 * expected_calibration_error(visibility[plain], ~hidden[plain]), 2),
        "uncovered points above 0.5 %": round(
            100 * float((visibility[plain & ~hidden] > 0.5).mean()), 1
        ),
        "covered points below 0.5 %": round(
            100 * float((visibility[plain & hidden] < 0.5).mean()), 1
        ),
        "AUC by occluder": by_kind,
    }


def natural_figures(measured: Measured, faces: AnnotatedFaces) -> dict[str, Any]:
    """The figures of uncovered faces: annotated hidden points, and occluded faces."""
    _, first = np.unique(np.where(measured.kind == "", measured.face, -1), return_index=True)
    visibility = measured.visibility[first[-len(faces) :]]
    found: dict[str, Any] = {}
    if faces[0].visible is not None:
        hidden = np.stack([~face.visible for face in faces if face.visible is not None])
        face, landmark = np.indices(hidden.shape)
        for name, strata in (("AUC", None), ("AUC within landmarks", landmark.ravel())):
            values = -visibility.ravel(), hidden.ravel()
            area = area_under_roc(*values, strata)
            low, high = bootstrap_area_under_roc(*values, face.ravel(), strata)
            found[name] = f"{area:.3f} (95 % {low:.3f} to {high:.3f})"
        found["hidden points"] = int(hidden.sum())
    occluded = np.array(["occlusion" in face.subsets for face in faces])
    if occluded.any():
        means = visibility.mean(axis=1)
        found["mean visibility, occluded faces"] = round(float(means[occluded].mean()), 3)
        found["mean visibility, other faces"] = round(float(means[~occluded].mean()), 3)
        low, high = bootstrap_area_under_roc(-means, occluded, np.arange(len(means)))
        area = area_under_roc(-means, occluded)
        found["AUC by face"] = f"{area:.3f} (95 % {low:.3f} to {high:.3f})"
    return found


def main() -> None:
    """Measure all splits and print the figures."""
    parser = argparse.ArgumentParser(description="Measure Face.visibility.")
    parser.add_argument("--data", type=Path, required=True, help="w300, wflw98, cofw29")
    parser.add_argument("--weights", type=Path, help="default: the packaged ones")
    parser.add_argument(
        "--write", type=Path, help="card of the weights, into which the figures are written"
    )
    arguments = parser.parse_args()
    if arguments.write and arguments.weights:
        parser.error("--write measures the weights of its card: omit --weights")
    written = []
    for folder, split in SPLITS:
        faces = read_faces(arguments.data / folder, split)
        detector = Detector(faces.layout, weights=arguments.write or arguments.weights)
        measured = measure(detector, faces)
        figures: dict[str, Any] = {
            "weights": detector.card.sha256,
            "pasted occluders": pasted_figures(measured),
        }
        if natural := natural_figures(measured, faces):
            figures["as they are"] = natural
        print(f"{folder} {split}", json.dumps(figures, indent=2), flush=True)
        written.append(
            Figure(
                split=f"{folder} {split}",
                points=detector.layout.size,
                metric=METRIC,
                value=figures["pasted occluders"][MEAN],
                command="python benchmarks/visibility.py --data DATA",
            )
        )
    if arguments.write:
        card = ModelCard.from_json(arguments.write.read_text("utf-8"))
        others = tuple(each for each in card.figures if each.metric != METRIC)
        card = card.model_copy(update={"figures": (*others, *written)})
        write_atomically(arguments.write, card.to_json().encode())


if __name__ == "__main__":
    main()
