"""The heatmap-in-heatmap representation: points -> heatmaps (targets) and heatmaps -> points.

Positions are in crop pixels (the centre of the top-left pixel is (0, 0)). With a stride of s pixels
a cell, ``u = (x + 0.5) / s`` splits into the cell ``floor(u)``, which the integer heatmap holds, and
the fraction ``u - floor(u)``, which the decimal heatmap holds in ``bins`` bins a side (Lan et al.,
arXiv 2104.03100, section 3.2). Where the crop lies in the image is the business of ``crop.py``.

Bin b holds the fractions [b / bins, (b + 1) / bins) and decodes to its centre. The paper rounds
``bins * fraction`` instead, which leaves the fractions above 15/16 without a bin: a point in the last
sixteenth of a cell is then off by up to 1/8 cell. `decode` reads that older convention too
(``bin_centre=0``), because converted checkpoints were trained with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Decoder = Literal["argmax", "expectation"]

INTEGER_SIGMA = 1.5
"""Standard deviation of the integer target, in cells (paper, section 4.2)."""
DECIMAL_SIGMA = 1.0
"""Standard deviation of the decimal target, in bins (paper, section 4.2)."""
WINDOW = 3
"""Cells to each side of the highest one that `expectation` reads: two standard deviations."""


def gaussian(centres: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
    """Gaussians with peak 1: centres (..., 2) as (x, y) in cells -> maps (..., size, size)."""
    cells = torch.arange(size, device=centres.device, dtype=centres.dtype)
    distance = (cells - centres.unsqueeze(-1)) / sigma
    profile = torch.exp(-0.5 * distance.square())
    return profile[..., 1, :, None] * profile[..., 0, None, :]


class Targets(NamedTuple):
    """Training targets of P points; ``inside`` is False where a point is outside of the crop.

    ``integer``: (..., P, h, h) Gaussians with peak 1 at the cell; ``decimal``: (..., P, b, b) at
    the bin; ``inside``: (..., P) bool. Maps of points outside are those of the nearest cell.
    """

    integer: torch.Tensor
    decimal: torch.Tensor
    inside: torch.Tensor


def encode(
    points: torch.Tensor,
    heatmap_size: int,
    stride: int = 4,
    bins: int = 8,
    integer_sigma: float = INTEGER_SIGMA,
    decimal_sigma: float = DECIMAL_SIGMA,
) -> Targets:
    """Points (..., P, 2) in crop pixels -> `Targets`.

    The decimal Gaussian is centred on the exact fraction, not on a bin, so that a decoder may read
    more than the bin from it.
    """
    u = (points + 0.5) / stride
    inside = ((u >= 0) & (u < heatmap_size)).all(dim=-1)
    cell = u.floor().clamp(0, heatmap_size - 1)
    fraction = (u - cell).clamp(0, 1)
    return Targets(
        gaussian(cell, heatmap_size, integer_sigma),
        gaussian(fraction * bins - 0.5, bins, decimal_sigma),
        inside,
    )
