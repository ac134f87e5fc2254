"""Runs a detector over annotated faces: where the boxes come from, and what is compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, Progress
from hihlandmark.calibration.fit import hidden_points
from hihlandmark.crop import CANONICAL_CROP, BoxMap, fit_box_map, tight_boxes
from hihlandmark.datasets import dataset_splits
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.detector import Detector
from hihlandmark.errors import ConfigurationError, DataError, ImageError
from hihlandmark.evaluation.metrics import (
    NORMALIZATIONS,
    Evaluation,
    confidence_interval,
    failure_rate,
    mean_error,
)
from hihlandmark.face import Face
from hihlandmark.face_detection import Detections, FaceDetector, given_boxes, overlaps
from hihlandmark.layouts import W300_68, Conversion, Layout, get_conversion, get_layout
from hihlandmark.pipeline import Found
from hihlandmark.weights.card import ModelCard

BoxSource = Literal["labels", "official", "detected"]
BOX_SOURCES: tuple[BoxSource, ...] = get_args(BoxSource)

SAME_FACE = 0.25
"""Intersection over union of the tight boxes from which on a found face is the annotated one."""
SAME_CENTER = 0.25
"""Farthest center of a detected face from that of its image, in longer sides of the image."""


def refuse_ambiguous(
    faces: AnnotatedFaces, card: ModelCard, folder: Path, data_format: str
) -> None:
    """Raise `ConfigurationError` where faces may be of a layout that the weights define.

    That of some formats follows from the number of points, unless ``--annotated`` names it.
    """
    count = len(faces.mirror)
    own = [name for name, each in card.layouts.items() if len(each.point_names) == count]
    if not own or faces.layout in own:
        return
    if dataset_splits(folder, data_format)[0] in ("pts", "project"):
        raise ConfigurationError(
            f"{faces.name} has {count} points a face, as have {faces.layout} and {own[0]} of the "
            f"weights: say which by --annotated {faces.layout} or --annotated {own[0]}"
        )


@dataclass(frozen=True)
class Jitter:
    """A corruption of boxes: each is moved in a random direction and scaled about its center.

    The directions depend on the seed and the position of the face in its split alone, so that
    growing shifts move a box along one line.

    ``shift`` is in longer sides of the box, ``scale`` a factor on its sides.
    """

    shift: float = 0.0
    scale: float = 1.0
    seed: int = 0

    def __call__(self, boxes: FloatArray) -> FloatArray:
        """The corrupted boxes (N, 4) of the boxes (N, 4) xyxy of all faces of a split."""
        angle = np.random.default_rng(self.seed).uniform(0, 2 * np.pi, len(boxes))
        low, high = boxes[:, :2], boxes[:, 2:]
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        longer = (high - low).max(axis=1, keepdims=True)
        center = (low + high) / 2 + self.shift * longer * direction
        half = (high - low) / 2 * self.scale
        return np.concatenate([center - half, center + half], axis=1)


class CurvePoint(NamedTuple):
    """The errors at one severity of a corruption: NME, its 95 % interval and FR10, as shares.

    ``missed`` of the ``faces`` were not found: failures, but not part of the NME.
    """

    severity: float
    faces: int
    missed: int
    nme: float
    interval: tuple[float, float]
    failure_rate: float

    @classmethod
    def of(cls, severity: float, evaluation: Evaluation) -> CurvePoint:
        """The errors of an evaluation, in its unit."""
        errors = evaluation.face_errors
        return cls(
            severity,
            len(evaluation),
            int(evaluation.missed.sum()),
            mean_error(errors),
            confidence_interval(np.where(np.isinf(errors), np.nan, errors)),
            failure_rate(errors),
        )


@dataclass(frozen=True)
class JitterCurve:
    """How errors grow as boxes get worse, with at most ``refine`` more crops of each face."""

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
    approximate: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare the points of a detector with the annotated points of a split.

    Where the layouts of weights, detector and faces differ but one can be converted to the other,
    the points that are exact in the conversion are compared, and a remark states it. An image that
    cannot be read, or a face without known points or without a usable box, is skipped and named.

    Args:
        detector: predicts the points.
        faces: the annotated faces of a split.
        boxes: "labels" crops around the annotated points (the protocol of the papers), "official"
            uses the face rectangles of the data set, "detected" uses a face detector; faces that it
            does not find are missed.
        official_map: map from official rectangles to crops, see `fit_official_map`.
        jitter: a corruption of "labels" or "official" boxes.
        approximate: also compare points that are interpolated in a conversion.
        progress: called with the number of faces done and of all faces.

    Raises:
        ConfigurationError: layouts or options do not fit.
        DataError: no face has an official rectangle, or no face can be used.
    """
    _check_options(boxes, official_map, jitter)
    annotated = annotated_layout(faces)
    shared = _shared_points(annotated, detector, approximate)
    prompts = None if boxes == "detected" else _prompts(faces, boxes, jitter)
    if boxes == "labels":
        box_map = detector.box_map(f"landmarks:{annotated.name}")
    else:
        box_map = official_map or detector.box_map(detector.face_detector.name)

    skipped, kept, found = list(faces.skipped), [], []
    results = detector.pipeline.run(_samples(detector, faces, prompts), box_map)
    for done, ((face, problem), result) in enumerate(results, start=1):
        if problem is not None:
            skipped.append(f"{face.name}: {problem}")
        else:
            kept.append(face)
            converted = [one.to_layout(shared.layout) for one in result]
            truth = shared.of(face.points)
            found.append(converted[0] if prompts is not None else _same_face(converted, truth))
        if progress is not None:
            progress(done, len(faces))
    if not kept:
        raise DataError(f"no face of {faces.name} can be used: {skipped[0]}")
    truth = np.stack([face.points for face in kept]).astype(np.float64)
    missing = np.full((shared.layout.size, 2), np.nan)
    return Evaluation(
        names=tuple(face.name for face in kept),
        layout=shared.layout,
        truth=shared.of(truth),
        predicted=np.stack([missing if face is None else face.points for face in found]),
        scores=np.stack([missing[:, 0] if face is None else face.scores for face in found]),
        # By all annotated points, of which a conversion may not keep every one.
        units={name: unit(truth, annotated) for name, unit in NORMALIZATIONS.items()},
        subsets=tuple(face.subsets for face in kept),
        skipped=tuple(skipped),
        remarks=_remarks(faces, shared, official_map),
        visibility=np.stack([missing[:, 0] if face is None else face.visibility for face in found]),
        hidden=np.stack([hidden_points(face, shared.from_truth) for face in kept]),
    )


def jitter_curve(
    detector: Detector,
    faces: AnnotatedFaces,
    shifts: Sequence[float] = (0, 0.05, 0.1, 0.15, 0.2),
    scales: Sequence[float] = (0.8, 0.9, 1, 1.1, 1.25, 1.4),
    *,
    refine: int = 0,
    boxes: BoxSource = "labels",
    official_map: BoxMap | None = None,
    approximate: bool = False,
    normalization: str = "interocular",
    seed: int = 0,
    progress: Progress | None = None,
) -> JitterCurve:
    """The errors of a detector as boxes are moved, and as they are scaled.

    Costs one evaluation per shift and scale.

    ``shifts``, ``scales`` and ``seed`` are those of `Jitter`, ``refine`` is that of `Detector`,
    ``normalization`` a key of `NORMALIZATIONS`, and other arguments are those of `evaluate`.
    """
    detector = detector.with_options(refine=refine)
    moved = [Jitter(shift=shift, seed=seed) for shift in shifts]
    scaled = [Jitter(scale=scale, seed=seed) for scale in scales]
    evaluations: dict[Jitter, Evaluation] = {}
    conditions = list(dict.fromkeys([*moved, *scaled]))
    for i, jitter in enumerate(conditions):
        part = part_of(progress, i, len(conditions))
        evaluation = evaluate(
            detector,
            faces,
            boxes=boxes,
            official_map=official_map,
            jitter=jitter,
            approximate=approximate,
            progress=part,
        )
        evaluations[jitter] = evaluation.normalized(normalization)
    return JitterCurve(
        refine,
        tuple(CurvePoint.of(jitter.shift, evaluations[jitter]) for jitter in moved),
        tuple(CurvePoint.of(jitter.scale, evaluations[jitter]) for jitter in scaled),
    )


def fit_official_map(detector: Detector, faces: AnnotatedFaces) -> BoxMap:
    """Fit the map from the face rectangles of a data set to the detector's crop.

    The target is the crop around the annotated points of ``faces``, which are not evaluated;
    medians over faces are used. Raises `DataError` when no face has a rectangle.
    """
    usable = [face for face in faces if face.rectangle is not None and _known(face).any()]
    if not usable:
        raise DataError(f"the faces of {faces.name} have no official rectangles: use other boxes")
    box_map = detector.box_map(f"landmarks:{annotated_layout(faces).name}")
    tight = np.stack([tight_box(face) for face in usable])
    rectangles = np.stack([face.rectangle for face in usable if face.rectangle is not None])
    return fit_box_map(rectangles, box_map.squares(tight)[:, :3])


def detected_pairs(
    faces: Iterable[AnnotatedFace], detector: FaceDetector
) -> tuple[FloatArray, FloatArray]:
    """Boxes (N, 4) that a detector finds at the center of images, and the true squares (N, 3)."""
    canonical = CANONICAL_CROP[f"landmarks:{W300_68.name}"]
    boxes, squares = [], []
    for face in faces:
        image = face.load_image()
        found = detector.detect([image])[0].boxes
        center = (np.array(image.shape[1::-1]) - 1) / 2
        distances = np.linalg.norm((found[:, :2] + found[:, 2:]) / 2 - center, axis=1)
        if not len(found) or distances.min() > SAME_CENTER * max(image.shape):
            continue
        boxes.append(found[distances.argmin()])
        squares.append(canonical.squares(tight_boxes(face.points))[0, :3])
    return np.array(boxes), np.array(squares)


def _check_options(boxes: str, official_map: BoxMap | None, jitter: Jitter | None) -> None:
    if boxes not in BOX_SOURCES:
        raise ConfigurationError(f"boxes must be one of {', '.join(BOX_SOURCES)}, not {boxes!r}")
    if (boxes == "official") != (official_map is not None):
        raise ConfigurationError(
            "official_map is required by boxes='official' and allowed with no others: fit it with "
            "fit_official_map"
        )
    if boxes == "detected" and jitter is not None:
        raise ConfigurationError("jitter needs boxes 'labels' or 'official', not 'detected'")


def annotated_layout(faces: AnnotatedFaces) -> Layout:
    """The layout of a data set. Raises `ConfigurationError` if it is not one of ours."""
    try:
        return get_layout(faces.layout)
    except ConfigurationError as error:
        what = f"{faces.name} is annotated with {faces.layout}"
        raise ConfigurationError(f"{what}, which no model here predicts: {error}") from error


@dataclass(frozen=True)
class _SharedPoints:
    """The layout in which faces of two layouts are compared, and the conversion to it."""

    layout: Layout
    from_truth: Conversion
    exact: BoolArray
    is_approximate: bool

    def of(self, truth: FloatArray) -> FloatArray:
        """Annotated points (..., A, 2) -> (..., P, 2), NaN where the layout has other points."""
        return np.where(self.exact[:, None], self.from_truth(truth), np.nan)


def _shared_points(annotated: Layout, detector: Detector, approximate: bool) -> _SharedPoints:
    """Raises `ConfigurationError` when there is no conversion, or no exact point."""
    predicted = detector.layout
    own = get_conversion(detector.landmarker.layout, predicted)
    for target in (predicted, annotated):
        try:
            truth = get_conversion(annotated, target)
            converted = own.followed_by(get_conversion(predicted, target))
        except ConfigurationError:
            continue
        exact = (truth.exact & converted.exact) | approximate
        if not exact.any():
            origin = own.source if truth.exact.any() else annotated
            raise ConfigurationError(
                f"all points of {target.name} are interpolated from {origin.name}: pass "
                "approximate=True (--approximate) to compare them all the same"
            )
        interpolated = not (truth.exact & converted.exact).all()
        return _SharedPoints(target, truth, exact, interpolated)
    raise ConfigurationError(
        f"the {annotated.name} points of the faces and the {predicted.name} points of the detector "
        f"cannot be converted to each other: use Detector(layout={annotated.size})"
    )


def _remarks(
    faces: AnnotatedFaces, shared: _SharedPoints, official_map: BoxMap | None
) -> tuple[str, ...]:
    remarks = []
    if faces.published not in (None, len(faces)):
        remarks.append(
            f"{len(faces)} of {faces.published} published faces of {faces.name}: not comparable "
            "with published figures"
        )
    if not shared.exact.all():
        remarks.append(
            f"compared on the {shared.exact.sum()} of the {shared.layout.size} points of "
            f"{shared.layout.name} that are the same in the layouts of detector and data set"
        )
    elif shared.is_approximate:
        remarks.append("some points are interpolated from those of another layout")
    if official_map is not None:
        x, y = official_map.shift
        remarks.append(
            f"crops from official rectangles: center moved by ({x:.4f}, {y:.4f}) and side "
            f"{official_map.scale:.4f}, in longer sides of the rectangle"
        )
    return tuple(remarks)


class _Sample(NamedTuple):
    """Key of the pipeline: a face, and why it cannot be used."""

    face: AnnotatedFace
    problem: str | None = None


def _samples(
    detector: Detector, faces: Iterable[AnnotatedFace], prompts: FloatArray | None
) -> Iterator[Found[_Sample]]:
    """The image of each face with the boxes to crop, in the order of the faces."""
    for index, face in enumerate(faces):
        try:
            if not _known(face).any():
                raise ImageError("the face has no known point: annotate or exclude it")
            if prompts is not None and not np.isfinite(prompts[index]).all():
                raise ImageError("the face has no official rectangle: use other boxes")
            image = face.load_image()
            if prompts is None:
                detections = detector.find_faces(image)
            else:
                detections = given_boxes(prompts[index], image.shape)
        except (ImageError, ConfigurationError) as error:  # the latter: the box is unusable
            yield Found(_Sample(face, str(error)), None, Detections.none())
        else:
            yield Found(_Sample(face), image, detections)


def _known(face: AnnotatedFace) -> BoolArray:
    return np.isfinite(face.points.sum(axis=1))


def tight_box(face: AnnotatedFace) -> FloatArray:
    """(4,) xyxy around the known points of a face; NaN when it has none."""
    known = _known(face)
    return tight_boxes(face.points[known]) if known.any() else np.full(4, np.nan)


def _prompts(faces: AnnotatedFaces, boxes: BoxSource, jitter: Jitter | None) -> FloatArray:
    """The boxes (N, 4) to crop; NaN where a face has none. Raises `DataError` when none has."""
    if boxes == "labels":
        found = [tight_box(face) for face in faces]
    else:
        found = [np.full(4, np.nan) if f.rectangle is None else f.rectangle for f in faces]
    prompts = np.array(found).reshape(-1, 4)
    if not np.isfinite(prompts).all(axis=1).any():
        what = "known points" if boxes == "labels" else "official rectangles"
        raise DataError(f"the faces of {faces.name} have no {what}: use another split or boxes")
    return prompts if jitter is None else jitter(prompts)


def _same_face(candidates: Sequence[Face], truth: FloatArray) -> Face | None:
    """The face whose tight box overlaps most with that of the true points (P, 2), if enough."""
    known = np.isfinite(truth).all(axis=1)
    if not candidates or not known.any():
        return None
    boxes = tight_boxes(np.stack([face.points[known] for face in candidates]))
    shares = overlaps(boxes.astype(np.float64), tight_boxes(truth[known]))
    best = int(shares.argmax())
    return candidates[best] if shares[best] >= SAME_FACE else None


def part_of(progress: Progress | None, first: int, parts: int, count: int = 1) -> Progress | None:
    """The progress of ``count`` of several equal parts, from ``first`` on, within the whole."""
    if progress is None:
        return None
    return lambda done, total: progress(first * total // count + done, parts * total // count)
