"""The way over a CUDA device, on machines without one: what `simulated_cuda` can show."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from miniature import tiny
from simulated_cuda import simulated_cuda
from skimage.data import astronaut
from test_batches import batches
from test_objectives import small
from test_training import write_teacher

from hihlandmark import Detector
from hihlandmark.datasets import read_faces
from hihlandmark.heatmap import Decoder, mirrored, read_heatmaps
from hihlandmark.models.registry import MODELS, build_model, configuration_of
from hihlandmark.runtimes.pytorch import TorchRuntime
from hihlandmark.training.config import SelfTraining
from hihlandmark.training.data import Batch, UnlabeledBatch
from hihlandmark.training.distillation import read_teacher
from hihlandmark.training.objectives import decoding_of, make_objective
from hihlandmark.training.self_training import teach
from hihlandmark.training.trainer import build_training_network
from hihlandmark.training.validation import Validator
from hihlandmark.weights.card import IMAGENET_MEAN, IMAGENET_STD, Decoding, Normalization

CUDA = torch.device("cuda")
NORMALIZATION: Normalization = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not hasattr(torch._C, "_ensureCUDADeviceGuardSet"),
        reason="this PyTorch asks the driver at every operation",
    ),
]


def assert_alike(one: torch.Tensor, other: torch.Tensor) -> None:
    """The same numbers, the second ones on the device."""
    assert other.device.type == "cuda"
    torch.testing.assert_close(other.cpu(), one, equal_nan=True)


def test_the_simulation_finds_tensors_of_two_devices() -> None:
    with simulated_cuda():
        there = torch.zeros(3, device=CUDA)
        with pytest.raises(RuntimeError, match="cuda:0 and the CPU"):
            there + torch.zeros(3)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        there[1:] += torch.ones(2).to(CUDA)
        assert there.cpu().tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "options",
    [{}, {"any_rotation": True, "refine": 0, "mirror": False}],
    ids=["usual", "any rotation"],
)
def test_a_photo_has_the_same_points(options: dict[str, Any]) -> None:
    photo = astronaut()
    (here,) = Detector(98, device="cpu", runtime="torch", **options).predict(photo)
    with simulated_cuda():
        detector = Detector(98, **options)
        (there,) = detector.predict(photo)
        (many,) = next(iter(detector.predict_many([photo, photo])))
    assert detector.device.type == "cuda"
    np.testing.assert_allclose(there.points, here.points, atol=1e-3)
    np.testing.assert_allclose(many.points, here.points, atol=1e-3)
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-4)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_network_gives_the_same_heatmaps(name: str) -> None:
    torch.manual_seed(0)
    network = build_model(MODELS[name].architecture, configuration_of(name))
    crops = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    here = TorchRuntime(network, "WFLW98", NORMALIZATION, torch.device("cpu"))(crops)
    with simulated_cuda():
        there = TorchRuntime(network, "WFLW98", NORMALIZATION, CUDA)(crops)
        assert_alike(here.integer, there.integer)
        if here.decimal is not None:
            assert there.decimal is not None
            assert_alike(here.decimal, there.decimal)


def test_bf16_gives_nearly_the_same_heatmaps() -> None:
    torch.manual_seed(0)
    network = build_model("hih", configuration_of("hih-small"))
    crops = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    exact = TorchRuntime(network, "WFLW98", NORMALIZATION, torch.device("cpu"))(crops).integer
    with simulated_cuda():
        runtime = TorchRuntime(network, "WFLW98", NORMALIZATION, CUDA, "bf16")
        mixed = runtime(crops).integer.cpu()
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    assert (mixed - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_every_decoder_gives_the_same_points(decoder: Decoder) -> None:
    torch.manual_seed(0)
    decoding: Decoding = {"activation": "softmax", "decoder": decoder, "bin_center": 0.5}
    integer, decimal, mirror = torch.randn(2, 5, 64, 64), torch.randn(2, 5, 8, 8), torch.arange(5)
    for maps in ((integer, decimal), (integer, None)):
        here = read_heatmaps(*mirrored(*maps, mirror), decoding)
        with simulated_cuda():
            moved = tuple(None if each is None else each.to(CUDA) for each in maps)
            there = read_heatmaps(*mirrored(*moved, mirror.to(CUDA)), decoding)
            for one, other in zip(here, there, strict=True):
                assert_alike(one, other)


@pytest.mark.parametrize("model", ["hih-small", "adnet-small", "awing-small"])
def test_losses_are_the_same(model: str, data: Path, tmp_path: Path) -> None:
    taught = {"distillation": {"weights": str(write_teacher(tmp_path))}}
    configuration = tiny(**taught) if model == "hih-small" else small(model)
    batch = batches(data)[4][0]  # of 128 pixels, as the teacher wants them

    def losses(device: torch.device) -> torch.Tensor:
        network = build_training_network(configuration)
        settings = configuration.distillation
        teacher = settings and read_teacher(settings, configuration, network.configuration, device)
        objective = make_objective(configuration, network, teacher).to(device)
        moved = Batch(*(part.to(device) for part in batch))
        return objective(moved, objective.totals(moved)).detach()

    here = losses(torch.device("cpu"))
    assert here[-1] > 0 or model != "hih-small"
    with simulated_cuda():
        assert_alike(here, losses(CUDA))


def test_a_teacher_says_the_same_of_unlabeled_faces() -> None:
    configuration = tiny()
    settings = SelfTraining(sets=[{"folder": "W300_68"}], layouts=["WFLW98"], start=2, faces=1)
    plain = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    unlabeled = UnlabeledBatch(plain, plain, torch.eye(3)[:2].repeat(2, 1, 1))

    def taught(device: torch.device) -> Batch:
        network = build_training_network(configuration).to(device).eval()
        moved = UnlabeledBatch(*(part.to(device) for part in unlabeled))
        return teach(network, moved, settings, decoding_of(configuration), 195, nullcontext())

    here = taught(torch.device("cpu"))
    with simulated_cuda():
        for one, other in zip(here, taught(CUDA), strict=True):
            assert_alike(one, other)


def test_validation_measures_the_same(data: Path) -> None:
    configuration = tiny()
    faces = read_faces(data / "COFW29", "val")
    validator = Validator({"val": faces}, ["COFW29"], configuration.box_maps(), pictures=1)

    def error(device: torch.device) -> float:
        network = build_training_network(configuration).to(device).eval()
        return validator.measure(network, decoding_of(configuration), 64)["val"].nme

    here = error(torch.device("cpu"))
    with simulated_cuda():
        assert error(CUDA) == pytest.approx(here, rel=1e-5)
