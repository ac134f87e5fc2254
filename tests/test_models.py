"""The networks: shapes, sizes and the registry. ``test_official.py`` compares their numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import make_dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.models.adnet import ADNet
from hihlandmark.models.awing import AWing
from hihlandmark.models.base import Heatmaps, LandmarkNetwork, NetworkConfiguration, normalize
from hihlandmark.models.efficientnet import pad_same
from hihlandmark.models.hih import HIH
from hihlandmark.models.nested import Nested
from hihlandmark.models.registry import (
    ARCHITECTURES,
    LAYOUT_POINTS,
    MODELS,
    build_model,
    configuration_of,
)

# Edges that overlap, and points on none.
SMALL_EDGES = {"WFLW98": [[0, 1, 2], [2, 3]], "COFW29": [[0, 28]]}

ITS_OWN: dict[str, dict[str, object]] = {
    "hih": {"decimal_features": 8, "decimal_bins": 4, "unused_shortcuts": True},
    "adnet": {"edges": SMALL_EDGES, "unused_shortcuts": True, "blur_pool": True},
    "awing": {},
    "nested": {"encoder": "efficientnet-lite0", "stride": 8, "decimal_features": 8},
}


def small_configuration(**changes: object) -> dict[str, object]:
    """Two narrow stacks of HIH with everything that a configuration can have."""
    return small_configuration_of("hih", **changes)


def small_configuration_of(architecture: str, **changes: object) -> dict[str, object]:
    return {
        "stacks": 2,
        "features": 16,
        "depth": 2,
        "input_size": 64,
        "layouts": {"WFLW98": 98, "COFW29": 29},
        "auxiliary_layouts": {"189": 189},
        **ITS_OWN[architecture],
        **changes,
    }


def build_small(**changes: object) -> HIH:
    torch.manual_seed(0)
    model = build_model("hih", small_configuration(**changes))
    assert isinstance(model, HIH)
    return model


def build_small_adnet() -> ADNet:
    torch.manual_seed(0)
    model = build_model("adnet", small_configuration_of("adnet"))
    assert isinstance(model, ADNet)
    return model


def build_small_awing() -> AWing:
    torch.manual_seed(0)
    model = build_model("awing", small_configuration_of("awing"))
    assert isinstance(model, AWing)
    return model


def on_meta(name: str, layouts: list[str] | None = None) -> nn.Module:
    """A model of the registry without memory or arithmetic: shapes only."""
    with torch.device("meta"):
        return build_model(MODELS[name].architecture, configuration_of(name, layouts))


# The registry.


@pytest.mark.parametrize(
    ("name", "layouts"),
    [*((name, None) for name in MODELS), ("hih", ["COFW29"]), ("adnet", ["COFW29"])],
)
def test_models_of_the_registry_give_heatmaps_of_every_layout(
    name: str, layouts: list[str] | None
) -> None:
    configuration = configuration_of(name, layouts)
    size = configuration["input_size"]
    with torch.inference_mode():
        heatmaps = on_meta(name, layouts).eval()(torch.empty(2, 3, size, size, device="meta"))

    assert list(heatmaps) == list(configuration["layouts"])
    for layout, points in configuration["layouts"].items():
        if MODELS[name].architecture == "nested":
            assert heatmaps[layout].integer.shape == (2, points, 24, 24)
            assert heatmaps[layout].decimal.shape == (2, points, 4, 2, 16)
            continue
        assert heatmaps[layout].integer.shape == (2, points, 64, 64)
        decimal = heatmaps[layout].decimal
        if MODELS[name].architecture == "hih":
            assert decimal.shape == (2, points, 8, 8)
        else:
            assert decimal is None


def test_every_row_of_the_registry_builds_and_survives_json() -> None:
    for name, entry in MODELS.items():
        configuration = configuration_of(name)
        assert entry.architecture in ARCHITECTURES
        restored = json.loads(json.dumps(configuration))
        assert restored == configuration
        assert list(restored["layouts"]) == list(configuration["layouts"])
        # Edges follow from the layouts, for which they are looked up.
        assert configuration.keys() - entry.configuration.keys() <= {"edges"}
        assert entry.configuration.items() <= configuration.items()


@pytest.mark.parametrize("name", ["hih-small", "hih-small-v1", "adnet-small", "awing-small"])
def test_small_models_answer_every_layout_from_16_mib_in_half_precision(name: str) -> None:
    model = build_model(MODELS[name].architecture, configuration_of(name)).half()
    assert list(configuration_of(name)["layouts"]) == list(LAYOUT_POINTS)
    assert len(save(model.state_dict())) <= 16 * 2**20


def test_configuration_of_refuses_unknown_names() -> None:
    with pytest.raises(ConfigurationError, match="unknown model 'hi'; there are hih, hih-small-v1"):
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


def test_fields_of_ones_own_configuration_are_checked() -> None:
    # In a module that does not postpone annotations, the type of a field is a class, not text.
    field = ("width", int, 3)
    own = make_dataclass("Own", [field], bases=(NetworkConfiguration,), frozen=True, kw_only=True)
    known = {"stacks": 1, "features": 8, "depth": 1, "input_size": 64, "layouts": {"A": 1}}
    with pytest.raises(ConfigurationError, match="width='x' must be whole"):
        own(**known, auxiliary_layouts={}, width="x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stacks": 0}, "stacks=0 must be whole"),
        ({"depth": 2.0}, "depth=2.0 must be whole"),
        ({"features": "16", "stacks": True}, "stacks=True, features='16' must be whole"),
        ({"layouts": {"WFLW98": -1}}, "points of WFLW98=-1 must be whole"),
        ({"layouts": {"my.points": 5}}, "no layout can be called 'my.points'"),
        ({"auxiliary_layouts": {"": 5}}, "no layout can be called ''"),
        ({"auxiliary_layouts": {"keys": 5}}, "no layout can be called 'keys'"),
        ({"layouts": {}}, "layouts is empty"),
        ({"layouts": ["WFLW98"]}, "layouts and auxiliary_layouts must map"),
        ({"auxiliary_layouts": None}, "layouts and auxiliary_layouts must map"),
        ({"unused_shortcuts": 1}, "unused_shortcuts=1 is neither"),
        ({"features": 18}, "features=18 is not a multiple of 4"),
        ({"input_size": 66}, "input_size=66 is not a multiple of 16"),
        ({"input_size": 2}, "input_size=2 is not a multiple of 16"),
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


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (None, "edges must map each layout"),
        ([[0, 1]], "edges must map each layout"),
        ({"WFLW98": [[0, 1]]}, "edges must map each layout"),
        ({**SMALL_EDGES, "COFW29": 3}, "edges must map each layout"),
        ({**SMALL_EDGES, "COFW29": [3]}, "edges must map each layout"),
        ({**SMALL_EDGES, "COFW29": []}, "edges must map each layout"),
        (
            {**SMALL_EDGES, "COFW29": [[]]},
            r"edges of COFW29: \[\] are not numbers of points, 0 to 28",
        ),
        ({**SMALL_EDGES, "COFW29": [[0, 29]]}, r"\[0, 29\] are not numbers of points, 0 to 28"),
        ({**SMALL_EDGES, "COFW29": [[-1, 0]]}, r"\[-1, 0\] are not"),
        ({**SMALL_EDGES, "COFW29": [["0", 1]]}, "are not numbers of points"),
    ],
)
def test_build_model_refuses_edges_of_other_points(edges: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_model("adnet", small_configuration_of("adnet", edges=edges))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "resnet"}, "encoder='resnet' is not one of efficientnet-lite0"),
        ({"stride": 6}, "stride=6 is not 4, 8 or 16"),
        ({"stride": 8.0}, "stride=8.0 must be whole"),
        ({"input_size": 80}, "input_size=80 is not a multiple of 32"),
        ({"stride": 16, "input_size": 96}, "input_size=96 is not a multiple of 64"),
        ({"decimal_features": 0}, "decimal_features=0 must be whole"),
        ({"pruned": "stacks.0.residual"}, "pruned must list names"),
    ],
)
def test_build_model_refuses_impossible_values_of_nested(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_model("nested", small_configuration_of("nested", **change))


def test_build_model_refuses_impossible_values_of_adnet() -> None:
    configuration = small_configuration_of("adnet", blur_pool=1, unused_shortcuts=None)
    with pytest.raises(
        ConfigurationError, match=r"unused_shortcuts=None is neither.*blur_pool=1 is nei"
    ):
        build_model("adnet", configuration)
    del configuration["edges"]
    with pytest.raises(ConfigurationError, match="missing: edges"):
        build_model("adnet", configuration)


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


def assert_slices(model: LandmarkNetwork, maps: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """That a network without decimals gives each layout its channels of the last stack's maps."""
    crops = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, heatmaps = maps(crops), model(crops)
    assert list(heatmaps) == ["WFLW98", "COFW29"]
    for layout, channels in (("WFLW98", slice(0, 98)), ("COFW29", slice(98, 127))):
        assert heatmaps[layout].decimal is None
        torch.testing.assert_close(heatmaps[layout].integer, expected[:, channels])


def test_layouts_of_adnet_take_their_channels() -> None:
    model = build_small_adnet().eval()
    assert_slices(model, lambda crops: model.forward_stacks(crops)[0][-1].attended)


def test_layouts_of_awing_take_their_channels_and_leave_the_boundaries() -> None:
    model = build_small_awing().eval()
    assert_slices(model, lambda crops: model.forward_stacks(crops)[0][-1])
    maps, _ = model.forward_stacks(torch.randn(1, 3, 64, 64))
    assert maps[-1].shape == (1, 98 + 29 + 2, 16, 16)


def convolution(layers: nn.ModuleList, number: int) -> nn.Conv2d:
    layer = layers[number]
    assert isinstance(layer, nn.Conv2d)
    return layer


def bias_of(layer: nn.Conv2d) -> torch.Tensor:
    assert layer.bias is not None
    return layer.bias


def second_stack(model: AWing, first_boundary: float, second_boundary: float) -> torch.Tensor:
    """What stack 2 predicts for a crop when stack 1 predicts these boundaries of two layouts."""
    crop = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        # Through the boundary alone: not through what is merged into the backbone.
        convolution(model.merge_predictions, 0).weight.zero_()
        predict = convolution(model.predict, 0)
        predict.weight[127:].zero_()
        bias_of(predict)[127:] = torch.tensor([first_boundary, second_boundary])
        return model.forward_stacks(crop)[0][1]


def test_boundary_of_the_first_layout_reaches_the_second_stack() -> None:
    model = build_small_awing().eval()
    unseen = second_stack(model, 0.04, 0.04)
    assert torch.equal(unseen, second_stack(model, 0.04, 1.0))
    assert not torch.allclose(unseen, second_stack(model, 0.06, 0.04))


def test_points_of_adnet_on_no_edge_keep_their_heatmaps_without_edges() -> None:
    model = build_small_adnet().eval()
    with torch.inference_mode():
        for number in range(2):  # no edge anywhere
            bias_of(convolution(model.predict_edges, number)).fill_(-1e4)
        stacks, _ = model.forward_stacks(torch.randn(1, 3, 64, 64))
    on_edges = [0, 1, 2, 3, 98 + 0, 98 + 28]
    found = stacks[-1].attended.amax(dim=(0, 2, 3))
    assert not found[on_edges].any()
    elsewhere = [point for point in range(127) if point not in on_edges]
    assert (found[elsewhere] > 0).all()


def test_points_of_adnet_are_looked_for_on_their_edges_only() -> None:
    model = build_small_adnet().eval()
    with torch.inference_mode():
        for number in range(2):  # the first edge is everywhere
            bias = bias_of(convolution(model.predict_edges, number))
            bias.copy_(torch.tensor([1e4, -1e4, -1e4]))
        stacks, _ = model.forward_stacks(torch.randn(1, 3, 64, 64))
    found = stacks[-1].attended.amax(dim=(0, 2, 3))
    assert (found[[0, 1, 2]] > 0).all()
    assert not found[[3, 98 + 0, 98 + 28]].any()


@pytest.mark.parametrize("side", [32, 48, 64, 80])
def test_crops_of_another_size_fill_as_many_decimal_bins(side: int) -> None:
    model = build_small().eval()
    with torch.inference_mode():
        heatmaps = model(torch.randn(1, 3, side, side))
    assert heatmaps["COFW29"].integer.shape == (1, 29, side // 4, side // 4)
    assert heatmaps["COFW29"].decimal.shape == (1, 29, 4, 4)


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for each in value for tensor in tensors_in(each)]


@pytest.mark.parametrize("build", [build_small, build_small_adnet, build_small_awing])
def test_gradient_reaches_every_parameter_but_unused_shortcuts(build: Any) -> None:
    model = build()
    *maps, features = model.forward_stacks(torch.randn(2, 3, 64, 64))
    maps += [head(features) for head in model.auxiliary_heads.values()]
    torch.stack([(each - 1).square().mean() for each in tensors_in(maps)]).sum().backward()

    unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert unused == {name for name, _ in model.named_parameters() if ".unused_shortcut." in name}
    assert bool(unused) == (build is not build_small_awing)


def build_small_nested() -> Nested:
    torch.manual_seed(0)
    model = build_model("nested", small_configuration_of("nested", depth=1))
    assert isinstance(model, Nested)
    return model


def test_gradient_reaches_every_parameter_of_nested() -> None:
    model = build_small_nested()
    features = model.features(torch.randn(2, 3, 64, 64))
    loss = torch.zeros(())
    for layout, points in {"WFLW98": 98, "COFW29": 29, "189": 189}.items():
        cells = torch.randint(64, (2, points, 3))
        maps = [model.integer(layout, each, n) for n, each in enumerate(features.stacks)]
        maps.append(model.decimal(layout, features, cells))
        loss = loss + sum((each - 1).square().mean() for each in maps)
    loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()} == set()


def test_nested_gives_the_layouts_that_are_wanted_and_reads_their_best_cells() -> None:
    model = build_small_nested().eval()
    crops = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        both, one = model(crops), model(crops, ["COFW29"])

    assert list(both) == ["WFLW98", "COFW29"]
    assert list(one) == ["COFW29"]
    integer, cells, *_ = one["COFW29"]
    torch.testing.assert_close(integer, both["COFW29"].integer)
    assert torch.equal(cells[..., 0], integer.flatten(2).argmax(dim=-1))


def test_encoder_pads_as_tensorflow_does() -> None:
    padded = pad_same(torch.ones(1, 1, 4, 4), kernel_size=3, stride=2)
    assert padded.shape == (1, 1, 5, 5)
    assert padded[0, 0, 0].tolist() == [1, 1, 1, 1, 0]
    assert pad_same(torch.ones(1, 1, 4, 4), kernel_size=5, stride=2).shape == (1, 1, 7, 7)


def test_unused_shortcuts_add_parameters_and_change_nothing_else() -> None:
    lean, full = (
        build_small(unused_shortcuts=False).eval(),
        build_small(unused_shortcuts=True).eval(),
    )
    missing, unexpected = full.load_state_dict(lean.state_dict(), strict=False)
    crops = torch.randn(1, 3, 64, 64)

    assert not unexpected
    assert all(".unused_shortcut." in name for name in missing)
    with torch.inference_mode():
        for ours, theirs in zip(full(crops).values(), lean(crops).values(), strict=True):
            assert torch.equal(ours.integer, theirs.integer)
            assert torch.equal(ours.decimal, theirs.decimal)


def test_normalized_crops_have_their_channels_scaled_each_by_its_own() -> None:
    crops = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    expected = ((crops.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(normalize(crops, mean, std), expected, rtol=1e-5, atol=1e-5)
