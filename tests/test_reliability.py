"""Reliability: whole faces that cannot be relied on, and what is no human face."""

import math

import cv2
import numpy as np
import pytest
from skimage.data import astronaut, chelsea

from hihlandmark import ConfigurationError, Detector, Face
from hihlandmark.crop import rotate_points
from hihlandmark.layouts import COFW29, WFLW98
from hihlandmark.reliability import (
    MIN_RELIABILITY,
    Reliability,
    first_decile,
    reliability_features,
)
from hihlandmark.video import Frame, track

CAT = (130, 20, 300, 190)
"""The head of `chelsea`."""


@pytest.fixture(scope="module")
def detectors():
    return {size: Detector(size) for size in (98, 68, 29)}


def cartoon(seed):
    """A drawn head of 256 x 256 pixels; not the drawings of benchmarks/fit_reliability.py."""
    rng = np.random.default_rng(1000 + seed)
    image = np.full((256, 256, 3), rng.integers(120, 256, 3), np.uint8)
    center, (a, b) = (128, 132), rng.integers((55, 62), (80, 92))
    color = rng.integers(0, 256, 3).tolist()
    cv2.ellipse(image, center, (int(a), int(b)), 0, 0, 360, color, -1, cv2.LINE_AA)
    cv2.ellipse(image, center, (int(a), int(b)), 0, 0, 360, (0, 0, 0), 3, cv2.LINE_AA)
    dx, y = int(a * rng.uniform(0.35, 0.5)), int(132 - b * rng.uniform(0.1, 0.35))
    size = int(rng.integers(5, 18))
    for x in (128 - dx, 128 + dx):
        cv2.circle(image, (x, y), size, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(image, (x, y), max(2, size // 2), (0, 0, 0), -1, cv2.LINE_AA)
        cv2.line(image, (x - 14, y - size - 8), (x + 14, y - size - 8), (0, 0, 0), 4)
    cv2.line(image, (128, 130), (122, 150), (0, 0, 0), 3, cv2.LINE_AA)
    mouth = (int(a * rng.uniform(0.3, 0.6)), int(rng.integers(3, 20)))
    cv2.ellipse(image, (128, 132 + int(b * 0.5)), mouth, 0, 0, 180, (30, 30, 160), 4, cv2.LINE_AA)
    return image, (128 - a, 132 - b, 128 + a, 132 + b)


@pytest.mark.parametrize("size", [98, 68, 29])
def test_a_clear_face_is_reliable_and_a_ruined_one_is_not(detectors, size):
    (face,) = detectors[size].predict(astronaut(), min_reliability=MIN_RELIABILITY)
    assert face.reliability > 0.8
    blurred = cv2.GaussianBlur(astronaut(), (0, 0), 20)
    with pytest.warns(UserWarning, match="score"):
        (ruined,) = detectors[size].predict(blurred, boxes=[face.box])
    assert ruined.reliability < 0.3


@pytest.mark.filterwarnings("ignore:face 0")
def test_the_cat_and_drawn_faces_are_refused(detectors):
    detector = detectors[98]
    assert detector.predict(chelsea(), min_reliability=MIN_RELIABILITY) == []
    cat = {"boxes": [CAT], "min_reliability": MIN_RELIABILITY}
    assert detector.predict(chelsea(), **cat) == []
    for seed in range(20):
        assert detector.predict(cartoon(seed)[0], min_reliability=MIN_RELIABILITY) == []


@pytest.mark.filterwarnings("ignore:face 0")
def test_most_drawn_faces_are_refused_where_boxes_are_given(detectors):
    found = []
    for seed in range(20):
        image, box = cartoon(seed)
        found += detectors[98].predict(image, boxes=[box])
    refused = [face.reliability < MIN_RELIABILITY for face in found]
    assert np.mean(refused) >= 0.8


def test_features_do_not_depend_on_size_and_rotation():
    rng = np.random.default_rng(0)
    points = 100 * WFLW98.mean_shape[None] + rng.normal(0, 3, (1, 98, 2))
    roots = rng.normal(0, 1, (1, 98, 2, 2))
    covariance, scores = roots @ np.swapaxes(roots, -1, -2), rng.uniform(0, 1, (1, 98))
    first = reliability_features(points, covariance, scores, scores, WFLW98)
    moved = 3 * rotate_points(points, np.array([0.5])) + 20
    second = reliability_features(moved, 9 * covariance, scores, scores, WFLW98)
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.isfinite(reliability_features(0 * points, covariance, scores, scores, WFLW98)).all()


def test_probability_is_logistic_and_lengths_must_agree():
    model = Reliability(mean=(1.0,), std=(2.0,), weights=(3.0,), bias=0.5)
    assert model.probability(np.array([[3.0]]))[0] == pytest.approx(1 / (1 + math.exp(-3.5)))
    assert 0 < model.probability(np.array([[-1e9]]))[0] < 1e-5
    with pytest.raises(ValueError, match="as many"):
        Reliability(mean=(1.0,), std=(2.0,), weights=(3.0, 1.0), bias=0.5)


def test_reliability_survives_dictionaries_and_layouts_and_may_be_unknown(detectors):
    (face,) = detectors[98].predict(astronaut())
    again = Face.from_dict(face.to_dict())
    assert again.reliability == pytest.approx(face.reliability, abs=1e-4)
    assert face.to_layout(29).reliability == face.reliability
    assert {row["reliability"] for row in face.to_rows()} == {round(face.reliability, 4)}
    unknown = Face(np.zeros((29, 2)), np.zeros(29), np.zeros((29, 2, 2)), np.zeros(4), 1.0, COFW29)
    assert math.isnan(unknown.reliability)
    assert "reliability" not in unknown.to_dict()
    assert math.isnan(Face.from_dict(unknown.to_dict()).reliability)


def test_a_limit_needs_weights_with_a_model():
    old = Detector(29, "awing-small")
    assert math.isnan(old.predict(astronaut())[0].reliability)
    with pytest.raises(ConfigurationError, match="reliability"):
        old.predict(astronaut(), min_reliability=0.5)
    with pytest.raises(ConfigurationError, match="reliability"):
        old.predict_many([astronaut()], min_reliability=0.5)
    with pytest.raises(ConfigurationError, match="reliability"):
        next(track([Frame(astronaut(), 0, 0.0)], old, min_reliability=0.5))


def test_tracked_faces_of_low_reliability_are_left_out(detectors):
    frames = [Frame(astronaut(), 0, 0.0)]
    for limit, count in ((0.5, 1), (1.0, 0)):
        ((_, faces),) = track(frames, detectors[29], min_reliability=limit)
        assert len(faces) == count


@pytest.mark.parametrize("count", [1, 5, 11, 29, 68, 98])
def test_first_decile_is_numpys_quantile(count):
    values = np.random.default_rng(0).normal(size=(3, 4, count))
    np.testing.assert_allclose(first_decile(values), np.quantile(values, 0.1, axis=-1), atol=1e-15)
