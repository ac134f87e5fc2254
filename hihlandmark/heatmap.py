"""The heatmap-in-heatmap representation: points to training targets, and heatmaps to points.

The one home of decoding. It is torch code, so it is exported with the network.

Positions are in crop pixels (the center of the top-left pixel is (0, 0)). With a stride of s pixels
per cell, ``u = (x + pixel_origin) / s`` splits into the cell ``floor(u)``, which the integer
heatmap holds, and the fraction ``u - floor(u)``, which the decimal heatmap holds in ``bins`` bins
a side (Lan et al., arXiv 2104.03100, section 3.2). ``pixel_origin`` is 0.5 for our networks; the
released HIH divides x itself, so it is 0 for converted weights.

Bin b holds the fractions [b / bins, (b + 1) / bins) and decodes to its center. The paper rounds
``bins * fraction`` instead, which leaves the fractions above 15/16 without a bin: a point in the
last sixteenth of a cell is then off by up to 1/8 cell. `decode` supports that convention
(``bin_center=0``), because converted checkpoints were trained with it.

Networks without a decimal heatmap (ADNet, Adaptive Wing) have None in its place: the position
within the cell follows from the shape of their integer heatmap. Nested networks predict decimals at
the best cells only, whose bins reach beyond the cell: `decode_nested`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from hihlandmark.errors import ConfigurationError
from hihlandmark.models.base import (
    DECIMAL_BINS,
    DECIMAL_EXTENT,
    DECIMAL_MARGIN,
    AnyHeatmaps,
    NestedHeatmaps,
)
from hihlandmark.weights.card import (
    HEATMAP_DECODERS,
    NESTED_DECODERS,
    Activation,
    Decoder,
    Decoding,
)

INTEGER_SIGMA = 1.5
"""Standard deviation of the integer target, in cells (paper, section 4.2)."""
NESTED_INTEGER_SIGMA = 0.7
"""Of nested networks. With 1.0 the heatmap is flatter, and its highest cell less often right."""
DECIMAL_SIGMA = 1.0
"""Standard deviation of the decimal target, in bins (paper, section 4.2)."""
WINDOW = 5
"""Radius in cells of the window that ``local_soft_argmax`` averages over. A target fits into three;
an uncertain network spreads further."""
MASS_RADIUS = 0.05
"""Of nested networks: the mass is the probability within this share of the crop's side."""
SHARPNESS = 4
"""Power of the probabilities of cells in ``soft``. With 1, less likely cells move the points too
far; with infinity, the best cell counts alone, as in ``argmax``."""
MEAN_REACH = 2
"""Cells farther than this from the best one have no part in ``soft`` and ``mean``."""


def gaussian(centers: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
    """Gaussians with peak 1: centers (..., 2) as (x, y) in cells -> maps (..., size, size)."""
    cells = torch.arange(size, device=centers.device, dtype=centers.dtype)
    distance = (cells - centers.unsqueeze(-1)) / sigma
    profile = torch.exp(-0.5 * distance.square())
    return profile[..., 1, :, None] * profile[..., 0, None, :]


class Targets(NamedTuple):
    """Training targets of P points.

    ``integer``: (..., P, h, h), a Gaussian with peak 1 at the cell; ``decimal``: (..., P, b, b), a
    Gaussian at the fraction; ``inside``: (..., P) bool. A point outside of the crop has no cell:
    ``inside`` is False and both maps are 0.
    """

    integer: torch.Tensor
    decimal: torch.Tensor
    inside: torch.Tensor


class NestedTargets(NamedTuple):
    """Training targets of P points for a nested network.

    ``integer``: (..., P, h, h), a distribution over cells, 0 for points far outside; ``decimal``:
    (..., P, K, 2, `DECIMAL_EXTENT`), distributions over the bins of x and y at the cells;
    ``inside``: (..., P), the point is in the crop; ``reachable``: (..., P, K), its bins include the
    point.
    """

    integer: torch.Tensor
    decimal: torch.Tensor
    inside: torch.Tensor
    reachable: torch.Tensor


class Decoded(NamedTuple):
    """The decoded points of P heatmaps.

    ``points``: (..., P, 2) in crop pixels; ``covariance``: (..., P, 2, 2) in squared crop pixels;
    ``mass``: (..., P) in 0..1, the probability around the point, a raw score; ``visibility``:
    (..., P), logits of the point being seen, None of networks that do not predict it;
    ``integer_offset``: (..., P, 2) in crop pixels, from the points to those of the integer heatmap
    alone (decoder ``mean``), None of networks that are not nested or do not predict visibility.
    Empty heatmaps carry no information: the crop center with a uniform covariance, and a mass of 0.
    """

    points: torch.Tensor
    covariance: torch.Tensor
    mass: torch.Tensor
    visibility: torch.Tensor | None = None
    integer_offset: torch.Tensor | None = None

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, without those that are None."""
        return tuple(each for each in self if each is not None)


def encode(
    points: torch.Tensor,
    heatmap_size: int,
    *,
    stride: int,
    bins: int = 8,
    integer_sigma: float = INTEGER_SIGMA,
    decimal_sigma: float = DECIMAL_SIGMA,
) -> Targets:
    """Points (..., P, 2) in crop pixels -> `Targets` with maps of ``heatmap_size`` cells a side.

    The decimal Gaussian is centered on the exact fraction rather than on a bin, so that a decoder
    can read more than the bin from it.
    """
    u = (points + 0.5) / stride
    inside = ((u >= 0) & (u < heatmap_size)).all(dim=-1)
    cell = u.floor()
    integer = gaussian(cell, heatmap_size, integer_sigma)
    decimal = gaussian((u - cell) * bins - 0.5, bins, decimal_sigma)
    return Targets(integer * inside[..., None, None], decimal * inside[..., None, None], inside)


def encode_nested(
    points: torch.Tensor,
    cells: torch.Tensor,
    heatmap_size: int,
    *,
    stride: int,
    integer_sigma: float = NESTED_INTEGER_SIGMA,
    decimal_sigma: float = DECIMAL_SIGMA,
) -> NestedTargets:
    """Targets of points (..., P, 2) in crop pixels with decimals at cells (..., P, K).

    Both Gaussians are centered on the exact point.
    """
    u = (points + 0.5) / stride
    centers = torch.arange(heatmap_size, device=u.device, dtype=u.dtype) + 0.5
    columns, rows = _normal(centers, u, integer_sigma).unbind(dim=-2)
    corners = _cell_at(cells, heatmap_size)
    fraction = u[..., None, :] - corners
    bins = torch.arange(DECIMAL_EXTENT, device=u.device, dtype=u.dtype) + (0.5 - DECIMAL_MARGIN)
    margin = DECIMAL_MARGIN / DECIMAL_BINS
    return NestedTargets(
        rows[..., :, None] * columns[..., None, :],
        _normal(bins, fraction * DECIMAL_BINS, decimal_sigma),
        ((u > 0) & (u < heatmap_size)).all(dim=-1),
        ((fraction > -margin) & (fraction < 1 + margin)).all(dim=-1),
    )


def _normal(positions: torch.Tensor, mean: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussians around ``mean`` (...) at positions (n,), with a sum of 1: (..., n)."""
    density = torch.exp(-0.5 * ((positions - mean[..., None]) / sigma).square())
    return density / density.sum(dim=-1, keepdim=True).clamp(min=1e-9)


def to_distributions(
    integer: torch.Tensor, decimal: torch.Tensor | None, activation: Activation = "softmax"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Raw heatmaps (..., h, h) and (..., b, b) of a network -> non-negative ones for `decode`.

    ``softmax`` is for networks trained with a cross-entropy over cells; ``linear`` for those
    trained to regress the integer heatmap itself (HIH's own MSE), whose negative values mean 0.
    Decimal heatmaps are trained through a softmax either way (CSC).
    """
    integer = _softmax(integer) if activation == "softmax" else integer.clamp(min=0)
    return integer, None if decimal is None else _softmax(decimal)


def decode(
    integer: torch.Tensor,
    decimal: torch.Tensor | None,
    decoder: Decoder = "local_soft_argmax",
    *,
    stride: int,
    bin_center: float = 0.5,
    decimal_sigma: float = DECIMAL_SIGMA,
    align_corners: bool = False,
    pixel_origin: float = 0.5,
) -> Decoded:
    """Decode non-negative heatmaps to points.

    Args:
        integer: (..., P, h, h).
        decimal: (..., P, b, b), or None.
        decoder: ``argmax`` is HIH's: the highest cell plus the highest bin; on targets it is exact
            to half a bin, 1/16 cell. ``local_soft_argmax`` adds the mean of the integer heatmap in
            a window to the mean of the decimal heatmap. Where a network hesitates between the end
            of one cell and the start of the next, the two means move in opposite directions and
            their sum stays right, while two maxima may disagree by a whole cell; on targets it is
            exact to 1/10,000 cell. Differentiable. Without a decimal heatmap, ``argmax`` gives the
            center of the cell and ``local_soft_argmax`` the mean in the window, and there are two
            more: ``quarter_shift`` moves the center of the highest cell by a quarter of a cell
            towards the higher neighbor, in x and in y (Adaptive Wing, and stacked hourglasses
            before it); ``mean`` is the mean of the whole map, ADNet's soft-argmax.
        stride: crop pixels a side of a cell.
        bin_center: position in a bin that it decodes to, in bins.
        decimal_sigma: standard deviation of the decimal target, in bins.
        align_corners: stretch the grid so that the centers of the first and last cell lie on the
            edges of the crop, as the mean in ADNet's released code does.
        pixel_origin: offset added to a position before it is divided by the stride.

    Returns:
        The `Decoded` points.

    Raises:
        ConfigurationError: the decoder is one of nested networks, or unknown.
    """
    _check_decoder(decoder, HEATMAP_DECODERS)
    cell = _highest(integer)
    if decoder == "local_soft_argmax":
        # An isolated spike on a half hidden face is not where most of the probability lies.
        around = _highest(box_sums(integer))
        cell = around + _highest(_window(integer, around)) - WINDOW
        cell = cell.clamp(0)  # of an empty heatmap
    total = integer.sum(dim=(-2, -1))
    is_empty = total <= 0

    window = _window(integer, cell)
    mass = window.sum(dim=(-2, -1)) / total
    mean, covariance = _moments(integer if decoder == "mean" else window)
    if decoder == "mean":
        u = mean + 0.5
    elif decoder == "quarter_shift":
        u = cell + 0.5 + 0.25 * _slope_signs(integer, cell)
    else:
        if decoder == "local_soft_argmax":
            mean, _ = _moments(_symmetric(window, cell, integer.shape[-1]))
            cell = cell + mean - WINDOW
        fraction, spread = _fraction(decimal, decoder, bin_center, decimal_sigma)
        u, covariance = cell.to(integer.dtype) + fraction, covariance + spread
    if align_corners:
        size = integer.shape[-1]
        u = (u - 0.5) * (size / (size - 1))

    crop_size = integer.shape[-1] * stride
    uniform = torch.eye(2, dtype=integer.dtype, device=integer.device) * (crop_size**2 / 12)
    return Decoded(
        (u * stride - pixel_origin).masked_fill(is_empty[..., None], (crop_size - 1) / 2),
        torch.where(is_empty[..., None, None], uniform, covariance * stride**2),
        mass.masked_fill(is_empty, 0),
    )


def decode_nested(
    heatmaps: NestedHeatmaps,
    decoder: Decoder = "soft",
    *,
    stride: int,
    pixel_origin: float = 0.5,
) -> Decoded:
    """Decode the raw heatmaps of a nested network to points.

    Covariance and mass are those of the mixture p(cell) p(fraction | cell) over the cells that were
    read. The other cells of an integer heatmap hold the width of its training target: with them,
    scores and covariances predict the errors less well.

    Args:
        heatmaps: raw, in float32.
        decoder: ``argmax`` is HIH's: the best cell plus the mean of its decimal heatmap. ``soft``
            is the mean of these positions over the cells that were read and are near the best one,
            weighed by the probabilities of the cells to the power of `SHARPNESS`. ``mean`` is the
            mean of the integer heatmap alone, in a window around the best cell.
        stride: crop pixels a side of a cell.
        pixel_origin: offset added to a position before it is divided by the stride.

    Returns:
        The `Decoded` points (N, P, 2).

    Raises:
        ConfigurationError: the decoder is one of other networks, or unknown.
    """
    _check_decoder(decoder, NESTED_DECODERS)
    integer, cells, decimal, visibility = heatmaps
    size = integer.shape[-1]
    probabilities = _softmax(integer)
    corners = _cell_at(cells, size).to(decimal.dtype)
    bins = torch.arange(DECIMAL_EXTENT, device=decimal.device, dtype=decimal.dtype)
    fractions = (bins + (0.5 - DECIMAL_MARGIN)) / DECIMAL_BINS
    p_fraction = decimal.softmax(dim=-1)  # (N, P, K, 2, E)
    mean = (p_fraction * fractions).sum(dim=-1)
    variance = (p_fraction * (fractions - mean[..., None]).square()).sum(dim=-1)
    means = corners + mean
    p_cell = probabilities.flatten(-2).gather(-1, cells)

    u = means[..., 0, :]
    near = probabilities * _cells_near(corners[..., 0, :], size)
    integer_mean = _mean(near.sum(dim=-2), near.sum(dim=-1)) + 0.5
    if decoder == "mean":
        u = integer_mean
    elif decoder == "soft":
        reach = (means - means[..., :1, :]).abs().amax(dim=-1) < MEAN_REACH
        weights = p_cell.pow(SHARPNESS) * reach
        u = (means * weights[..., None]).sum(dim=-2) / weights.sum(dim=-1, keepdim=True)

    # Second moments of the mixture around the point.
    p_cell = p_cell / p_cell.sum(dim=-1, keepdim=True)
    offset = means - u[..., None, :]
    xx, yy = (p_cell[..., None] * (variance + offset.square())).sum(dim=-2).unbind(dim=-1)
    xy = (p_cell * offset[..., 0] * offset[..., 1]).sum(dim=-1)
    covariance = torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], dim=-2)

    # The share of each bin within the radius, from its overlap with the interval.
    radius = MASS_RADIUS * size
    distance = (corners[..., None] + fractions - u[..., None, :, None]).abs()
    overlap = ((radius - distance) * DECIMAL_BINS + 0.5).clamp(0, 1)
    inside = (p_fraction * overlap).sum(dim=-1).prod(dim=-1)
    mass = (p_cell * inside).sum(dim=-1)
    # Runtimes tell outputs apart by their order.
    integer_offset = None if visibility is None else (integer_mean - u) * stride
    return Decoded(
        u * stride - pixel_origin, covariance * stride**2, mass, visibility, integer_offset
    )


def decode_heatmaps(
    heatmaps: AnyHeatmaps, decoding: Decoding, *, pixel_origin: float = 0.5
) -> Decoded:
    """Decode the raw heatmaps of a network as its model card states.

    Args:
        heatmaps: raw, in float32.
        decoding: of the card.
        pixel_origin: of the card's crop contract.
    """
    if isinstance(heatmaps, NestedHeatmaps):
        return decode_nested(
            heatmaps, decoding.decoder, stride=decoding.stride, pixel_origin=pixel_origin
        )
    integer, decimal = to_distributions(*heatmaps, decoding.activation)
    return decode(
        integer,
        decimal,
        decoding.decoder,
        stride=decoding.stride,
        bin_center=decoding.bin_center,
        align_corners=decoding.align_corners,
        pixel_origin=pixel_origin,
    )


def _check_decoder(decoder: str, offered: tuple[Decoder, ...]) -> None:
    if decoder not in offered:
        raise ConfigurationError(
            f"these heatmaps cannot be decoded by {decoder!r}; there are {', '.join(offered)}"
        )


def _fraction(
    decimal: torch.Tensor | None, decoder: Decoder, bin_center: float, sigma: float
) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """The position of points in their cells (..., 2), in cells, and its covariance (..., 2, 2)."""
    if decimal is None:
        return 0.5, 0.0
    bins = decimal.shape[-1]
    mean, covariance = _moments(decimal)
    highest = decoder == "argmax"
    place = _highest(decimal) if highest else _untruncated_mean(mean, bins, sigma)
    return (place + bin_center) / bins, covariance / bins**2


def _cells_near(cell: torch.Tensor, size: int) -> torch.Tensor:
    """Maps (..., size, size) of 1 within `MEAN_REACH` cells of ``cell`` (..., 2), else 0."""
    cells = torch.arange(size, device=cell.device)
    near = (cells - cell[..., None]).abs() <= MEAN_REACH
    return (near[..., 1, :, None] & near[..., 0, None, :]).float()


def _slope_signs(maps: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """-1, 0 or 1 (..., 2) as (x, y): where the higher neighbor of a cell is; 0 at the border."""
    size = maps.shape[-1]
    inner = ((cell > 0) & (cell < size - 1)).all(dim=-1, keepdim=True)
    x, y = cell.clamp(1, size - 2).unbind(dim=-1)
    flat = maps.flatten(-2)

    def at(column: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return flat.gather(-1, (row * size + column).unsqueeze(-1)).squeeze(-1)

    slopes = torch.stack([at(x + 1, y) - at(x - 1, y), at(x, y + 1) - at(x, y - 1)], dim=-1)
    return slopes.sign() * inner


def _softmax(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(-2).softmax(dim=-1).view_as(maps)


def _highest(maps: torch.Tensor) -> torch.Tensor:
    """The cell (..., 2) as (x, y) of the highest value of maps (..., h, h)."""
    return _cell_at(maps.flatten(-2).argmax(dim=-1), maps.shape[-1])


def _cell_at(place: torch.Tensor, size: int) -> torch.Tensor:
    """Places (...) by rows of maps of ``size`` cells a side -> cells (..., 2): (x, y)."""
    return torch.stack([place % size, place // size], dim=-1)


def box_sums(maps: torch.Tensor) -> torch.Tensor:
    """For each cell of maps (..., h, h), the sum over the square of `WINDOW` cells around it."""
    cells = torch.arange(maps.shape[-1], device=maps.device)
    near = ((cells - cells[:, None]).abs() <= WINDOW).to(maps.dtype)
    return near @ maps @ near  # along y, then x: pooling takes ten times as long on a CPU


def _window(maps: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """The square of `WINDOW` cells around ``cell`` (..., 2) of maps (..., h, h), 0 beyond them."""
    side = 2 * WINDOW + 1
    offsets = torch.arange(side, device=maps.device)
    columns, rows = (cell[..., None] + offsets).unbind(dim=-2)
    row_length = maps.shape[-1] + 2 * WINDOW
    places = rows[..., :, None] * row_length + columns[..., None, :]
    padded = torch.nn.functional.pad(maps, [WINDOW] * 4).flatten(-2)
    return padded.gather(-1, places.flatten(-2)).unflatten(-1, (side, side))


def _symmetric(window: torch.Tensor, cell: torch.Tensor, size: int) -> torch.Tensor:
    """The window around ``cell``, 0 where that is nearer to a border of the map on the other side.

    So a Gaussian that the border cuts off keeps its mean.
    """
    reach = torch.minimum(cell, size - 1 - cell)
    offsets = torch.arange(-WINDOW, WINDOW + 1, device=window.device).abs()
    near = offsets <= reach[..., None]
    return window * (near[..., 1, :, None] & near[..., 0, None, :])


def _mean(columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Mean (..., 2) as (x, y), in cells, of maps with the sums (..., h) of columns and rows."""
    cells = torch.arange(columns.shape[-1], device=columns.device, dtype=columns.dtype)
    return torch.stack([columns @ cells, rows @ cells], dim=-1) / columns.sum(dim=-1, keepdim=True)


def _moments(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (..., 2) as (x, y) and covariance (..., 2, 2) of maps (..., h, h), in cells."""
    total = maps.sum(dim=(-2, -1)).clamp(min=torch.finfo(maps.dtype).tiny)
    cells = torch.arange(maps.shape[-1], device=maps.device, dtype=maps.dtype)
    columns, rows = maps.sum(dim=-2) / total[..., None], maps.sum(dim=-1) / total[..., None]
    mean = torch.stack([columns @ cells, rows @ cells], dim=-1)
    dx, dy = cells - mean[..., :1], cells - mean[..., 1:]
    xx = (columns * dx.square()).sum(dim=-1)
    yy = (rows * dy.square()).sum(dim=-1)
    xy = ((maps @ dx[..., None]).squeeze(-1) * dy).sum(dim=-1) / total
    covariance = torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], dim=-2)
    return mean, covariance


def _untruncated_mean(mean: torch.Tensor, bins: int, sigma: float) -> torch.Tensor:
    """The center of a Gaussian whose mean over ``bins`` bins is ``mean``, per axis.

    The border of the decimal heatmap cuts the Gaussian off, which draws its mean inwards, by up to
    0.8 bins at the end of a cell. The mean rises with the center, so a table inverts it.
    """
    centers = torch.linspace(-0.5, bins - 0.5, 32 * bins + 1, device=mean.device, dtype=mean.dtype)
    cells = torch.arange(bins, device=mean.device, dtype=mean.dtype)
    profile = torch.exp(-0.5 * ((cells - centers[:, None]) / sigma).square())
    means = (profile @ cells) / profile.sum(dim=-1)
    # A comparison with all of them, and no search, which ONNX does not have.
    upper = (means < mean.detach().unsqueeze(-1)).sum(dim=-1).clamp(1, len(means) - 1)
    lower = upper - 1
    slope = (centers[upper] - centers[lower]) / (means[upper] - means[lower])
    center = centers[lower] + (mean - means[lower]) * slope
    return center.clamp(-0.5, bins - 0.5)
