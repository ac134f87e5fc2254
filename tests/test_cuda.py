"""A CUDA device gives the results of the CPU: images, networks, decoders, losses, validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import batches, small, tiny, write_teacher
from skimage.data import astronaut

from hihlandmark import Detector
from hihlandmark.datasets import read_faces
from hihlandmark.heatmap import decode_heatmaps
from hihlandmark.models.base import Heatmaps
from hihlandmark.models.registry import MODELS, build_model, configuration_of
from hihlandmark.runtimes.base import CropLandmarks, Precision
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.runtimes.pytorch import TorchRuntime
from hihlandmark.training.data import Batch
from hihlandmark.training.distillation import read_teacher
from hihlandmark.training.objectives import decoding_of, make_objective
from hihlandmark.training.trainer import build_training_network
from hihlandmark.training.validation import Validator
from hihlandmark.weights.card import (
    DECODERS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Decoder,
    Decoding,
    Normalization,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DECODING = Decoding(decoder="local_soft_argmax", activation="softmax", stride=4)

pytestmark = pytest.mark.gpu


def landmarks_of(name: str, device: torch.device, precision: Precision = "fp32") -> CropLandmarks:
    """The points of a network with random weights on a random crop."""
    torch.manual_seed(0)
    network = build_model(MODELS[name].architecture, configuration_of(name))
    normalization = Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    graph = CropGraph(network, ["WFLW98"], normalization, DECODING)
    crops = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    return TorchRuntime(graph, device, precision)(crops)


@pytest.mark.parametrize(
    "options",
    [{}, {"any_rotation": True, "refine": 0, "flip_test": False}],
    ids=["defaults", "any rotation"],
)
def test_an_image_has_the_same_points(options: dict[str, Any]) -> None:
    image = astronaut()
    (expected,) = Detector(98, device="cpu", runtime="torch", **options).predict(image)
    detector = Detector(98, device="cuda", **options)
    (found,) = detector.predict(image)
    (many,) = next(iter(detector.predict_many([image, image])))
    np.testing.assert_allclose(found.points, expected.points, atol=0.05)
    np.testing.assert_allclose(many.points, found.points, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-2)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_network_gives_the_same_masses(name: str) -> None:
    expected, found = landmarks_of(name, CPU), landmarks_of(name, CUDA)
    np.testing.assert_allclose(found.mass, expected.mass, atol=1e-2)


def test_bf16_is_near_fp32() -> None:
    exact, mixed = (landmarks_of("hih-small", CUDA, precision) for precision in ("fp32", "bf16"))
    assert mixed.points.dtype == np.float32
    assert not np.array_equal(mixed.mass, exact.mass)
    np.testing.assert_allclose(mixed.mass, exact.mass, atol=0.05)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_gives_the_same_points(decoder: Decoder) -> None:
    torch.manual_seed(0)
    decoding = DECODING.model_copy(update={"decoder": decoder})
    integer, decimal = torch.randn(2, 5, 64, 64), torch.randn(2, 5, 8, 8)
    expected = decode_heatmaps(Heatmaps(integer, decimal), decoding)
    found = decode_heatmaps(Heatmaps(integer.cuda(), decimal.cuda()), decoding)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other.cpu(), one, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("model", ["hih-small-v1", "adnet-small", "awing-small"])
def test_losses_are_the_same(model: str, data: Path, tmp_path: Path) -> None:
    with_teacher = {"distillation": {"weights": str(write_teacher(tmp_path))}}
    configuration = tiny(**with_teacher) if model == "hih-small-v1" else small(model)
    batch = batches(data)[4][0]  # crops of 128 pixels, the teacher's input size

    def losses(device: torch.device) -> torch.Tensor:
        network = build_training_network(configuration)
        settings = configuration.distillation
        teacher = settings and read_teacher(settings, configuration, network.configuration, device)
        objective = make_objective(configuration, network, teacher).to(device)
        moved = Batch(*(part.to(device) for part in batch))
        return objective(moved, objective.totals(moved)).detach()

    torch.testing.assert_close(losses(CUDA).cpu(), losses(CPU), atol=1e-3, rtol=1e-3)


def test_validation_gives_the_same_error(data: Path) -> None:
    configuration = tiny()
    faces = read_faces(data / "COFW29", "val")
    validator = Validator({"val": faces}, ["COFW29"], configuration.box_maps(), images=1)

    def error(device: torch.device) -> float:
        network = build_training_network(configuration).to(device).eval()
        return validator.measure(network, decoding_of(configuration), 64)["val"].nme

    assert error(CUDA) == pytest.approx(error(CPU), rel=1e-2)
