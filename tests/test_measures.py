"""Head pose, openness, distances and their errors, on a real face and on drawn ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hihlandmark import ConfigurationError, Detector, Face
from hihlandmark.crop import rotate_points
from hihlandmark.face import transform_face
from hihlandmark.layouts import get_layout
from hihlandmark.measures import (
    HEAD,
    HEAD_POINTS,
    Scale,
    angle,
    asymmetry,
    distance,
    eye_openness,
    head_pose,
    lid_openness,
    mouth_openness,
    mouth_width,
    pupil_position,
)
from hihlandmark.uncertainty import ErrorCorrelation

LAYOUTS = (98, 68, 29)


@pytest.fixture(scope="module")
def faces(astronaut: NDArray[np.uint8], detector_of: Callable[[int], Detector]) -> dict[int, Face]:
    return {layout: detector_of(layout).predict(astronaut)[0] for layout in LAYOUTS}


def angles_of(face: Face, *options: Any) -> tuple[float, ...]:
    pose = head_pose(face, *options)
    return pose.yaw.value, pose.pitch.value, pose.roll.value


def posed(yaw: float = 0, pitch: float = 0, roll: float = 0) -> Face:
    """A face of 68 points; only those of the generic head are meaningful."""
    layout = get_layout(68)
    y, p, r = np.deg2rad((yaw, pitch, roll))
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    head = HEAD @ about_x.T @ about_y.T
    head[:, :2] = rotate_points(head[None, :, :2], np.array([r]))[0]
    head += (0, 0, 600.0)
    seen = head[:, :2] / head[:, 2:] * 640 + (319.5, 239.5)
    points = np.zeros((68, 2))
    points[[layout.point_names.index(name) for name in HEAD_POINTS]] = seen
    return Face(points, np.ones(68), np.zeros((68, 2, 2)), np.zeros(4), 1.0, layout)


@pytest.mark.parametrize(
    "angles", [(0, 0, 0), (30, 0, 0), (-50, 0, 0), (0, 20, 0), (0, -25, 0), (0, 0, 40)]
)
def test_head_pose_recovers_the_angles_of_the_generic_head(angles: tuple[float, ...]) -> None:
    np.testing.assert_allclose(angles_of(posed(*angles), (640, 480), 640), angles, atol=0.01)


def test_head_pose_needs_no_image_size(faces: dict[int, Face]) -> None:
    for face in (*faces.values(), posed(20, 10, 5)):
        np.testing.assert_allclose(angles_of(face), angles_of(face, (512, 512)), atol=3)
    np.testing.assert_allclose(angles_of(posed(20, 10, 5)), (20, 10, 5), atol=4)


def test_head_pose_is_that_of_a_cropped_and_resized_image(faces: dict[int, Face]) -> None:
    cropped = transform_face(faces[98], np.array([[0.5, 0, -40], [0, 0.5, 7]]))
    np.testing.assert_allclose(angles_of(cropped), angles_of(faces[98]), atol=0.01)


def test_astronaut_looks_about_straight_ahead(faces: dict[int, Face]) -> None:
    for face in faces.values():
        np.testing.assert_allclose(angles_of(face), 0, atol=15)


def test_mirrored_image_changes_the_sign_of_yaw(
    astronaut: NDArray[np.uint8], detector_of: Callable[[int], Detector], faces: dict[int, Face]
) -> None:
    (mirrored,) = detector_of(98).predict(np.ascontiguousarray(astronaut[:, ::-1]))
    assert head_pose(mirrored).yaw.value == pytest.approx(-head_pose(faces[98]).yaw.value, abs=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_head_pose_of_a_mirrored_face_is_mirrored(layout: int, faces: dict[int, Face]) -> None:
    face = faces[layout]
    points = (face.points * (-1, 1) + (511, 0))[face.layout.mirror]
    yaw, pitch, roll = angles_of(face, (512, 512))
    mirrored = angles_of(replace(face, points=points), (512, 512))
    np.testing.assert_allclose(mirrored, (-yaw, pitch, -roll), atol=0.01)
    assert abs(yaw) < 30
    assert abs(roll) < 15


@pytest.mark.parametrize("layout", LAYOUTS)
def test_openness_of_the_astronauts_eyes_and_mouth(layout: int, faces: dict[int, Face]) -> None:
    assert all(0.15 < eye.value < 0.5 for eye in eye_openness(faces[layout]))
    assert 0.05 < mouth_openness(faces[layout]).value < 0.4


def test_closed_eye_changes_its_own_openness_only(faces: dict[int, Face]) -> None:
    face = faces[98]
    points = face.points.copy()
    # The eye is 60 to 67, its inner corner 64.
    along = np.array([0, 1, 2, 3, 4, 3, 2, 1])[:, None] / 4
    points[60:68] = points[60] + along * (points[64] - points[60])
    closed: Any = eye_openness(replace(face, points=points))
    assert closed.left.value < 0.01
    assert closed.left.std > 0
    assert closed.right.value == pytest.approx(eye_openness(face).right.value)


def drawn(layout: int | str = 68, variance: float = 1.0, loading: float = 0.0) -> Face:
    """The mean shape, 100 pixels large; a share of each error is common to all points."""
    known = get_layout(layout)
    count = known.size
    correlation = ErrorCorrelation(np.ones((count, 2)), np.zeros((count, 2, 2)))
    correlation.loadings[:, 0, 0] = correlation.loadings[:, 1, 1] = loading
    return Face(
        known.mean_shape * 100,
        np.ones(count),
        np.tile(np.eye(2) * variance, (count, 1, 1)),
        np.zeros(4),
        1.0,
        known,
        correlation=correlation,
    )


def test_distance_error_is_that_of_both_points() -> None:
    found = distance(drawn(), "left_mouth_corner", "right_mouth_corner")
    assert found.std == pytest.approx(np.sqrt(2), rel=0.02)
    low, high = found.interval(0.9)
    assert (high - low) / 2 == pytest.approx(1.645 * found.std, rel=1e-3)


def test_errors_that_points_share_cancel_in_distances() -> None:
    alone, shared = (mouth_width(drawn(loading=loading)).std for loading in (0.0, 0.9))
    assert shared == pytest.approx(alone * np.sqrt(1 - 0.81), rel=0.05)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_std_equals_the_spread_of_sampled_shapes(layout: int, faces: dict[int, Face]) -> None:
    face = faces[layout]
    sampled = lid_openness(face.sample(4000, seed=0), face.layout)
    expected = [eye.std for eye in eye_openness(face)]
    np.testing.assert_allclose(sampled.std(axis=0), expected, rtol=0.1)


def test_measures_do_not_depend_on_rotation_of_the_image(faces: dict[int, Face]) -> None:
    face = faces[98]
    turn = np.array([[0.0, -1.0, 300.0], [1.0, 0.0, 0.0]])
    turned = transform_face(face, turn)
    for one, other in zip(eye_openness(face), eye_openness(turned), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3)
    for one, other in zip(
        asymmetry(face, "left_mouth_corner"), asymmetry(turned, "left_mouth_corner"), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-4)


def test_several_faces_give_arrays(faces: dict[int, Face]) -> None:
    face = faces[98]
    assert mouth_openness([face, face]).std.shape == (2,)
    np.testing.assert_allclose(mouth_openness([face]).value[0], mouth_openness(face).value)
    assert head_pose([face, face]).covariance.shape == (2, 3, 3)
    with pytest.raises(ConfigurationError, match="layout"):
        mouth_openness([face, faces[68]])


def test_a_drooping_mouth_corner_is_lower() -> None:
    face = drawn()
    points = face.points.copy()
    points[54] += (0, 5)  # the right mouth corner
    _, downwards = asymmetry(replace(face, points=points), "left_mouth_corner")
    assert downwards.value == pytest.approx(5 / face.interocular, rel=0.1)
    assert asymmetry(face, "left_mouth_corner")[1].value == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("keyword", "camera"),
    [
        *(("focal_length", ((640, 480), bad)) for bad in (-500, 0, "x", np.nan)),
        *(("image_size", (bad, 640)) for bad in (512, (512, 512, 3), (512, 0), "ab", (512, None))),
        ("image_size", (512,)),
    ],
)
def test_head_pose_needs_a_positive_camera(keyword: str, camera: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigurationError, match=keyword):
        head_pose(posed(), *camera)


def test_head_pose_takes_the_size_as_an_array() -> None:
    size = np.array([640, 480])
    assert angles_of(posed(20), size, np.float32(640)) == angles_of(posed(20), (640, 480), 640)


def test_a_point_has_no_distance_to_itself() -> None:
    assert distance(drawn(), "chin", "chin") == (0, 0)
    assert angle(drawn(), "chin", "nose_tip", "chin") == (0, 0)
    with pytest.raises(ConfigurationError, match="two other points"):
        angle(drawn(), "chin", "chin", "nose_tip")
    with pytest.raises(ConfigurationError, match="different"):
        Scale.from_points(drawn(), "chin", "chin", 90)


def test_names_and_lengths_of_measures_are_checked() -> None:
    points: tuple[Any, ...] = "chin", 3
    with pytest.raises(ConfigurationError, match="point 3"):
        distance(drawn(), *points)
    with pytest.raises(ConfigurationError, match="point 3"):
        asymmetry(drawn(), points[1])
    for name, lengths in (("mm", ("x",)), ("mm_std", (90, -1))):
        with pytest.raises(ConfigurationError, match=name):
            Scale.from_points(drawn(), "chin", "nose_tip", *lengths)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [1, -0.1, np.nan, "x"])
def test_an_interval_has_a_level_below_one(level: Any) -> None:
    found = mouth_width(drawn())
    assert found.interval(0) == (found.value, found.value)
    with pytest.raises(ConfigurationError, match="level"):
        found.interval(level)


def test_angle_and_pupil_of_the_mean_shape() -> None:
    found = angle(drawn(), "left_eye_outer_corner", "chin", "right_eye_outer_corner")
    assert 20 < found.value < 90
    assert 0 < found.std < 3
    assert pupil_position(drawn()) is None
    positions = pupil_position(drawn(98))
    assert positions is not None
    assert abs(positions[0].left.value) < 0.2


def test_scale_turns_pixels_into_millimeters_with_its_error() -> None:
    face = drawn(variance=1e-6)
    scale = Scale.from_points(
        face, "left_eye_outer_corner", "right_eye_outer_corner", 90, mm_std=4.5
    )
    found = distance(face, "left_eye_outer_corner", "right_eye_outer_corner", scale)
    assert found.value == pytest.approx(90)
    assert found.std == pytest.approx(4.5, rel=1e-3)


def test_iris_scale_needs_irises() -> None:
    with pytest.raises(ConfigurationError, match="iris"):
        Scale.from_iris(drawn(98))
    face = drawn("mesh", variance=1e-6)
    scale = Scale.from_iris(face)
    found = distance(face, "left_iris_outer", "left_iris_inner", scale)
    assert found.value == pytest.approx(11.7, rel=0.1)
    assert found.std == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("layout", [98, 29, 478])
def test_pupils_are_measured_towards_the_right_and_downwards(layout: int) -> None:
    face = drawn(layout)
    points = face.points.copy()
    for (pupil,) in get_layout(layout).pupils:
        points[pupil] += (3, 2)
    before, after = pupil_position(face), pupil_position(replace(face, points=points))
    assert before is not None
    assert after is not None
    for old, new in zip(before, after, strict=True):
        assert new.left.value > old.left.value + 0.02
        assert new.right.value > old.right.value + 0.02
