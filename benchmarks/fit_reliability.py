"""Fit `Face.reliability` of weights, and measure it on other faces.

    python benchmarks/fit_reliability.py --data DATA [--write weights/hih-small.json]

Faces with a known error: 300-W's faces held out of training, and the validation splits of WFLW and
COFW, as they are and damaged (blur, few pixels, covered, cut, turned, wrong boxes). What is no
human face: drawings, parts of images of packages, and false detections in scenes. scikit-image's
cat takes no part in the fit: a test checks it. Figures on faces of a validation split, and on
what was made from them, come from a fit to the faces of other images (5 folds).
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hihlandmark import Detector, Face, load_image
from hihlandmark.arrays import FloatArray, Image
from hihlandmark.calibration.logistic import fit_logistic
from hihlandmark.calibration.metrics import expected_calibration_error
from hihlandmark.datasets import read_faces
from hihlandmark.errors import ConfigurationError, HihlandmarkError
from hihlandmark.face_detection import MTCNNFaceDetector, overlaps
from hihlandmark.layouts import get_conversion, get_layout
from hihlandmark.reliability import LARGEST, MIN_RELIABILITY, RELIABLE_ERROR, Reliability
from hihlandmark.weights.card import ModelCard
from hihlandmark.writing import write_atomically

HELD_OUT = 100
"""Faces of 300-W train that the packaged weights were not trained on."""
SETS = (("w300", "train"), ("wflw98", "val"), ("cofw29", "val"))
DAMAGES = 4
"""Damaged copies of each face."""
DRAWINGS, PATCHES = 150, 150
"""Numbers of samples of what is no human face."""
NATURAL_WEIGHT, DRAWING_WEIGHT = 3.0, 2.0
RIDGE = 3e-3
"""On standardized features. Of 1e-4 to 3e-2, it gives cross-fitted faces the highest likelihood."""
FOLDS = 5
FAILED = 0.10
"""Mean error in inter-ocular distances above which a face counts as failed."""
SPLITS = {98: "wflw98", 68: "w300", 29: "cofw29"}
"""By number of points, the set of `SETS` whose faces the figures are of."""
PACKAGE_IMAGES = (
    "brick", "cell", "clock", "coffee", "coins", "grass", "gravel", "horse", "hubble_deep_field",
    "immunohistochemistry", "moon", "page", "retina", "rocket", "text",
)  # fmt: skip
"""Of `skimage.data`, without people and without the cat."""


@dataclass(frozen=True)
class Sample:
    """A face in an image, or none.

    ``group``: samples of one group are in one fold. ``points``: (P, 2) labels in ``labels``, the
    name of their layout; None: no human face.
    """

    kind: str
    group: str
    image: Image
    box: FloatArray
    box_kind: str
    points: FloatArray | None = None
    labels: str = ""


# Faces with a known error


def blurred(image: Image, points: FloatArray, rng: Any) -> tuple[Image, FloatArray]:
    """Gaussian blur of 2 to 12 % of the face's side."""
    side = float(np.ptp(points, axis=0).max())
    return cv2.GaussianBlur(image, (0, 0), side * rng.uniform(0.02, 0.12)), points


def shrunk(image: Image, points: FloatArray, rng: Any) -> tuple[Image, FloatArray]:
    """A face of 8 to 32 pixels."""
    scale = rng.uniform(8, 32) / float(np.ptp(points, axis=0).max())
    size = [max(8, round(side * scale)) for side in image.shape[1::-1]]
    factors = np.array(size) / image.shape[1::-1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), (points + 0.5) * factors - 0.5


def covered(image: Image, points: FloatArray, rng: Any) -> tuple[Image, FloatArray]:
    """A noisy ellipse over a part of the face, 0.4 to 1 of its side wide."""
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    center = low + rng.uniform(0.15, 0.85, 2) * extent
    axes = extent.max() * rng.uniform(0.2, 0.5, 2)
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.ellipse(mask, (center.tolist(), (2 * axes).tolist(), rng.uniform(0, 180)), 255, -1)
    texture = rng.uniform(0, 255, 3) + rng.normal(0, rng.uniform(0, 40), image.shape)
    return np.where(mask[..., None] > 0, texture.clip(0, 255), image).astype(np.uint8), points


def cut(image: Image, points: FloatArray, rng: Any) -> tuple[Image, FloatArray]:
    """The image ends within the face, of which 30 to 70 % remain."""
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    place = low + rng.uniform(0.3, 0.7) * extent
    axis, keep_low = rng.integers(2), rng.random() < 0.5
    at = int(np.clip(round(place[axis]), 8, image.shape[1 - axis] - 8))
    part = slice(0, at) if keep_low else slice(at, None)
    kept = image[:, part] if axis == 0 else image[part]
    moved = points.copy()
    moved[:, axis] -= 0 if keep_low else at
    return np.ascontiguousarray(kept), moved


def turned(image: Image, points: FloatArray, rng: Any) -> tuple[Image, FloatArray]:
    """Rotated by 40 to 180 degrees."""
    center = (np.array(image.shape[1::-1]) - 1) / 2
    angle = rng.uniform(40, 180) * rng.choice((-1, 1))
    matrix = cv2.getRotationMatrix2D(center.tolist(), angle, 1.0)
    return cv2.warpAffine(image, matrix, image.shape[1::-1]), points @ matrix[:, :2].T + matrix[
        :, 2
    ]


def noisy(image: Image, points: FloatArray, rng: Any) -> tuple[Image, FloatArray]:
    """Dark, with noise."""
    dark = image * rng.uniform(0.1, 0.5) + rng.normal(0, rng.uniform(10, 60), image.shape)
    return dark.clip(0, 255).astype(np.uint8), points


def unchanged(image: Image, points: FloatArray, rng: Any) -> tuple[Image, FloatArray]:
    """As it is."""
    return image, points


Damage = Callable[[Image, FloatArray, Any], tuple[Image, FloatArray]]
DAMAGE: tuple[Damage, ...] = (blurred, shrunk, covered, cut, turned, noisy)


def jittered(box: FloatArray, shift: float, scale: float, rng: Any) -> FloatArray:
    """A box (4,) moved by up to ``shift`` of its sides, and scaled by up to a factor ``scale``."""
    center, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    center = center + rng.uniform(-shift, shift, 2) * sides
    half = sides / 2 * np.exp(rng.uniform(-1, 1) * np.log(scale))
    return np.concatenate([center - half, center + half])


def annotated(data: Path, rng: Any) -> Iterator[Sample]:
    """The faces of `SETS`, each as it is and damaged."""
    for folder, split in SETS:
        faces = read_faces(data / folder, split)
        if folder == "w300":
            _, faces = faces.split(HELD_OUT)
        for face in faces:
            image, group = face.load_image(), f"{folder}/{face.name.rsplit('_f', 1)[0]}"
            changes: list[Damage] = [unchanged, unchanged]  # the second with a wrong box
            changes += [DAMAGE[i] for i in rng.permutation(len(DAMAGE))[:DAMAGES]]
            for number, change in enumerate(changes):
                changed, points = change(image, face.points, rng)
                box = np.concatenate([points.min(axis=0), points.max(axis=0)])
                box = jittered(box, *((0.6, 2.2) if number == 1 else (0.05, 1.1)), rng)
                kind = "face" if number == 0 else "wrong box" if number == 1 else change.__name__
                yield Sample(
                    f"{folder} {kind}", group, changed, box, f"landmarks:{faces.layout}",
                    points, faces.layout,
                )  # fmt: skip


# What is no human face


def draw_face(rng: Any, size: int = 256) -> tuple[Image, FloatArray]:
    """A cartoon face on a plain or noisy background, and the box of its head."""
    image = np.empty((size, size, 3), np.uint8)
    image[:] = rng.integers(0, 256, 3)
    line = rng.integers(0, 256, 3).tolist() if rng.random() < 0.5 else [0, 0, 0]
    skin = rng.integers(0, 256, 3).tolist()
    if rng.random() < 0.5:
        skin = [[255, 220, 60], [255, 205, 170], [120, 80, 50], [255, 255, 255]][rng.integers(4)]
    width = int(rng.integers(1, 8))
    center = size / 2 + rng.uniform(-0.08, 0.08, 2) * size
    head = size * rng.uniform(0.2, 0.36) * np.array([1, rng.uniform(0.9, 1.35)])

    def at(x: float, y: float) -> tuple[int, int]:
        px, py = center + np.array([x, y]) * head
        return int(px), int(py)

    def ellipse(x: float, y: float, rx: float, ry: float, color: Any, thickness: int) -> None:
        axes = max(1, int(rx * head[0])), max(1, int(ry * head[1]))
        cv2.ellipse(image, at(x, y), axes, 0, 0, 360, color, thickness, cv2.LINE_AA)

    if rng.random() < 0.5:  # hair or ears
        ellipse(0, -0.3, 1.15, rng.uniform(0.8, 1.1), rng.integers(0, 256, 3).tolist(), -1)
    if rng.random() < 0.8:
        ellipse(0, 0, 1, 1, skin, -1)
    ellipse(0, 0, 1, 1, line, width)
    eye_x, eye_y = rng.uniform(0.28, 0.5), rng.uniform(-0.4, 0.05)
    eye, style = rng.uniform(0.06, 0.24), rng.integers(3)
    for side in (-1, 1):
        if style == 0:
            ellipse(side * eye_x, eye_y, eye / 2, eye / 2, line, -1)
        else:
            ellipse(side * eye_x, eye_y, eye, eye * rng.uniform(0.5, 1.4), [255, 255, 255], -1)
            ellipse(side * eye_x, eye_y, eye, eye, line, max(1, width // 2))
            ellipse(side * eye_x, eye_y, eye / 2, eye / 2, rng.integers(0, 120, 3).tolist(), -1)
        if rng.random() < 0.6:
            brow = eye_y - eye - rng.uniform(0.05, 0.2)
            ends = at(side * (eye_x - eye), brow), at(side * (eye_x + eye), brow + 0.05)
            cv2.line(image, *ends, line, width, cv2.LINE_AA)
    if rng.random() < 0.7:
        nose = [at(0, 0), at(rng.uniform(-0.15, 0.15), 0.25), at(0.05, 0.28)]
        cv2.polylines(image, [np.array(nose, np.int32)], False, line, width, cv2.LINE_AA)
    mouth = rng.uniform(0.2, 0.6) * head[0], rng.uniform(0.02, 0.3) * head[1]
    start, end = (0, 180) if rng.random() < 0.6 else (180, 360) if rng.random() < 0.4 else (0, 360)
    axes, fill = (max(1, int(mouth[0])), max(1, int(mouth[1]))), -1 if rng.random() < 0.3 else width
    cv2.ellipse(image, at(0, 0.45), axes, 0, start, end, line, fill, cv2.LINE_AA)
    if rng.random() < 0.4:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 3)), np.uint8)
    if rng.random() < 0.4:
        noise = rng.normal(0, rng.uniform(2, 25), image.shape)
        image = (image + noise).clip(0, 255).astype(np.uint8)
    return image, np.concatenate([center - head, center + head])


def no_faces(data: Path, rng: Any) -> Iterator[Sample]:
    """Drawings, parts of images of packages, animals, and false detections in scenes."""
    import skimage.data

    for number in range(DRAWINGS):
        image, box = draw_face(rng)
        yield Sample("drawing", f"drawing {number}", image, jittered(box, 0.1, 1.2, rng), "mtcnn")
    images = [load_image(np.asarray(getattr(skimage.data, name)())) for name in PACKAGE_IMAGES]
    for number in range(PATCHES):
        image = images[number % len(images)]
        side = rng.uniform(0.15, 0.8) * min(image.shape[:2])
        corner = rng.uniform(0, np.array(image.shape[1::-1]) - side)
        box = np.concatenate([corner, corner + side])
        yield Sample("patch", PACKAGE_IMAGES[number % len(images)], image, box, "mtcnn")
    labeled = {
        row["image"]: np.array(row["boxes"])
        for row in map(json.loads, (data / "scenes/boxes.jsonl").read_text("utf-8").splitlines())
    }
    search = MTCNNFaceDetector("cpu", min_score=0.3)
    for name, boxes in labeled.items():
        image = load_image(data / "scenes" / name)
        found = search.detect([image])[0].boxes
        free = [box for box in found if overlaps(boxes, box).max() < 0.05]
        side = np.exp(rng.uniform(np.log(24), np.log(200), 2))
        corner = rng.uniform(0, 1, (2, 2)) * (np.array(image.shape[1::-1]) - side[:, None]).clip(1)
        anywhere = np.concatenate([corner, corner + side[:, None]], axis=1)
        random = [box for box in anywhere if overlaps(boxes, box).max() < 0.02]
        for kind, each in (("false detection", free[:5]), ("background", random)):
            for box in each:
                yield Sample(kind, name, image, np.asarray(box, float), "mtcnn")


# Fitting


class Recorder:
    """Stands in for the `Reliability` of a pipeline, and keeps the features of the last face."""

    features: FloatArray

    def probability(self, features: FloatArray) -> FloatArray:
        """Keep the features (N, K)."""
        self.features = features
        return np.zeros(len(features))


@dataclass(frozen=True)
class Measured:
    """Features (N, K), errors (N,) (NaN: no human face), kinds and groups (N,) of samples."""

    features: FloatArray
    errors: FloatArray
    kinds: Any
    groups: Any

    @property
    def is_good(self) -> Any:
        """(N,): whether the error is known, and below `RELIABLE_ERROR`."""
        return self.errors < RELIABLE_ERROR


def measure(detector: Detector, samples: Iterator[Sample]) -> Measured:
    """Run a detector on samples. Those that share no points with its layout are left out."""
    recorder = Recorder()
    calibration = detector.pipeline.calibration.model_copy(update={"reliability": recorder})
    detector.pipeline = replace(detector.pipeline, calibration=calibration)
    rows = []
    for sample in samples:
        try:
            (face,) = detector.predict(sample.image, boxes=[sample.box], box_kind=sample.box_kind)
            error = np.nan if sample.points is None else error_of(face, sample)
        except HihlandmarkError:  # such as a layout without conversion, or a box off the image
            continue
        rows.append((recorder.features[-1], error, sample.kind, sample.group))
    return Measured(*map(np.array, zip(*rows, strict=True)))


def error_of(face: Face, sample: Sample) -> float:
    """The mean error in inter-ocular distances, over the points that both layouts share."""
    assert sample.points is not None
    labels = get_layout(sample.labels)
    points, found = sample.points, face.points
    try:
        conversion = get_conversion(labels, face.layout)
        points = conversion(points)
    except ConfigurationError:
        conversion = get_conversion(face.layout, labels)
        found = conversion(found)
    errors = np.linalg.norm(found - points, axis=1)[conversion.exact]
    return float(errors.mean() / labels.interocular(sample.points))


def weights_of(measured: Measured, own: str) -> FloatArray:
    """Faces as they are count more, as they are most of what is predicted; so do drawings."""
    weights = np.ones(len(measured.kinds))
    weights[measured.kinds == own] = NATURAL_WEIGHT
    weights[measured.kinds == "drawing"] = DRAWING_WEIGHT
    return weights


def fit(features: FloatArray, good: Any, weights: FloatArray) -> Reliability:
    """Maximize the weighted likelihood."""
    mean, std = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    standardized = ((features - mean) / std).clip(-LARGEST, LARGEST)
    inputs = np.column_stack([np.ones(len(features)), standardized])
    ridge = np.array([0.0, *[RIDGE] * len(mean)])
    found = np.round(fit_logistic(inputs, np.asarray(good, np.float64), ridge, weights), 4)
    return Reliability(
        mean=tuple(np.round(mean, 4).tolist()),
        std=tuple(np.round(std, 4).clip(1e-4).tolist()),
        weights=tuple(found[1:].tolist()),
        bias=float(found[0]),
    )


def cross_fitted(measured: Measured, weights: FloatArray) -> FloatArray:
    """The reliability (N,) of each sample by a fit to the other folds."""
    names, group = np.unique(measured.groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names))[group] % FOLDS
    found = np.zeros(len(fold))
    for held_out in range(FOLDS):
        rest, own = fold != held_out, fold == held_out
        model = fit(measured.features[rest], measured.is_good[rest], weights[rest])
        found[own] = model.probability(measured.features[own])
    return found


def figures(measured: Measured, found: FloatArray, own: str) -> dict[str, Any]:
    """The bars: failures below the threshold that keeps 95 % of the good faces, and calibration."""
    good, is_face = measured.is_good, np.isfinite(measured.errors)
    natural = measured.kinds == own
    failed = natural & (measured.errors > FAILED)
    threshold = float(np.quantile(found[natural & good], 0.05))
    refused = {
        str(kind): percent(found[measured.kinds == kind] < MIN_RELIABILITY)
        for kind in np.unique(measured.kinds[~is_face])
    }
    return {
        "split": own,
        "faces": int(natural.sum()),
        "failed": int(failed.sum()),
        "threshold that keeps 95 %": round(threshold, 3),
        "failed below it %": percent(found[failed] < threshold),
        "ECE % of the split": ece(found[natural], good[natural]),
        "ECE % of a calibrated model": ece_of_chance(found[natural]),
        "ECE % of all samples": ece(found, good),
        "ECE % of all faces": ece(found[is_face], good[is_face]),
        f"good kept at {MIN_RELIABILITY} %": percent(found[natural & good] >= MIN_RELIABILITY),
        f"failed refused at {MIN_RELIABILITY} %": percent(found[failed] < MIN_RELIABILITY),
        "no human face, refused %": refused,
    }


def percent(outcomes: Any) -> float | None:
    """The share of true outcomes (N,); None of none."""
    return round(100 * float(np.mean(outcomes)), 1) if len(outcomes) else None


def ece(found: FloatArray, good: Any) -> float:
    """The expected calibration error in percent."""
    return round(100 * expected_calibration_error(found, good), 1)


def ece_of_chance(found: FloatArray) -> float:
    """The mean calibration error where outcomes have exactly the probabilities (N,), in percent.

    Few faces in a bin differ from its probability by chance.
    """
    rng = np.random.default_rng(0)
    return float(np.mean([ece(found, rng.random(len(found)) < found) for _ in range(200)]).round(1))


def fit_layout(measured: Measured, size: int) -> tuple[Reliability, dict[str, Any]]:
    """The fit to all samples, and the figures of the cross-fitted reliabilities."""
    own = f"{SPLITS[size]} face"
    weights = weights_of(measured, own)
    found = figures(measured, cross_fitted(measured, weights), own)
    return fit(measured.features, measured.is_good, weights), found


def main() -> None:
    """Fit all layouts and print the figures."""
    parser = argparse.ArgumentParser(description="Fit Face.reliability.")
    parser.add_argument("--data", type=Path, required=True, help="w300, wflw98, cofw29, scenes")
    parser.add_argument("--write", type=Path, help="card into which the models are written")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # on boxes that hold no face
    models = {}
    for size in SPLITS:
        detector = Detector(size, weights=arguments.write)
        samples = chain(
            annotated(arguments.data, np.random.default_rng(0)),
            no_faces(arguments.data, np.random.default_rng(1)),
        )
        models[detector.layout.name], found = fit_layout(measure(detector, samples), size)
        print(size, json.dumps(found, indent=2))
    if arguments.write:
        write(arguments.write, models)


def write(path: Path, models: dict[str, Reliability]) -> None:
    """Put the models into the calibrations of a card."""
    card = ModelCard.from_json(path.read_text("utf-8"))
    calibration = {
        name: each.model_copy(update={"reliability": models.get(name, each.reliability)})
        for name, each in card.calibration.items()
    }
    text = card.model_copy(update={"calibration": calibration}).to_json()
    write_atomically(path, text.encode())


if __name__ == "__main__":
    main()
