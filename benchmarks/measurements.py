"""How often the error bars of `hihlandmark.measures` hold, and how well blinks are found.

    python benchmarks/measurements.py --data DATA

On annotated faces the true values are those of the labels. 68 points: 300-W's `helen_test` under
the packaged calibration, which was fitted on other faces. 98 and 29 points: each face under a
calibration fitted on other images of the same split (5 folds).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hihlandmark import Detector, Face, measures
from hihlandmark.arrays import FloatArray, IndexArray
from hihlandmark.calibration.fit import FOLDS, fit, measure_points
from hihlandmark.crop import crop_matrix, cut_crop, rotate_points, transform_points
from hihlandmark.datasets import read_faces
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.measures import HEAD, HEAD_POINTS, Measurement
from hihlandmark.tables import Table
from hihlandmark.uncertainty import axes
from hihlandmark.video.blinks import find_blinks
from hihlandmark.weights.card import Calibration

LEVEL = 0.9
CHI2_3 = 6.251
"""90 % quantile of the chi-squared distribution with 3 degrees of freedom."""
AT_ONCE = 8
DISTANCE = 1200.0
"""Millimeters from the camera to a simulated head."""

DRAWS = 20
"""Simulated shapes of each face."""

MEASURES: dict[str, Callable[[list[Face]], Measurement]] = {
    "left eye openness": lambda faces: measures.eye_openness(faces).left,
    "right eye openness": lambda faces: measures.eye_openness(faces).right,
    "mouth openness": measures.mouth_openness,
    "mouth opening": measures.mouth_opening,
    "mouth width": measures.mouth_width,
    "inter-ocular distance": lambda faces: measures.distance(
        faces, "left_eye_outer_corner", "right_eye_outer_corner"
    ),
}


def predict(detector: Detector, faces: AnnotatedFaces) -> tuple[list[Face], FloatArray]:
    """Faces with raw covariances in pixels of their crops, and their true points (N, P, 2)."""
    size = detector.landmarker.crop_size
    box_map = detector.box_map("landmarks")
    crops, truth = [], []
    for face in faces:
        box = np.concatenate([face.points.min(axis=0), face.points.max(axis=0)])
        (square,) = box_map.squares(box)
        crops.append(cut_crop(face.load_image(), square, size))
        truth.append(transform_points(crop_matrix(square, size), face.points))
    found = []
    for start in range(0, len(crops), AT_ONCE):
        points, covariance, *_ = detector.predict_crops(np.stack(crops[start : start + AT_ONCE]))
        ones = np.ones(detector.layout.size)
        found += [
            Face(p, ones, c, np.zeros(4), 1.0, detector.layout)
            for p, c in zip(points, covariance, strict=True)
        ]
    return found, np.stack(truth)


def under(calibration: Calibration, faces: Sequence[Face]) -> list[Face]:
    """Faces with calibrated errors."""
    scale, correlation = calibration.covariance_scale, calibration.error_correlation
    return [
        replace(face, covariance=face.covariance * scale, correlation=correlation) for face in faces
    ]


def folds_by_image(faces: AnnotatedFaces) -> list[IndexArray]:
    """The indices of the faces in each fold; faces of one image are in one fold."""
    images = [face.name.rsplit("_f", 1)[0] for face in faces]
    names, image = np.unique(images, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    return [np.flatnonzero(np.isin(image, part)) for part in np.array_split(order, FOLDS)]


def coverage(faces: list[Face], truth: FloatArray) -> dict[str, dict[str, float]]:
    """Per measure, the share of true values in 90 % intervals, and the median of their std."""
    right = [replace(face, points=points) for face, points in zip(faces, truth, strict=True)]
    figures = {}
    for name, measure in MEASURES.items():
        found, true = measure(faces), measure(right).value
        low, high = found.interval(LEVEL)
        figures[name] = {
            "inside": round(100 * float(np.mean((low <= true) & (true <= high))), 1),
            "std": round(float(np.median(found.std)), 4),
            "error": round(float(np.median(np.abs(found.value - true)) / 0.6745), 4),
        }
    return figures


def annotated(data: Path) -> dict[str, dict[str, Any]]:
    """Coverage on the annotated splits."""
    results = {}
    for folder, split, size in (
        ("w300", "helen_test", 68),
        ("wflw98", "val", 98),
        ("cofw29", "val", 29),
    ):
        detector = Detector(size)
        read = read_faces(data / folder, split)
        faces, truth = predict(detector, read)
        if split == "helen_test":
            faces = under(detector.pipeline.calibration, faces)
        else:
            statistics = measure_points(detector, read)
            everything = np.arange(len(faces))
            for held_out in folds_by_image(read):
                own = fit(statistics.select(np.setdiff1d(everything, held_out)))
                for index, face in zip(
                    held_out, under(own, [faces[k] for k in held_out]), strict=True
                ):
                    faces[index] = face
        results[f"{folder} {split}"] = {"faces": len(faces), **coverage(faces, truth)}
        if size != 29:
            results[f"simulated, {size} points"] = simulated(faces)
    return results


def simulated(faces: list[Face], seed: int = 0) -> dict[str, Any]:
    """Coverage where found points are true points plus errors drawn from the model."""
    truth = np.repeat([face.points for face in faces], DRAWS, axis=0)
    moved = [
        replace(face, points=points)
        for number, face in enumerate(faces)
        for points in face.sample(DRAWS, seed + number)
    ]
    return {"faces": len(faces), **coverage(moved, truth)}


def poses(detector: Detector, errors: Sequence[Face], count: int = 300) -> dict[str, Any]:
    """Bias and coverage of head pose: projected generic heads with the errors of real faces."""
    rng = np.random.default_rng(0)
    layout = detector.layout
    index = [layout.point_names.index(name) for name in HEAD_POINTS]
    true, moved = [], []
    for number in range(count):
        yaw, pitch, roll = rng.uniform((-40, -25, -25), (40, 25, 25))
        like = errors[number % len(errors)]
        # The other points, which only tell the roll: an upright face, turned.
        scale = like.interocular / layout.interocular(layout.mean_shape)
        points = rotate_points(layout.mean_shape[None] * scale, np.array([np.deg2rad(roll)]))[0]
        points[index] = project(yaw, pitch, roll, like.interocular)
        face = replace(like, points=points)
        directions = axes(face.points[None], face.covariance[None], layout, face.correlation)[0]
        drawn = np.einsum("a,api->pi", rng.standard_normal(len(directions)), directions)
        moved.append(replace(face, points=points + drawn))
        exact = measures.head_pose(face, (1, 1), DISTANCE / 90 * like.interocular)
        true.append((exact.yaw.value, exact.pitch.value, exact.roll.value))
    found = [
        measures.head_pose(face, (1, 1), DISTANCE / 90 * errors[number % len(errors)].interocular)
        for number, face in enumerate(moved)
    ]
    values = [(pose.yaw.value, pose.pitch.value, pose.roll.value) for pose in found]
    error = np.array(values) - true
    covariance = np.stack([pose.covariance for pose in found])
    solved = np.linalg.solve(covariance, error[..., None])[..., 0]
    inside = (error * solved).sum(axis=1) <= CHI2_3
    return {
        "heads": count,
        "bias": np.round(error.mean(axis=0), 2).tolist(),
        "rms error": np.round(np.sqrt((error**2).mean(axis=0)), 2).tolist(),
        "inside": round(100 * float(inside.mean()), 1),
    }


def project(yaw: float, pitch: float, roll: float, interocular: float) -> FloatArray:
    """The points (K, 2) of the generic head, about 90 mm between its eyes, in the image center."""
    y, p, r = np.deg2rad((yaw, pitch, roll))
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    head = HEAD @ (about_z @ about_y @ about_x).T + (0, 0, DISTANCE)
    return np.asarray(head[:, :2] / head[:, 2:] * DISTANCE / 90 * interocular)


NOISE, DRIFT, WIDTH = 0.012, 0.02, (0.1, 0.35)
"""Of a simulated eye: standard deviation from frame to frame and of the slow drift, in openness
(the clips have 0.002 to 0.010 with 98 points, up to 0.015 with 68); seconds of a blink."""
SHUT = 0.45
"""Share of the baseline that a shut eye keeps, as measured on clips with 98 points."""
PARTIAL = (0.5, 0.8)
"""How far a partial blink closes."""


def simulate_blinks(seed: int, fps: float = 30.0, seconds: float = 60.0) -> tuple[Any, ...]:
    """Times (T,), openness (T, 2), and the times of the blinks; 30 % of them are partial."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * fps)) / fps
    centers = np.cumsum(rng.uniform(1.0, 6.0, 40))
    centers = centers[centers < seconds - 1]
    open_eyes = rng.uniform(0.24, 0.42)
    factor = np.ones_like(times)
    for center in centers:
        amount = rng.uniform(*PARTIAL) if rng.random() < 0.3 else 1.0
        half = rng.uniform(*WIDTH) / 2
        closing = np.exp(-(((times - center) / half) ** 4) * np.log(2))
        factor = np.minimum(factor, 1 - (1 - SHUT) * amount * closing)
    knots = np.arange(0, seconds + 2, 1.0)
    drift = [np.interp(times, knots, rng.normal(0, DRIFT, len(knots))) for _ in range(2)]
    noise = rng.normal(0, NOISE, (len(times), 2))
    return times, (open_eyes + np.stack(drift, axis=1)) * factor[:, None] + noise, centers


def blink_figures(traces: int = 50) -> dict[str, Any]:
    """Precision, recall and F1 of blinks in simulated traces; found within 0.2 s counts."""
    hits = found_count = true_count = 0
    for seed in range(traces):
        times, value, centers = simulate_blinks(seed)
        report = find_blinks(times, Measurement(value, np.full(value.shape, 0.04)))
        lowest = np.array([blink.lowest_time for blink in report.blinks])
        if len(lowest):
            hits += int((np.abs(centers[:, None] - lowest).min(axis=1) <= 0.2).sum())
        found_count += len(lowest)
        true_count += len(centers)
    precision, recall = hits / max(found_count, 1), hits / true_count
    f1 = 2 * hits / (found_count + true_count)
    figures = {"precision": precision, "recall": recall, "f1": f1}
    return {"blinks": true_count, **{name: round(value, 3) for name, value in figures.items()}}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Measure the error bars of measurements.")
    parser.add_argument("--data", type=Path, required=True, help="folder with w300, wflw98, cofw29")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    results: dict[str, Any] = annotated(arguments.data)
    headers = ("", "faces", *MEASURES)
    rows = [
        (name, found["faces"], *(found[measure]["inside"] for measure in MEASURES))
        for name, found in results.items()
    ]
    Table("true values in 90 % intervals, per cent", headers, rows).print()
    detector = Detector(68)
    faces, _ = predict(detector, read_faces(arguments.data / "w300", "helen_test"))
    results["head pose"] = poses(detector, under(detector.pipeline.calibration, faces))
    results["blinks"] = blink_figures()
    print("head pose, simulated:", results["head pose"])
    print("blinks, simulated:", results["blinks"])
    print("weights:", detector.card.sha256)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2), "utf-8")


if __name__ == "__main__":
    main()
