"""Maps of the lines of a face: ADNet's edges and Adaptive Wing's boundary as targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hihlandmark.layouts import Contour

SAMPLES = 8
"""Places on a line from one of its points to the next: on jaws of 17 points half a cell apart."""


class LineMaps(nn.Module):
    """Smooth lines through the points of a layout, drawn as maps.

    A line is a Catmull-Rom spline, and a map holds ``exp(-d^2 / (2 sigma^2))`` of the distance d
    from the line, as Adaptive Wing's boundary does (arXiv 1904.07399, and its released code, which
    interpolates by B-splines and rounds to cells; ADNet's draws polygons one crop pixel thick).
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
        """Weights of points (B, P) -> of lines (B, E): the mean, and 0 where a point has none."""
        whole = ((weights > 0).float() @ self.on_lines.T) == self.on_lines.sum(dim=1)
        return whole * (weights @ self.on_lines.T) / self.on_lines.sum(dim=1)

    def forward(self, points: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
        """Points (B, P, 2), where the centre of cell c is c -> maps (B, E, size, size) in 0..1."""
        cells = torch.arange(size, device=points.device, dtype=points.dtype)
        grid = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), dim=-1).view(1, -1, 2)
        places = self.splines.to(points.dtype) @ points
        distances = torch.cdist(grid.expand(len(points), -1, -1), places)
        nearest = [part.amin(dim=-1) for part in distances.split(self.lengths, dim=-1)]
        maps = torch.exp(-0.5 * (torch.stack(nearest, dim=1) / sigma).square())
        return maps.unflatten(-1, (size, size))


def _spline(line: Contour, points: int) -> torch.Tensor:
    """(S, P): what to multiply a face's P points by for S places along the line.

    Catmull-Rom: cubic pieces through the points, at each with the slope of the chord between its
    neighbours (Catmull and Rom, 1974). The ends of an open line are their own neighbours.
    """
    ring = list(line.indices)
    padded = [ring[-1], *ring, *ring[:2]] if line.closed else [ring[0], *ring, ring[-1]]
    t = torch.arange(SAMPLES, dtype=torch.float64)[:, None] / SAMPLES
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
        row = torch.zeros(SAMPLES, points, dtype=torch.float64)
        for place, column in zip(padded[start : start + 4], basis.T, strict=True):
            row[:, place] += column
        rows.append(row)
    last = torch.zeros(1, points, dtype=torch.float64)
    last[0, ring[0] if line.closed else ring[-1]] = 1
    return torch.cat([*rows, last]).float()
