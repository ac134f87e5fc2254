"""From a batch to its losses, and from a teacher's heatmaps to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.heatmap import DECIMAL_SIGMA, decode, gaussian, to_distributions
from hihlandmark.layouts import get_layout
from hihlandmark.models.hih import HIH
from hihlandmark.runtimes.pytorch import normalise
from hihlandmark.training.batches import Batch, UnlabelledBatch
from hihlandmark.training.configuration import Loss, SelfTraining
from hihlandmark.training.losses import (
    ACTIVATION,
    HEATMAP_LOSSES,
    POINT_LOSSES,
    contour_normals,
    csc,
)
from hihlandmark.weights import IMAGENET_MEAN, IMAGENET_STD, Decoding

if TYPE_CHECKING:
    from hihlandmark.training.distillation import Teacher

LOSS_NAMES = ("integer", "decimal", "point", "distillation")


class Objective(nn.Module):
    """A network and what it is trained for; `forward` gives the losses of a batch.

    A face teaches the heads of its own layout, and the points that another layout shares with it; a
    ``teacher`` teaches all its layouts on every face. Raises `ConfigurationError` for losses that
    there are not.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: HIH, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.network, self.loss, self.teacher = network, loss, teacher
        self.integer_loss = _row(HEATMAP_LOSSES, loss.integer, "loss.integer")
        self.decimal_loss = _row(HEATMAP_LOSSES, loss.decimal, "loss.decimal")
        named = loss.point != "none"
        self.point_loss = _row(POINT_LOSSES, loss.point, "loss.point") if named else None
        if named and loss.integer == "csc":
            raise ConfigurationError(
                "loss.point needs an integer heatmap whose mean is the point, and csc teaches an "
                "almost flat one: take cross_entropy, mse or adaptive_wing for loss.integer"
            )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    def totals(self, batch: Batch) -> torch.Tensor:
        """What the sums over a batch's points are divided by: (3,), all layouts', the shipped ones'
        and those that the teacher teaches. Of several batches or processes they are added up."""
        shipped, weights = self.network.configuration.points, batch.weights
        teacher = self._teacher_of(batch.crops.shape[1])
        distilled = weights.new_tensor(len(weights) * teacher.points if teacher else 0)
        return torch.stack([weights.sum(), weights[:, :shipped].sum(), distilled])

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses (4,) of `forward` -> the number to be minimised."""
        distilled = self.teacher.weight if self.teacher else 0.0
        weights = (1.0, self.loss.decimal_weight, self.loss.point_weight, distilled)
        return losses @ losses.new_tensor(weights)

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """Weighted sums of the losses over the points, over ``totals`` (3,): (4,), `LOSS_NAMES`.

        All but the decimal loss are means over the stacks.
        """
        crops = normalise(batch.crops, self.mean, self.std)
        integers, decimals, features = self.network.forward_stacks(crops)
        configuration = self.network.configuration
        size, bins = integers[-1].shape[-1], decimals.shape[-1]
        u = (batch.points + 0.5) * size / batch.crops.shape[1]
        cells = u.floor().clamp(0, size - 1)
        shipped = slice(0, configuration.points)

        sums = [self._integer_sum(maps, cells, batch.weights, shipped) for maps in integers]
        integer = torch.stack(sums).mean()
        start = shipped.stop
        for name, points in configuration.auxiliary_layouts.items():
            place = slice(start, start + points)
            start = place.stop
            # Also without a face that teaches it: every process must have gradients of every head.
            faces = (batch.weights[:, place] > 0).any(dim=1)
            maps = self.network.auxiliary_heads[name](features[faces])
            integer = integer + self._integer_sum(maps, cells[faces], batch.weights[faces], place)

        weights = batch.weights[:, shipped]
        taught = weights > 0
        fractions = (u - cells)[:, shipped][taught]
        targets = gaussian(fractions * bins - 0.5, bins, DECIMAL_SIGMA)
        decimal = (self.decimal_loss(decimals[taught].float(), targets) * weights[taught]).sum()

        point = torch.zeros((), device=crops.device)
        if self.point_loss is not None:
            known = batch.points.masked_fill(batch.weights[..., None] <= 0, torch.nan)
            normals = self._normals(known)[taught]
            for maps in integers:
                chosen = maps[taught].float()
                distributions, _ = to_distributions(chosen, chosen, ACTIVATION[self.loss.integer])
                # The integer heatmap stands for the cell, the decimal one for the rest.
                losses = self.point_loss(distributions, cells[:, shipped][taught], normals)
                point = point + (losses * weights[taught]).sum() / len(integers)
        distilled = self._distillation_sum(crops, integers, decimals)
        total, shipped_total, distilled_total = totals.clamp(min=1e-6)
        return torch.stack(
            [
                integer / total,
                decimal / shipped_total,
                point / shipped_total,
                distilled / distilled_total,
            ]
        )

    def _distillation_sum(
        self, crops: torch.Tensor, integers: Sequence[torch.Tensor], decimals: torch.Tensor
    ) -> torch.Tensor:
        """Divergences of the student's distributions from the teacher's, over faces and points.

        A decimal heatmap counts by ``decimal_weight``, as it does for the labels. At temperature 1
        the gradient is that of Hinton et al., arXiv 1503.02531, equation 2.
        """
        total = torch.zeros((), device=crops.device)
        teacher = self._teacher_of(crops.shape[-1])
        if teacher is None:
            return total
        stacks = [self._by_layout(maps) for maps in integers]
        own_decimals = self._by_layout(decimals)
        for name, taught in teacher(crops).items():
            for stack in stacks:
                total = total + csc(stack[name], taught.integer).sum() / len(stacks)
            decimal = csc(own_decimals[name], taught.decimal).sum()
            total = total + self.loss.decimal_weight * decimal
        return total

    def _teacher_of(self, crop_size: int) -> Teacher | None:
        """Who teaches on crops of this size."""
        return self.teacher if self.teacher and self.teacher.crop_size == crop_size else None

    def _by_layout(self, maps: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps (B, P, h, h) of the shipped layouts' points, by the name of the layout."""
        layouts = self.network.configuration.layouts
        return dict(zip(layouts, maps.split(list(layouts.values()), dim=1), strict=True))

    def _integer_sum(
        self, maps: torch.Tensor, cells: torch.Tensor, weights: torch.Tensor, place: slice
    ) -> torch.Tensor:
        """The integer loss of maps (B, p, h, h) of the points in ``place`` of the row."""
        weights = weights[:, place]
        taught = weights > 0
        targets = gaussian(cells[:, place][taught], maps.shape[-1], self.loss.integer_sigma)
        return (self.integer_loss(maps[taught].float(), targets) * weights[taught]).sum()

    def _normals(self, points: torch.Tensor) -> torch.Tensor:
        """Unit normals (B, P, 2) of the face's lines at the shipped layouts' points (B, P', 2)."""
        sizes = list(self.network.configuration.layouts.values())
        groups = points[:, : sum(sizes)].split(sizes, dim=1)
        names = self.network.configuration.layouts
        normals = [
            contour_normals(get_layout(name), group)
            for name, group in zip(names, groups, strict=True)
        ]
        return torch.cat(normals, dim=1)


@torch.no_grad()
def teach(
    teacher: HIH,
    unlabelled: UnlabelledBatch,
    settings: SelfTraining,
    decoding: Decoding,
    row: int,
    autocast: AbstractContextManager[Any],
) -> Batch:
    """What a teacher says of unlabelled faces, as a batch of the student's crops.

    ``teacher``: a network in eval mode, ``decoding`` how its heatmaps are read (`decoding_of`);
    ``row``: points of all layouts, auxiliary ones too; ``autocast``: its precision. The
    teacher's variance v, in squared cells, weighs each point by ``weight * s^2 / (s^2 + v)``
    (`SelfTraining`).
    """
    device = unlabelled.plain.device
    mean = torch.tensor(IMAGENET_MEAN, device=device)
    std = torch.tensor(IMAGENET_STD, device=device)
    with autocast:  # the network alone: positions want all their digits
        heatmaps = teacher(normalise(unlabelled.plain, mean, std))
    faces, size = unlabelled.plain.shape[:2]
    points = torch.zeros(faces, row, 2, device=device)
    weights = torch.zeros(faces, row, device=device)
    start = 0
    for name, count in teacher.configuration.layouts.items():
        place = slice(start, start + count)
        start = place.stop
        if name not in settings.layouts:
            continue
        integer, decimal = (maps.float() for maps in heatmaps[name])
        stride = size // integer.shape[-1]
        maps = to_distributions(integer, decimal, decoding["activation"])
        found = decode(*maps, decoding["decoder"], stride=stride)
        variance = found.covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1) / stride**2
        trusted = settings.trusted_spread**2
        linear, shift = unlabelled.matrices[:, None, :, :2], unlabelled.matrices[:, None, :, 2]
        moved = (linear @ found.points[..., None]).squeeze(-1) + shift
        inside = ((moved >= -0.5) & (moved < size - 0.5)).all(dim=-1) & found.inside
        points[:, place] = torch.where(inside[..., None], moved, 0)
        weights[:, place] = settings.weight * trusted / (trusted + variance) * inside
    unreadable = torch.zeros(faces, dtype=torch.int64, device=device)
    return Batch(unlabelled.disturbed, points, weights.nan_to_num(), unreadable)


def decoding_of(loss: Loss) -> Decoding:
    """How heatmaps trained with these losses are read, as a model card states it.

    All losses but the cross-entropy leave the softmax of the decimal heatmap almost flat (CSC
    teaches the softmax of a Gaussian, not the Gaussian): only its maximum can be read.
    """
    return {
        "decoder": "expectation" if loss.decimal == "cross_entropy" else "argmax",
        "bin_centre": 0.5,
        "activation": ACTIVATION[loss.integer],
    }


def join(batches: Sequence[Batch]) -> Batch:
    """Batches of crops of one size, one after another."""
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _row(table: Mapping[str, Any], name: str, key: str) -> Any:
    if name not in table:
        raise ConfigurationError(f"{key}: no loss {name!r}; there is {', '.join(table)}")
    return table[name]
