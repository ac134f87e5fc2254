"""Losses of heatmaps and of points, and the tables of their names in configurations.

All take the K points with a weight above 0 and return K values; objectives apply weights and means.
The unit of length is the cell of a heatmap; the constants of the papers are converted. Half
precision is computed in float32. Every input gives a finite value and gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.nn import functional as F

from hihlandmark.errors import ConfigurationError
from hihlandmark.heatmap import Activation
from hihlandmark.layouts import Layout

HeatmapLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Raw predicted maps (K, h, w) and targets (K, h, w) in 0..1 -> (K,)."""

PointLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Distributions (K, h, w) that sum to 1, true points (K, 2) as (x, y) in cells, where the center of
cell c is c, and unit normals of the contours there (K, 2), 0 where there is none -> (K,)."""


def heatmap_mse(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of maps: (K, h, w) twice -> (K,). HIH, arXiv 2104.03100, equation 5."""
    predicted, target = _at_least_single(predicted, target)
    return (predicted - target).square().mean(dim=(-2, -1))


def csc(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL divergence between the softmaxes of target and prediction: (K, h, w) twice -> (K,).

    The "CSC" loss of HIH (arXiv 2104.03100, section 3.3) on decimal heatmaps.
    """
    predicted, target = _at_least_single(predicted, target)
    log_p = F.log_softmax(predicted.flatten(-2), dim=-1)
    q = F.softmax(target.flatten(-2), dim=-1)
    return F.kl_div(log_p, q, reduction="none").sum(dim=-1)


def soft_label_cross_entropy(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the normalized target as label, 0 if empty: (K, h, w) twice -> (K,)."""
    predicted, target = _at_least_single(predicted, target)
    log_p = F.log_softmax(predicted.flatten(-2), dim=-1)
    q = target.flatten(-2)
    q = q / q.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
    return -(q * log_p).sum(dim=-1)


AWING_ALPHA, AWING_OMEGA, AWING_EPSILON, AWING_THETA = 2.1, 14.0, 1.0, 0.5
"""Constants of `adaptive_wing`, as in the paper."""
NEAR_FOREGROUND, FOREGROUND_WEIGHT = 0.2, 10.0
"""Cells whose dilated target exceeds the first have weight 1 + the second (weighted loss map)."""


def adaptive_wing(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over cells of the weighted Adaptive Wing loss: (K, h, w) twice -> (K,).

    Wang et al., arXiv 1904.07399, equation 3 and the weighted loss map: nearly a squared error on
    the background; around the peak it stays steep for small errors.
    """
    predicted, target = _at_least_single(predicted, target)
    error = (predicted - target).abs()
    exponent = AWING_ALPHA - target
    ratio = AWING_THETA / AWING_EPSILON
    at_theta = ratio**exponent
    slope = AWING_OMEGA * exponent * at_theta / ratio / (1 + at_theta) / AWING_EPSILON
    intercept = AWING_THETA * slope - AWING_OMEGA * torch.log1p(at_theta)
    curve = AWING_OMEGA * torch.log1p((error / AWING_EPSILON) ** exponent)
    loss = torch.where(error < AWING_THETA, curve, slope * error - intercept)
    dilated = F.max_pool2d(target.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
    weights = 1 + FOREGROUND_WEIGHT * (dilated > NEAR_FOREGROUND)
    return (weights * loss).mean(dim=(-2, -1))


HEATMAP_LOSSES: Mapping[str, HeatmapLoss] = {
    "mse": heatmap_mse,
    "csc": csc,
    "cross_entropy": soft_label_cross_entropy,
    "adaptive_wing": adaptive_wing,
}
ACTIVATION: Mapping[str, Activation] = {
    name: "softmax" if name in ("csc", "cross_entropy") else "linear" for name in HEATMAP_LOSSES
}
"""The activation in `heatmap.to_distributions` for maps trained with a loss."""

WING_WIDTH, WING_CURVATURE = 10.0, 2.0
"""w and epsilon of `wing` as in the paper, in pixels of a 64-pixel image: cells of a map of 64."""
QUADRATIC_BELOW = 0.315
"""In cells. The released code of ADNet and STAR uses 0.01 where a map of 64 cells spans -1..1."""
NORMAL_TO_TANGENT = 2.0
"""lambda of `direction_loss`, as in ADNet: weight of the normal error over the tangential one."""


def smooth_l1(errors: torch.Tensor, quadratic_below: float = QUADRATIC_BELOW) -> torch.Tensor:
    """Smooth L1 of the length of errors (K, 2) in cells -> (K,) in cells.

    ``d^2 / (2 s)`` for lengths d below s, else ``d - s / 2``: Girshick, arXiv 1504.08083, equation
    3, applied to the length instead of each coordinate, so that no direction is preferred.
    """
    (errors,) = _at_least_single(errors)
    return _smooth_root(errors.square().sum(dim=-1), quadratic_below)


def wing(
    errors: torch.Tensor, width: float = WING_WIDTH, curvature: float = WING_CURVATURE
) -> torch.Tensor:
    """Wing loss, the sum over both coordinates: errors (K, 2) in cells -> (K,).

    Feng et al., arXiv 1711.06753, equation 5: ``w ln(1 + |x| / epsilon)`` below the width w, L1
    beyond it; small errors keep a large gradient.
    """
    (errors,) = _at_least_single(errors)
    size = errors.abs()
    offset = width - width * math.log1p(width / curvature)
    curve = width * torch.log1p(size / curvature)
    return torch.where(size < width, curve, size - offset).sum(dim=-1)


def direction_loss(
    errors: torch.Tensor,
    normals: torch.Tensor,
    normal_to_tangent: float | torch.Tensor = NORMAL_TO_TANGENT,
    quadratic_below: float = QUADRATIC_BELOW,
) -> torch.Tensor:
    """Anisotropic direction loss: errors (K, 2) in cells, unit normals (K, 2) -> (K,) in cells.

    ADNet (Huang et al., arXiv 2109.05721, section "Anisotropic Direction Loss"): the smooth L1 of
    ``sqrt(2 lambda / (1 + lambda) n^2 + 2 / (1 + lambda) t^2)`` with n the error across the contour
    and t the error along it, where annotators disagree more. Without a normal it is `smooth_l1`.
    ``normal_to_tangent`` is lambda, one number or (K,).
    """
    errors, normals = _at_least_single(errors, normals)
    across = (errors * normals).sum(dim=-1).square()
    whole = errors.square().sum(dim=-1)
    # With n^2 + t^2 = d^2 the sum of squares is (2 d^2 + 2 (lambda - 1) n^2) / (1 + lambda).
    skewed = 2 * (whole + (normal_to_tangent - 1) * across) / (1 + normal_to_tangent)
    squared = torch.where(normals.square().sum(dim=-1) > 0.5, skewed, whole)
    return _smooth_root(squared, quadratic_below)


def expected_points(distributions: torch.Tensor) -> torch.Tensor:
    """Means of distributions (K, h, w) -> (K, 2) as (x, y) in cells; the center of cell c is c."""
    (distributions,) = _at_least_single(distributions)
    x, y = _cells(distributions)
    # Sums of products: autocast would compute a matrix product in half precision.
    mean_x = (distributions.sum(dim=-2) * x).sum(dim=-1)
    mean_y = (distributions.sum(dim=-1) * y).sum(dim=-1)
    return torch.stack([mean_x, mean_y], dim=-1)


class Spread(NamedTuple):
    """Second moments of K distributions, in squared cells, all (K,)."""

    xx: torch.Tensor
    yy: torch.Tensor
    xy: torch.Tensor


SMALLEST_EFFECTIVE = 0.01
"""Smallest divisor in `unbiased_spread`: a map with one cell above 0.995 has no spread."""


def unbiased_spread(distributions: torch.Tensor) -> Spread:
    """Covariances of distributions (K, h, w) over ``1 - sum p^2``, as in STAR, arXiv 2306.02763."""
    (distributions,) = _at_least_single(distributions)
    x, y = _cells(distributions)
    mean = expected_points(distributions)
    dx, dy = (x - mean[:, :1])[:, None, :], (y - mean[:, 1:])[:, :, None]
    # 1 - sum p^2, but without cancellation where one p is nearly 1.
    effective = (distributions * (1 - distributions)).sum(dim=(-2, -1))
    effective = effective.clamp(min=SMALLEST_EFFECTIVE)

    def mean_of(product: torch.Tensor) -> torch.Tensor:
        return (distributions * product).sum(dim=(-2, -1)) / effective

    return Spread(mean_of(dx.square()), mean_of(dy.square()), mean_of(dx * dy))


VALUE_WEIGHT = 1e-3
"""Weight w of the eigenvalues in `star`. The paper uses 1 where a map of 64 cells spans -1..1; a
squared cell is (2 / 63)^2 of its unit."""
SMALLEST_VARIANCE = 1e-2
"""Added to the eigenvalues under the root, in squared cells: the released code's 1e-5."""


def star(
    distributions: torch.Tensor,
    truth: torch.Tensor,
    value_weight: float = VALUE_WEIGHT,
    quadratic_below: float = QUADRATIC_BELOW,
) -> torch.Tensor:
    """STAR loss: distributions (K, h, w), true points (K, 2) in cells -> (K,), without a unit.

    Self-adaptive ambiguity reduction (Zhou et al., arXiv 2306.02763, section "STAR Loss"): the
    smooth L1 of the error along each principal direction of the predicted distribution, over the
    standard deviation in that direction, plus w times the sum of both eigenvalues, so that a wider
    distribution does not lower the loss. Directions and deviations are constants for the gradient,
    unlike in the released code: eigenvectors have no derivative where eigenvalues are equal.
    """
    distributions, truth = _at_least_single(distributions, truth)
    spread = unbiased_spread(distributions)
    xx, yy, xy = (moment.detach() for moment in spread)
    middle, radius = (xx + yy) / 2, torch.hypot((xx - yy) / 2, xy)
    angle = torch.atan2(2 * xy, xx - yy) / 2
    cosine, sine = angle.cos(), angle.sin()
    dx, dy = (expected_points(distributions) - truth).unbind(dim=-1)
    loss = value_weight * (spread.xx + spread.yy)
    along, across = cosine * dx + sine * dy, cosine * dy - sine * dx
    for error, variance in ((along, middle + radius), (across, middle - radius)):
        deviation = (variance.clamp(min=0) + SMALLEST_VARIANCE).sqrt()
        loss = loss + _smooth_root(error.square(), quadratic_below) / deviation
    return loss


STRONGEST_DIRECTION = 9.0
"""Upper limit of lambda in `anisotropic_direction`, as in the released code. The lower one is 1."""


def anisotropic_direction(
    distributions: torch.Tensor, truth: torch.Tensor, normals: torch.Tensor
) -> torch.Tensor:
    """`direction_loss` weighted by the spread of the heatmap: a `PointLoss`, in cells.

    Lambda is the variance of the distribution along the contour over that across it, within 1 and
    `STRONGEST_DIRECTION`, and a constant for the gradient, as in ADNet's released code. Each stack
    has its own, that code uses the last stack's.
    """
    distributions, truth, normals = _at_least_single(distributions, truth, normals)
    spread = unbiased_spread(distributions.detach())
    nx, ny = normals.unbind(dim=-1)
    across = spread.xx * nx.square() + spread.yy * ny.square() + 2 * spread.xy * nx * ny
    along = spread.xx * ny.square() + spread.yy * nx.square() - 2 * spread.xy * nx * ny
    direction = (along / across.clamp(min=1e-6)).clamp(1, STRONGEST_DIRECTION)
    return direction_loss(_errors(distributions, truth), normals, direction)


def _errors(distributions: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return expected_points(distributions) - _at_least_single(truth)[0]


ERROR_LOSSES: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "smooth_l1": smooth_l1,
    "wing": wing,
}
"""The losses that need the errors (K, 2) of points alone."""
POINT_LOSSES: Mapping[str, PointLoss] = {
    "smooth_l1": lambda maps, truth, normals: smooth_l1(_errors(maps, truth)),
    "wing": lambda maps, truth, normals: wing(_errors(maps, truth)),
    "direction": lambda maps, truth, normals: direction_loss(_errors(maps, truth), normals),
    "anisotropic_direction": anisotropic_direction,
    "star": lambda maps, truth, normals: star(maps, truth),
}

SMALLEST_TANGENT = 1e-3
"""Where the sum of the unit vectors is shorter, the contour has no direction."""


def contour_normals(layout: Layout, points: torch.Tensor) -> torch.Tensor:
    """Unit normals of the layout's contours at points (..., P, 2) -> (..., P, 2), of either sign.

    Perpendicular to the bisecting tangent: the sum of the unit vectors from the previous and to the
    next point. It equals ADNet's bisector (arXiv 2109.05721), but also exists on a straight line.
    Closed contours wrap. The ends of open contours have one neighbor; neighbors that are unknown
    (NaN) or coincide with the point are not used. A point on two contours uses the first. Without a
    neighbor, off the contours, and where the contour folds back, the normal is 0.

    Raises:
        ConfigurationError: the layout has another number of points.
    """
    if points.shape[-2:] != (layout.size, 2):
        raise ConfigurationError(
            f"{layout.name} has points (..., {layout.size}, 2), got {tuple(points.shape)}"
        )
    (points,) = _at_least_single(points)
    previous, following = _neighbors(layout)
    tangent = _unit(points - points[..., previous, :]) + _unit(points[..., following, :] - points)
    length = tangent.norm(dim=-1, keepdim=True)
    tangent = torch.where(length > SMALLEST_TANGENT, tangent / length, 0)
    return torch.stack([-tangent[..., 1], tangent[..., 0]], dim=-1)


@lru_cache
def _neighbors(layout: Layout) -> tuple[list[int], list[int]]:
    """The points before and after each of P points; the point itself where there is none."""
    previous, following = list(range(layout.size)), list(range(layout.size))
    for contour in reversed(layout.contours):  # the first contour is written last
        ring = contour.indices
        before = ring[-1:] + ring[:-1] if contour.closed else ring[:1] + ring[:-1]
        after = ring[1:] + ring[:1] if contour.closed else ring[1:] + ring[-1:]
        for place, point in enumerate(ring):
            previous[point], following[point] = before[place], after[place]
    return previous, following


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (..., 2) of length 1; 0 stays 0, and NaN becomes 0."""
    length = vectors.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, vectors / length, 0)


def _cells(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the columns (w,) and rows (h,) of maps (..., h, w)."""
    rows, columns = (torch.arange(n, device=maps.device, dtype=maps.dtype) for n in maps.shape[-2:])
    return columns, rows


def _smooth_root(squared: torch.Tensor, quadratic_below: float) -> torch.Tensor:
    """Smooth L1 of a length given by its square, with a gradient at 0, where a root has none."""
    root = squared.clamp(min=quadratic_below**2).sqrt()
    quadratic = squared / (2 * quadratic_below)
    return torch.where(squared < quadratic_below**2, quadratic, root - quadratic_below / 2)


def _at_least_single(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors of half precision as float32, others as they are."""
    return tuple(
        tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for tensor in tensors
    )
