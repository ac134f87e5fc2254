import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hihlandmark import ConfigurationError, Detector
from hihlandmark.evaluate import (
    Evaluation,
    area_under_curve,
    cumulative_errors,
    evaluate,
    failure_rate,
    normalised_errors,
    read_annotations,
)


def test_errors_are_in_units_of_the_pair() -> None:
    truth = np.array([[[0.0, 0.0], [10.0, 0.0], [5.0, 5.0]]])
    predicted = truth + np.array([[[0, 0], [0, 1], [3, 4]]])
    assert np.allclose(normalised_errors(predicted, truth, (0, 1)), [[0, 0.1, 0.5]])


def test_failure_rate_counts_faces_above_ten_per_cent_and_missed_ones() -> None:
    assert failure_rate(np.array([0.05, 0.10, 0.11, np.inf])) == 0.5
    assert failure_rate(np.array([np.nan, 0.01])) == 0.5


def test_area_under_the_curve_of_known_errors() -> None:
    # All faces perfect: the whole rectangle. Half perfect, half failed: half of it.
    assert area_under_curve(np.zeros(4)) == pytest.approx(1)
    assert area_under_curve(np.array([0, 0, 1, 1])) == pytest.approx(0.5)
    # Errors spread evenly over 0..10 %: a triangle.
    assert area_under_curve(np.linspace(0, 0.1, 1001)) == pytest.approx(0.5, abs=2e-3)


def test_cumulative_errors_rise_to_the_share_of_faces_found() -> None:
    curve = cumulative_errors(np.array([0.02, 0.04, np.inf]))
    assert curve[0].tolist() == [0, 0]
    assert curve[-1, 1] == pytest.approx(2 / 3)
    assert (np.diff(curve[:, 1]) >= 0).all()


def test_a_missed_face_is_a_failure_and_not_part_of_the_nme() -> None:
    errors = np.array([[0.02, 0.04], [np.nan, np.nan]])
    summary = Evaluation("WFLW98", errors, np.array([[0.9, 0.9], [np.nan, np.nan]])).summary()
    assert summary["missed"] == 1
    assert summary["nme"] == pytest.approx(3.0)
    assert summary["fr10"] == pytest.approx(50.0)


def test_calibration_error_is_zero_for_honest_scores_and_large_for_boasting() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((100, 200))
    errors = np.where(rng.random(scores.shape) < scores, 0.01, 0.2)
    assert Evaluation("WFLW98", errors, scores).calibration_error < 0.02
    assert Evaluation("WFLW98", errors, np.ones_like(scores)).calibration_error > 0.4


def write_split(folder: Path, image: NDArray[np.uint8], points: NDArray[np.floating]) -> None:
    folder.mkdir()
    Image.fromarray(image).save(folder / "photo.png")
    row = {"image": "photo.png", "points": points.tolist(), "split": "val"}
    (folder / "annotations.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")


@pytest.mark.parametrize("boxes", ["landmarks", "detected"])
def test_a_detector_agrees_with_itself(
    boxes: str,
    tmp_path: Path,
    astronaut: NDArray[np.uint8],
    detector_of: Callable[[int], Detector],
) -> None:
    detector = detector_of(68)
    (face,) = detector.predict(astronaut)
    write_split(tmp_path / "set", astronaut, face.points.astype(float))
    evaluation = evaluate(detector, tmp_path / "set", "val", boxes)  # type: ignore[arg-type]
    assert evaluation.errors.shape == (1, 68)
    assert evaluation.nme < 0.02
    shifted = face.points + face.interocular / 10
    write_split(tmp_path / "shifted", astronaut, shifted.astype(float))
    assert evaluate(detector, tmp_path / "shifted", "val").nme > 0.05


def test_what_is_missing_is_named(tmp_path: Path, detector_of: Callable[[int], Detector]) -> None:
    with pytest.raises(ConfigurationError, match=r"annotations\.jsonl"):
        read_annotations(tmp_path, "val")
    write_split(tmp_path / "set", np.zeros((40, 40, 3), np.uint8), np.zeros((68, 2)))
    with pytest.raises(ConfigurationError, match="it has val"):
        read_annotations(tmp_path / "set", "test")
    with pytest.raises(ConfigurationError, match=r"use Detector\(layout=68\)"):
        evaluate(detector_of(98), tmp_path / "set", "val")
