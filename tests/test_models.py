"""The networks: shapes, sizes, the registry, and equality with the official implementation.

``data/hih_golden.npz`` holds numbers computed by the official implementation at commit 7174ea2
(configuration HIHC_64x8_hg_l2, in float64): the names and shapes of its state dict, and of its
outputs in evaluation mode some hundred values and the means, for the weights of `official_weights`
and the crop of `golden_crop`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.layouts import get_layout
from hihlandmark.models.hih import HIH, Heatmaps, HIHConfiguration
from hihlandmark.models.official_hih import from_official
from hihlandmark.models.registry import (
    ARCHITECTURES,
    LAYOUT_POINTS,
    MODELS,
    build_model,
    configuration_of,
)

GOLDEN = Path(__file__).parent / "data" / "hih_golden.npz"

Shapes = Mapping[str, tuple[int, ...]]


class RandomStream:
    """Uniform numbers from the raw bits of PCG64, which every release of NumPy draws alike."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.PCG64(seed)

    def between(self, low: float, high: float, shape: tuple[int, ...]) -> torch.Tensor:
        raw = self.bits.random_raw(int(np.prod(shape, dtype=int)))
        unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return torch.from_numpy((low + (high - low) * unit).astype(np.float32).reshape(shape))


def official_weights(shapes: Shapes, seed: int = 2104) -> dict[str, torch.Tensor]:
    """Random weights under official names, drawn in the names' order, that keep outputs near 1."""
    stream = RandomStream(seed)
    weights = {}
    for name in sorted(shapes):
        shape, layer = shapes[name], name.rpartition(".")[2]
        if layer == "num_batches_tracked":
            weights[name] = torch.tensor(1000)
        elif len(shape) == 4:
            reach = (6 / np.prod(shape[1:])) ** 0.5  # as He et al. initialise before a ReLU
            weights[name] = stream.between(-reach, reach, shape)
        elif layer == "weight":  # of batch norms: less than 1, since every residual block adds
            weights[name] = stream.between(0.1, 0.65, shape)
        elif layer == "running_var":
            weights[name] = stream.between(0.5, 1.5, shape)
        else:
            weights[name] = stream.between(-0.1, 0.1, shape)
    return weights


def golden_crop() -> torch.Tensor:
    """One crop (1, 3, 256, 256), normalised."""
    return RandomStream(98).between(-2, 2, (1, 3, 256, 256))


class Golden(NamedTuple):
    """What the official implementation said; see the module's docstring."""

    shapes: Shapes
    means: NDArray[np.float64]  # (5,), of the heatmaps in the order below
    positions: NDArray[np.int64]  # (5, K), in the flattened heatmaps
    values: NDArray[np.float64]  # (5, K)


HEATMAPS = ("stack 0", "stack 1", "stack 2", "stack 3", "decimal")


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(GOLDEN) as data:
        shapes = {n: tuple(s) for n, s in json.loads(data["shapes"].tobytes()).items()}
        return Golden(shapes, data["means"], data["positions"], data["values"])


@pytest.fixture(scope="module")
def official(golden: Golden) -> dict[str, torch.Tensor]:
    """A random state dict of the official implementation."""
    return official_weights(golden.shapes)


def small_configuration(**changes: object) -> dict[str, object]:
    """Two narrow stacks with everything that a configuration can have."""
    return {
        "stacks": 2,
        "features": 16,
        "depth": 2,
        "decimal_features": 8,
        "input_size": 64,
        "layouts": {"WFLW98": 98, "COFW29": 29},
        "auxiliary_layouts": {"189": 189},
        "decimal_bins": 4,
        "idle_skips": True,
        **changes,
    }


def build_small(**changes: object) -> HIH:
    torch.manual_seed(0)
    model = build_model("hih", small_configuration(**changes))
    assert isinstance(model, HIH)
    return model


def on_meta(name: str, layouts: list[str] | None = None) -> nn.Module:
    """A model of the registry without memory or arithmetic: shapes only."""
    with torch.device("meta"):
        return build_model(MODELS[name].architecture, configuration_of(name, layouts))


# Equality with the official implementation.


def test_hih_computes_what_the_official_implementation_does(
    golden: Golden, official: dict[str, torch.Tensor]
) -> None:
    configuration, weights = from_official(official)
    with torch.device("meta"):
        model = build_model("hih", configuration)
    model.load_state_dict(weights, assign=True)
    assert isinstance(model, HIH)

    with torch.inference_mode():
        integers, decimal, _ = model.eval().forward_stacks(golden_crop())

    rows = zip(HEATMAPS, [*integers, decimal], *golden[1:], strict=True)
    for name, heatmap, mean, positions, values in rows:
        flat = heatmap.flatten().double().numpy()
        np.testing.assert_allclose(flat[positions], values, rtol=0, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(flat.mean(), mean, rtol=0, atol=1e-4, err_msg=name)


def test_hih_has_the_official_parameters(golden: Golden) -> None:
    model = on_meta("hih")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    official = {n: s for n, s in golden.shapes.items() if not n.endswith(buffers)}

    assert sum(p.numel() for p in model.parameters()) == 22_677_034
    assert sum(int(np.prod(shape)) for shape in official.values()) == 22_677_034
    assert sum(1 for _ in model.parameters()) == len(official)


@pytest.mark.parametrize("layout", LAYOUT_POINTS)
def test_from_official_infers_the_configuration(layout: str, golden: Golden) -> None:
    points = LAYOUT_POINTS[layout]
    # Only prediction layers know the number of points, at their input or output.
    shapes = {n: tuple(points if k == 98 else k for k in s) for n, s in golden.shapes.items()}
    configuration, weights = from_official(
        {f"module.{n}": torch.empty(s, device="meta") for n, s in shapes.items()}
    )

    assert configuration == configuration_of("hih", [layout])
    on_meta("hih", [layout]).load_state_dict(weights, strict=True, assign=True)


def test_from_official_reads_a_narrower_and_shallower_network(golden: Golden) -> None:
    left_out = ("hg2", "hg3", "hg0.res4", "hg1.res4", "offset_head.down_ops.1")
    narrower = {256: 32, 128: 16, 64: 8, 384: 24}
    shapes = {
        name: tuple(narrower.get(n, n) for n in shape)
        for name, shape in golden.shapes.items()
        if not name.startswith(left_out)
    }
    configuration, weights = from_official(official_weights(shapes))

    inferred = {
        "stacks": 2,
        "features": 32,
        "depth": 3,
        "decimal_features": 24,
        "decimal_bins": 16,
    }
    assert configuration == configuration_of("hih") | inferred
    build_model("hih", configuration).load_state_dict(weights, strict=True)


def test_from_official_passes_every_tensor_on_once(official: dict[str, torch.Tensor]) -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in official.items()}
    _, weights = from_official(prefixed)
    assert sorted(map(id, weights.values())) == sorted(map(id, official.values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hg0.res4_1.conv2.conv.weight": None}, "1 missing: hg0.res4_1.conv2.conv.weight"),
        ({"pre_conv.3.skip_layer.bn.bias": None}, "1 missing: pre_conv.3.skip_layer.bn.bias"),
        ({"offset_head.conv1.conv.weight": None}, "1 missing: offset_head.conv1.conv.weight"),
        ({"hg9_lin1.conv.weight": (1,)}, "1 unknown: hg9_lin1.conv.weight"),
        ({"fc.weight": (1,), "fc.bias": (1,)}, "2 unknown: fc.bias, fc.weight"),
        ({"hg3_res1.conv1.bn.bias": (7,)}, "1 of another shape: hg3_res1.conv1.bn.bias"),
        ({"hg0_conv_pred.weight": (98,)}, "1 of another shape: hg0_conv_pred.weight"),
        ({"hg0_conv_pred.weight": (51, 256, 1, 1)}, "51 points; known are .* 98, 68, 29"),
        ({"offset_head.vit.cls_token": (1,)}, "vision transformer"),
        ({"offset_head.fc.weight": (1,)}, "coordinate regression"),
        ({"offset_head.conv2.conv.weight": (1,)}, "offset map"),
    ],
)
def test_from_official_refuses_what_does_not_fit_and_names_it(
    change: dict[str, tuple[int, ...] | None], message: str, golden: Golden
) -> None:
    shapes = {n: s for n, s in {**golden.shapes, **change}.items() if s is not None}
    state_dict = {n: torch.empty(s, device="meta") for n, s in shapes.items()}
    with pytest.raises(WeightsError, match=message):
        from_official(state_dict)


def test_from_official_refuses_what_is_no_state_dict() -> None:
    with pytest.raises(WeightsError, match="not tensors: state_dict"):
        from_official({"state_dict": {}})  # type: ignore[dict-item]
    with pytest.raises(WeightsError, match=r"missing: hg0_conv_pred\.weight"):
        from_official({})


# The registry.


@pytest.mark.parametrize(
    ("name", "layouts"),
    [("hih", None), ("hih", ["COFW29"]), ("hih-small", None)],
)
def test_models_of_the_registry_give_a_pair_of_heatmaps_a_layout(
    name: str, layouts: list[str] | None
) -> None:
    configuration = configuration_of(name, layouts)
    with torch.inference_mode():
        heatmaps = on_meta(name, layouts).eval()(torch.empty(2, 3, 256, 256, device="meta"))

    assert list(heatmaps) == list(configuration["layouts"])
    for layout, points in configuration["layouts"].items():
        assert heatmaps[layout].integer.shape == (2, points, 64, 64)
        assert heatmaps[layout].decimal.shape == (2, points, 8, 8)


def test_every_row_of_the_registry_builds_and_survives_json() -> None:
    for name, entry in MODELS.items():
        configuration = configuration_of(name)
        assert entry.architecture in ARCHITECTURES
        restored = json.loads(json.dumps(configuration))
        assert restored == configuration == entry.configuration
        assert list(restored["layouts"]) == list(configuration["layouts"])


def test_hih_small_answers_every_layout_from_16_mib_in_half_precision() -> None:
    model = build_model("hih", configuration_of("hih-small")).half()
    assert list(configuration_of("hih-small")["layouts"]) == list(LAYOUT_POINTS)
    assert len(save(model.state_dict())) <= 16 * 2**20


def test_layouts_of_the_registry_have_the_points_of_the_package() -> None:
    for name, points in LAYOUT_POINTS.items():
        assert get_layout(name).size == points


def test_configuration_of_hands_out_copies() -> None:
    configuration_of("hih")["layouts"]["W300_68"] = 68
    assert configuration_of("hih")["layouts"] == {"WFLW98": 98}


def test_configuration_of_keeps_the_order_of_layouts() -> None:
    chosen = configuration_of("hih-small", ["COFW29", "WFLW98"])["layouts"]
    assert list(chosen.items()) == [("COFW29", 29), ("WFLW98", 98)]


def test_configuration_of_refuses_unknown_names() -> None:
    with pytest.raises(ConfigurationError, match="unknown model 'hi'; there are hih, hih-small"):
        configuration_of("hi")
    with pytest.raises(ConfigurationError, match="unknown layout 'AFLW19'; there are WFLW98, "):
        configuration_of("hih", ["AFLW19"])


def test_build_model_refuses_an_unknown_architecture() -> None:
    with pytest.raises(ConfigurationError, match="unknown architecture 'hih-small'; there are hih"):
        build_model("hih-small", configuration_of("hih-small"))


def test_build_model_refuses_missing_and_unknown_fields() -> None:
    configuration = configuration_of("hih") | {"width": 256}
    del configuration["features"]
    with pytest.raises(ConfigurationError, match="missing: features; unknown: width"):
        build_model("hih", configuration)


def test_build_model_fills_in_optional_fields() -> None:
    configuration = small_configuration(input_size=128)
    del configuration["decimal_bins"], configuration["idle_skips"]
    model = build_model("hih", configuration)
    assert model.configuration == HIHConfiguration(
        **small_configuration(  # type: ignore[arg-type]
            input_size=128, decimal_bins=8, idle_skips=False
        )
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stacks": 0}, "stacks=0 must be whole"),
        ({"depth": 2.0}, "depth=2.0 must be whole"),
        ({"features": "16", "stacks": True}, "stacks=True, features='16' must be whole"),
        ({"layouts": {"WFLW98": -1}}, "points of WFLW98=-1 must be whole"),
        ({"layouts": {}}, "layouts is empty"),
        ({"layouts": ["WFLW98"]}, "layouts and auxiliary_layouts must map"),
        ({"auxiliary_layouts": None}, "layouts and auxiliary_layouts must map"),
        ({"idle_skips": 1}, "idle_skips=1 is neither"),
        ({"features": 18}, "features=18 is not a multiple of 4"),
        ({"input_size": 66}, "input_size=66 is not a multiple of 4"),
        ({"input_size": 2}, "input_size=2 is not a multiple of 4"),
        ({"depth": 5}, "input_size=64 is not a multiple of .* depth=5"),
        ({"decimal_bins": 8}, "input_size=64 is not 16, 32, 64... times decimal_bins=8"),
        ({"decimal_bins": 3}, "times decimal_bins=3"),
        ({"input_size": 48}, "input_size=48 is not 16, 32, 64... times decimal_bins=4"),
        ({"decimal_bins": 32}, "times decimal_bins=32"),
    ],
)
def test_build_model_refuses_impossible_values(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_model("hih", small_configuration(**change))


# The network.


def test_layouts_take_their_channels_in_the_order_of_the_configuration() -> None:
    model = build_small().eval()
    crops = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        integers, decimal, _ = model.forward_stacks(crops)
        heatmaps = model(crops)

    assert list(heatmaps) == ["WFLW98", "COFW29"]
    for layout, channels in (("WFLW98", slice(0, 98)), ("COFW29", slice(98, 127))):
        assert isinstance(heatmaps[layout], Heatmaps)
        torch.testing.assert_close(heatmaps[layout].integer, integers[-1][:, channels])
        torch.testing.assert_close(heatmaps[layout].decimal, decimal[:, channels])


@pytest.mark.parametrize("side", [32, 48, 64, 80])
def test_crops_of_another_size_fill_as_many_decimal_bins(side: int) -> None:
    model = build_small().eval()
    with torch.inference_mode():
        heatmaps = model(torch.randn(1, 3, side, side))
    assert heatmaps["COFW29"].integer.shape == (1, 29, side // 4, side // 4)
    assert heatmaps["COFW29"].decimal.shape == (1, 29, 4, 4)


@pytest.mark.parametrize(("input_size", "depth", "bins"), [(48, 2, 3), (128, 1, 2), (256, 6, 16)])
def test_decimal_heatmaps_have_the_bins_of_the_configuration(
    input_size: int, depth: int, bins: int
) -> None:
    model = build_small(input_size=input_size, depth=depth, decimal_bins=bins).eval()
    with torch.inference_mode():
        heatmaps = model(torch.randn(1, 3, input_size, input_size))
    assert heatmaps["COFW29"].integer.shape[-2:] == (input_size // 4, input_size // 4)
    assert heatmaps["COFW29"].decimal.shape[-2:] == (bins, bins)


def test_gradient_reaches_every_parameter_but_the_idle_ones() -> None:
    model = build_small()
    integers, decimal, features = model.forward_stacks(torch.randn(2, 3, 64, 64))
    auxiliary = [head(features) for head in model.auxiliary_heads.values()]
    loss = sum((m - 1).square().mean() for m in (*integers, decimal, *auxiliary))
    assert isinstance(loss, torch.Tensor)
    loss.backward()

    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == {name for name, _ in model.named_parameters() if ".idle_skip." in name}
    assert idle


def test_idle_skips_add_parameters_and_change_nothing_else() -> None:
    lean, full = build_small(idle_skips=False).eval(), build_small(idle_skips=True).eval()
    missing, unexpected = full.load_state_dict(lean.state_dict(), strict=False)
    crops = torch.randn(1, 3, 64, 64)

    assert not unexpected
    assert all(".idle_skip." in name for name in missing)
    with torch.inference_mode():
        for ours, theirs in zip(full(crops).values(), lean(crops).values(), strict=True):
            assert torch.equal(ours.integer, theirs.integer)
            assert torch.equal(ours.decimal, theirs.decimal)
