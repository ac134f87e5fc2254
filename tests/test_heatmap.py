import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hihlandmark import ConfigurationError, heatmap
from hihlandmark.heatmap import decode_nested, encode_nested, to_distributions
from hihlandmark.models.base import DECIMAL_EXTENT, DECIMAL_MARGIN, NestedHeatmaps
from hihlandmark.weights.card import Decoder

STRIDE, CELLS, BINS = 4, 64, 8
encode = partial(heatmap.encode, stride=STRIDE)
decode = partial(heatmap.decode, stride=STRIDE)
HALF_BIN = 1 / 16
coordinate = st.floats(-0.5, 255.49)


def decoded_error(points: torch.Tensor, decoder: Decoder) -> torch.Tensor:
    """Largest difference, in cells, between points and their encoding's decoding."""
    targets = encode(points, CELLS)
    decoded = decode(targets.integer, targets.decimal, decoder)
    assert (decoded.mass > 0).all()
    return (decoded.points - points).abs().max() / STRIDE


@settings(max_examples=200, deadline=None)
@given(x=coordinate, y=coordinate)
def test_argmax_recovers_any_point_to_half_a_bin(x: float, y: float) -> None:
    assert decoded_error(torch.tensor([[x, y]]), "argmax") <= HALF_BIN + 1e-5


@settings(max_examples=200, deadline=None)
@given(x=coordinate, y=coordinate)
def test_local_soft_argmax_recovers_any_point_to_a_ten_thousandth_of_a_cell(
    x: float, y: float
) -> None:
    assert decoded_error(torch.tensor([[x, y]]), "local_soft_argmax") <= 1e-4


@pytest.mark.parametrize("decoder", ["argmax", "local_soft_argmax"])
@pytest.mark.parametrize("corner", [(-0.5, -0.5), (255.49, -0.5), (-0.5, 255.49), (255.49, 255.49)])
def test_points_at_the_borders_are_recovered(corner: tuple[float, float], decoder: Decoder) -> None:
    assert decoded_error(torch.tensor([corner]), decoder) <= HALF_BIN + 1e-5


@pytest.mark.parametrize("outside", [(-0.6, 10.0), (10.0, 255.5), (300.0, 10.0), (10.0, -50.0)])
def test_an_empty_heatmap_decodes_to_the_center_with_mass_0(outside: tuple[float, float]) -> None:
    targets = encode(torch.tensor([outside, (10.0, 10.0)]), CELLS)
    assert targets.inside.tolist() == [False, True]
    decoded = decode(targets.integer, targets.decimal)
    assert decoded.mass[0] == 0 < decoded.mass[1]
    assert decoded.points[0].tolist() == [127.5, 127.5]
    assert torch.allclose(decoded.covariance[0], torch.eye(2) * 256**2 / 12)
    assert torch.allclose(decoded.points[1], torch.tensor([10.0, 10.0]), atol=1e-3)


def test_targets_are_the_papers_gaussians() -> None:
    # u = (x + 0.5) / 4 = (10.25, 20.75): cell (10, 20), fractions 1/4 and 3/4.
    targets = encode(torch.tensor([[40.5, 82.5]]), CELLS)
    assert targets.integer[0, 20, 10] == 1
    assert math.isclose(targets.integer[0, 20, 13], math.exp(-0.5 * (3 / 1.5) ** 2), rel_tol=1e-5)
    # Fraction 1/4 is the border of bins 1 and 2, fraction 3/4 that of bins 5 and 6.
    assert torch.allclose(targets.decimal[0, 5, 1], targets.decimal[0, 6, 2])


def test_a_cut_off_gaussian_at_the_border_is_not_moved_by_a_cell() -> None:
    targets = encode(torch.tensor([[0.0, 0.0]]), CELLS)
    assert targets.integer[0].argmax() == 0


def test_local_soft_argmax_resolves_a_tie_between_two_cells() -> None:
    """Half of the mass at 3.97 cells, half at 4.03: maxima may be a cell off, means are not."""
    points = torch.tensor([[3.97 * 4 - 0.5, 100.0], [4.03 * 4 - 0.5, 100.0]])
    targets = encode(points, CELLS)
    integer, decimal = targets.integer.mean(dim=0), targets.decimal.mean(dim=0)
    decoded = decode(integer[None], decimal[None], "local_soft_argmax")
    assert abs(decoded.points[0, 0] - (4.0 * 4 - 0.5)) < 0.5


def test_local_soft_argmax_follows_most_of_the_mass_and_not_a_spike() -> None:
    targets = encode(torch.tensor([[60.0, 60.0]]), CELLS)
    integer = targets.integer.clone()
    integer[0, 50, 50] = 1.5
    expected = torch.tensor([60.0, 60.0])
    assert torch.allclose(decode(integer, targets.decimal).points[0], expected, atol=0.1)
    spike = decode(integer, targets.decimal, "argmax").points[0]
    assert (spike - expected).abs().min() > 100


def test_covariance_is_the_spread_of_the_heatmap_in_squared_pixels() -> None:
    targets = encode(torch.tensor([[128.0, 128.0]]), CELLS, integer_sigma=0.8)
    decoded = decode(targets.integer, targets.decimal)
    # 0.8 cells of 4 pixels, and one bin of half a pixel for the decimal heatmap.
    expected = (0.8 * 4) ** 2 + 0.5**2
    covariance = decoded.covariance[0]
    assert torch.allclose(covariance.diagonal(), torch.full((2,), expected), rtol=0.03)
    assert covariance[0, 1].abs() < 1e-3


def test_mass_is_large_for_sharp_heatmaps_and_small_for_flat_ones() -> None:
    sharp = encode(torch.tensor([[128.0, 128.0]]), CELLS)
    flat = torch.ones(1, CELLS, CELLS)
    assert decode(sharp.integer, sharp.decimal).mass > 0.95
    assert decode(flat, sharp.decimal).mass < 0.05


def test_official_bins_decode_to_their_lower_edge() -> None:
    integer, decimal = torch.zeros(1, CELLS, CELLS), torch.zeros(1, BINS, BINS)
    integer[0, 7, 5] = decimal[0, 2, 4] = 1
    decoded = decode(integer, decimal, "argmax", bin_center=0)
    assert decoded.points[0].tolist() == [(5 + 4 / 8) * 4 - 0.5, (7 + 2 / 8) * 4 - 0.5]


def test_decoders_of_another_architecture_are_errors() -> None:
    targets = encode(torch.tensor([[100.0, 100.0]]), CELLS)
    with pytest.raises(ConfigurationError, match=r"'soft'.*quarter_shift"):
        decode(targets.integer, targets.decimal, "soft")
    heatmaps = nested_heatmaps(torch.tensor([[[50.0, 60.0]]]))
    with pytest.raises(ConfigurationError, match=r"'local_soft_argmax'.*soft, argmax, mean"):
        decode_nested(heatmaps, "local_soft_argmax", stride=NESTED_STRIDE)


def test_linear_activation_clips_negative_values() -> None:
    raw = torch.full((1, CELLS, CELLS), -0.1)
    raw[0, 3, 4] = 0.9
    integer, decimal = to_distributions(raw, torch.zeros(1, BINS, BINS), "linear")
    assert integer.sum() == raw[0, 3, 4]
    assert torch.allclose(decimal.sum(), torch.tensor(1.0))


def test_local_soft_argmax_is_differentiable_and_moves_the_point() -> None:
    targets = encode(torch.tensor([[100.0, 100.0]]), CELLS)
    logits = (targets.integer + 1e-6).log().requires_grad_()
    decimals = (targets.decimal + 1e-6).log().requires_grad_()
    point = decode(*to_distributions(logits, decimals)).points
    point[0, 0].backward()
    assert logits.grad is not None
    assert decimals.grad is not None
    # More mass in a column further right moves the point to the right.
    assert logits.grad[0, :, 26:].sum() > 0 > logits.grad[0, :, :24].sum()
    assert decimals.grad[0, :, 7].sum() > 0 > decimals.grad[0, :, 0].sum()


def test_stride_and_pixel_origin_scale_and_shift_the_points() -> None:
    targets = encode(torch.tensor([[128.0, 64.0]]), CELLS)
    fine = decode(targets.integer, targets.decimal)
    coarse = heatmap.decode(targets.integer, targets.decimal, stride=8, pixel_origin=0.0)
    assert torch.allclose(coarse.points, 2 * (fine.points + 0.5))
    assert torch.allclose(coarse.covariance, 4 * fine.covariance)


def test_batches_decode_as_one_by_one() -> None:
    points = torch.rand(3, 5, 2) * 250
    targets = encode(points, CELLS)
    together = decode(targets.integer, targets.decimal).points
    alone = torch.stack([decode(i, d).points for i, d in zip(*targets[:2], strict=True)])
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.gpu
def test_cuda_decodes_as_the_cpu() -> None:
    targets = encode(torch.rand(4, 98, 2) * 250, CELLS)
    on_cpu = decode(targets.integer, targets.decimal).points
    on_cuda = decode(targets.integer.cuda(), targets.decimal.cuda()).points
    assert torch.allclose(on_cpu, on_cuda.cpu(), atol=1e-3)


# Nested heatmaps.

NESTED_STRIDE, NESTED_CELLS = 8, 24


def nested_heatmaps(points: torch.Tensor, top: int = 4) -> NestedHeatmaps:
    """The scores of a network that has learned its targets perfectly, of points (N, P, 2)."""
    anywhere = torch.zeros(*points.shape[:-1], 1, dtype=torch.long)
    targets = encode_nested(points, anywhere, NESTED_CELLS, stride=NESTED_STRIDE)
    cells = targets.integer.flatten(-2).topk(top, dim=-1).indices
    targets = encode_nested(points, cells, NESTED_CELLS, stride=NESTED_STRIDE)
    return NestedHeatmaps(
        targets.integer.clamp(min=1e-12).log(), cells, targets.decimal.clamp(min=1e-12).log()
    )


inner = st.floats(16, 175)


@settings(max_examples=100, deadline=None)
@given(x=inner, y=inner)
def test_nested_heatmaps_recover_any_point(x: float, y: float) -> None:
    points = torch.tensor([[[x, y]]])
    for decoder in ("argmax", "soft"):
        found = decode_nested(nested_heatmaps(points), decoder, stride=NESTED_STRIDE)
        assert (found.points - points).abs().max() < 0.3  # a neighbor may cut its Gaussian off
        assert found.mass.item() > 0.99
        # The decimal target has a standard deviation of one bin: 1 pixel.
        deviations = found.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        assert ((deviations > 0.6) & (deviations < 1.3)).all()


def test_nested_points_at_the_border_stay_in_the_crop() -> None:
    points = torch.tensor([[[-0.5, -0.5], [191.4, 191.4]]])
    found = decode_nested(nested_heatmaps(points), "soft", stride=NESTED_STRIDE)
    assert (found.points - points).abs().max() < 1


def test_nested_covariance_and_mass_show_two_candidates() -> None:
    points = torch.tensor([[[60.0, 100.0], [130.0, 100.0]]])
    heatmaps = nested_heatmaps(points)
    one, other = (heatmaps.integer[:, i].exp() for i in (0, 1))
    cells = torch.stack([heatmaps.cells[:, 0, :2], heatmaps.cells[:, 1, :2]], dim=2)[:, None]
    both = NestedHeatmaps(
        ((0.6 * one + 0.4 * other)[:, None]).log(),
        cells.flatten(2),
        torch.stack([heatmaps.decimal[:, 0, :2], heatmaps.decimal[:, 1, :2]], 2).flatten(1, 2)[
            :, None
        ],
    )
    found = decode_nested(both, "soft", stride=NESTED_STRIDE)
    assert found.points[0, 0, 0].item() == pytest.approx(60, abs=0.5)
    assert 0.5 < found.mass.item() < 0.7
    assert found.covariance[0, 0, 0, 0].item() == pytest.approx(0.4 * 70**2, rel=0.1)
    assert found.covariance[0, 0, 1, 1].item() < 5


def test_soft_weighs_near_cells_by_the_fourth_power_of_their_probabilities() -> None:
    cells = torch.tensor([[[10 * NESTED_CELLS + 10, 10 * NESTED_CELLS + 11]]])
    integer = torch.full((1, 1, NESTED_CELLS**2), -30.0)
    integer[0, 0, cells[0, 0]] = torch.tensor([0.6, 0.4]).log()
    # In each cell the first bin of its own: 8 pixels apart.
    decimal = torch.full((1, 1, 2, 2, DECIMAL_EXTENT), -30.0)
    decimal[..., DECIMAL_MARGIN] = 0
    heatmaps = NestedHeatmaps(integer.view(1, 1, NESTED_CELLS, NESTED_CELLS), cells, decimal, None)
    best = decode_nested(heatmaps, "argmax", stride=NESTED_STRIDE).points
    found = decode_nested(heatmaps, "soft", stride=NESTED_STRIDE).points
    share = 0.4**4 / (0.6**4 + 0.4**4)
    torch.testing.assert_close(found - best, torch.tensor([[[8 * share, 0.0]]]))


def test_decimals_reach_beyond_their_cell() -> None:
    points = torch.tensor([[[80.0, 80.0]]])  # the center of cell (10, 10) is (83.5, 83.5)
    neighbor = torch.tensor([[[10 * NESTED_CELLS + 9]]])
    targets = encode_nested(points, neighbor, NESTED_CELLS, stride=NESTED_STRIDE)
    assert targets.reachable.all()
    far = encode_nested(points, neighbor - 3, NESTED_CELLS, stride=NESTED_STRIDE)
    assert not far.reachable.any()
    assert targets.decimal.sum(dim=-1) == pytest.approx(torch.ones(1, 1, 1, 2))


def test_the_integer_offset_leads_to_the_points_of_the_integer_heatmap_alone() -> None:
    heatmaps = nested_heatmaps(torch.tensor([[[61.0, 100.0], [130.0, 23.0]]]))
    # The cells to the right are more likely than their decimals say.
    integer = heatmaps.integer + torch.arange(NESTED_CELLS)
    seen = heatmaps._replace(integer=integer, visibility=torch.zeros(1, 2))
    alone = decode_nested(seen, "mean", stride=NESTED_STRIDE)
    assert alone.integer_offset is not None
    torch.testing.assert_close(alone.integer_offset, torch.zeros(1, 2, 2))
    for decoder in ("soft", "argmax"):
        found = decode_nested(seen, decoder, stride=NESTED_STRIDE)
        assert found.integer_offset is not None
        assert found.integer_offset.norm(dim=-1).min() > 0.1
        torch.testing.assert_close(found.points + found.integer_offset, alone.points)
    without = decode_nested(heatmaps, "soft", stride=NESTED_STRIDE)
    assert len(without.tensors()) == 3, "runtimes tell outputs apart by their order"
