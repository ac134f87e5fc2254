"""Annotated faces on disk -> training batches. Reads folders in the project's own format.

A data folder holds one folder a set, each with ``annotations.jsonl`` (one JSON object a line:
``image``, ``points``, ``split``) and the pictures, and ``points.json`` with the mirror table
(``flip``) of every scheme by its number of points.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hihlandmark.crop import BoxMap, crop_matrix, cut_crop, tight_boxes, transform_points
from hihlandmark.errors import ConfigurationError
from hihlandmark.evaluate import read_annotations
from hihlandmark.image import load_image
from hihlandmark.layouts import EXACT_98_29, EXACT_98_68
from hihlandmark.training.recipes import Recipe, TrainingSet


class AnnotatedFace(NamedTuple):
    """A picture and its points (P, 2) in the picture's pixels."""

    image: Path
    points: NDArray[np.floating]


class Batch(NamedTuple):
    """B crops and the targets of every point of every layout.

    ``crops`` (B, S, S, 3) uint8; ``points`` (B, P, 2) float32 in crop pixels; ``weights`` (B, P)
    float32, 0 where a point is unknown or outside of the crop. P counts all the layouts' points,
    one layout after another.
    """

    crops: torch.Tensor
    points: torch.Tensor
    weights: torch.Tensor


class TrainingBatches(Dataset[Batch]):
    """Step number -> `Batch`, for a recipe over a data folder.

    A batch depends on the recipe's seed and the step alone, so that a run which resumes at a step
    sees what it would have seen without the interruption. ``layouts`` maps the name of each layout,
    auxiliary ones too, to its number of points.
    """

    def __init__(self, root: Path, recipe: Recipe, layouts: Mapping[str, int]) -> None:
        self.recipe, self.layouts = recipe, dict(layouts)
        shares = np.array([training_set.share for training_set in recipe.sets])
        self.shares = shares / shares.sum()
        self.faces = [_read_faces(root, s, self.layouts[s.layout]) for s in recipe.sets]
        self.mirrors = _read_mirrors(root, self.layouts)
        starts = np.cumsum([0, *self.layouts.values()]).tolist()
        self.starts = dict(zip(self.layouts, starts, strict=False))
        self.lent = lent_points(self.starts)

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> Batch:
        stage, _ = self.recipe.stage_at(step)
        rng = np.random.default_rng((self.recipe.seed, step))
        samples = [self._sample(stage.crop_size, rng) for _ in range(stage.batch_size)]
        return Batch(*(torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True)))

    def _sample(self, size: int, rng: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
        """One crop (size, size, 3), and the row of all layouts' points and weights."""
        which = rng.choice(len(self.faces), p=self.shares)
        training_set, faces = self.recipe.sets[which], self.faces[which]
        face = faces[rng.integers(len(faces))]
        image, points = load_image(face.image), face.points
        known = np.ones(len(points), bool)
        known[list(training_set.ignored)] = False

        augmentation = self.recipe.augmentation
        if rng.random() < augmentation.flip:
            mirror = self.mirrors[training_set.layout]
            image = np.ascontiguousarray(image[:, ::-1])
            points, known = points[mirror] * (-1, 1) + (image.shape[1] - 1, 0), known[mirror]
        square = augmentation.square(_canonical_square(training_set, points), rng)
        crop = augmentation.look(cut_crop(image, square, size), rng)
        points = transform_points(crop_matrix(square, size), points)
        known &= ((points >= -0.5) & (points < size - 0.5)).all(axis=-1)
        return crop, *self._row(training_set.layout, points, known)

    def _row(
        self, layout: str, points: NDArray[np.floating], known: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One layout's points -> points (P, 2) and weights (P,) of all layouts."""
        total = sum(self.layouts.values())
        all_points, weights = np.zeros((total, 2), np.float32), np.zeros(total, np.float32)
        own = slice(self.starts[layout], self.starts[layout] + len(points))
        all_points[own], weights[own] = points, known
        source, target = self.lent[layout]
        all_points[target] = points[source]
        weights[target] = known[source] * self.recipe.shared_weight
        return all_points, weights


def lent_points(starts: Mapping[str, int]) -> dict[str, tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """For each layout: its points that another layout has too, and their places in the row.

    Lets a face annotated in one layout teach the same points of the other layouts. ``starts`` maps
    a layout to its first place in the row of all points.
    """
    same_68_29 = {
        i29: i68
        for i29, i98 in EXACT_98_29.items()
        for i68, other98 in EXACT_98_68.items()
        if i98 == other98
    }
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


def _canonical_square(
    training_set: TrainingSet, points: NDArray[np.floating]
) -> NDArray[np.float64]:
    chosen = points if training_set.box_points is None else points[list(training_set.box_points)]
    return BoxMap((0.0, 0.0), training_set.box_scale).squares(tight_boxes(chosen))[0]


def _read_faces(root: Path, training_set: TrainingSet, count: int) -> list[AnnotatedFace]:
    """The faces of a set's "train" split; of annotations with more points, the first ``count``."""
    folder = root / training_set.folder
    faces = [
        AnnotatedFace(folder / row["image"], np.array(row["points"], np.float64)[:count])
        for row in read_annotations(folder, "train")
    ]
    if len(faces[0].points) != count:
        raise ConfigurationError(
            f"{folder} has {len(faces[0].points)} points a face, {training_set.layout} {count}"
        )
    return faces


def _read_mirrors(root: Path, layouts: Mapping[str, int]) -> dict[str, NDArray[np.intp]]:
    path = root / "points.json"
    if not path.is_file():
        raise ConfigurationError(f"{root} has no points.json with the mirror tables of its schemes")
    schemes = json.loads(path.read_text(encoding="utf-8"))
    return {name: np.array(schemes[str(count)]["flip"], np.intp) for name, count in layouts.items()}


# One thread a worker: OpenCV's own threads would fight with the network's for the cores.
cv2.setNumThreads(1)
