"""Images with boxes to faces: crops pooled into batches, re-cropping, and the way back.

The one place where boxes become faces. Reading images and finding boxes is done by the caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, Image
from hihlandmark.crop import (
    BoxMap,
    crop_angles,
    crop_matrix,
    cut_crop,
    invert,
    nearly_same,
    resize_matrix,
    transform_points,
)
from hihlandmark.errors import ConfigurationError, check_share
from hihlandmark.face import Face, Faces, transform_face
from hihlandmark.face_detection.base import Detections
from hihlandmark.landmarker import Landmarker
from hihlandmark.layouts import Layout
from hihlandmark.reliability import reliability_features
from hihlandmark.runtimes.base import CropLandmarks
from hihlandmark.threads import default_workers, map_ahead, until_error
from hihlandmark.weights.card import Calibration

Key = TypeVar("Key")

QUARTER_TURNS = np.arange(4) * (np.pi / 2)
"""Angles tried for a face of any rotation: up to 45 degrees off, the points are good enough to turn
the next crop upright."""


class Found(NamedTuple, Generic[Key]):
    """An image with the boxes of its faces.

    ``key`` is handed back with the faces. ``image``: (H, W, 3) uint8 RGB; None is allowed where
    there are no boxes, such as for an image that could not be read. ``factor``: by which the image
    is smaller than the original (`image.ReducedImage`), in whose pixels the faces are returned.
    ``squares``: (F, 4) crop squares of the faces; None: they follow from the boxes.
    """

    key: Key
    image: Image | None
    detections: Detections
    factor: int = 1
    squares: FloatArray | None = None


@dataclass
class _ImageJob(Generic[Key]):
    """An image in progress; its pixels are released as soon as its last face is done."""

    key: Key
    image: Image | None
    faces: list[Face | None]
    factor: int

    @property
    def is_done(self) -> bool:
        return all(face is not None for face in self.faces)


@dataclass
class _FaceJob:
    """A face in progress: the crop square (4,) to cut next, and how many more crops are allowed."""

    owner: _ImageJob
    index: int
    square: FloatArray
    box: FloatArray
    box_score: float
    crops_left: int


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Turns images with boxes into faces.

    Attributes:
        landmarker: crops -> points.
        calibration: covariances and masses -> scores.
        recrop_map: map from the tight box of the landmarker's points to their crop.
        layout: of the faces, converted from the landmarker's where it is another one.
        refine: how often, at most, a face is cropped again around its points.
        any_rotation: try each face at four angles first.
        batch_size: crops that are run at once, mirrored ones included where they are in the same
            batch.
    """

    landmarker: Landmarker
    calibration: Calibration
    recrop_map: BoxMap
    layout: Layout
    refine: int
    any_rotation: bool
    batch_size: int

    def run(
        self, found: Iterable[Found[Key]], box_map: BoxMap, min_reliability: float = 0.0
    ) -> Iterator[tuple[Key, list[Face]]]:
        """Find the landmarks of images with boxes.

        The crops of all images are pooled into full batches. Images are taken as they are needed
        and released as soon as their faces are done.

        Args:
            found: images with their boxes.
            box_map: map from these boxes to crops.
            min_reliability: faces of a lower reliability (0..1) are left out.

        Yields:
            The key of each image with its faces, in the order of the images.

        Raises:
            ConfigurationError: the model card has no reliability, or the limit is not in 0..1.
        """
        self.check_min_reliability(min_reliability)
        for key, faces in self._run(found, box_map):
            yield key, Faces(face for face in faces if is_reliable(face, min_reliability))

    def check_min_reliability(self, limit: float) -> None:
        """Raise `ConfigurationError` for a limit that `run` does not take."""
        check_share(min_reliability=limit)
        if limit and self.calibration.reliability is None:
            name = self.landmarker.layout.name
            raise ConfigurationError(
                f"the weights have no reliability of {name}: leave min_reliability at 0, or fit it "
                "with benchmarks/fit_reliability.py of the repository"
            )

    def _run(
        self, found: Iterable[Found[Key]], box_map: BoxMap
    ) -> Iterator[tuple[Key, list[Face]]]:
        images: deque[_ImageJob[Key]] = deque()
        faces: deque[_FaceJob] = deque()
        held: list[Exception] = []
        for item in until_error(found, held):
            images.append(self._enqueue(item, box_map, faces))
            while len(faces) >= self._faces_at_once:
                self._run_batch(faces)
            yield from _pop_done(images)
        while faces:
            self._run_batch(faces)
        yield from _pop_done(images)
        if held:
            raise held[0]

    def _enqueue(
        self, found: Found[Key], box_map: BoxMap, faces: deque[_FaceJob]
    ) -> _ImageJob[Key]:
        key, image, detections, factor, squares = found
        job = _ImageJob(key, image, [None] * len(detections), factor)
        if not len(detections):
            return job
        assert image is not None  # there are boxes
        if squares is None:
            if self.any_rotation:
                detections = self._best_turns(image, detections, box_map)
            squares = box_map.squares(detections.boxes, detections.angles)
        rows = zip(squares, detections.boxes, detections.scores, strict=True)
        for index, (square, box, score) in enumerate(rows):
            faces.append(_FaceJob(job, index, square, box, score, crops_left=self.refine))
        return job

    def _best_turns(self, image: Image, detections: Detections, box_map: BoxMap) -> Detections:
        """The detections with the angle, out of four, at which the heatmaps are most peaked.

        A face detector cannot tell: it sometimes gives an upside-down face the highest score.
        """
        count = len(detections)
        found_at = np.zeros(count) if detections.angles is None else detections.angles
        angles = (found_at + QUARTER_TURNS[:, None]).ravel()
        squares = box_map.squares(np.tile(detections.boxes, (len(QUARTER_TURNS), 1)), angles)
        crops = (cut_crop(image, square, self.landmarker.crop_size) for square in squares)
        batches = iter(lambda: list(islice(crops, self.batch_size)), [])
        masses = [self.landmarker.decode(np.stack(batch)).mass.mean(axis=1) for batch in batches]
        best = np.concatenate(masses).reshape(-1, count).argmax(axis=0)
        return replace(detections, angles=angles.reshape(-1, count)[best, np.arange(count)])

    @property
    def _mirrors_together(self) -> bool:
        """Whether crops and their mirror images are one batch: no crop may be replaced first."""
        return self.landmarker.flip_test and not self.refine and self.batch_size > 1

    @property
    def _faces_at_once(self) -> int:
        """Faces whose crops are one batch."""
        return self.batch_size // 2 if self._mirrors_together else self.batch_size

    def _run_batch(self, faces: deque[_FaceJob]) -> None:
        """Run one batch of crops; faces that need another crop return to the front of the queue."""
        batch = [faces.popleft() for _ in range(min(self._faces_at_once, len(faces)))]
        crops = np.stack(list(map_ahead(self._cut, batch, default_workers())))
        if self._mirrors_together:
            self._store(batch, self.landmarker.predict(crops))
            return
        found = self.landmarker.decode(crops)
        again = self._select_for_recrop(batch, found)
        faces.extendleft(
            face for face, is_selected in zip(batch, again, strict=True) if is_selected
        )
        done = np.flatnonzero(~again)
        if done.size:
            finished = self.landmarker.finish(crops[done], found.select(done))
            self._store([batch[i] for i in done], finished)

    def _select_for_recrop(self, batch: list[_FaceJob], found: CropLandmarks) -> BoolArray:
        """Update the crops of faces whose points moved too far. Returns a boolean mask (N,)."""
        again = np.array([face.crops_left > 0 for face in batch])
        candidates = np.flatnonzero(again)
        if not candidates.size:
            return again
        faces = [batch[i] for i in candidates]
        corrected = self.landmarker.correct(found.select(candidates))
        points = transform_points(self._to_image(faces), corrected.points)
        angles = crop_angles(points, self.landmarker.layout.mean_shape)
        # Whole pixels and degrees: rounding errors of the network, which differ from batch to
        # batch, must not lead to another crop and so to other points.
        squares = self.recrop_map.squares_around(points, angles)
        squares[:, :3] = np.round(squares[:, :3])
        squares[:, 2] = squares[:, 2].clip(min=1)  # all points may coincide
        again[candidates] = ~nearly_same(np.stack([face.square for face in faces]), squares)
        for face, square, is_selected in zip(faces, squares, again[candidates], strict=True):
            if is_selected:
                face.square = square
                face.crops_left -= 1
        return again

    def _store(self, batch: list[_FaceJob], found: CropLandmarks) -> None:
        """Write the final points of a batch into the jobs of their images, in image pixels."""
        to_image = self._to_image(batch)
        points = transform_points(to_image, found.points)
        linear = to_image[:, None, :, :2]
        covariance = linear @ found.covariance @ np.swapaxes(linear, -1, -2)
        interocular = self.landmarker.layout.interocular(points)
        scores = self.calibration.scores(covariance, found.mass, interocular)
        covariance *= self.calibration.covariance_scale
        reliability = self._reliability(points, covariance, scores, found.mass)
        visibility = self._visibility(batch, points, found)
        for i, job in enumerate(batch):
            face = Face(
                points=points[i].astype(np.float32),
                scores=scores[i].astype(np.float32),
                covariance=covariance[i].astype(np.float32),
                box=job.box,
                box_score=job.box_score,
                layout=self.landmarker.layout,
                correlation=self.calibration.error_correlation,
                reliability=float(reliability[i]),
                visibility=visibility[i],
            )
            face = face.to_layout(self.layout)
            job.owner.faces[job.index] = _enlarge(face, job.owner.factor)
            if job.owner.is_done:
                job.owner.image = None

    def _reliability(
        self, points: FloatArray, covariance: FloatArray, scores: FloatArray, mass: FloatArray
    ) -> FloatArray:
        """The reliability (N,) of N faces; the arguments are those of `reliability_features`."""
        model = self.calibration.reliability
        if model is None:
            return np.full(len(points), np.nan)
        layout = self.landmarker.layout
        return model.probability(reliability_features(points, covariance, scores, mass, layout))

    def _visibility(
        self, batch: list[_FaceJob], points: FloatArray, found: CropLandmarks
    ) -> FloatArray:
        """The visibility (N, P) of points (N, P, 2): 0 outside of the image."""
        images = [job.owner.image for job in batch]
        sizes = np.array([image.shape[1::-1] for image in images if image is not None])
        is_outside = ((points < -0.5) | (points > sizes[:, None] - 0.5)).any(axis=-1)
        visibility = self.calibration.visibilities(found.visibility, found.mass.shape)
        return np.where(is_outside & np.isfinite(visibility), 0.0, visibility)

    def _to_image(self, batch: list[_FaceJob]) -> FloatArray:
        squares = np.stack([face.square for face in batch])
        return invert(crop_matrix(squares, self.landmarker.crop_size))

    def _cut(self, face: _FaceJob) -> Image:
        assert face.owner.image is not None  # released only when all its faces are done
        return cut_crop(face.owner.image, face.square, self.landmarker.crop_size)


def is_reliable(face: Face, limit: float) -> bool:
    """Whether a face has a reliability of ``limit`` (0..1) or more; NaN has none above 0."""
    return not limit or face.reliability >= limit


def _enlarge(face: Face, factor: int) -> Face:
    """A face of a reduced image in the pixels of the original."""
    if factor == 1:
        return face
    return transform_face(face, resize_matrix((1, 1), (factor, factor)))


def _pop_done(images: deque[_ImageJob[Key]]) -> Iterator[tuple[Key, list[Face]]]:
    """Take the images off the head of the queue whose faces are all done."""
    while images and images[0].is_done:
        job = images.popleft()
        yield job.key, Faces(face for face in job.faces if face is not None)
