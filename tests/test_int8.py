"""INT8: ranges of activations, quantized convolutions, and where "auto" takes them."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_model
from torch import nn

from hihlandmark import ConfigurationError, Detector, WeightsError, runtimes
from hihlandmark.face_detection import make_face_detector
from hihlandmark.models.registry import build_model, configuration_of
from hihlandmark.runtimes import choose_precision, export, make_runtime
from hihlandmark.runtimes.base import Precision
from hihlandmark.runtimes.devices import CPU
from hihlandmark.runtimes.int8 import observed_ranges, quantize, round_in_training
from hihlandmark.weights import load_model
from hihlandmark.weights.card import ModelCard


def two_convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def test_ranges_are_means_of_the_extremes_of_batches_and_hold_zero() -> None:
    network = two_convolutions()
    batches = [torch.full((2, 3, 4, 4), value) for value in (1.0, 3.0)]
    with observed_ranges(network) as ranges:
        for batch in batches:
            network(batch)
    assert ranges["0"] == (0.0, 2.0)
    hidden = [network[:2](batch).max().item() for batch in batches]
    assert ranges["2"] == pytest.approx((0.0, np.mean(hidden)), abs=1e-3)
    network(torch.full((1, 3, 4, 4), 9.0))
    assert ranges["0"] == (0.0, 2.0), "observed after the end"


@pytest.mark.parametrize(
    ("covered", "expected"), [(1.0, (-9.0, 5.0)), (0.5, (-2.0, 1.0)), (0.75, (-3.0, 2.0))]
)
def test_ranges_hold_the_extremes_of_a_share_of_the_batches(
    covered: float, expected: tuple[float, float]
) -> None:
    network = two_convolutions()
    lowest, highest = (-2.0, -1.0, -2.0, -3.0, -9.0), (1.0, 1.0, 0.5, 2.0, 5.0)
    with observed_ranges(network, covered) as ranges:
        for low, high in zip(lowest, highest, strict=True):
            network(torch.tensor([low, high]).repeat(1, 3, 4, 2))
    assert ranges["0"] == expected


def test_the_first_and_the_last_convolutions_get_no_range() -> None:
    parts = {"heads": nn.Sequential(nn.Conv2d(4, 2, 1)), "body": nn.Conv2d(4, 4, 1)}
    network = nn.Sequential(OrderedDict(reversed(parts.items())))
    with observed_ranges(network) as ranges:
        network(torch.ones(1, 4, 2, 2))
    assert ranges.keys() == {"body"}


def test_quantized_convolutions_round_inputs_and_weights() -> None:
    pixels = torch.rand(4, 3, 8, 8) * 2 - 1
    expected = two_convolutions()(pixels)
    same = quantize(two_convolutions(), {})(pixels)
    assert torch.equal(same, expected), "no range, no rounding"
    found = quantize(two_convolutions(), {"0": (-1.0, 1.0), "2": (0.0, 2.0)})(pixels)
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.02
    # Values beyond the range count as its end, and zero, which is what padding adds, stays zero.
    clipped = quantize(two_convolutions(), {"0": (-0.5, 0.5)})
    torch.testing.assert_close(clipped(2 * pixels), clipped((2 * pixels).clamp(-0.501, 0.501)))
    assert torch.equal(clipped[0][0](torch.zeros(1)), torch.zeros(1))


def test_inputs_are_rounded_in_training_alone_and_pass_gradients_within_their_range() -> None:
    pixels = torch.tensor([-3.0, -0.501, 0.007, 0.5]).repeat(1, 3, 2, 1)
    expected = two_convolutions()(pixels)
    network = two_convolutions()
    round_in_training(network, {"0": (-1.0, 1.0), "unknown": (0.0, 1.0)})
    assert torch.equal(network(pixels), expected)
    network.train()
    step = 2 / 255
    rounded = (pixels / step).round().clamp(-128, 127) * step
    torch.testing.assert_close(network(pixels), two_convolutions()(rounded))
    pixels.requires_grad_()
    network(pixels).sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad[..., 0] == 0).all(), "beyond the range"
    assert (pixels.grad[..., 1:] != 0).any()


def test_ranges_of_another_network_are_an_error() -> None:
    with pytest.raises(WeightsError, match=r"'stem\.0', are of another network.*fp32"):
        quantize(two_convolutions(), {"stem.0": (0.0, 1.0)})


@pytest.mark.parametrize("model", ["adnet-small", "awing-small"])
def test_convolutions_with_two_inputs_are_left_alone(model: str) -> None:
    network = build_model(model.removesuffix("-small"), configuration_of(model)).eval()
    crops = torch.rand(1, 3, 256, 256)
    with torch.inference_mode(), observed_ranges(network) as ranges:
        expected = network(crops)
    assert ranges
    with torch.inference_mode():
        found = quantize(network, ranges)(crops)
    for layout, heatmaps in found.items():
        assert heatmaps.integer.isfinite().all()
        assert heatmaps.integer.shape == expected[layout].integer.shape


@pytest.mark.parametrize(
    ("int8", "bf16", "expected"),
    [(True, True, "int8"), (True, False, "int8"), (False, True, "bf16"), (False, False, "fp32")],
)
def test_auto_takes_int8_where_hardware_runtime_and_weights_have_it(
    int8: bool, bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "has_native_int8", lambda device: int8)
    monkeypatch.setattr(runtimes, "has_native_bf16", lambda device: bf16)
    without = "bf16" if bf16 else "fp32"
    assert choose_precision("auto", "openvino", CPU, has_ranges=True) == expected
    assert choose_precision("auto", "openvino", CPU) == without
    assert choose_precision("auto", "torch", CPU, has_ranges=True) == without
    assert choose_precision("auto", "onnxruntime", CPU, has_ranges=True) == "fp32"


def test_int8_that_cannot_be_is_refused_with_a_remedy() -> None:
    model = tiny_model("hih")
    with pytest.raises(ConfigurationError, match=r"ranges of their activations.*'auto'"):
        make_runtime("openvino", lambda: model.network, "COFW29", model.card, CPU, "int8")
    with pytest.raises(ConfigurationError, match="PyTorch computes in fp32 or bf16"):
        Detector(29, runtime="torch", device="cpu", precision="int8")
    with pytest.raises(ConfigurationError, match="ranges of their activations"):
        make_face_detector("centerface", device="cpu", runtime="openvino", precision="int8")


@pytest.mark.parametrize("ranges", [[1.0, 2.0], [-2.0, -1.0], [0.0], [0.0, float("nan")], "all"])
def test_a_card_with_a_wrong_range_names_the_field(ranges: object) -> None:
    values = tiny_model("hih").card.model_dump() | {"activation_ranges": {"stem.0": ranges}}
    with pytest.raises(WeightsError, match="activation_ranges"):
        ModelCard.model_validate(values)


@pytest.mark.slow
def test_points_in_int8_are_near_those_in_single_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(runtimes, "_cache_folder", lambda package: tmp_path)
    model = load_model("hih-small")
    crops = export.drawn_faces("W300_68", model.card.configuration["input_size"], 8)

    def points(precision: Precision) -> np.ndarray:
        return make_runtime(
            "openvino", lambda: model.network, "W300_68", model.card, CPU, precision
        )(crops).points

    distance = np.linalg.norm(points("int8") - points("fp32"), axis=-1)
    assert 0.01 < np.median(distance) < 0.5


@pytest.mark.slow
def test_a_detector_in_int8_finds_faces_in_a_precision_that_their_detector_has() -> None:
    pytest.importorskip("openvino")
    detector = Detector(68, runtime="openvino", device="cpu", precision="int8")
    assert detector.runtime.precision == "int8"
    from skimage.data import astronaut

    assert len(detector.predict(astronaut())) == 1
