"""Base classes of objectives; each architecture's objective is in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.heatmap import gaussian
from hihlandmark.layouts import Contour, get_layout
from hihlandmark.models.base import AnyHeatmaps, Heatmaps, LandmarkNetwork, NestedHeatmaps
from hihlandmark.training.config import Loss
from hihlandmark.training.data import Batch
from hihlandmark.training.losses import HEATMAP_LOSSES, contour_normals
from hihlandmark.weights.card import IMAGENET_MEAN, IMAGENET_STD, Decoding, Normalization

PointFunction = TypeVar("PointFunction")

PIECES = 6
"""Straight pieces between two points of a line. On COFW, whose points are furthest apart, they
deviate from the spline by up to 0.06 of 64 cells."""
NORMALIZATION = Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""Of the crops of all networks that we train."""


@dataclass(frozen=True)
class Teacher:
    """A trained network, in evaluation mode, whose heatmaps are targets of a student.

    It is not a module, so that it is neither trained, nor saved, nor sent to other processes.
    """

    network: LandmarkNetwork
    layouts: tuple[str, ...]
    """Layouts that it teaches."""
    weight: float
    """Weight of its loss."""
    digest: str
    """SHA-256 of its weights file."""
    mirrored: float = 0.0
    """Share of the crops that it sees mirrored."""

    @property
    def points(self) -> int:
        """Number of points of all layouts that it teaches."""
        return sum(self.network.configuration.layouts[name] for name in self.layouts)

    @torch.no_grad()
    def __call__(self, crops: torch.Tensor) -> Mapping[str, AnyHeatmaps]:
        """Crops (N, 3, S, S), normalized -> raw heatmaps of the layouts that it teaches."""
        if not self.mirrored:
            return self.network(crops, self.layouts)
        # Evenly spread over the batch.
        places = torch.arange(len(crops) + 1, dtype=torch.float64) * self.mirrored + 0.5
        is_mirrored = (places.floor().diff() > 0).to(crops.device)
        seen = torch.where(_along(is_mirrored, crops), crops.flip(-1), crops)
        found = self.network(seen, self.layouts)
        return {name: _restored(each, is_mirrored, name) for name, each in found.items()}


def _along(faces: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """What is true of faces (N,), in the shape that goes with ``values`` (N, ...)."""
    return faces.view(-1, *[1] * (values.ndim - 1))


def _restored(heatmaps: AnyHeatmaps, is_mirrored: torch.Tensor, layout: str) -> AnyHeatmaps:
    """Heatmaps of crops, some of them mirrored (N,) -> those of the crops."""
    back = mirrored(heatmaps, torch.tensor(get_layout(layout).mirror, device=is_mirrored.device))
    chosen: list[Any] = [
        None if one is None or other is None else torch.where(_along(is_mirrored, one), other, one)
        for one, other in zip(heatmaps, back, strict=True)
    ]
    return type(heatmaps)(*chosen)


def mirrored(heatmaps: AnyHeatmaps, mirror: torch.Tensor) -> AnyHeatmaps:
    """Heatmaps of mirrored crops -> those of the crops. ``mirror`` (P,): partner of each point."""
    integer = heatmaps.integer[:, mirror].flip(-1)
    if isinstance(heatmaps, Heatmaps):
        decimal = heatmaps.decimal
        return Heatmaps(integer, None if decimal is None else decimal[:, mirror].flip(-1))
    cells, size = heatmaps.cells[:, mirror], integer.shape[-1]
    x, y = heatmaps.decimal[:, mirror].unbind(dim=-2)
    visibility = None if heatmaps.visibility is None else heatmaps.visibility[:, mirror]
    return NestedHeatmaps(
        integer,
        cells + size - 1 - 2 * (cells % size),
        torch.stack([x.flip(-1), y], dim=-2),
        visibility,
    )


class Objective(nn.Module):
    """A network with its losses; `forward` computes the losses of a batch.

    A face trains the heads of its own layout and the points that another layout shares with it. A
    teacher gives targets in all its layouts for every face.

    Raises:
        ConfigurationError: a loss does not exist or does not fit the architecture.
    """

    names: tuple[str, ...]
    """Names of the K losses of `forward`."""
    supports_distillation: ClassVar[bool] = False
    supports_consistency: ClassVar[bool] = False
    supports_points: ClassVar[bool] = True
    usual_integer_sigma: ClassVar[float] = 1.25

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: Any, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__()
        if teacher is not None and not self.supports_distillation:
            raise ConfigurationError(
                "distillation needs an HIH or nested network: remove the table"
            )
        if loss.consistency_weight and not self.supports_consistency:
            raise ConfigurationError("loss.consistency_weight needs a nested network: remove it")
        if loss.point == "none" and loss.point_weight:
            raise ConfigurationError("loss.point_weight has no effect without loss.point")
        if loss.point != "none" and not self.supports_points:
            raise ConfigurationError("loss.point has no effect on this network: remove it")
        self.network, self.loss, self.teacher = network, loss, teacher
        self.integer_sigma = loss.integer_sigma or self.usual_integer_sigma
        self.integer_loss = named_loss(HEATMAP_LOSSES, loss.integer, "loss.integer")
        self.decimal_loss = named_loss(HEATMAP_LOSSES, loss.decimal, "loss.decimal")
        self.register_buffer("mean", torch.tensor(NORMALIZATION.mean), persistent=False)
        self.register_buffer("std", torch.tensor(NORMALIZATION.std), persistent=False)

    @staticmethod
    def decoding(loss: Loss, stride: int) -> Decoding:
        """How heatmaps trained with these losses are decoded, as the model card states it."""
        raise NotImplementedError

    def totals(self, batch: Batch) -> torch.Tensor:
        """The divisors of the losses; added up over accumulated batches and processes."""
        raise NotImplementedError

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses (K,) of `forward` -> the total loss."""
        raise NotImplementedError

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """The losses (K,) of `names`: weighted sums over a batch, divided by ``totals``."""
        raise NotImplementedError

    def teacher_of(self, crop_size: int) -> Teacher | None:
        """The teacher, if it was trained on crops of this size: on others it is inaccurate."""
        if self.teacher and self.teacher.network.configuration.input_size == crop_size:
            return self.teacher
        return None

    @property
    def shipped(self) -> slice:
        """The predicted layouts' points among all points; auxiliary ones follow them."""
        return slice(0, self.network.configuration.points)

    def in_cells(self, batch: Batch) -> torch.Tensor:
        """Points (B, P, 2) in cells of the heatmaps; the first cell is 0 to 1."""
        stride: int = self.network.configuration.stride
        return (batch.points + 0.5) / stride

    def map_sum(
        self, maps: torch.Tensor, centers: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The sum of the heatmap loss of maps (B, p, h, h), with weights (B, p).

        ``centers`` (B, p, 2) are those of the target Gaussians; the center of cell c is c.
        """
        taught = weights > 0
        targets = gaussian(centers[taught], maps.shape[-1], self.integer_sigma)
        return (self.integer_loss(maps[taught].float(), targets) * weights[taught]).sum()

    def auxiliary_sum(
        self,
        features: torch.Tensor,
        centers: torch.Tensor,
        weights: torch.Tensor,
        activation: Callable[[torch.Tensor], torch.Tensor] = lambda maps: maps,
    ) -> torch.Tensor:
        """`map_sum` of the auxiliary heads; ``centers`` and ``weights`` are those of all points."""
        network: LandmarkNetwork = self.network
        total = torch.zeros((), device=features.device)
        start = self.shipped.stop
        for name, points in network.configuration.auxiliary_layouts.items():
            place = slice(start, start + points)
            start = place.stop
            # Also without a face of the layout: every process must have gradients of every head.
            faces = (weights[:, place] > 0).any(dim=1)
            maps = activation(network.auxiliary_heads[name](features[faces]))
            total = total + self.map_sum(maps, centers[faces, place], weights[faces, place])
        return total

    def normals(self, batch: Batch) -> torch.Tensor:
        """Unit normals (B, P, 2) of the contours at the predicted layouts' points."""
        known = batch.points.masked_fill(batch.weights[..., None] <= 0, torch.nan)
        groups = self.network.by_layout(known[:, self.shipped]).items()
        normals = [contour_normals(get_layout(name), group) for name, group in groups]
        return torch.cat(normals, dim=1)


class LineObjective(Objective):
    """`Objective` with target maps of lines in every predicted layout."""

    lines: Any

    def add_lines(self, lines: Mapping[str, Sequence[Contour]], merged: bool = False) -> None:
        """Set the lines of each layout; with ``merged`` one map of all lines of a layout."""
        maps = {name: LineMaps(each, get_layout(name).size, merged) for name, each in lines.items()}
        self.lines = nn.ModuleDict(maps)

    def line_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights of points (B, P) -> weights of the line maps of all layouts (B, E)."""
        groups = self.network.by_layout(weights[:, self.shipped])
        return torch.cat([self.lines[name].weights(group) for name, group in groups.items()], dim=1)

    def line_targets(self, batch: Batch, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Line maps (B, E, size, size) of all layouts, and their weights (B, E)."""
        weights = self.line_weights(batch.weights)
        centers = self.in_cells(batch)[:, self.shipped] - 0.5
        maps = centers.new_zeros(*weights.shape, size, size)
        start = 0
        for name, points in self.network.by_layout(centers).items():
            place = slice(start, start + self.lines[name].maps)
            start = place.stop
            faces = (weights[:, place] > 0).any(dim=1)
            if faces.any():
                maps[faces, place] = self.lines[name](points[faces], size, self.loss.line_sigma)
        return maps, weights


class LineMaps(nn.Module):
    """Maps of smooth lines through the points of a layout.

    A line is a Catmull-Rom spline, and its map is ``exp(-d^2 / (2 sigma^2))`` of the distance d
    from it, as Adaptive Wing's boundary (arXiv 1904.07399; its released code interpolates by
    B-splines and rounds to cells, ADNet's draws polygons one crop pixel thick).

    Args:
        lines: each through points by their indices.
        points: number of points of the layout.
        merged: one map of all lines (their maximum), with weight 0 if a point of any line has 0.
    """

    splines: torch.Tensor
    on_lines: torch.Tensor

    def __init__(self, lines: Sequence[Contour], points: int, merged: bool = False) -> None:
        super().__init__()
        matrices = [_spline(line, points) for line in lines]
        self.lengths = [len(matrix) for matrix in matrices]
        self.merged = merged
        self.maps = 1 if merged else len(lines)
        on_lines = torch.stack([matrix.abs().sum(dim=0) > 0 for matrix in matrices]).float()
        self.register_buffer("splines", torch.cat(matrices), persistent=False)
        self.register_buffer("on_lines", on_lines, persistent=False)

    def weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights of points (B, P) -> weights of maps (B, E): the mean, or 0 if a point has 0."""
        whole = ((weights > 0).float() @ self.on_lines.T) == self.on_lines.sum(dim=1)
        each = whole * (weights @ self.on_lines.T) / self.on_lines.sum(dim=1)
        return (each.mean(dim=1) * (each > 0).all(dim=1))[:, None] if self.merged else each

    def forward(self, points: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
        """Points (B, P, 2), where the center of cell c is c -> maps (B, E, size, size) in 0..1."""
        lines = (self.splines.to(points.dtype) @ points).split(self.lengths, dim=1)
        nearest = torch.stack([_squared_distances(line, size) for line in lines], dim=1)
        maps = torch.exp(nearest / (-2 * sigma**2))
        return maps.amax(dim=1, keepdim=True) if self.merged else maps


def point_loss_of(
    loss: Loss, table: Mapping[str, PointFunction], key: str = "loss.point"
) -> PointFunction | None:
    """The point loss of a configuration; arguments and errors as of `named_loss`."""
    return None if loss.point == "none" else named_loss(table, loss.point, key)


def named_loss(table: Mapping[str, Any], name: str, key: str) -> Any:
    """The loss of a name. Raises `ConfigurationError` with the ``key`` for an unknown one."""
    if name not in table:
        raise ConfigurationError(f"{key}: no loss {name!r}; there are {', '.join(table)}")
    return table[name]


def _squared_distances(places: torch.Tensor, size: int) -> torch.Tensor:
    """Squared distances (B, size, size) of cells from the polyline ``places`` (B, S, 2)."""
    cells = torch.arange(size, device=places.device, dtype=places.dtype)
    starts, pieces = places[:, :-1, :, None], places.diff(dim=1)[..., None]
    # From the start of each piece to the cell, and the foot of the perpendicular as a share of the
    # piece. A piece without length is its start.
    dx, dy = (cells - starts).unbind(dim=2)
    shares = (cells - starts) * pieces / pieces.square().sum(dim=2, keepdim=True).clamp(min=1e-12)
    along = (shares[:, :, 0, None, :] + shares[:, :, 1, :, None]).clamp_(0, 1)
    x = torch.addcmul(dx[:, :, None, :], along, pieces[:, :, 0, None], value=-1)
    y = torch.addcmul(dy[:, :, :, None], along, pieces[:, :, 1, None], value=-1)
    return x.square_().add_(y.square_()).amin(dim=1)


def _spline(line: Contour, points: int) -> torch.Tensor:
    """The matrix (S, P) from the P points of a face to S places along the line.

    Cubic pieces through the points, with the slope of the chord between their neighbors (Catmull
    and Rom, 1974). The ends of an open line are their own neighbors.
    """
    ring = list(line.indices)
    padded = [ring[-1], *ring, *ring[:2]] if line.closed else [ring[0], *ring, ring[-1]]
    t = torch.arange(PIECES, dtype=torch.float64)[:, None] / PIECES
    basis = [
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    ]
    rows = []
    for start in range(len(padded) - 3):
        row = torch.zeros(PIECES, points, dtype=torch.float64)
        row.index_add_(1, torch.tensor(padded[start : start + 4]), torch.cat(basis, dim=1))
        rows.append(row)
    last = torch.zeros(1, points, dtype=torch.float64)
    last[0, ring[0] if line.closed else ring[-1]] = 1
    return torch.cat([*rows, last]).float()
