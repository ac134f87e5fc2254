"""Labels of a face mesh: as a layout for training only, and mapped to the inner points of others.

The mesh has the 478 vertices of MediaPipe's attention mesh. A file ``NAME.npz`` holds ``names``
(N,), of images as in the data set, ``points`` (N, 478, 2) in 1/64 pixel, and ``disagreement`` (N,),
the mean distance in % of the inter-ocular distance between the mesh of an image and that of its
mirror image. ``flip.npy`` beside it is the mirror table.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, IndexArray
from hihlandmark.crop import (
    CANONICAL_CROP,
    invert,
    similarities,
    tight_boxes,
    transform_points,
)
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.errors import ConfigurationError, DataError, abbreviate, missing_extra
from hihlandmark.image import load_image
from hihlandmark.layouts import MESH478, Layout, get_layout
from hihlandmark.layouts.layout import is_mirror_table
from hihlandmark.shape_prior import procrustes_mean

logger = logging.getLogger(__name__)

MESH = MESH478.name
VERTICES = MESH478.size
OUTER_EYE_CORNERS = MESH478.ocular_pair
IRISES = (468, 473)
# Corners of an eye, its iris, and pairs of vertices on both lids.
EYES = (
    (33, 133, 468, ((160, 144), (158, 153))),
    (362, 263, 473, ((385, 380), (387, 373))),
)
SHUT_BELOW = 0.13
"""Lid distance over corner distance below which an eye is shut."""
AVERTED_ABOVE = 0.11
"""Distance of the irises from the middle of the eyes, in corner distances, of an averted gaze."""
OUTER_PARTS = ("jaw", "brow")
"""Parts on which annotators and mesh do not agree well enough."""
_RIDGE = {"W300_68": 1e-4}
_USUAL_RIDGE = 3e-3
_SAME_FACE = (0.12, 0.75)
"""A mesh belongs to a labeled face if their crops lie within this share of a side, and the smaller
side is more than this share of the larger one."""


@dataclass(frozen=True, eq=False)
class MeshLabels:
    """The meshes of the images of one set.

    Attributes:
        rows: by name of the image: the row in the arrays.
        points: (N, 478, 2) in pixels of the image.
        disagreement: (N,) in % of the inter-ocular distance.
        mirror: (478,), see `Layout.mirror`.
    """

    rows: Mapping[str, int]
    points: FloatArray
    disagreement: FloatArray
    mirror: IndexArray

    def of(self, name: str, square: FloatArray, worst: float) -> FloatArray | None:
        """The points (478, 2) of the face in a crop square (4,), None if not good enough."""
        row = self.rows.get(name)
        if row is None or self.disagreement[row] > worst:
            return None
        own = mesh_square(self.points[row])
        distance, ratio = _SAME_FACE
        if np.linalg.norm(own[:2] - square[:2]) >= distance * square[2]:
            return None
        return self.points[row] if ratio < own[2] / square[2] < 1 / ratio else None


def read_mesh(path: Path) -> MeshLabels:
    """Read the meshes of a set; those with numbers that are not finite are left out, and named.

    Raises:
        DataError: the file is missing, damaged or no file of meshes, or no mesh is finite.
    """
    arrays = _arrays_of(path)
    try:
        names, points = arrays["names"].tolist(), arrays["points"] / 64.0
        disagreement = arrays["disagreement"].astype(np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds no names, points and disagreement of meshes") from error
    count = len(names)
    if (points.shape, disagreement.shape) != ((count, VERTICES, 2), (count,)):
        raise DataError(
            f"{path} holds points of shape {points.shape} and disagreement of shape "
            f"{disagreement.shape}, not ({count}, {VERTICES}, 2) and ({count},) of {count} meshes"
        )
    flip = path.with_name("flip.npy")
    mirror = _arrays_of(flip)
    if not isinstance(mirror, np.ndarray) or mirror.shape != (VERTICES,):
        raise DataError(f"{flip} is no mirror table of {VERTICES} vertices")
    mirror = mirror.astype(np.intp)
    if not is_mirror_table(mirror):
        raise DataError(f"{flip} is no mirror table: each vertex needs one partner")
    is_finite = np.isfinite(points).all(axis=(1, 2)) & np.isfinite(disagreement)
    if count and not is_finite.any():
        raise DataError(f"{path}: no mesh is finite. Copy the file again")
    if lost := [str(name) for name, fine in zip(names, is_finite, strict=True) if not fine]:
        logger.warning("%s: meshes that are not finite are left out: %s", path, abbreviate(lost))
    rows = {str(name): row for row, name in enumerate(names) if is_finite[row]}
    return MeshLabels(rows, points, disagreement, mirror)


def _arrays_of(path: Path) -> Any:
    """What a file of NumPy holds. Raises `DataError` for a missing, damaged or another file."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded}
    except FileNotFoundError:
        raise DataError(f"there is no file {path} of meshes") from None
    except Exception as error:  # a damaged zip can raise anything
        raise DataError(f"{path} is damaged, or no file of NumPy: copy it again") from error


def mesh_faces(folder: Path, split: str, mesh: MeshLabels, worst: float) -> AnnotatedFaces:
    """The images of a folder whose mesh is good enough, with the mesh as their label.

    Raises `DataError` if there is none.
    """
    faces = [
        AnnotatedFace(name, partial(load_image, folder / name), mesh.points[row], split)
        for name, row in mesh.rows.items()
        if mesh.disagreement[row] <= worst
    ]
    if not any((folder / face.name).is_file() for face in faces):
        raise DataError(f"{folder} has no image with a mesh of a disagreement up to {worst:g} %")
    return AnnotatedFaces(folder.name, MESH, mesh.mirror, faces)


def mesh_square(points: FloatArray) -> FloatArray:
    """The canonical crop square (4,) around a mesh (478, 2)."""
    square: FloatArray = CANONICAL_CROP[f"landmarks:{MESH}"].squares(tight_boxes(points))[0]
    return square


def oversampled(faces: AnnotatedFaces, mesh: MeshLabels, times: int) -> AnnotatedFaces:
    """The faces, those with shut eyes or averted gaze ``times`` times."""
    chosen: list[AnnotatedFace] = []
    for face in faces:
        row = mesh.rows.get(face.name)
        rare = row is not None and is_rare(mesh.points[row])
        chosen += [face] * (times if rare else 1)
    return replace(faces, faces=chosen)


def is_rare(points: FloatArray) -> bool:
    """Whether an eye of a mesh (478, 2) is shut, or its gaze averted."""
    openness, aside = [], []
    for start, end, iris, lids in EYES:
        axis = points[end] - points[start]
        width = float(np.linalg.norm(axis)) + 1e-6
        upper, lower = np.array(lids).T
        distances = np.linalg.norm(points[upper] - points[lower], axis=-1)
        openness.append(distances.mean() / width)
        middle = (points[start] + points[end]) / 2
        aside.append(float((points[iris] - middle) @ axis) / width**2)
    return bool(min(openness) < SHUT_BELOW or abs(np.mean(aside)) > AVERTED_ABOVE)


def turned_away(points: FloatArray) -> FloatArray:
    """Which vertices of a mesh (478, 2) the face itself hides.

    The mesh has no depth. A vertex is turned away where the triangles around it are seen from
    behind, and is behind the nose where it lies in a triangle nearer to the middle of the face.
    Lips also fold when the mouth opens: they are hidden only where the cheek beside them is.

    Returns:
        (478,): 1 for hidden vertices, 0 for others, NaN near the outline.
    """
    triangles, area, around, nearest, beside = _triangulation()
    corners = points[triangles]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    seen = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    share = around @ seen / (around @ area)
    share = share / max(float(np.quantile(share, 0.9)), 1e-6)
    hidden = np.where(share < _BEHIND, 1.0, np.where(share < _OUTLINE, np.nan, 0.0))
    if (share < _BEHIND).mean() > _TURNED:
        # Barycentric coordinates of all vertices in all triangles seen from the front.
        size = np.where(seen > 0, seen, np.inf)
        apart = points[:, None] - corners[None, :, 0]
        u = (apart[..., 0] * second[:, 1] - apart[..., 1] * second[:, 0]) / size
        v = (first[:, 0] * apart[..., 1] - first[:, 1] * apart[..., 0]) / size
        inside = np.minimum(np.minimum(u, v), 1 - u - v) > _INSIDE
        outward = np.abs(MESH478.mean_shape[:, 0])
        in_front = outward[triangles].max(axis=1) < outward[:, None] * _NEARER
        hidden[(inside & in_front).any(axis=1)] = 1
    lips = beside != np.arange(len(beside))
    hidden[lips & (hidden[beside] != 1)] = hidden[beside][lips & (hidden[beside] != 1)]
    return hidden[nearest]


_BEHIND, _OUTLINE = -0.05, 0.1
_TURNED = 0.02
"""Share of vertices seen from behind from which on the nose may hide others."""
_INSIDE, _NEARER = 0.05, 0.7
_MOUTH = 61, 37, 18
"""A corner of the lips, a peak of the upper one, and the middle of the fold below the lower one."""


@cache
def _triangulation() -> tuple[IndexArray, FloatArray, FloatArray, IndexArray, IndexArray]:
    """Of the mean mesh, which looks to the front.

    Triangles (T, 3), twice their areas (T,), which of them (478, T) have a vertex, and the vertex
    itself (478,), or for those of the irises the nearest other one. Last the vertex itself (478,),
    or for those of the lips the one beside them on the cheek, twice as far from the middle.
    """
    with missing_extra("train"):
        from scipy.spatial import Delaunay, cKDTree

    shape = MESH478.mean_shape
    count = min(IRISES)
    triangles = Delaunay(shape[:count]).simplices.astype(np.intp)
    first, second = (shape[triangles[:, i]] - shape[triangles[:, 0]] for i in (1, 2))
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    triangles[area < 0] = triangles[area < 0][:, ::-1]
    area = np.abs(area)
    # Slivers between points of the outline are no part of the face.
    thick = area > 1e-3 * np.median(area)
    triangles, area = triangles[thick], area[thick]
    around = np.zeros((VERTICES, len(triangles)))
    for corner in range(3):
        around[triangles[:, corner], np.arange(len(triangles))] = 1
    around[around.sum(axis=1) == 0] = 1
    nearest = np.arange(VERTICES)
    nearest[count:] = cKDTree(shape[:count]).query(shape[count:])[1]
    corner, top, bottom = np.abs(shape[list(_MOUTH)])
    lips = (np.abs(shape[:, 0]) <= corner[0]) & (top[1] <= shape[:, 1]) & (shape[:, 1] <= bottom[1])
    others = np.flatnonzero(~lips[:count])
    beside = np.arange(VERTICES)
    beside[lips] = others[cKDTree(shape[others]).query(shape[lips] * (2, 1))[1]]
    return triangles, area, around, nearest, beside


@dataclass(frozen=True, eq=False)
class MeshMap:
    """A linear map from meshes to the points of a layout, after a similarity alignment.

    Attributes:
        mean: (478, 2), the shape that meshes are aligned to.
        center: (478 * 2,) and ``target`` (P * 2,): means of aligned meshes and points.
        weights: (478 * 2, P * 2).
    """

    mean: FloatArray
    center: FloatArray
    target: FloatArray
    weights: FloatArray

    def __call__(self, mesh: FloatArray) -> FloatArray:
        """Mesh (478, 2) -> points (P, 2) in the same pixels."""
        transform = similarities(mesh[None], self.mean)
        aligned = transform_points(transform, mesh[None]).ravel()
        points = ((aligned - self.center) @ self.weights + self.target).reshape(1, -1, 2)
        found: FloatArray = transform_points(invert(transform), points)[0]
        return found


def fit_mesh_map(meshes: FloatArray, points: FloatArray, ridge: float) -> MeshMap:
    """Fit the map by ridge regression to meshes (N, 478, 2) and points (N, P, 2), N >= 2."""
    mean = procrustes_mean(meshes)
    transforms = similarities(meshes, mean)
    sources = transform_points(transforms, meshes).reshape(len(meshes), -1)
    targets = transform_points(transforms, points).reshape(len(points), -1)
    center, target = sources.mean(axis=0), targets.mean(axis=0)
    sources, targets = sources - center, targets - target
    gram = sources @ sources.T + ridge * len(meshes) * np.eye(len(meshes))
    return MeshMap(mean, center, target, sources.T @ np.linalg.solve(gram, targets))


def fit_mesh_maps(
    sets: Sequence[AnnotatedFaces], meshes: Sequence[MeshLabels | None], worst: float
) -> dict[str, MeshMap]:
    """The map to each built-in layout of which two or more labeled faces have a good mesh."""
    pairs: dict[str, tuple[list[FloatArray], list[FloatArray]]] = {}
    for faces, mesh in zip(sets, meshes, strict=True):
        if mesh is None or faces.layout == MESH or not inner_points(faces.layout).any():
            continue
        sources, targets = pairs.setdefault(faces.layout, ([], []))
        for face in {face.name: face for face in faces}.values():
            row = mesh.rows.get(face.name)
            if row is None or mesh.disagreement[row] > worst:
                continue
            own = mesh.points[row]
            left, right = own[list(OUTER_EYE_CORNERS)]
            offset = own.mean(axis=0) - face.points.mean(axis=0)  # NaN where a point is unknown
            if np.linalg.norm(offset) < np.linalg.norm(right - left):
                sources.append(own)
                targets.append(face.points)
    return {
        layout: fit_mesh_map(np.array(sources), np.array(targets), _RIDGE.get(layout, _USUAL_RIDGE))
        for layout, (sources, targets) in pairs.items()
        if len(sources) >= 2
    }


def inner_points(layout: str) -> BoolArray:
    """(P,) bool: the points of a built-in layout that a mesh labels well; none of other layouts."""
    try:
        known: Layout = get_layout(layout)
    except ConfigurationError:  # a scheme that is no `Layout`
        return np.zeros(0, bool)
    inner = np.ones(known.size, bool)
    for part, indices in known.parts.items():
        if any(outer in part for outer in OUTER_PARTS):
            inner[list(indices)] = False
    return inner
