"""From what a teacher says of unlabeled faces to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from hihlandmark.heatmap import read_heatmaps
from hihlandmark.models.base import LandmarkNetwork
from hihlandmark.runtimes.graph import normalize
from hihlandmark.training.config import SelfTraining
from hihlandmark.training.data import Batch, UnlabeledBatch
from hihlandmark.weights.card import IMAGENET_MEAN, IMAGENET_STD, Decoding


@torch.no_grad()
def teach(
    teacher: LandmarkNetwork,
    unlabeled: UnlabeledBatch,
    settings: SelfTraining,
    decoding: Decoding,
    row: int,
    autocast: AbstractContextManager[Any],
) -> Batch:
    """What a teacher says of unlabeled faces, as a batch of the student's crops.

    ``teacher``: a network in eval mode, ``decoding`` how its heatmaps are read (`decoding_of`);
    ``row``: points of all layouts, auxiliary ones too; ``autocast``: its precision. The
    teacher's variance v, in squared cells, weighs each point by ``weight * s^2 / (s^2 + v)``
    (`SelfTraining`).
    """
    device = unlabeled.plain.device
    mean = torch.tensor(IMAGENET_MEAN, device=device)
    std = torch.tensor(IMAGENET_STD, device=device)
    with autocast:  # the network alone: positions want all their digits
        heatmaps = teacher(normalize(unlabeled.plain, mean, std))
    faces, size = unlabeled.plain.shape[:2]
    points = torch.zeros(faces, row, 2, device=device)
    weights = torch.zeros(faces, row, device=device)
    start = 0
    for name, count in teacher.configuration.layouts.items():
        place = slice(start, start + count)
        start = place.stop
        if name not in settings.layouts:
            continue
        integer, decimal = heatmaps[name].float()
        stride = size // integer.shape[-1]
        found = read_heatmaps(integer, decimal, decoding, stride=stride)
        variance = found.covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1) / stride**2
        trusted = settings.trusted_spread**2
        linear, shift = unlabeled.matrices[:, None, :, :2], unlabeled.matrices[:, None, :, 2]
        moved = (linear @ found.points[..., None]).squeeze(-1) + shift
        inside = ((moved >= -0.5) & (moved < size - 0.5)).all(dim=-1) & found.inside
        points[:, place] = torch.where(inside[..., None], moved, 0)
        weights[:, place] = settings.weight * trusted / (trusted + variance) * inside
    unreadable = torch.zeros(faces, dtype=torch.int64, device=device)
    return Batch(unlabeled.augmented, points, weights.nan_to_num(), unreadable)


def join(batches: Sequence[Batch]) -> Batch:
    """Batches of crops of one size, one after another."""
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
