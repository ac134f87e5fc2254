"""Runs a detector over annotated faces: where the boxes come from, and what is compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray, Image, Progress
from hihlandmark.crop import BoxMap, tight_boxes
from hihlandmark.errors import ConfigurationError, DataError, ImageError
from hihlandmark.evaluation.metrics import (
    NORMALIZATIONS,
    confidence_interval,
    failure_rate,
    mean_error,
)
from hihlandmark.evaluation.result import Evaluation
from hihlandmark.face import Face
from hihlandmark.face_detection import Detections, given_boxes
from hihlandmark.layouts import Conversion, Layout, get_conversion, get_layout

if TYPE_CHECKING:
    from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
    from hihlandmark.detector import Detector


BoxSource = Literal["labels", "official", "detected"]
BOX_SOURCES: tuple[BoxSource, ...] = get_args(BoxSource)

SAME_FACE = 0.25
"""Intersection over union of the tight boxes from which on a found face is the annotated one."""


@dataclass(frozen=True)
class Jitter:
    """A corruption of boxes: each is moved in a direction of its own and scaled about its center.

    ``shift`` is in longer sides of the box, ``scale`` a factor on its sides. The directions depend
    on ``seed`` and on the place of the face in its split alone, so that growing shifts move a box
    along one line.
    """

    shift: float = 0.0
    scale: float = 1.0
    seed: int = 0

    def __call__(self, boxes: FloatArray) -> FloatArray:
        """Boxes (N, 4) xyxy of all faces of a split -> corrupted ones."""
        angle = np.random.default_rng(self.seed).uniform(0, 2 * np.pi, len(boxes))
        low, high = boxes[:, :2], boxes[:, 2:]
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        longer = (high - low).max(axis=1, keepdims=True)
        center = (low + high) / 2 + self.shift * longer * direction
        half = (high - low) / 2 * self.scale
        return np.concatenate([center - half, center + half], axis=1)


class CurvePoint(NamedTuple):
    """The errors at one severity of a corruption: NME, its 95 % interval and FR10, as shares.

    ``faces`` of which ``missed`` were not found: failures, but not part of the NME.
    """

    severity: float
    faces: int
    missed: int
    nme: float
    interval: tuple[float, float]
    failure_rate: float


@dataclass(frozen=True)
class JitterCurve:
    """How errors grow as boxes get worse, with ``refine`` more crops after the first."""

    refine: int
    shifts: tuple[CurvePoint, ...]
    scales: tuple[CurvePoint, ...]


def evaluate(
    detector: Detector,
    faces: AnnotatedFaces,
    *,
    boxes: BoxSource = "labels",
    official_map: BoxMap | None = None,
    jitter: Jitter | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Runs a detector over the faces of a split and sets its points beside the true ones.

    ``boxes="labels"`` crops around the true points (the papers' protocol); ``"official"`` takes the
    data set's face rectangles and ``official_map``, which `fit_official_map` gives; ``"detected"``
    looks for faces, and a face that was not found counts as missed. ``jitter`` perturbs labels'
    and official boxes.

    Where the layouts of detector and faces differ but one can be converted to the other, the points
    that are exact in the conversion are compared, and a remark says so. An image that cannot be
    read, or a face without known points or without a usable box, is skipped and named.

    Raises `ConfigurationError` when layouts or options do not fit, `DataError` when no face has an
    official rectangle, or none can be used at all.
    """
    _check_options(boxes, official_map, jitter)
    annotated = annotated_layout(faces)
    shared = _shared_points(annotated, detector.layout)
    prompts = None if boxes == "detected" else _prompts(faces, boxes, jitter)
    if boxes == "labels":
        box_map = detector.box_map(f"landmarks:{annotated.name}")
    else:
        box_map = official_map or detector.box_map(detector.face_detector.name)

    skipped, kept, found = list(faces.skipped), [], []
    results = detector.find_landmarks(_jobs(detector, faces, prompts), box_map)
    for done, (face, result) in enumerate(zip(faces, results, strict=True), start=1):
        if isinstance(result, ImageError):
            skipped.append(f"{face.name}: {result}")
        else:
            kept.append(face)
            in_layout = [one.to_layout(shared.layout) for one in result]
            truth = shared.of(face.points)
            found.append(in_layout[0] if prompts is not None else _same_face(in_layout, truth))
        if progress is not None:
            progress(done, len(faces))
    if not kept:
        raise DataError(
            f"none of the faces of {faces.name} can be used, mend the data set or take another "
            f"split: {skipped[0]}"
        )
    return _collect(kept, found, annotated, shared, skipped, _remarks(faces, shared, official_map))


def jitter_curve(
    detector: Detector,
    faces: AnnotatedFaces,
    shifts: Sequence[float] = (0, 0.05, 0.1, 0.15, 0.2),
    scales: Sequence[float] = (0.8, 0.9, 1, 1.1, 1.25, 1.4),
    *,
    refine: int = 0,
    boxes: BoxSource = "labels",
    official_map: BoxMap | None = None,
    normalization: str = "interocular",
    seed: int = 0,
    progress: Progress | None = None,
) -> JitterCurve:
    """The errors of a detector as the boxes are moved, and as they are scaled; see `Jitter`.

    ``refine`` is how often the crop is cut anew around the points found, whatever the detector's
    own setting. Costs one evaluation a value; the rest as `evaluate`.
    """
    detector = copy(detector)  # shallow: another number of crops with the same network
    detector.refine = refine
    moved = [Jitter(shift=shift, seed=seed) for shift in shifts]
    scaled = [Jitter(scale=scale, seed=seed) for scale in scales]
    evaluations: dict[Jitter, Evaluation] = {}
    conditions = list(dict.fromkeys([*moved, *scaled]))
    for place, jitter in enumerate(conditions):
        evaluations[jitter] = evaluate(
            detector,
            faces,
            boxes=boxes,
            official_map=official_map,
            jitter=jitter,
            progress=part_of(progress, place, len(conditions)),
        ).normalized(normalization)
    return JitterCurve(
        refine,
        tuple(curve_point(jitter.shift, evaluations[jitter]) for jitter in moved),
        tuple(curve_point(jitter.scale, evaluations[jitter]) for jitter in scaled),
    )


def curve_point(severity: float, evaluation: Evaluation) -> CurvePoint:
    """The errors of an evaluation, in its unit, as a point of a curve."""
    errors = evaluation.face_errors
    return CurvePoint(
        severity,
        len(evaluation),
        int(evaluation.missed.sum()),
        mean_error(errors),
        confidence_interval(np.where(np.isinf(errors), np.nan, errors)),
        failure_rate(errors),
    )


def fit_official_map(detector: Detector, faces: AnnotatedFaces) -> BoxMap:
    """The map from a data set's face rectangles to the detector's crop, by medians over faces.

    To be fitted on a split that is not evaluated. The crop meant is the one around the true points.
    Raises `DataError` when no face has a rectangle, `ConfigurationError` for unknown layouts.
    """
    from hihlandmark.datasets.box_maps import fit_box_map

    usable = [face for face in faces if face.rectangle is not None and _known(face).any()]
    if not usable:
        raise DataError(
            f"the faces of {faces.name} have no official rectangles; use boxes 'labels' or "
            "'detected'"
        )
    box_map = detector.box_map(f"landmarks:{annotated_layout(faces).name}")
    tight = np.stack([tight_box(face) for face in usable])
    rectangles = np.stack([face.rectangle for face in usable if face.rectangle is not None])
    return fit_box_map(rectangles, box_map.squares(tight)[:, :3])


# ---------------------------------------------------------------------------------------- checks


def _check_options(boxes: str, official_map: BoxMap | None, jitter: Jitter | None) -> None:
    if boxes not in BOX_SOURCES:
        raise ConfigurationError(f"boxes must be one of {', '.join(BOX_SOURCES)}, not {boxes!r}")
    if (boxes == "official") != (official_map is not None):
        raise ConfigurationError(
            "boxes 'official' need official_map, and no others take it: fit it on the training "
            "split with fit_official_map(detector, faces)"
        )
    if boxes == "detected" and jitter is not None:
        raise ConfigurationError("detected boxes take no jitter; use boxes 'labels' or 'official'")


def annotated_layout(faces: AnnotatedFaces) -> Layout:
    """The layout that a data set is annotated in. Raises `ConfigurationError` if it is not ours."""
    try:
        return get_layout(faces.layout)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{faces.name} is annotated with {faces.layout}, which no model here predicts: {error}"
        ) from error


# --------------------------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class _SharedPoints:
    """The layout in which faces of two layouts are compared, and the way of the truth into it."""

    layout: Layout
    from_truth: Conversion
    exact: NDArray[np.bool_]

    def of(self, truth: FloatArray) -> FloatArray:
        """True points (..., A, 2) as annotated -> (..., P, 2), NaN where there is no such point."""
        return np.where(self.exact[:, None], self.from_truth(truth), np.nan)


def _shared_points(annotated: Layout, predicted: Layout) -> _SharedPoints:
    """Raises `ConfigurationError` when neither layout can be converted to the other."""
    for target in (predicted, annotated):
        try:
            truth = get_conversion(annotated, target)
            exact = truth.exact & get_conversion(predicted, target).exact
        except ConfigurationError:
            continue
        return _SharedPoints(target, truth, exact)
    raise ConfigurationError(
        f"the faces have the {annotated.size} points of {annotated.name}, the detector predicts "
        f"the {predicted.size} of {predicted.name}, and neither can be converted to the other: "
        f"use Detector(layout={annotated.size})"
    )


def _remarks(
    faces: AnnotatedFaces, shared: _SharedPoints, official_map: BoxMap | None
) -> tuple[str, ...]:
    remarks = []
    if faces.published not in (None, len(faces)):
        remarks.append(
            f"{len(faces)} faces, where the authors of {faces.name} publish {faces.published}: not "
            "comparable with published figures"
        )
    if not shared.exact.all():
        remarks.append(
            f"compared on the {shared.exact.sum()} of the {shared.layout.size} points of "
            f"{shared.layout.name} that are the same in the layouts of detector and data set"
        )
    if official_map is not None:
        x, y = official_map.shift
        remarks.append(
            f"crops from official rectangles: center moved by ({x:.4f}, {y:.4f}) and side "
            f"{official_map.scale:.4f}, in longer sides of the rectangle"
        )
    return tuple(remarks)


# ------------------------------------------------------------------------------------------- boxes


def _known(face: AnnotatedFace) -> NDArray[np.bool_]:
    return np.isfinite(face.points.sum(axis=1))


def tight_box(face: AnnotatedFace) -> FloatArray:
    """(4,) around the known points of a face; NaN when it has none."""
    known = _known(face)
    return tight_boxes(face.points[known]) if known.any() else np.full(4, np.nan)


def _prompts(faces: AnnotatedFaces, boxes: BoxSource, jitter: Jitter | None) -> FloatArray:
    """The boxes (N, 4) to crop; NaN where a face has none. Raises `DataError` when none has."""
    if boxes == "labels":
        found = np.array([tight_box(face) for face in faces]).reshape(-1, 4)
    else:
        found = np.array(
            [np.full(4, np.nan) if face.rectangle is None else face.rectangle for face in faces]
        ).reshape(-1, 4)
    if not np.isfinite(found).all(axis=1).any():
        what = (
            "known points: take another split"
            if boxes == "labels"
            else "official rectangles: take boxes 'labels' or 'detected'"
        )
        raise DataError(f"the faces of {faces.name} have no {what}")
    return found if jitter is None else jitter(found)


def _jobs(
    detector: Detector, faces: AnnotatedFaces, prompts: FloatArray | None
) -> Iterator[tuple[Image, Detections] | ImageError]:
    """Each image with the boxes to crop, or why it cannot be used, in the order of the faces."""
    for i, face in enumerate(faces):
        try:
            if not _known(face).any():
                raise ImageError("the face has no known point: annotate it, or leave it out")
            if prompts is not None and not np.isfinite(prompts[i]).all():
                raise ImageError(
                    "the face has no official rectangle: only boxes 'labels' or 'detected' reach it"
                )
            pixels = face.load_image()
            if prompts is None:
                yield pixels, detector.face_detector.detect([pixels])[0]
            else:
                yield pixels, given_boxes(prompts[i], pixels.shape)
        except ImageError as error:
            yield error
        except ConfigurationError as error:  # of a box that is none, or lies outside of the image
            yield ImageError(str(error))


def _same_face(candidates: Sequence[Face], truth: FloatArray) -> Face | None:
    """The face (its tight box) that overlaps most with the true points (P, 2), if enough."""
    known = np.isfinite(truth).all(axis=1)
    if not candidates or not known.any():
        return None
    boxes = tight_boxes(np.stack([face.points[known] for face in candidates]))
    overlaps = _overlaps(boxes.astype(np.float64), tight_boxes(truth[known]))
    best = int(overlaps.argmax())
    return candidates[best] if overlaps[best] >= SAME_FACE else None


def _overlaps(boxes: FloatArray, box: FloatArray) -> FloatArray:
    """Intersection over union (F,) of boxes (F, 4) xyxy with one (4,)."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - shared
    return shared / np.maximum(union, 1e-9)


# ---------------------------------------------------------------------------------------- results


def _collect(
    faces: Sequence[AnnotatedFace],
    found: Sequence[Face | None],
    annotated: Layout,
    shared: _SharedPoints,
    skipped: Sequence[str],
    remarks: tuple[str, ...],
) -> Evaluation:
    truth = np.stack([face.points for face in faces]).astype(np.float64)
    missing = np.full((shared.layout.size, 2), np.nan)
    return Evaluation(
        names=tuple(face.name for face in faces),
        layout=shared.layout,
        truth=shared.of(truth),
        predicted=np.stack([missing if face is None else face.points for face in found]),
        scores=np.stack([missing[:, 0] if face is None else face.scores for face in found]),
        # By all points of the annotation, of which a conversion may not keep every one.
        units={name: unit(truth, annotated) for name, unit in NORMALIZATIONS.items()},
        subsets=tuple(face.subsets for face in faces),
        skipped=tuple(skipped),
        remarks=remarks,
    )


def part_of(progress: Progress | None, first: int, parts: int, count: int = 1) -> Progress | None:
    """Progress within ``count`` of several equal parts, ``first`` and on, as that of the whole."""
    if progress is None:
        return None
    return lambda done, total: progress(first * total // count + done, parts * total // count)
