"""How far predicted landmarks are from annotated ones: NME, FR, AUC, CED."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hihlandmark.calibration import NEAR
from hihlandmark.crop import tight_boxes
from hihlandmark.errors import ConfigurationError
from hihlandmark.face import Face

if TYPE_CHECKING:
    from hihlandmark.detector import Detector

FloatArray = NDArray[np.floating]
BoxSource = Literal["landmarks", "detected"]


def normalised_errors(
    predicted: FloatArray, truth: FloatArray, pair: tuple[int, int]
) -> FloatArray:
    """Distances (..., P) of points (..., P, 2), in distances of a pair of true points."""
    distance = np.linalg.norm(predicted - truth, axis=-1)
    unit = np.linalg.norm(truth[..., pair[0], :] - truth[..., pair[1], :], axis=-1)
    return distance / unit[..., None]


def failure_rate(errors: FloatArray, threshold: float = 0.10) -> float:
    """Share (0..1) of faces whose mean error (N,) is above the threshold; NaN is a failure."""
    return float(1 - np.mean(errors <= threshold))


def cumulative_errors(errors: FloatArray, threshold: float = 0.10, steps: int = 1000) -> FloatArray:
    """The CED curve: (steps + 1, 2) of error and share of faces (N,) with at most that error."""
    grid = np.linspace(0, threshold, steps + 1)
    below = np.searchsorted(np.sort(errors), grid, side="right") / max(len(errors), 1)
    return np.stack([grid, below], axis=-1)


def area_under_curve(errors: FloatArray, threshold: float = 0.10) -> float:
    """Area under the CED curve up to the threshold, as a share (0..1) of the whole rectangle."""
    curve = cumulative_errors(errors, threshold)
    return float(np.trapezoid(curve[:, 1], curve[:, 0]) / threshold)


@dataclass(frozen=True)
class Evaluation:
    """Errors on one split.

    ``errors``: (N, P) in inter-ocular distances, NaN in the rows of faces that were not found;
    ``scores``: (N, P) in 0..1, NaN likewise.
    """

    layout: str
    errors: FloatArray
    scores: FloatArray

    @property
    def missed(self) -> int:
        """Faces that the face detector did not find. They count as failures, not in the NME."""
        return int(np.isnan(self.errors).all(axis=1).sum())

    @property
    def nme(self) -> float:
        """Mean error of the faces found, in inter-ocular distances."""
        return float(np.nanmean(self.errors))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (0..1) of the scores, in ten bins of equal width."""
        known = ~np.isnan(self.errors)
        score, near = self.scores[known], self.errors[known] <= NEAR
        which = np.minimum((score * 10).astype(int), 9)
        gaps = [
            abs(near[which == b].mean() - score[which == b].mean()) * (which == b).mean()
            for b in range(10)
            if (which == b).any()
        ]
        return float(sum(gaps))

    def summary(self) -> dict[str, Any]:
        """The figures, in per cent where they are shares."""
        faces = np.where(np.isnan(self.errors).all(axis=1), np.inf, self.errors.mean(axis=1))
        return {
            "layout": self.layout,
            "faces": len(self.errors),
            "missed": self.missed,
            "nme": round(100 * self.nme, 3),
            "fr10": round(100 * failure_rate(faces), 2),
            "auc10": round(100 * area_under_curve(faces), 2),
            "calibration_error": round(100 * self.calibration_error, 2),
        }


def read_annotations(folder: Path, split: str) -> list[dict[str, Any]]:
    """The annotated faces of a split: the objects of ``annotations.jsonl`` that have points.

    Raises `ConfigurationError` when the folder is none of this format or has no such split.
    """
    path = folder / "annotations.jsonl"
    if not path.is_file():
        raise ConfigurationError(
            f"{folder} has no annotations.jsonl; give a folder that holds one, such as DIR/w300"
        )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    chosen = [row for row in rows if row["split"] == split and row.get("points")]
    if not chosen:
        splits = ", ".join(sorted({row["split"] for row in rows if row.get("points")}))
        raise ConfigurationError(
            f"{path} has no annotated faces in split {split!r}; it has {splits or 'none'}"
        )
    return chosen


def evaluate(
    detector: Detector, folder: Path, split: str, boxes: BoxSource = "landmarks"
) -> Evaluation:
    """Runs a detector over a split of a data folder and compares with the annotations.

    ``boxes="landmarks"`` crops around the true points (the papers' protocol); ``"detected"`` looks
    for the faces and takes the one nearest to each annotation: nearer than half its box's size, or
    the face counts as missed. Raises `ConfigurationError` when the points are not the detector's.
    """
    errors, scores = [], []
    for annotation in read_annotations(folder, split):
        truth = np.array(annotation["points"], np.float64)
        if len(truth) != detector.layout.size:
            raise ConfigurationError(
                f"split {split!r} has {len(truth)} points a face, the detector "
                f"{detector.layout.size}: use Detector(layout={len(truth)})"
            )
        face = _find(detector, folder / annotation["image"], truth, boxes)
        if face is None:
            errors.append(np.full(len(truth), np.nan))
            scores.append(np.full(len(truth), np.nan))
        else:
            errors.append(normalised_errors(face.points, truth, detector.layout.ocular_pair))
            scores.append(face.scores)
    return Evaluation(detector.layout.name, np.stack(errors), np.stack(scores))


def _find(detector: Detector, image: Path, truth: FloatArray, boxes: BoxSource) -> Face | None:
    box = tight_boxes(truth)
    if boxes == "landmarks":
        return detector.predict(image, boxes=box, box_kind="landmarks")[0]
    faces = detector.predict(image)
    if not faces:
        return None
    distances = [np.linalg.norm(face.points.mean(axis=0) - truth.mean(axis=0)) for face in faces]
    nearest = int(np.argmin(distances))
    return faces[nearest] if distances[nearest] < (box[2:] - box[:2]).max() / 2 else None
