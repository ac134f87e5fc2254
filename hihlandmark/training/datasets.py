"""Annotated faces on disk -> training batches. Reads folders in the project's own format.

A data folder holds one folder a set, each with ``annotations.jsonl`` (one JSON object a line:
``image``, ``points``, ``visible``, ``split``) and the pictures, and ``points.json`` with the mirror
table of every layout that the SDK itself does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hihlandmark.crop import crop_matrix, cut_crop, transform_points
from hihlandmark.layouts import EXACT_98_29, EXACT_98_68
from hihlandmark.training.augmentation import Augmentation


@dataclass(frozen=True)
class TrainingSet:
    """One set of a data folder and how much of a batch it fills.

    ``box_scale`` maps the tight box of the points in ``box_points`` (all when None) to the crop's
    side; ``ignored`` points are not learned from.
    """

    folder: str
    layout: str
    share: float
    box_scale: float = 1.4
    box_points: tuple[int, ...] | None = None
    ignored: tuple[int, ...] = ()


class AnnotatedFace(NamedTuple):
    """A picture, its points (P, 2) in the picture's pixels, and which of them to learn (P,) bool."""

    image: Path
    points: NDArray[np.float64]
    known: NDArray[np.bool_]


def read_annotations(folder: Path, split: str) -> list[dict]:
    """The annotations of one split of one set, as the JSON objects they are."""
    with open(folder / "annotations.jsonl", encoding="utf-8") as lines:
        return [a for a in map(json.loads, lines) if a["split"] == split]


class Batch(NamedTuple):
    """B crops and the targets of every point of every layout.

    ``crops`` (B, S, S, 3) uint8; ``points`` (B, P, 2) float32 in crop pixels; ``weights`` (B, P)
    float32, 0 where a point is unknown or outside of the crop. P counts all the layouts' points,
    one layout after another.
    """

    crops: torch.Tensor
    points: torch.Tensor
    weights: torch.Tensor


class TrainingBatches(Dataset):
    """Batch number -> `Batch`. A batch depends on the seed and its number alone.

    So a run that resumes at step n sees what it would have seen without the interruption.
    """

    def __init__(
        self,
        root: Path,
        sets: tuple[TrainingSet, ...],
        layouts: Mapping[str, int],
        augmentation: Augmentation,
        stages: tuple[tuple[int, int, int], ...],
        seed: int,
        shared_weight: float,
    ) -> None:
        self.sets, self.layouts, self.augmentation = sets, dict(layouts), augmentation
        self.seed, self.stages = seed, stages
        self.shares = np.array([s.share for s in sets]) / sum(s.share for s in sets)
        schemes = json.loads((root / "points.json").read_text(encoding="utf-8"))
        self.mirrors = {name: np.array(scheme["flip"]) for name, scheme in schemes.items()}
        starts = np.cumsum([0, *layouts.values()])
        self.slices = {
            name: slice(start, start + count)
            for (name, count), start in zip(layouts.items(), starts, strict=False)
        }
        self.shared = shared_points(self.layouts, self.slices, shared_weight)
        self.faces = [self._read(root / s.folder, s) for s in sets]

    @staticmethod
    def _read(folder: Path, training_set: TrainingSet) -> list[AnnotatedFace]:
        faces = []
        for a in read_annotations(folder, "train"):
            points = np.array(a["points"], np.float64)
            known = np.ones(len(points), bool)
            known[list(training_set.ignored)] = False
            faces.append(AnnotatedFace(folder / a["image"], points, known))
        return faces

    def __len__(self) -> int:
        return sum(steps for steps, _, _ in self.stages)

    def stage(self, step: int) -> tuple[int, int]:
        """(crop size in pixels, batch size) at a step."""
        for steps, size, batch in self.stages:
            if step < steps:
                return size, batch
            step -= steps
        raise IndexError(step)

    def __getitem__(self, step: int) -> Batch:
        size, count = self.stage(step)
        rng = np.random.default_rng((self.seed, step))
        samples = [self._sample(size, rng) for _ in range(count)]
        return Batch(*(torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True)))

    def _sample(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        which = rng.choice(len(self.sets), p=self.shares)
        training_set = self.sets[which]
        face = self.faces[which][rng.integers(len(self.faces[which]))]
        image = cv2.cvtColor(cv2.imread(str(face.image)), cv2.COLOR_BGR2RGB)
        points, known = face.points[: self.layouts[training_set.layout]], face.known[: self.layouts[training_set.layout]]
        if rng.random() < self.augmentation.flip:
            mirror = self.mirrors[training_set.layout]
            image = np.ascontiguousarray(image[:, ::-1])
            points, known = points[mirror] * (-1, 1) + (image.shape[1] - 1, 0), known[mirror]
        boxed = points if training_set.box_points is None else points[list(training_set.box_points)]
        low, high = boxed.min(axis=0), boxed.max(axis=0)
        side = (high - low).max() * training_set.box_scale
        square = self.augmentation.square(np.array([*(low + high) / 2, side, 0.0]), rng)
        crop = self.augmentation.look(cut_crop(image, square, size), rng)
        points = transform_points(crop_matrix(square, size), points)
        known = known & ((points >= -0.5) & (points < size - 0.5)).all(axis=-1)
        return crop, *self._spread(training_set.layout, points, known)

    def _spread(
        self, layout: str, points: np.ndarray, known: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One layout's points into the row of all layouts' points, and their weights."""
        total = sum(self.layouts.values())
        all_points = np.zeros((total, 2), np.float32)
        weights = np.zeros(total, np.float32)
        own = self.slices[layout]
        all_points[own], weights[own] = points, known
        source, target, weight = self.shared[layout]
        all_points[target], weights[target] = points[source], known[source] * weight
        return all_points, weights


def shared_points(
    layouts: Mapping[str, int], slices: Mapping[str, slice], weight: float
) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """For each layout: its points that another layout has too, and where they are in the row.

    Lets a face annotated in one layout teach the same points of the other layouts.
    """
    exact = {("98", "68"): EXACT_98_68, ("98", "29"): EXACT_98_29}
    exact[("68", "29")] = {
        i29: i68 for i29, i98 in EXACT_98_29.items() for i68, j98 in EXACT_98_68.items() if i98 == j98
    }
    pairs: dict[str, list[tuple[int, int]]] = {name: [] for name in layouts}
    for (fine, coarse), table in exact.items():
        for c, f in table.items():
            pairs[fine].append((f, slices[coarse].start + c))
            pairs[coarse].append((c, slices[fine].start + f))
    columns = {name: np.array(p, int).reshape(-1, 2) for name, p in pairs.items()}
    return {name: (p[:, 0], p[:, 1], weight) for name, p in columns.items()}
