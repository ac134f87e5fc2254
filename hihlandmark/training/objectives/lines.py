"""Targets along the contours of a face: ADNet's edges and Adaptive Wing's boundary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from hihlandmark.layouts import Contour

PIECES = 6
"""Straight pieces between two points of a line. On COFW, whose points are furthest apart, they
deviate from the spline by up to 0.06 of 64 cells."""


class LineMaps(nn.Module):
    """Maps of smooth lines through the points of a layout.

    A line is a Catmull-Rom spline, and its map is ``exp(-d^2 / (2 sigma^2))`` of the distance d
    from it, as Adaptive Wing's boundary (arXiv 1904.07399; its released code interpolates by
    B-splines and rounds to cells, ADNet's draws polygons one crop pixel thick).

    Args:
        lines: each through points by their indices.
        points: number of points of the layout.
    """

    splines: torch.Tensor
    on_lines: torch.Tensor

    def __init__(self, lines: Sequence[Contour], points: int) -> None:
        super().__init__()
        matrices = [_spline(line, points) for line in lines]
        self.lengths = [len(matrix) for matrix in matrices]
        on_lines = torch.stack([matrix.abs().sum(dim=0) > 0 for matrix in matrices]).float()
        self.register_buffer("splines", torch.cat(matrices), persistent=False)
        self.register_buffer("on_lines", on_lines, persistent=False)

    def weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights of points (B, P) -> weights of lines (B, E): the mean, or 0 if a point has 0."""
        whole = ((weights > 0).float() @ self.on_lines.T) == self.on_lines.sum(dim=1)
        return whole * (weights @ self.on_lines.T) / self.on_lines.sum(dim=1)

    def forward(self, points: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
        """Points (B, P, 2), where the center of cell c is c -> maps (B, E, size, size) in 0..1."""
        lines = (self.splines.to(points.dtype) @ points).split(self.lengths, dim=1)
        nearest = torch.stack([_squared_distances(line, size) for line in lines], dim=1)
        return torch.exp(nearest / (-2 * sigma**2))


def line_weights(
    lines: nn.ModuleDict, weights: Mapping[str, torch.Tensor]
) -> Iterator[torch.Tensor]:
    """The weights (B, E) of the `LineMaps` of each layout in ``weights``."""
    for name, group in weights.items():
        maps = lines[name]
        assert isinstance(maps, LineMaps)
        yield maps.weights(group)


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

    Catmull-Rom: cubic pieces through the points, with the slope of the chord between
    its neighbors (Catmull and Rom, 1974). The ends of an open line are their own neighbors.
    """
    ring = list(line.indices)
    padded = [ring[-1], *ring, *ring[:2]] if line.closed else [ring[0], *ring, ring[-1]]
    t = torch.arange(PIECES, dtype=torch.float64)[:, None] / PIECES
    basis = torch.cat(
        [
            -0.5 * t + t**2 - 0.5 * t**3,
            1 - 2.5 * t**2 + 1.5 * t**3,
            0.5 * t + 2 * t**2 - 1.5 * t**3,
            -0.5 * t**2 + 0.5 * t**3,
        ],
        dim=1,
    )
    rows = []
    for start in range(len(padded) - 3):
        row = torch.zeros(PIECES, points, dtype=torch.float64)
        for place, column in zip(padded[start : start + 4], basis.T, strict=True):
            row[:, place] += column
        rows.append(row)
    last = torch.zeros(1, points, dtype=torch.float64)
    last[0, ring[0] if line.closed else ring[-1]] = 1
    return torch.cat([*rows, last]).float()
