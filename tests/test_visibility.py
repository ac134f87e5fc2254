"""Visibility: occluders and labels, the head, its training, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from skimage import data as images

from hihlandmark import Detector, Face, draw_faces
from hihlandmark.calibration.metrics import hidden_point_figures
from hihlandmark.datasets.augmentation import NO_AUGMENTATION, generator
from hihlandmark.datasets.corrections import read_corrections
from hihlandmark.datasets.occluders import SHAPES, cover, covered_at
from hihlandmark.io import Result, Source
from hihlandmark.io.connectors import to_cvat, to_label_studio
from hihlandmark.io.formats import write_coco
from hihlandmark.layouts import FIVE, MESH478, WFLW98
from hihlandmark.models.nested import Nested, VisibilityFeatures, is_of_visibility
from hihlandmark.models.registry import build_model, configuration_of
from hihlandmark.runtimes.graph import CropGraph, folded
from hihlandmark.training.mesh import turned_away
from hihlandmark.training.trainer import build_training_network
from hihlandmark.weights import find_weights, load_model
from hihlandmark.weights.card import Calibration, Decoding, Normalization

SIZE = 96
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_both_features_are_standardized_as_by_a_group_norm() -> None:
    maps = [torch.randn(2, 8, 6, 6) * 3 + 5, torch.randn(2, 8, 6, 6) * 0.1]
    found = VisibilityFeatures(8, 4)[0](maps)
    expected = torch.nn.GroupNorm(2, 16, affine=False)(torch.cat(maps, dim=1))
    torch.testing.assert_close(found, expected)


def gray_crop() -> np.ndarray:
    return np.full((SIZE, SIZE, 3), 120, np.uint8)


def face(visibility: Any = ()) -> Face:
    points = 100 * FIVE.mean_shape + 200
    box = np.array([100, 100, 300, 300])
    return Face(points, np.ones(5), np.zeros((5, 2, 2)), box, 1.0, FIVE, visibility=visibility)


HALF = np.array([0.9, 0.2, 0.8, 0.7, 0.1])


# Occluders


@pytest.mark.parametrize("shape", SHAPES)
def test_an_occluder_changes_what_it_covers_and_little_else(shape: str) -> None:
    most = []
    for seed in range(4):
        covered = cover(gray_crop(), None, generator(seed), shapes=(shape,))
        assert covered.image.shape == (SIZE, SIZE, 3)
        assert covered.alpha.min() >= 0
        most.append(covered.alpha.max())
        assert (covered.image[covered.alpha == 0] <= 120).all(), "shadows darken"
        again = cover(gray_crop(), None, generator(seed), shapes=(shape,))
        assert np.array_equal(covered.image, again.image)
    assert 0.7 < max(most) <= 1


def test_a_mask_covers_the_mouth_and_sunglasses_the_eyes() -> None:
    eyes = np.array([[35.0, 40.0], [61.0, 40.0]])
    points = np.array([*eyes, [48.0, 40 + 26 * 1.4]])
    found = [
        covered_at(cover(gray_crop(), None, generator(2), eyes, (shape,)).alpha, points)
        for shape in ("mask", "sunglasses")
    ]
    np.testing.assert_allclose(found, [[0, 0, 1], [1, 1, 0]], atol=0.25)


@pytest.mark.parametrize("shape", [(90, 40), (40, 90)])
def test_occluders_are_textured_by_images_of_any_shape(shape: tuple[int, int]) -> None:
    other = np.full((*shape, 3), 200, np.uint8)
    for seed in range(30):
        assert cover(gray_crop(), other, generator(seed)).image.shape == (SIZE, SIZE, 3)


def test_points_outside_of_the_crop_are_covered_and_unknown_ones_unknown() -> None:
    alpha = np.zeros((SIZE, SIZE), np.float32)
    alpha[:, 48:] = 1
    points = np.array([[20, 20], [70, 20], [48, 20], [-3, 20], [np.nan, 20]])
    np.testing.assert_allclose(covered_at(alpha, points), [0, 1, 2 / 3, 1, np.nan], atol=1e-6)


def test_covered_points_are_mirrored_with_the_crop() -> None:
    points, mirror = np.array([[30.0, 40.0], [66.0, 40.0]]), np.array([1, 0])
    square = np.array([47.5, 47.5, 96.0, 0.0])
    for seed in range(20):
        arguments = (gray_crop(), points, mirror, square, SIZE)
        plain, flipped = (
            replace(NO_AUGMENTATION, occluders=1.0, flip=flip).crop(*arguments, generator(seed))
            for flip in (0.0, 1.0)
        )
        assert plain.covered is not None
        assert flipped.covered is not None
        np.testing.assert_array_equal(plain.covered, flipped.covered[::-1])
    assert NO_AUGMENTATION.crop(*arguments, generator(0)).covered is None


def test_the_far_side_of_a_turned_mesh_is_hidden() -> None:
    shape = MESH478.mean_shape
    assert np.nansum(turned_away(100 * shape)) == 0
    # A rounded head, turned by 50 degrees about the vertical axis.
    x, y = shape.T
    z = -0.7 * (x / np.abs(x).max()) ** 2 * np.abs(x).max()
    angle = np.deg2rad(50)
    turned = np.stack([x * np.cos(angle) + z * np.sin(angle), y], axis=1) * 100
    hidden = turned_away(turned) == 1
    assert hidden.sum() > 20
    assert np.sign(x[hidden]).std() == 0, "on one side only"
    mirrored = turned_away((turned * (-1, 1))[MESH478.mirror]) == 1
    assert (mirrored == hidden[MESH478.mirror]).mean() > 0.98


def test_the_lower_lip_of_a_wide_open_mouth_can_be_seen() -> None:
    opened = 100 * MESH478.mean_shape
    lower = [14, 15, 16, 17, 84, 85, 86, 87, 178, 179, 180, 181, 314, 315, 316, 317, 402, 403, 404]
    opened[lower, 1] += 6  # below the fold between lip and chin
    np.testing.assert_array_equal(turned_away(opened)[lower], 0)


# The network


def network(visibility: int) -> Nested:
    fields = {**configuration_of("hih-small", ["COFW29"]), "input_size": 64}
    torch.manual_seed(0)
    built = build_model("nested", {**fields, "visibility": visibility})
    assert isinstance(built, Nested)
    return built.eval()


def test_the_head_leaves_points_as_they_are_bit_for_bit() -> None:
    plain, with_head = network(0), network(8)
    missing = with_head.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert len(missing) == 6 + 1
    assert all(map(is_of_visibility, missing))
    assert not any(map(is_of_visibility, plain.state_dict()))
    crops = torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8)
    settings = Normalization(mean=(0.5,) * 3, std=(0.2,) * 3)
    decoding = Decoding(decoder="soft", activation="softmax", stride=8)
    with torch.inference_mode():
        found, other = (
            CropGraph(folded(each, ["COFW29"]), ["COFW29"], settings, decoding)(crops)
            for each in (plain, with_head)
        )
    assert (len(found), len(other)) == (3, 5)
    assert all(torch.equal(*pair) for pair in zip(found, other, strict=False))
    assert other[3].shape == (2, 29)


def test_visibility_is_calibrated_and_unknown_without_calibration() -> None:
    logits = np.array([[-2.0, 0.0, 2.0]])
    assert np.isnan(Calibration().visibilities(logits, (1, 3))).all()
    calibration = Calibration(visibility=(1.0, 2.0))
    assert np.isnan(calibration.visibilities(None, (1, 3))).all()
    expected = 1 / (1 + np.exp(-(1 + 2 * logits)))
    np.testing.assert_allclose(calibration.visibilities(logits, (1, 3)), expected)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(98)


def covered_astronaut() -> tuple[np.ndarray, np.ndarray]:
    """The image, and with a board over mouth and chin."""
    image = images.astronaut()
    covered = image.copy()
    covered[139:230, 170:270] = (120, 90, 60)
    return image, covered


def test_a_covered_mouth_is_hidden_and_the_eyes_are_visible(detector: Detector) -> None:
    image, covered = covered_astronaut()
    (plain,) = detector.predict(image)
    assert np.mean(plain.visibility) > 0.9
    (found,) = detector.predict(covered, boxes=[plain.box])
    mouth, eyes = WFLW98.parts["outer_lips"], WFLW98.parts["left_eye"]
    assert found.visibility[list(mouth)].mean() < 0.3
    assert found.visibility[list(eyes)].mean() > 0.8
    assert found.hidden[list(mouth)].mean() > 0.8
    converted = found.to_layout(68)
    assert converted.visibility[48:60].mean() < 0.3
    assert (converted.visibility >= 0).all()


def test_points_outside_of_the_image_are_hidden(detector: Detector) -> None:
    image, _ = covered_astronaut()
    (plain,) = detector.predict(image)
    (cut,) = detector.predict(np.ascontiguousarray(image[:150]), boxes=[plain.box])
    outside = cut.points[:, 1] > 149.5
    assert outside.any()
    assert (cut.visibility[outside] == 0).all()


def test_packaged_points_do_not_depend_on_the_head() -> None:
    loaded = load_model()
    assert isinstance(loaded.network, Nested)
    assert loaded.card.configuration["visibility"] > 0
    assert all(loaded.card.calibration[name].visibility for name in loaded.card.heads)


# What is made of it


def test_unknown_visibility_is_nan_and_is_not_written() -> None:
    unknown = face()
    assert np.isnan(unknown.visibility).all()
    assert not unknown.hidden.any()
    assert "visibility" not in unknown.to_dict()
    assert unknown.to_rows()[0]["visibility"] is None


def test_visibility_survives_json() -> None:
    found = Face.from_dict(json.loads(face(HALF).to_json()))
    np.testing.assert_allclose(found.visibility, HALF, atol=1e-4)
    assert found.hidden.tolist() == [False, True, False, False, True]


def test_exports_mark_hidden_points() -> None:
    result = Result(Source("a.jpg", "a.jpg"), [face(HALF), face()], (640, 480))
    coco = json.loads(write_coco([result]))
    assert [each["keypoints"][2::3] for each in coco["annotations"]] == [[2, 1, 2, 2, 1], [2] * 5]
    root = ElementTree.fromstring(to_cvat([result]))
    occluded = [point.attrib["occluded"] for point in root.iter("points")]
    assert occluded == list("01001" + "00000")


def test_hidden_points_come_back_from_label_studio(tmp_path: Any) -> None:
    moved = replace(face(), points=face().points + 50)
    task = to_label_studio([face(HALF), moved], (640, 480), "a.jpg")
    task["annotations"] = task.pop("predictions")
    (tmp_path / "export.json").write_text(json.dumps([task]))
    first, second = read_corrections(tmp_path / "export.json")
    assert first.hidden == {FIVE.point_names[1], FIVE.point_names[4]}
    assert not second.hidden


def test_hidden_points_are_drawn_as_rings() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    filled, rings = (
        draw_faces(image, [face(each)], contours=False, point_size=20) for each in ((), HALF)
    )
    x, y = np.round(face().points[1]).astype(int)
    assert filled[y, x].any()
    assert not rings[y, x].any()
    assert rings[y - 15 : y + 15, x - 15 : x + 15].any()


def test_figures_of_hidden_points_need_both_kinds() -> None:
    values = np.array([[0.9, 0.1], [0.8, 0.9]])
    assert hidden_point_figures(values, np.zeros((2, 2))) is None
    found = hidden_point_figures(values, np.array([[0, 1], [0, np.nan]]))
    assert found is not None
    assert (found["auroc"], found["hidden"]) == (1, 1)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("hih-small", {}),
        ("hih-small", {"stacks": 2, "pruned": (), "fine_rank": 0}),
        ("hih-open", {}),
    ],
)
def test_the_head_is_fitted_to_a_network_of_the_sizes_in_the_card(
    name: str, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from fit_visibility import configuration_for

    card = find_weights(model=name).card
    kept = {k: v for k, v in card.configuration.items() if k not in changed}
    stated = {k: v for k, v in changed.items() if v}  # a card leaves out what is the default
    configuration = configuration_for(
        card.model_copy(update={"configuration": kept | stated}), steps=1
    )
    network = build_training_network(configuration)
    found = asdict(network.configuration)
    for key, value in {**kept, **changed, "visibility": 64}.items():
        if key != "auxiliary_layouts":
            assert found[key] == value, key
    assert configuration.network_configuration()["auxiliary_layouts"] == kept["auxiliary_layouts"]
