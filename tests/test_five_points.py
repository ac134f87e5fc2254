"""Faces given by five points, and the one table of box kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hihlandmark import ConfigurationError, Detector, Face
from hihlandmark.crop import (
    CANONICAL_CROP,
    BoxMap,
    complete_box_maps,
    crop_matrix,
    rotate_points,
    tight_boxes,
    transform_points,
)
from hihlandmark.face_detection import given_five_points
from hihlandmark.layouts import FIVE, WFLW98
from hihlandmark.weights import list_models
from hihlandmark.weights.card import ModelCard

AstronautImage = NDArray[np.uint8]
SHAPE = FIVE.mean_shape
FIVE_MAP = CANONICAL_CROP["five_points"]


@pytest.fixture(scope="module")
def detector(detector_of: Callable[[int], Detector]) -> Detector:
    return detector_of(98)


@pytest.fixture(scope="module")
def face(detector: Detector, astronaut: AstronautImage) -> Face:
    return detector.predict(astronaut)[0]


def test_five_points_place_the_crop_of_a_mean_face() -> None:
    """Within a tenth of the crop around all of its points."""
    points = 100 * WFLW98.mean_shape + 300
    eyes = [points[list(WFLW98.parts[f"{side}_eye"])].mean(axis=0) for side in ("left", "right")]
    others = [points[index] for index in (54, 76, 82)]
    (square,) = FIVE_MAP.squares_of_five(np.array([[*eyes, *others]]), SHAPE)
    expected = CANONICAL_CROP["landmarks:WFLW98"].squares(tight_boxes(points))[0]
    assert np.abs(square[:3] - expected[:3]).max() < 0.1 * expected[2]


@settings(deadline=None)
@given(angle=st.floats(-180, 180), size=st.floats(5, 500))
def test_crop_follows_rotation_and_size(angle: float, size: float) -> None:
    points = rotate_points(size * SHAPE[None], np.deg2rad(np.array([angle])))
    points = points + np.array([400, 300])
    square = FIVE_MAP.squares_of_five(points, SHAPE)
    assert square[0, 2] == pytest.approx(FIVE_MAP.scale * size * np.ptp(SHAPE, axis=0).max())
    # The face is at the same place of the crop, but for a rotation that is left out.
    left_out = np.deg2rad(angle) - square[0, 3]
    seen = rotate_points(transform_points(crop_matrix(square, 192), points), -left_out[None])
    upright = FIVE_MAP.squares_of_five(100 * SHAPE[None], SHAPE)
    expected = transform_points(crop_matrix(upright, 192), 100 * SHAPE[None])
    offset = seen - expected
    assert np.abs(offset - offset.mean(axis=1, keepdims=True)).max() < 1e-3


def test_points_are_found_without_boxes(
    detector: Detector, astronaut: AstronautImage, face: Face
) -> None:
    five = face.to_layout(FIVE).points
    (found,) = detector.predict(astronaut, five_points=five)
    assert np.abs(found.points - face.points).max() < 0.03 * face.interocular
    side = np.ptp(found.box.reshape(2, 2), axis=0)
    assert side == pytest.approx(np.ptp(face.points, axis=0).max(), rel=0.2)


def test_given_boxes_are_kept_beside_five_points(
    detector: Detector, astronaut: AstronautImage, face: Face
) -> None:
    five = face.to_layout(FIVE).points
    wrong = [10, 10, 40, 40]  # not used for the crop
    (found,) = detector.predict(astronaut, boxes=wrong, five_points=torch.tensor(five))
    assert np.abs(found.points - face.points).max() < 0.03 * face.interocular
    assert found.box.tolist() == wrong
    assert detector.predict(astronaut, five_points=[]) == []


@pytest.mark.parametrize(
    ("change", "keyword"),
    [
        (lambda p: p[:, :4], "shape"),
        (lambda p: p[:, FIVE.mirror], "swapped"),
        (lambda p: p / 1000, "0..1"),
        (lambda p: p * np.nan, "finite"),
        (lambda p: p + 1000, "outside"),
        (lambda p: "eyes", "numbers"),
        (lambda p: np.concatenate([p, p]), "boxes"),
    ],
)
def test_wrong_five_points_are_named(change, keyword: str) -> None:  # type: ignore[no-untyped-def]
    from hihlandmark.face_detection import given_boxes

    points = 40 * SHAPE[None] + 100
    boxes = given_boxes([50, 50, 150, 150], (200, 200))
    with pytest.raises(ConfigurationError, match=keyword):
        given_five_points(change(points), (200, 200), boxes)


@pytest.mark.parametrize("angle", range(0, 360, 30))
def test_rotated_and_narrow_faces_are_accepted(angle: int) -> None:
    turned = rotate_points(40 * (SHAPE * (0.2, 1))[None], np.deg2rad(np.array([angle])))
    assert len(given_five_points(turned + 100, (200, 200), None)) == 1


def test_low_scores_of_given_boxes_are_reported(
    detector: Detector, astronaut: AstronautImage
) -> None:
    with pytest.warns(UserWarning, match="mean score"):
        detector.predict(astronaut, boxes=[[300, 300, 420, 420]], box_kind="mtcnn")


def test_all_kinds_follow_from_the_crop_of_the_landmarks() -> None:
    assert complete_box_maps({"landmarks:W300_68": BoxMap((0.0, 0.0), 1.4)}) == pytest.approx(
        CANONICAL_CROP
    )
    moved = complete_box_maps({"landmarks:WFLW98": BoxMap((0.0, 0.14), 2.8)})
    assert moved["mtcnn"].scale == pytest.approx(2 * CANONICAL_CROP["mtcnn"].scale)
    # 0.14 of the landmarks' box is a tenth of the canonical crop.
    expected = CANONICAL_CROP["mtcnn"].shift[1] + 0.1 * CANONICAL_CROP["mtcnn"].scale
    assert moved["mtcnn"].shift[1] == pytest.approx(expected, abs=1e-4)


def test_own_maps_of_a_card_win() -> None:
    own = {"landmarks:W300_68": BoxMap((0.0, 0.0), 1.4), "mtcnn": BoxMap((0.5, 0.0), 3.0)}
    assert complete_box_maps(own)["mtcnn"] == own["mtcnn"]
    only = {"mtcnn": BoxMap((0.5, 0.0), 3.0)}  # the crop is not known
    assert complete_box_maps(only) == only


def test_packaged_cards_hold_maps_of_landmarks_alone() -> None:
    for row in list_models():
        # Those of hih-open are fitted on its own training images.
        if row.problem is None and row.name != "hih-open":
            path = Path(__file__).parent.parent / "weights" / f"{row.name}.json"
            kinds = ModelCard.from_json(path.read_text()).crop.boxes
            assert all(kind.startswith("landmarks:") for kind in kinds), row.name
