"""Reading state dicts of the official implementations, and equality of our networks with theirs.

``data/*_golden.npz`` hold numbers computed by the official implementations, in float64 and in
evaluation mode, for the weights of `official_weights` and the crop of `golden_crop`: the names and
shapes of the state dict, and of its maps some values and the means.

- hih: commit 7174ea2, configuration HIHC_64x8_hg_l2.
- adnet: commit 7f92684, configuration WFLW, ``pool_type`` "origin" and "blur". The maps are those
  after attention, of edges and of points, of each stack; with their landmarks in crop pixels.
- awing: commit 4b64de5, four stacks, 98 points; ``.cuda()`` was taken out of its CoordConv, to run
  without a GPU. With the points of `get_preds_fromhm`, times 4 as its evaluation does.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from official_states import (
    RandomStream,
    adnet_constants,
    golden,
    official_shapes,
    official_weights,
    small_state,
)

from hihlandmark.errors import WeightsError
from hihlandmark.heatmap import decode, decode_nested
from hihlandmark.layouts import get_layout
from hihlandmark.models.adnet import ADNet
from hihlandmark.models.awing import AWing
from hihlandmark.models.base import LandmarkNetwork
from hihlandmark.models.hih import HIH
from hihlandmark.models.registry import LAYOUT_POINTS, build_model, configuration_of
from hihlandmark.weights.convert import from_adnet, from_awing, from_hih, from_prototype

FROM_OFFICIAL = {"hih": from_hih, "adnet": from_adnet, "awing": from_awing}


def golden_crop() -> torch.Tensor:
    """One crop (1, 3, 256, 256), normalized."""
    return RandomStream(98).between(-2, 2, (1, 3, 256, 256))


def converted(system: str, state_dict: dict[str, torch.Tensor]) -> LandmarkNetwork:
    configuration, weights = FROM_OFFICIAL[system](state_dict)
    model = build_model(system, configuration)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def assert_as_golden(
    maps: list[torch.Tensor],
    positions: NDArray[np.generic],
    values: NDArray[np.generic],
    means: NDArray[np.generic],
) -> None:
    """Maps have these values at positions (M, K) of the flattened maps, and these means (M,)."""
    for number, rows in enumerate(zip(maps, positions, values, means, strict=True)):
        flat = rows[0].flatten().double().numpy()
        np.testing.assert_allclose(flat[rows[1]], rows[2], rtol=0, atol=1e-4, err_msg=f"{number}")
        np.testing.assert_allclose(flat.mean(), rows[3], rtol=0, atol=1e-4, err_msg=f"{number}")


# Equality with the official implementations.


def test_hih_computes_what_the_official_implementation_does() -> None:
    model = converted("hih", official_weights(official_shapes("hih")))
    assert isinstance(model, HIH)

    with torch.inference_mode():
        integers, decimal, _ = model.forward_stacks(golden_crop())

    numbers = golden("hih")
    maps = [*integers, decimal]
    assert_as_golden(maps, numbers["positions"], numbers["values"], numbers["means"])


@pytest.mark.parametrize("pool", ["origin", "blur"])
def test_adnet_computes_what_the_official_implementation_does(pool: str) -> None:
    weights = official_weights(official_shapes("adnet"), seed=2109, gain=0.65)
    model = converted("adnet", weights | adnet_constants("WFLW98", blur=pool == "blur"))
    assert isinstance(model, ADNet)

    bgr = golden_crop()
    with torch.inference_mode():
        stacks, _ = model.forward_stacks(bgr.flip(1))

    numbers = golden("adnet")
    maps = [m for s in stacks for m in (s.attended, s.edges.sigmoid(), s.points.sigmoid())]
    assert_as_golden(
        maps, numbers["positions"], numbers[f"values_{pool}"], numbers[f"means_{pool}"]
    )
    for stack, landmarks in zip(stacks, numbers[f"landmarks_{pool}"], strict=True):
        found = decode(stack.attended[0], None, "mean", stride=4, align_corners=True)
        np.testing.assert_allclose(found.points.numpy(), landmarks, rtol=0, atol=1e-3)


def test_awing_computes_what_the_official_implementation_does() -> None:
    model = converted("awing", official_weights(official_shapes("awing"), seed=1908, gain=0.65))
    assert isinstance(model, AWing)

    with torch.inference_mode():
        stacks, _ = model.forward_stacks(golden_crop())

    numbers = golden("awing")
    assert_as_golden(stacks, numbers["positions"], numbers["values"], numbers["means"])
    for boundary in (maps[:, 98] for maps in stacks[:3]):
        assert 0.005 < (boundary > 0.05).double().mean() < 0.995  # the next stack sees some of it
    for maps, expected in zip(stacks, numbers["points"], strict=True):
        points = maps[0, :98]
        # No map is negative after training; moved up, each keeps its peak and its slopes.
        found = decode(
            points - points.amin(dim=(-2, -1), keepdim=True), None, "quarter_shift", stride=4
        )
        # The center of their top-left pixel is (0.5, 0.5).
        np.testing.assert_allclose(found.points.numpy() + 0.5, expected, rtol=0, atol=1e-4)


def test_nested_network_finds_the_points_of_its_prototype() -> None:
    weights = official_weights(official_shapes("nested"), seed=2026)
    configuration, state = from_prototype(weights)
    model = build_model("nested", configuration).eval()
    model.load_state_dict(state, strict=True)

    with torch.inference_mode():
        heatmaps = model(RandomStream(98).between(-2, 2, (1, 3, 192, 192)))

    for layout, points in LAYOUT_POINTS.items():
        for decoder in ("mean", "argmax"):  # that of "soft" was another one
            found = decode_nested(heatmaps[layout], decoder, stride=8).points[0]
            expected = golden("nested")[f"{decoder}_{points}"]
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("system", "parameters"), [("hih", 22_677_034), ("adnet", 17_177_332), ("awing", 24_153_036)]
)
def test_networks_of_the_papers_have_the_official_parameters(system: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(system, configuration_of(system))
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    official = [s for n, s in official_shapes(system).items() if not n.endswith(buffers)]

    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(int(np.prod(shape)) for shape in official) == parameters
    assert sum(1 for _ in model.parameters()) == len(official)


# What is read from names and shapes.


def of_layout(system: str, layout: str) -> dict[str, torch.Tensor]:
    """An official state dict of the size of the papers for another layout, without numbers."""
    points, edges = LAYOUT_POINTS[layout], len(get_layout(layout).edges)
    # Only prediction layers know the number of points, at their input or output.
    sizes = {98: points, 99: points + 1} | ({9: edges} if system == "adnet" else {})
    state = {
        name: torch.empty([sizes.get(size, size) for size in shape], device="meta")
        for name, shape in official_shapes(system).items()
    }
    return state | (adnet_constants(layout) if system == "adnet" else {})


@pytest.mark.parametrize("system", FROM_OFFICIAL)
@pytest.mark.parametrize("layout", LAYOUT_POINTS)
def test_from_official_infers_the_configuration(layout: str, system: str) -> None:
    state = {f"module.{name}": tensor for name, tensor in of_layout(system, layout).items()}
    configuration, weights = FROM_OFFICIAL[system](state)

    expected = configuration_of(system, [layout])
    if system == "adnet":
        assert not configuration.pop("blur_pool")
        edges = {name: [sorted(e) for e in lines] for name, lines in expected["edges"].items()}
        expected["edges"] = edges
    assert configuration == expected
    assert len(weights) == sum("e2h_transform" not in name for name in state)


def without_innermost_level(system: str) -> dict[str, torch.Tensor]:
    """A small state dict of two stacks of depth 3, and one block less in HIH's decimal head."""
    state = small_state(system, stacks=2)
    if system == "adnet":
        innermost, middle = "low2.low2.low2.", "low2.low2.low2.low2."
        kept = (n for n in state if innermost not in n or middle in n)
        return {name.replace(middle, innermost): state[name] for name in kept}
    left_out = {
        "hih": ("hg0.res4", "hg1.res4", "offset_head.down_ops.1"),
        "awing": tuple(f"m{stack}.b{branch}_4." for stack in (0, 1) for branch in (1, 2, 3)),
    }
    return {n: tensor for n, tensor in state.items() if not n.startswith(left_out[system])}


@pytest.mark.parametrize("system", FROM_OFFICIAL)
def test_from_official_reads_a_narrower_and_shallower_network(system: str) -> None:
    configuration, weights = FROM_OFFICIAL[system](without_innermost_level(system))

    inferred = {"stacks": 2, "features": 16, "depth": 3}
    if system == "hih":
        inferred |= {"decimal_features": 16, "decimal_bins": 16}
    if system != "adnet":
        assert configuration == configuration_of(system, ["COFW29"]) | inferred
    assert inferred.items() <= configuration.items()
    build_model(system, configuration).load_state_dict(weights, strict=True)


@pytest.mark.parametrize("system", FROM_OFFICIAL)
def test_checkpoints_of_torch_before_counters_are_read(system: str) -> None:
    state = small_state(system)
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    _, weights = FROM_OFFICIAL[system]({n: t for n, t in state.items() if n not in counters})
    assert counters
    assert sum(n.endswith("num_batches_tracked") for n in weights) == len(counters)


def test_edges_of_adnet_are_those_of_the_checkpoint() -> None:
    state = small_state("adnet")
    table = torch.zeros(29, 7, 1, 1)
    for edge in range(7):
        table[[edge, 28 - edge], edge] = 1
    state["e2h_transform.weight"] = table * 0.9999  # a moving average rounds
    state["e2h_transform.bias"] = (table.sum(dim=(1, 2, 3)) == 0).float()
    configuration, _ = from_adnet(state)
    assert configuration["edges"] == {"COFW29": [[edge, 28 - edge] for edge in range(7)]}


# What is refused.


Change = dict[str, tuple[int, ...] | None]
"""Tensors that are taken out (None) or get another shape."""


@pytest.mark.parametrize(
    ("system", "change", "message"),
    [
        ("hih", {"hg0.res4_1.conv2.conv.weight": None}, "1 missing: hg0.res4_1.conv2.conv.weight"),
        ("hih", {"pre_conv.3.skip_layer.bn.bias": None}, "missing: pre_conv.3.skip_layer.bn.bias"),
        ("hih", {"offset_head.conv1.conv.weight": None}, "missing: offset_head.conv1.conv.weight"),
        ("hih", {"fc.weight": (1,), "fc.bias": (1,)}, "2 unknown: fc.bias, fc.weight"),
        ("hih", {"hg1_res1.conv1.bn.bias": (7,)}, "1 of another shape: hg1_res1.conv1.bn.bias"),
        ("hih", {"hg0_conv_pred.weight": (98,)}, "1 of another shape: hg0_conv_pred.weight"),
        ("hih", {"hg0_conv_pred.weight": (51, 16, 1, 1)}, "51 points"),
        ("hih", {"offset_head.vit.cls_token": (1,)}, "vision transformer"),
        ("hih", {"offset_head.fc.weight": (1,)}, "coordinate regression"),
        ("hih", {"offset_head.conv2.conv.weight": (1,)}, "offset map"),
        ("adnet", {"hgs.0.low2.low1.conv2.conv.weight": None}, "missing: hgs.0.low2.low1.conv2"),
        ("adnet", {"out_heatmaps.0.conv.weight": None}, "missing: out_heatmaps.0.conv.weight"),
        ("adnet", {"e2h_transform.weight": None}, "1 missing: e2h_transform.weight"),
        ("adnet", {"e2h_transform.weight": (30, 7, 1, 1)}, "of another shape: e2h_transform"),
        ("adnet", {"e2h_transform.weight": (29, 7, 1, 1)}, "no table"),
        ("adnet", {"pre.2.1.filt": (8, 1, 3, 3)}, "8 missing: .*pool1.1.filt"),
        ("awing", {"m1.b2_plus_1.bn1.bias": None}, "1 missing: m1.b2_plus_1.bn1.bias"),
        ("awing", {"m0.b1_5.conv1.bias": (1,)}, "1 unknown: m0.b1_5.conv1.bias"),
        ("awing", {"l0.weight": (29, 16, 1, 1)}, "28 points"),
    ],
)
def test_from_official_refuses_what_is_no_such_network(
    system: str, change: Change, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        FROM_OFFICIAL[system](changed(small_state(system, stacks=2), change))


def changed(state: dict[str, torch.Tensor], change: Change) -> dict[str, torch.Tensor]:
    kept = {name: tensor for name, tensor in state.items() if name not in change}
    return kept | {name: torch.ones(shape) for name, shape in change.items() if shape is not None}


@pytest.mark.parametrize("size", [3, 5])
def test_from_official_refuses_another_blur_than_adnets(size: int) -> None:
    state = of_layout("adnet", "WFLW98") | adnet_constants("WFLW98", blur=True)
    with pytest.raises(WeightsError, match="another filter"):
        from_adnet(changed(state, {"hgs.2.pool1.1.filt": (256, 1, size, size)}))


@pytest.mark.parametrize("system", FROM_OFFICIAL)
def test_from_official_refuses_an_empty_state_dict(system: str) -> None:
    with pytest.raises(WeightsError, match="1 missing"):
        FROM_OFFICIAL[system]({})
