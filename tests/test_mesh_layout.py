"""Networks whose layout is the mesh: decimals of low rank, and the layouts that follow from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hihlandmark import Detector
from hihlandmark.datasets.augmentation import NO_AUGMENTATION, generator
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.errors import ConfigurationError, DataError
from hihlandmark.evaluation.protocol import evaluate
from hihlandmark.layouts import MESH478, W300_68, WFLW98, convert
from hihlandmark.models.nested import low_rank
from hihlandmark.models.registry import build_model, configuration_of
from hihlandmark.runtimes.graph import folded
from hihlandmark.training.config import TrainingConfiguration, read_configuration
from hihlandmark.training.data import read_face_set
from hihlandmark.training.objectives import NORMALIZATION
from hihlandmark.weights import save_weights
from hihlandmark.weights.card import CropContract, Decoding, ModelCard

SMALL = {"features": 8, "depth": 1, "decimal_features": 8, "decimal_rank": 4, "input_size": 64}


def mesh_configuration() -> dict[str, Any]:
    return {**configuration_of("hih-open"), **SMALL}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a network of the mesh alone."""
    torch.manual_seed(0)
    configuration = mesh_configuration()
    card = ModelCard(
        name="mesh",
        architecture="nested",
        configuration=configuration,
        normalization=NORMALIZATION,
        crop=CropContract(pixel_origin=0.5, boxes=read_configuration("hih-open").box_maps()),
        decoding=Decoding(decoder="soft", activation="softmax", stride=8),
        training_data=(),
        license="test",
    )
    folder = tmp_path_factory.mktemp("mesh")
    save_weights(folder, card, build_model("nested", configuration).state_dict())
    return folder


def test_a_model_is_built_for_every_known_layout() -> None:
    assert configuration_of("hih-open", ["MESH478"])["layouts"] == {"MESH478": 478}
    with pytest.raises(ConfigurationError, match="layout"):
        configuration_of("hih-open", ["MESH479"])


def test_folding_multiplies_weights_of_low_rank_and_changes_nothing_else() -> None:
    torch.manual_seed(0)
    network = build_model("nested", mesh_configuration()).eval()
    single = folded(network, ["MESH478"])
    assert not any("basis" in name for name, _ in single.named_parameters())
    crops = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        one, other = network(crops)["MESH478"], single(crops)["MESH478"]
    torch.testing.assert_close(one.decimal, other.decimal, atol=1e-4, rtol=1e-4)


def test_low_rank_is_exact_where_the_weights_have_that_rank() -> None:
    torch.manual_seed(0)
    weight = torch.einsum("pr,rco->pco", torch.randn(30, 3), torch.randn(3, 4, 5))
    mix, basis = low_rank(weight, 3)
    assert (mix.shape, basis.shape) == ((30, 3), (3, 4, 5))
    torch.testing.assert_close(torch.einsum("pr,rco->pco", mix, basis), weight)


def test_layouts_that_weights_lack_are_converted(weights: Path) -> None:
    image = np.full((100, 100, 3), 90, np.uint8)
    options: dict[str, Any] = {"weights": weights, "runtime": "torch", "refine": 0}
    boxes: dict[str, Any] = {"boxes": [[10, 10, 90, 90]], "box_kind": "mtcnn"}
    (mesh,) = Detector(478, **options).predict(image, **boxes)
    detector = Detector(**options)
    assert detector.layout is WFLW98, "the usual layout, whatever the weights have"
    (face,) = detector.predict(image, **boxes)
    np.testing.assert_allclose(face.points, convert(mesh.points, MESH478, 98)[0], atol=1e-2)
    assert face.approximate.all()
    assert ((face.scores >= 0) & (face.scores <= 1)).all()


def test_a_layout_that_follows_from_no_head_lists_those_that_do() -> None:
    with pytest.raises(ConfigurationError, match="WFLW98, W300_68, COFW29"):
        Detector(478, model="adnet-small")


def test_approximate_points_are_compared_on_request_only(weights: Path) -> None:
    image = np.full((100, 100, 3), 90, np.uint8)
    points = W300_68.mean_shape * 60 + 50
    face = AnnotatedFace("one", lambda: image, points, "val")
    faces = AnnotatedFaces("faces/val", "W300_68", W300_68.mirror, [face])
    detector = Detector(68, weights=weights, runtime="torch", refine=0)
    with pytest.raises(ConfigurationError, match="approximate"):
        evaluate(detector, faces)
    evaluation = evaluate(detector, faces, approximate=True)
    assert np.isfinite(evaluation.errors).all()
    assert "interpolated" in evaluation.remarks[0]


def test_names_and_lists_choose_the_faces_of_a_set(tmp_path: Path) -> None:
    names = ("a_1.png", "a_2.png", "a_3.png", "b_1.png")
    rows = [{"image": name, "points": [[1, 2], [3, 4]], "split": "train"} for name in names]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "points.json").write_text('{"2": {"flip": [1, 0]}}')
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values: dict[str, Any] = {
        "name": "n",
        "model": "hih-open",
        "lists": {"held": ["a_2.png", "elsewhere.png"]},
        "sets": [{"names": "a_.*", "held_out": "held"}],
        "validation": {"sets": [{"held_out": "held"}]},
        "stages": [{"steps": 1}],
    }
    configuration = TrainingConfiguration.model_validate(values)
    training = read_face_set(tmp_path, configuration.sets[0])
    assert [face.name for face in training] == ["a_1.png", "a_3.png"]
    held = read_face_set(tmp_path, configuration.validation.sets[0])
    assert [face.name for face in held] == ["a_2.png"]
    none = configuration.sets[0].model_copy(update={"names": "c_.*"})
    with pytest.raises(DataError, match="c_"):
        read_face_set(tmp_path, none)


def test_the_shipped_configuration_holds_out_a_tenth_of_fairface() -> None:
    configuration = read_configuration("hih-open")
    held = configuration.sets[0].held_out
    assert isinstance(held, tuple)
    assert len(held) == len(set(held)) == 350
    for each in (*configuration.validation.sets, *configuration.card.calibration):
        assert each.held_out == held


def test_points_follow_a_crop_in_perspective() -> None:
    image = np.zeros((96, 96, 3), np.uint8)
    image[30:33, 60:63] = 255
    points = np.array([[61.0, 31.0], [np.nan, np.nan]])
    augmentation = replace(NO_AUGMENTATION, perspective=1.0)
    square = np.array([47.5, 47.5, 96, 0])
    crop, moved, *_ = augmentation.crop(image, points, np.arange(2), square, 96, generator(3))
    rows, columns = np.nonzero(crop[..., 0] > 100)
    np.testing.assert_allclose(moved[0], [columns.mean(), rows.mean()], atol=1)
    assert np.linalg.norm(moved[0] - points[0]) > 1
    assert np.isnan(moved[1]).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_border_is_filled_and_the_image_kept(seed: int) -> None:
    image = np.full((40, 40, 3), 200, np.uint8)
    other = np.full((40, 40, 3), 100, np.uint8)
    augmentation = replace(NO_AUGMENTATION, border=1.0)
    square = np.array([19.5, 19.5, 80, 0])
    points = np.zeros((1, 2))
    crop, *_ = augmentation.crop(image, points, np.arange(1), square, 80, generator(seed), other)
    assert (crop[22:58, 22:58] == 200).all()
    assert crop.min() >= 100, "nothing is black"
