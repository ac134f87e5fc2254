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
            reach = (5.0 / np.prod(shape[1:])) ** 0.5
            weights[name] = stream.between(-reach, reach, shape)
        elif layer == "weight" or layer == "running_var":
            weights[name] = stream.between(0.5, 1.5, shape)
        else:
            weights[name] = stream.between(-0.3, 0.3, shape)
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


def test_from_official_reads_a_narrower_and_shallower_network() -> None:
    wanted = configuration_of("hih") | {
        "stacks": 2,
        "features": 32,
        "depth": 3,
        "decimal_features": 24,
        "decimal_bins": 16,
    }
    shapes = small_official_shapes()
    configuration, weights = from_official(official_weights(shapes))

    assert configuration == wanted
    build_model("hih", configuration).load_state_dict(weights)


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
    with pytest.raises(WeightsError, match="missing: hg0_conv_pred.weight"):
        from_official({})
