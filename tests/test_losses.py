import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hihlandmark.heatmap import gaussian
from hihlandmark.layouts import LAYOUTS, WFLW98, Layout
from hihlandmark.training.losses import (
    HEATMAP_LOSSES,
    POINT_LOSSES,
    anisotropic_direction,
    contour_normals,
    csc,
    direction_loss,
    expected_points,
    heatmap_mse,
    soft_label_cross_entropy,
    star,
    unbiased_spread,
    wing,
)

HEATMAPS = sorted(HEATMAP_LOSSES)
POINTS = sorted(POINT_LOSSES)
UP = (0.0, -1.0)


def log_softmax(values: list[float]) -> list[float]:
    total = math.log(sum(map(math.exp, values)))
    return [value - total for value in values]


def row(*values: float) -> torch.Tensor:
    """Numbers as the one row of a float64 batch."""
    return torch.tensor([values], dtype=torch.float64)


def softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.flatten(-2).softmax(dim=-1).view_as(logits)


def blob(x: float, y: float, wide: float, high: float, size: int = 16) -> torch.Tensor:
    """An axis-parallel Gaussian that sums to 1: (1, size, size), float64."""
    cells = torch.arange(size, dtype=torch.float64)
    columns, rows = -0.5 * ((cells - x) / wide) ** 2, -0.5 * ((cells - y) / high) ** 2
    return softmax(rows[None, :, None] + columns[None, None, :])


def test_paper_losses_equal_hand_computed_values() -> None:
    predicted = torch.tensor([[[0.5, -1.0], [2.0, 0.0]]])
    target = torch.tensor([[[0.0, 0.0], [1.0, 0.5]]])
    assert heatmap_mse(predicted, target).item() == pytest.approx((0.25 + 1 + 1 + 0.25) / 4)
    p, q = log_softmax([0.5, -1, 2, 0]), log_softmax([0, 0, 1, 0.5])
    kl = sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
    assert csc(predicted, target).item() == pytest.approx(kl, rel=1e-5)
    entropy = -(p[2] * 1 + p[3] * 0.5) / 1.5
    assert soft_label_cross_entropy(predicted, target).item() == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize(
    ("x", "y"), [(0.5, -1.0), (0.0, 3.0), (-9.9, 10.1), (25.0, 0.1), (-12.0, -40.0)]
)
def test_wing_equals_its_equation(x: float, y: float) -> None:
    def of(error: float) -> float:
        size = abs(error)
        return 10 * math.log(1 + size / 2) if size < 10 else size - (10 - 10 * math.log(1 + 10 / 2))

    assert wing(row(x, y)).item() == pytest.approx(of(x) + of(y), rel=1e-12)


def of_length(length: float) -> float:
    """Smooth L1 that is quadratic below 0.315 cells."""
    return length**2 / 0.63 if length < 0.315 else length - 0.1575


@pytest.mark.parametrize("degrees", [0, 37, 90, 200])
@pytest.mark.parametrize(("across", "along"), [(2.0, 0.5), (0.1, 0.0), (0.0, 0.1), (-1.0, 3.0)])
def test_direction_loss_has_twice_the_weight_across(
    degrees: float, across: float, along: float
) -> None:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    errors = row(c * across - s * along, s * across + c * along)
    expected = of_length(math.sqrt(4 / 3 * across**2 + 2 / 3 * along**2))
    assert direction_loss(errors, row(c, s)).item() == pytest.approx(expected, rel=1e-9)
    assert direction_loss(errors, row(-c, -s)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("wide", "high", "expected"),
    [(1.5, 1.5, 1), (2.0, 1.0, 4), (4.0, 1.0, 9), (1.0, 2.0, 1)],
    ids=["round", "along the contour", "far along it", "across it"],
)
def test_anisotropic_direction_has_lambda_from_the_spread(
    wide: float, high: float, expected: float
) -> None:
    maps, truth = blob(16, 15, wide, high, size=32), row(14.2, 15.9)
    found = anisotropic_direction(maps, truth, row(*UP))
    errors = expected_points(maps) - truth
    assert found.item() == pytest.approx(
        direction_loss(errors, row(*UP), expected).item(), rel=1e-3
    )
    # Contour and heatmap turned by a right angle.
    turned = anisotropic_direction(maps.mT, truth.flip(-1), row(1.0, 0.0))
    assert turned.item() == pytest.approx(found.item(), rel=1e-9)


def test_anisotropic_direction_has_no_gradient_through_lambda() -> None:
    maps, truth, normal = blob(7, 8, 2.0, 1.0), row(5.2, 8.9), row(*UP)
    spread = unbiased_spread(maps)
    direction = (spread.xx / spread.yy).item()
    assert 1.1 < direction < 8.9, "an end would hide the gradient"

    def gradient(loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        logits = maps.log().requires_grad_()
        (found,) = torch.autograd.grad(loss(softmax(logits)).sum(), logits)
        return found

    fixed = gradient(lambda p: direction_loss(expected_points(p) - truth, normal, direction))
    own = gradient(lambda p: anisotropic_direction(p, truth, normal))
    assert torch.allclose(own, fixed, rtol=1e-6, atol=1e-12)


def star_by_hand(p: np.ndarray, truth: tuple[float, float], frozen: np.ndarray) -> float:
    """STAR of one map (h, w), directions and deviations those of the map ``frozen`` (h, w)."""

    def moments(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.mgrid[: q.shape[0], : q.shape[1]]
        mean = np.array([(q * x).sum(), (q * y).sum()])
        d = np.stack([x - mean[0], y - mean[1]])
        scatter = np.einsum("hw,ihw,jhw->ij", q, d, d)
        return mean, scatter / (1 - (q**2).sum())

    mean, covariance = moments(p)
    values, vectors = np.linalg.eigh(moments(frozen)[1])
    error = vectors.T @ (mean - np.array(truth))
    distance = [of_length(abs(e)) / math.sqrt(v + 0.01) for e, v in zip(error, values, strict=True)]
    return sum(distance) + 1e-3 * float(np.trace(covariance))


def slanted_logits() -> torch.Tensor:
    """Logits (1, 7, 9) of a distribution whose principal directions are no axes."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.arange(9.0), torch.arange(7.0)[:, None]
    slanted = -0.3 * (x - y - 1).square() - 0.05 * (x + y - 7).square()
    return (slanted + 0.3 * torch.randn(7, 9, generator=generator)).double()[None]


@pytest.mark.parametrize("truth", [(4.0, 3.0), (4.1, 2.9), (1.0, 6.0)])
def test_star_equals_its_equation(truth: tuple[float, float]) -> None:
    maps = softmax(slanted_logits())
    by_hand = star_by_hand(maps[0].numpy(), truth, frozen=maps[0].numpy())
    assert star(maps, row(*truth)).item() == pytest.approx(by_hand, rel=1e-9)


def test_star_has_no_gradient_through_directions_and_deviations() -> None:
    logits, truth, step = slanted_logits().requires_grad_(), (3.0, 4.5), 1e-5
    star(softmax(logits), row(*truth)).sum().backward()
    frozen = softmax(logits.detach())[0].numpy()

    def at(y: int, x: int, change: float) -> float:
        moved = logits.detach().clone()
        moved[0, y, x] += change
        return star_by_hand(softmax(moved)[0].numpy(), truth, frozen)

    numeric = [
        [(at(y, x, step) - at(y, x, -step)) / (2 * step) for x in range(9)] for y in range(7)
    ]
    assert logits.grad is not None
    assert np.allclose(logits.grad[0].numpy(), numeric, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", HEATMAPS)
def test_heatmap_losses_pass_the_gradient_check(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(2, 5, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    target = gaussian(torch.tensor([[1.0, 1.0], [3.0, 0.0]], dtype=torch.float64), 5, 1.0)
    assert torch.autograd.gradcheck(lambda x: HEATMAP_LOSSES[name](x, target), (predicted,))


@pytest.mark.parametrize("name", ["smooth_l1", "wing", "direction"])
@pytest.mark.parametrize("offset", [0.05, 2.0])
def test_point_losses_pass_the_gradient_check(name: str, offset: float) -> None:
    logits = slanted_logits().requires_grad_()
    truth = expected_points(softmax(logits.detach())) + offset * row(1.0, -0.6)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return POINT_LOSSES[name](softmax(x), truth, row(0.6, 0.8))

    assert torch.autograd.gradcheck(loss, (logits,))


def assert_finite_with_gradient(
    loss: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor
) -> None:
    maps = maps.clone().requires_grad_()
    values = loss(maps)
    assert values.shape == maps.shape[:1]
    assert values.dtype == torch.float32
    values.sum().backward()
    assert maps.grad is not None
    assert values.isfinite().all()
    assert maps.grad.isfinite().all()


def extreme_logits() -> dict[str, torch.Tensor]:
    spike = torch.zeros(2, 16, 16)
    spike[:, 3, 4] = 1e3
    two_spikes = spike.clone()
    two_spikes[:, 12, 13] = 1e3
    return {"zeros": torch.zeros(2, 16, 16), "spike": spike, "deep": -spike, "two": two_spikes}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("maps", extreme_logits())
@pytest.mark.parametrize("name", HEATMAPS)
def test_heatmap_losses_are_always_finite(name: str, maps: str, dtype: torch.dtype) -> None:
    target = gaussian(torch.tensor([[4.0, 3.0], [15.0, 0.0]]), 16, 1.5)
    for labels in (target, torch.zeros_like(target)):
        labels = labels.to(dtype)
        assert_finite_with_gradient(
            lambda x, labels=labels: HEATMAP_LOSSES[name](x, labels),
            extreme_logits()[maps].to(dtype),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("maps", extreme_logits())
@pytest.mark.parametrize("name", POINTS)
def test_point_losses_are_always_finite(name: str, maps: str, dtype: torch.dtype) -> None:
    logits = extreme_logits()[maps]
    # The spike's own cell: an error of exactly 0, where lengths and angles have no derivative.
    truth = torch.tensor([[4.0, 3.0], [500.0, -500.0]])
    normals = torch.tensor([UP, (0.0, 0.0)])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return POINT_LOSSES[name](x, truth.to(dtype), normals.to(dtype))

    assert_finite_with_gradient(loss, softmax(logits).to(dtype))
    assert_finite_with_gradient(lambda x: loss(softmax(x)), logits.to(dtype))
    assert_finite_with_gradient(loss, torch.zeros(2, 16, 16, dtype=dtype))


def test_losses_are_computed_in_single_precision_under_autocast() -> None:
    maps = softmax(slanted_logits().float())
    truth, normals = torch.tensor([[3.0, 4.5]]), torch.tensor([UP])
    for name in POINTS:
        whole = POINT_LOSSES[name](maps, truth, normals)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(POINT_LOSSES[name](maps, truth, normals), whole), name
    for name in HEATMAPS:
        whole = HEATMAP_LOSSES[name](maps, maps)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(HEATMAP_LOSSES[name](maps, maps), whole), name


def mean_shape(layout: Layout) -> torch.Tensor:
    return torch.tensor(layout.mean_shape)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_contour_normals_have_length_1_on_contours_and_0_elsewhere(layout: Layout) -> None:
    lengths = contour_normals(layout, mean_shape(layout)).norm(dim=-1)
    on_contours = {index for contour in layout.contours for index in contour.indices}
    expected = [float(index in on_contours) for index in range(layout.size)]
    assert torch.allclose(lengths, torch.tensor(expected, dtype=torch.float64))


def test_contour_normals_of_a_circle_point_to_its_center() -> None:
    points = torch.zeros(WFLW98.size, 2, dtype=torch.float64)
    angles = torch.arange(8) * math.tau / 8
    circle = torch.stack([angles.cos(), angles.sin()], dim=-1).double()
    points[60:68] = 20 * circle + 50  # an eye: closed, so its first and last point wrap
    normals = contour_normals(WFLW98, points)[60:68]
    assert torch.allclose((normals * circle).sum(dim=-1).abs(), torch.ones(8).double(), atol=1e-6)
