"""Training batches from annotated faces: crops, and the points of every layout where known."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from hihlandmark.arrays import BoolArray, FloatArray, Image, IndexArray
from hihlandmark.crop import BoxMap, crop_matrix, cut_crop, invert, known_points, tight_boxes
from hihlandmark.datasets import read_faces
from hihlandmark.datasets.augmentation import generator
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces, image_of
from hihlandmark.errors import ConfigurationError, DataError, ImageError
from hihlandmark.layouts import (
    EXACT_98_29,
    EXACT_98_68,
    LAYOUTS,
    Layout,
    get_conversion,
    get_layout,
)
from hihlandmark.training.config import FaceSet, Mesh, TrainingConfiguration, TrainingSet
from hihlandmark.training.mesh import (
    IRISES,
    MESH,
    MeshLabels,
    MeshMap,
    fit_mesh_maps,
    inner_points,
    mesh_faces,
    oversampled,
    read_mesh,
    turned_away,
)
from hihlandmark.training.schedule import Draw, MixtureSampler, Plan

logger = logging.getLogger(__name__)

DEFAULT_MESH = Mesh()


class Batch(NamedTuple):
    """B crops and the targets of the P points of all layouts, one layout after another."""

    crops: torch.Tensor
    """(B, S, S, 3) uint8."""
    points: torch.Tensor
    """(B, P, 2) float32 in crop pixels."""
    weights: torch.Tensor
    """(B, P) float32, 0 where a point is unknown or outside of the crop."""
    unreadable: torch.Tensor
    """(B,): number of images that were replaced by this one."""
    visible: torch.Tensor
    """(B, P) float32 in 0..1: how much of a point can be seen; NaN where unknown, and everywhere
    without the augmentation ``occluders``: other augmentation covers points unnoticed."""


class UnlabeledBatch(NamedTuple):
    """U unlabeled faces: the crops of the teacher and of the student.

    ``plain`` and ``augmented`` (U, S, S, 3) uint8; ``matrices`` (U, 2, 3) float32 map pixels of
    the plain crop to those of the augmented one.
    """

    plain: torch.Tensor
    augmented: torch.Tensor
    matrices: torch.Tensor


class Sample(NamedTuple):
    """A face: image (H, W, 3), points (P, 2), NaN where unknown, and square (4,) of its crop.

    ``visible``: (P,), 1 for points that can be seen, 0 for others, NaN where unknown.
    """

    name: str
    image: Image
    points: FloatArray
    square: FloatArray
    unreadable: int
    visible: FloatArray


class _Faces:
    """The faces of several sets by sample number."""

    def __init__(
        self,
        configuration: TrainingConfiguration,
        sets: Sequence[TrainingSet],
        faces: Sequence[AnnotatedFaces],
        seed: int,
    ) -> None:
        self.sets, self.faces = sets, faces
        self.reported: set[str] = set()
        self.box_maps = []
        known = configuration.box_maps()
        for training_set, each in zip(sets, faces, strict=True):
            box_map = known.get(f"landmarks:{each.layout}")
            if training_set.box_scale or box_map is None:
                scale = training_set.box_scale or configuration.canonical_scale
                box_map = BoxMap((0.0, 0.0), scale)
            self.box_maps.append(box_map)
        sizes = [len(each) for each in faces]
        shares = [s.share or float(size) for s, size in zip(sets, sizes, strict=True)]
        self.sampler = MixtureSampler(sizes, shares, seed)

    def load(self, draw: Draw) -> Sample:
        """Load a face, or the next one of its set whose image can be read."""
        training_set, faces = self.sets[draw.set_number], self.faces[draw.set_number]
        for unreadable in range(len(faces)):
            face = faces[(draw.face + unreadable) % len(faces)]
            try:
                image = face.load_image()
            except ImageError as error:
                if face.name not in self.reported:
                    self.reported.add(face.name)
                    logger.warning("%s of %s is skipped: %s", face.name, faces.name, error)
                continue
            square = self.square(draw.set_number, face)
            points = face.points.copy()
            points[list(training_set.ignored)] = np.nan
            return Sample(face.name, image, points, square, unreadable, _visible(face))
        raise DataError(f"no image of {faces.name} can be read: is the data set complete?")

    def square(self, set_number: int, face: AnnotatedFace) -> FloatArray:
        """The crop square (4,) of a face of a set."""
        box = tight_boxes(_box_points(self.sets[set_number], face))
        square: FloatArray = self.box_maps[set_number].squares(box)[0]
        return square


class TrainingBatches(Dataset[tuple[Batch, UnlabeledBatch | None]]):
    """Step number -> the batch of this process, and unlabeled faces where the run uses them.

    A sample is determined by the seed, its face and how often the face was used before: a resumed
    run uses the same samples, and several processes use those of one with a larger batch.

    Args:
        configuration: of the run.
        plan: its steps.
        layouts: number of points of each layout, auxiliary ones included.
        faces: of each set of the configuration.
        unlabeled: of each set of ``self_training``.
        process: index of this process out of ``processes``.
        processes: number of processes.
        meshes: of each set of the configuration; None: of none.

    Raises:
        ConfigurationError: a set has a layout that the run does not train.
    """

    def __init__(
        self,
        configuration: TrainingConfiguration,
        plan: Plan,
        layouts: Mapping[str, int],
        faces: Sequence[AnnotatedFaces],
        unlabeled: Sequence[AnnotatedFaces] = (),
        process: int = 0,
        processes: int = 1,
        meshes: Sequence[MeshLabels | None] | None = None,
    ) -> None:
        self.configuration, self.plan, self.layouts = configuration, plan, dict(layouts)
        for each in faces:
            if self.layouts.get(each.layout) != len(each.mirror):
                raise ConfigurationError(
                    f"{each.name} has layout {each.layout} with {len(each.mirror)} points, this "
                    f"run trains {self.layouts}. Change the layout of the set or of the run"
                )
        self.faces = _Faces(configuration, configuration.sets, faces, configuration.seed)
        self.self_training = configuration.self_training
        if self.self_training:
            seed = configuration.seed + 1
            self.unlabeled = _Faces(configuration, self.self_training.sets, unlabeled, seed)
        starts = np.cumsum([0, *self.layouts.values()]).tolist()
        self.starts = dict(zip(self.layouts, starts, strict=False))
        self.shared = shared_points(self.starts)
        mirrors = {name: known.mirror for name, known in LAYOUTS.items()}
        mirrors |= {each.layout: each.mirror for each in faces}
        self.meshes = meshes or [None] * len(faces)
        for mesh in self.meshes:
            if mesh is not None:
                mirrors[MESH] = mesh.mirror
        self.mirror = np.concatenate(
            [
                # Of a layout without a face there is nothing to mirror.
                start + (mirrors[name] if name in mirrors else np.arange(self.layouts[name]))
                for name, start in self.starts.items()
            ]
        )
        self._warn_of_meshes_elsewhere()
        self.maps: dict[str, MeshMap] = {}
        if any(self.meshes):
            self.maps = fit_mesh_maps(faces, self.meshes, configuration.mesh.worst)
        # Of each mapped layout, the indices of its inner points and of its pupils, if it has any.
        self.mapped_points = {
            name: (
                np.flatnonzero(inner_points(name)),
                np.array([p[0] for p in get_layout(name).pupils if len(p) == 1], np.intp),
            )
            for name in self.maps
        }
        known = {name: LAYOUTS[name] for name in self.starts if name in LAYOUTS}
        self.pupils = [
            [self.starts[name] + np.array(eye, np.intp) for eye in layout.pupils]
            for name, layout in known.items()
        ]
        # Of each layout that follows from the mesh, the nearest vertices of its points, and which
        # points are part of an outline.
        self.nearest: dict[str, tuple[IndexArray, BoolArray]] = {}
        for name in known if any(self.meshes) else ():
            with suppress(ConfigurationError):
                weights = np.abs(get_conversion(MESH, name).matrix)
                self.nearest[name] = weights.argmax(axis=1), ~inner_points(name)
        self.process, self.processes = process, processes

    def _warn_of_meshes_elsewhere(self) -> None:
        """Warn of a file of meshes none of which lies on the face of its image."""
        worst = self.configuration.mesh.worst
        for number, (faces, mesh) in enumerate(zip(self.faces.faces, self.meshes, strict=True)):
            if mesh is not None and not any(
                mesh.of(face.name, self.faces.square(number, face), worst) is not None
                for face in faces
            ):
                logger.warning(
                    "no mesh lies on its face in %s, which trains without them: are their points "
                    "in 1/64 pixel of the images?",
                    faces.name,
                )

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> tuple[Batch, UnlabeledBatch | None]:
        moment = self.plan.at(step)
        size = moment.stage.crop_size
        share = moment.stage.batch_size * self.plan.group // self.processes
        first = moment.first_sample + self.process * share
        batch = Batch(*_stack([self._sample(first + i, size) for i in range(share)]))
        settings = self.self_training
        if settings is None or step < settings.start:
            return batch, None
        first = (step * self.processes + self.process) * settings.faces
        pairs = [self._pair(first + i, size) for i in range(settings.faces)]
        return batch, UnlabeledBatch(*_stack(pairs))

    def _sample(self, number: int, size: int) -> tuple[Any, ...]:
        """One row of a `Batch`."""
        draw = self.faces.sampler.draw(number)
        rng = generator(self.configuration.seed, *draw)
        sample = self.faces.load(draw)
        points, weights = self._labels(draw.set_number, sample.name, sample.points, sample.square)
        visible = self._visibility(draw.set_number, sample, points)
        other = partial(self._other_crop, rng, size)
        crop, points, flipped, covered = self.configuration.augmentation.crop(
            sample.image, points, self.mirror, sample.square, size, rng, other, self._eyes(points)
        )
        if flipped:
            weights, visible = weights[self.mirror], visible[self.mirror]
        with np.errstate(invalid="ignore"):  # unknown points are NaN
            known = np.asarray(((points >= -0.5) & (points < size - 0.5)).all(axis=-1))
        if covered is not None:  # also where it is unknown whether it was visible before
            visible = np.where(covered > 0.99, 0, visible * (1 - covered))
        if self.configuration.augmentation.occluders:
            visible = np.where(np.isfinite(points).all(axis=-1) & ~known, 0, visible)
        weights = np.where(known, weights, 0).astype(np.float32)
        points = np.nan_to_num(points).astype(np.float32)
        return crop, points, weights, np.int64(sample.unreadable), visible.astype(np.float32)

    def _labels(
        self, set_number: int, name: str, own: FloatArray, square: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Points (P, 2), NaN where unknown, and weights (P,) of all layouts for a face.

        The face's own label counts most, then points that layouts share, then those from a mesh.
        """
        layout = self.faces.faces[set_number].layout
        total = sum(self.layouts.values())
        points, weights = np.full((total, 2), np.nan), np.zeros(total)
        place = self._place(layout)
        points[place] = own
        settings, mesh = self.configuration.mesh, self.meshes[set_number]
        weights[place] = settings.weight if layout == MESH else 1.0
        source, target = self.shared[layout]
        points[target], weights[target] = own[source], self.configuration.loss.shared_weight
        vertices = mesh.of(name, square, settings.worst) if mesh else None
        if mesh is None or vertices is None:
            return points, weights

        def add(index: slice | IndexArray, found: FloatArray, weight: float) -> None:
            missing = np.isnan(points[index]).any(axis=-1)
            points[index] = np.where(missing[:, None], found, points[index])
            weights[index] = np.where(missing, weight, weights[index])

        if MESH in self.starts:
            add(self._place(MESH), vertices, settings.weight)
        if mesh.disagreement[mesh.rows[name]] > settings.worst_mapped:
            return points, weights
        for other, mapping in self.maps.items():
            start = self.starts[other]
            inner, pupils = self.mapped_points[other]
            # The maps pull pupils to the middle of the eye: the irises are pupils themselves.
            if len(pupils) == len(IRISES):
                add(start + pupils, vertices[list(IRISES)], settings.weight)
            share = 0.5 if other == "COFW29" else 1.0
            add(start + inner, mapping(vertices)[inner], share * settings.mapped_weight)
        return points, weights

    def _visibility(self, set_number: int, sample: Sample, points: FloatArray) -> FloatArray:
        """(P,) for the points (P, 2) of all layouts as `Sample.visible`, before occluders.

        Mapped points are visible, unless the mesh turns them away. Those of outlines are annotated
        on the outline that can be seen: where the mesh hides them they are unknown.
        """
        layout = self.faces.faces[set_number].layout
        if not self.configuration.augmentation.occluders:
            return np.full(len(points), np.nan)
        visible = np.where(np.isfinite(points).all(axis=-1), 1.0, np.nan)
        if np.isnan(sample.visible).all():
            visible[:] = np.nan
        source, target = self.shared[layout]
        mesh = self.meshes[set_number]
        vertices = None
        if mesh is not None:
            vertices = mesh.of(sample.name, sample.square, self.configuration.mesh.worst)
        if vertices is not None:
            turned = turned_away(vertices)
            for name, (nearest, outline) in self.nearest.items():
                hidden = turned[nearest]
                hidden = np.where(outline & (hidden != 0), np.nan, hidden)
                place = self._place(name)
                visible[place] = np.where(
                    hidden == 1, 0, np.where(hidden == 0, visible[place], np.nan)
                )
        stated = np.isfinite(sample.visible)
        own = visible[self._place(layout)]
        own[stated] = np.fmin(own[stated], sample.visible[stated])
        visible[target] = np.where(stated[source], own[source], visible[target])
        return visible

    def _eyes(self, points: FloatArray) -> FloatArray | None:
        """The left and the right eye (2, 2) of a face with the points (P, 2) of all layouts."""
        for pair in self.pupils:
            eyes = np.stack([points[each].mean(axis=0) for each in pair])
            if np.isfinite(eyes).all():
                return eyes
        return None

    def _place(self, layout: str) -> slice:
        """Where a layout's points lie in the row of all points."""
        return slice(self.starts[layout], self.starts[layout] + self.layouts[layout])

    def _pair(self, number: int, size: int) -> tuple[Any, ...]:
        """One row of an `UnlabeledBatch`: two crops of the same image, which may be mirrored."""
        draw = self.unlabeled.sampler.draw(number)
        rng = generator(self.configuration.seed + 1, *draw)
        augmentation = self.configuration.augmentation
        sample = self.unlabeled.load(draw)
        image, square = sample.image, sample.square
        if rng.random() < augmentation.flip:
            image = np.ascontiguousarray(image[:, ::-1])
            square = square * (-1, 1, 1, -1) + (image.shape[1] - 1, 0, 0, 0)
        augmented = augmentation.square(square, rng)
        plain = cut_crop(image, square, size)
        crop = cut_crop(image, augmented, size)
        crop = augmentation.look(crop, rng, partial(self._other_crop, rng, size))
        # From the plain crop to the image, from there to the augmented crop.
        back = np.vstack([invert(crop_matrix(square, size)), (0, 0, 1)])
        matrix = crop_matrix(augmented, size) @ back
        return plain, crop, matrix.astype(np.float32)

    def _other_crop(self, rng: np.random.Generator, size: int) -> Image:
        """The crop of a random face of the run, for patches."""
        sample = self.faces.load(self.faces.sampler.draw(int(rng.integers(self.plan.samples))))
        return cut_crop(sample.image, sample.square, size)


def _visible(face: AnnotatedFace) -> FloatArray:
    """`Sample.visible` of a face.

    A face that is said to be occluded has points whose visibility is unknown.
    """
    if face.visible is not None:
        return face.visibility
    return np.full(len(face.points), np.nan if "occlusion" in face.subsets else 1.0)


def _stack(rows: list[tuple[Any, ...]]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)]


def read_face_set(
    data: Path, face_set: FaceSet, settings: Mesh = DEFAULT_MESH, mesh: MeshLabels | None = None
) -> AnnotatedFaces:
    """Read the faces of a set of a configuration.

    Args:
        data: the folder that the set's folder is relative to.
        face_set: the set.
        settings: decide which meshes are good enough to be labels.
        mesh: of the set, if it has been read.
    """
    folder, split = data / face_set.folder, face_set.split
    if face_set.layout == MESH and face_set.mesh:
        mesh = mesh or read_mesh(data / face_set.mesh)
        faces = mesh_faces(folder, split, mesh, settings.worst)
    elif face_set.points is not None:
        faces = read_faces(folder, split, format=face_set.format, needs_mirror=False)
        faces = select_points(faces, face_set.points, get_layout(face_set.layout or faces.layout))
    else:
        faces = read_faces(folder, split, format=face_set.format, layout=face_set.layout)
    if face_set.names:
        chosen = [face for face in faces if re.fullmatch(face_set.names, image_of(face.name))]
        if not chosen:
            raise DataError(f"{faces.name}: no image has a name like {face_set.names!r}")
        faces = replace(faces, faces=chosen)
    if not face_set.held_out:
        return faces
    rest, held = faces.split(face_set.held_out)
    return rest if isinstance(face_set, TrainingSet) else held


def select_points(faces: AnnotatedFaces, points: Sequence[int], layout: Layout) -> AnnotatedFaces:
    """The faces with some of their points, by index, as the points of a layout.

    Raises `ConfigurationError` if the indices are not those of the layout's points.
    """
    index, count = np.array(points, np.intp), len(faces.mirror)
    if len(index) != layout.size or index.min() < 0 or index.max() >= count:
        given = f"{len(index)} indices up to {index.max()}" if len(index) else "none"
        raise ConfigurationError(
            f"points: {faces.name} has {count} points, of which {layout.size} make up "
            f"{layout.name}; given: {given}"
        )
    chosen = [
        replace(
            face,
            points=face.points[index],
            visible=None if face.visible is None else face.visible[index],
        )
        for face in faces
    ]
    return replace(faces, layout=layout.name, mirror=layout.mirror, faces=chosen)


def read_training_set(
    data: Path, training_set: TrainingSet, settings: Mesh
) -> tuple[AnnotatedFaces, MeshLabels | None]:
    """Read the faces of a training set, and their meshes if it has any.

    Raises `DataError` also for meshes of other images.
    """
    if training_set.mesh is None:
        return read_face_set(data, training_set), None
    mesh = read_mesh(data / training_set.mesh)
    faces = read_face_set(data, training_set, settings, mesh)
    if not any(face.name in mesh.rows for face in faces):
        raise DataError(f"{training_set.mesh}: no mesh is of an image of {faces.name}")
    return oversampled(faces, mesh, settings.rare_times), mesh


def usable_faces(training_set: TrainingSet, faces: AnnotatedFaces) -> AnnotatedFaces:
    """The faces of a set that have a box for a crop; the others are added to ``skipped``.

    Raises:
        ConfigurationError: the set names points that its faces do not have.
        DataError: no face is left.
    """
    last = max((0, *training_set.ignored, *(training_set.box_points or ())))
    if last >= len(faces.mirror):
        raise ConfigurationError(
            f"ignored or box_points: {faces.name} has no point {last}, it has {len(faces.mirror)}"
        )
    kept, lost = [], []
    for face in faces:
        if np.ptp(_box_points(training_set, face), axis=0).max() > 0:
            kept.append(face)
        else:
            lost.append(f"{face.source or face.name}: no two points to cut a crop around")
    if not lost:
        return faces
    if not kept:
        raise DataError(f"{faces.name} has no usable face, remove it: {lost[0]}")
    return replace(faces, faces=kept, skipped=[*faces.skipped, *lost])


def _box_points(training_set: TrainingSet, face: AnnotatedFace) -> FloatArray:
    """The known points (K, 2) that the crop contains; one of (0, 0) where none is known."""
    chosen = training_set.box_points
    points = face.points if chosen is None else face.points[list(chosen)]
    known = known_points(points)
    return known if len(known) else np.zeros((1, 2))


def shared_points(starts: Mapping[str, int]) -> dict[str, tuple[IndexArray, IndexArray]]:
    """For each layout: its points that other layouts share, and their places in the row.

    A face annotated in one layout trains the same points of other layouts with them. ``starts``
    are the first places of the layouts in the row of all points.
    """
    to_68 = {i98: i68 for i68, i98 in EXACT_98_68.items()}
    same_68_29 = {i29: to_68[i98] for i29, i98 in EXACT_98_29.items() if i98 in to_68}
    tables = {
        ("WFLW98", "W300_68"): EXACT_98_68,
        ("WFLW98", "COFW29"): EXACT_98_29,
        ("W300_68", "COFW29"): same_68_29,
    }
    pairs: dict[str, list[tuple[int, int]]] = {name: [] for name in starts}
    for (fine, coarse), table in tables.items():
        if fine in starts and coarse in starts:
            for c, f in table.items():
                pairs[fine].append((f, starts[coarse] + c))
                pairs[coarse].append((c, starts[fine] + f))
    columns = {name: np.array(pair, np.intp).reshape(-1, 2) for name, pair in pairs.items()}
    return {name: (column[:, 0], column[:, 1]) for name, column in columns.items()}


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Run a block with one thread in OpenCV: more would compete with the network's for the cores.

    Workers must be started in it. In a forked process, OpenCV waits for ever for the threads that
    the parent has.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def use_one_thread(_: int) -> None:
    """Start a worker, which has no parent's threads."""
    cv2.setNumThreads(1)
