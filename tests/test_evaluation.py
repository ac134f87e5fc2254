import csv
import io
import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.integrate import simpson
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector, ImageError
from hihlandmark.cli import app
from hihlandmark.crop import BoxMap, tight_boxes
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.errors import DataError
from hihlandmark.evaluation import (
    NORMALIZATIONS,
    Evaluation,
    Jitter,
    area_under_curve,
    calibration_error,
    confidence_interval,
    cumulative_errors,
    evaluate,
    exact_area_under_curve,
    failure_rate,
    fit_official_map,
    jitter_curve,
    mean_error,
    normalized_errors,
)
from hihlandmark.evaluation.figures import failure_gallery
from hihlandmark.evaluation.metrics import point_distances
from hihlandmark.evaluation.report import summarize, to_markdown, write_report
from hihlandmark.layouts import W300_68, get_layout

Array = NDArray[np.floating]


# ---------------------------------------------------------------------------------------- metrics


def test_errors_are_in_units_of_the_pair() -> None:
    truth = np.array([[[0.0, 0.0], [10.0, 0.0], [5.0, 5.0]]])
    predicted = truth + np.array([[[0, 0], [0, 1], [3, 4]]])
    assert np.allclose(normalized_errors(predicted, truth, (0, 1)), [[0, 0.1, 0.5]])


def test_the_units_of_errors_are_lengths_of_the_true_face() -> None:
    truth = np.full((1, 68, 2), 10.0)
    truth[0, 0], truth[0, 16] = (0, 5), (40, 35)  # the box: 40 wide, 30 high
    truth[0, 36:42], truth[0, 42:48] = (10, 20), (26, 20)  # pupils: the means of the eyes
    truth[0, 36], truth[0, 45] = (4, 20), (32, 20)  # outer corners, 28 apart
    units = {name: unit(truth, W300_68)[0] for name, unit in NORMALIZATIONS.items()}
    assert units["interocular"] == pytest.approx(28)
    assert units["interpupil"] == pytest.approx(16 + 6 / 6 + 6 / 6)
    assert units["box"] == pytest.approx(np.sqrt(40 * 30))
    assert units["diagonal"] == pytest.approx(50)


def test_what_is_unknown_has_no_distance_and_what_was_not_found_an_infinite_one() -> None:
    truth = np.array([[0.0, 0.0], [0.0, 0.0], [np.nan, 0.0], [np.nan, np.nan]])
    predicted = np.array([[3.0, 4.0], [np.nan, 0.0], [1.0, 1.0], [np.nan, np.nan]])
    expected = [5, np.inf, np.nan, np.nan]
    assert np.array_equal(point_distances(predicted, truth), expected, equal_nan=True)


def test_boxes_are_tight_around_the_known_points() -> None:
    truth = np.full((2, 68, 2), np.nan)
    truth[0, 3], truth[0, 60] = (1, 1), (4, 5)
    diagonal = NORMALIZATIONS["diagonal"](truth, W300_68)
    assert diagonal[0] == 5
    assert np.isnan(diagonal[1])


def test_failure_rate_counts_faces_above_ten_per_cent_and_missed_ones() -> None:
    assert failure_rate(np.array([0.05, 0.10, 0.11, np.inf])) == 0.5
    assert failure_rate(np.array([0.05, 0.10, 0.11, np.inf]), 0.08) == 0.75


def test_faces_that_cannot_be_judged_are_left_out() -> None:
    errors = np.array([0.02, np.nan, 0.2])
    assert failure_rate(errors) == 0.5
    assert mean_error(errors) == pytest.approx(0.11)
    assert area_under_curve(errors) == pytest.approx(area_under_curve(errors[[0, 2]]))
    assert exact_area_under_curve(errors) == pytest.approx(0.4)
    assert cumulative_errors(errors)[-1, 1] == 0.5


def test_area_under_the_curve_is_simpsons_rule_on_a_grid_of_a_hundredth_of_a_per_cent() -> None:
    # The weights of Simpson's rule on 1001 points are 1, 4, 2, 4, ..., 4, 1, in all 3000. A face
    # at point 500 adds those from there on: 2 + 250 * 4 + 249 * 2 + 1; one just above, 2 less.
    assert area_under_curve(np.array([0.05])) == pytest.approx(1501 / 3000)
    assert area_under_curve(np.array([0.05005])) == pytest.approx(1499 / 3000)
    assert area_under_curve(np.array([0.0])) == 1
    assert area_under_curve(np.array([0.0, 0.5, np.inf, np.inf])) == 0.25


@pytest.mark.parametrize("threshold", [0.08, 0.10])
def test_area_under_the_curve_agrees_with_the_published_definition(threshold: float) -> None:
    errors = np.random.default_rng(3).gamma(4, 0.012, 400)
    grid = np.arange(0, threshold + 0.0001, 0.0001)
    shares = [np.count_nonzero(errors <= error) / len(errors) for error in grid]
    assert area_under_curve(errors, threshold) == pytest.approx(
        simpson(shares, x=grid) / threshold, abs=1e-12
    )
    assert failure_rate(errors, threshold) == pytest.approx(1 - shares[-1])


def test_the_area_without_a_grid_is_that_of_the_steps() -> None:
    assert exact_area_under_curve(np.array([0.05, 0.2, np.inf, 0.0])) == pytest.approx(1.5 / 4)
    errors = np.random.default_rng(4).gamma(4, 0.012, 400)
    assert exact_area_under_curve(errors) == pytest.approx(area_under_curve(errors), abs=5e-4)


def test_cumulative_errors_rise_to_the_share_of_faces_found() -> None:
    curve = cumulative_errors(np.array([0.02, 0.04, np.inf]))
    assert len(curve) == 1001
    assert curve[0].tolist() == [0, 0]
    assert curve[199, 1] == 0
    assert curve[200, 1] == pytest.approx(1 / 3)
    assert curve[-1, 1] == pytest.approx(2 / 3)


def test_confidence_intervals_are_those_of_a_mean_and_repeatable() -> None:
    values = np.random.default_rng(5).normal(7, 2, 400)
    low, high = confidence_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    assert confidence_interval(values) == (low, high)
    assert confidence_interval(values, level=0.5)[1] < high
    assert confidence_interval(np.array([1.0, np.nan, 1.0])) == (1, 1)
    assert np.isnan(confidence_interval(np.array([np.nan]))).all()


def test_calibration_error_is_zero_for_honest_scores_and_large_for_boasting() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((100, 200))
    errors = np.where(rng.random(scores.shape) < scores, 0.01, 0.2)
    assert calibration_error(scores, errors) < 0.02
    assert calibration_error(np.ones_like(scores), errors) > 0.4


# --------------------------------------------------------------------------------------- protocol


def annotated(
    name: str, image: NDArray[np.uint8] | ImageError, points: Array, **more: Any
) -> AnnotatedFace:
    def load_image() -> NDArray[np.uint8]:
        if isinstance(image, ImageError):
            raise image
        return image

    return AnnotatedFace(name, load_image, np.asarray(points, np.float64), "val", **more)


def split_of(faces: Sequence[AnnotatedFace], layout: int | str = 68) -> AnnotatedFaces:
    known = get_layout(layout)
    return AnnotatedFaces("faces/val", known.name, known.mirror, faces)


@pytest.fixture(scope="module")
def points(astronaut: NDArray[np.uint8], detector: Detector) -> Array:
    """The astronaut's 68 points as this detector sees them, from a crop around such points."""
    careful = copy(detector)
    careful.refine = 2
    (face,) = careful.predict(astronaut)
    return face.points.astype(float)


@pytest.mark.parametrize("boxes", ["labels", "official", "detected"])
def test_a_detector_agrees_with_itself(
    boxes: Any,
    astronaut: NDArray[np.uint8],
    detector: Detector,
    points: Array,
) -> None:
    rectangle = tight_boxes(points) + np.array([-10, -10, 10, 10])
    shifted = points + np.linalg.norm(points[36] - points[45]) / 10
    faces = split_of(
        [
            annotated("same", astronaut, points, rectangle=rectangle),
            annotated("shifted", astronaut, shifted, rectangle=rectangle),
        ]
    )
    official_map = fit_official_map(detector, faces) if boxes == "official" else None
    evaluation = evaluate(detector, faces, boxes=boxes, official_map=official_map)
    assert evaluation.names == ("same", "shifted")
    assert evaluation.errors.shape == evaluation.scores.shape == (2, 68)
    assert not evaluation.missed.any()
    same, moved = evaluation.face_errors
    assert same < 0.02
    assert moved == pytest.approx(np.sqrt(2) / 10, abs=0.02)


def test_other_units_follow_from_one_evaluation(
    astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    evaluation = evaluate(detector, split_of([annotated("one", astronaut, points + 3)]))
    by_eyes, by_box = evaluation.face_errors[0], evaluation.normalized("box").face_errors[0]
    sides = np.ptp(points, axis=0)
    interocular = np.linalg.norm(points[36] - points[45])
    assert by_eyes / by_box == pytest.approx(np.sqrt(sides.prod()) / interocular)
    with pytest.raises(ConfigurationError, match="interocular, interpupil, box, diagonal"):
        evaluation.normalized("chin")


def test_a_face_that_is_not_found_is_a_failure_and_not_part_of_the_nme(
    astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    blank = np.zeros_like(astronaut)
    elsewhere = points + np.array([-100, 150])
    faces = [("here", astronaut, points), ("blank", blank, points), ("away", astronaut, elsewhere)]
    evaluation = evaluate(
        detector, split_of([annotated(*face) for face in faces]), boxes="detected"
    )
    assert evaluation.missed.tolist() == [False, True, True]
    figures = summarize(evaluation, {})
    assert figures["missed"] == 2
    assert figures["nme"] < 2
    assert figures["fr10"] == pytest.approx(66.67)


def test_missed_faces_are_failures_in_units_that_their_labels_do_not_give() -> None:
    evaluation = small_evaluation()
    assert np.isinf(evaluation.face_errors[2])
    truth = evaluation.truth.copy()
    truth[2, 36] = np.nan
    units = {"interocular": NORMALIZATIONS["interocular"](truth, W300_68)}
    assert np.isinf(replace(evaluation, truth=truth, units=units).face_errors[2])


def test_unknown_points_are_ignored(
    astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    some = points.copy()
    some[[20, 60]] = np.nan
    evaluation = evaluate(detector, split_of([annotated("one", astronaut, some)]))
    assert np.flatnonzero(np.isnan(evaluation.errors[0])).tolist() == [20, 60]
    assert evaluation.face_errors[0] < 0.02


def test_what_cannot_be_used_is_skipped_and_named(
    astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    faces = split_of(
        [
            annotated("broken", ImageError("cannot read broken.png"), points),
            annotated("fine", astronaut, points),
            annotated("unlabeled", astronaut, np.full((68, 2), np.nan)),
            annotated("outside", astronaut, points + 2000),
        ]
    )
    evaluation = evaluate(detector, faces)
    assert evaluation.names == ("fine",)
    assert [message.partition(":")[0] for message in evaluation.skipped] == [
        "broken",
        "unlabeled",
        "outside",
    ]
    assert "cannot read broken.png" in evaluation.skipped[0]
    with pytest.raises(DataError, match=r"none of the faces .* broken: cannot read broken\.png"):
        evaluate(detector, split_of(faces.faces[:1]))


def test_layouts_that_share_points_are_compared_on_these(
    astronaut: NDArray[np.uint8], detector_of: Callable[[int], Detector]
) -> None:
    (face,) = detector_of(98).predict(astronaut)
    truth_of_68 = face.to_layout(68).points
    of_68 = split_of([annotated("one", astronaut, truth_of_68)])
    evaluation = evaluate(detector_of(98), of_68)
    approximate = face.to_layout(68).approximate
    assert evaluation.layout is W300_68
    assert (np.isnan(evaluation.errors[0]) == approximate).all()
    assert evaluation.face_errors[0] < 0.02
    assert f"{(~approximate).sum()} of the 68 points" in evaluation.remarks[0]

    of_98 = split_of([annotated("one", astronaut, face.points)], 98)
    assert evaluate(detector_of(68), of_98).face_errors[0] < 0.05
    with pytest.raises(ConfigurationError, match=r"use Detector\(layout=68\)"):
        evaluate(detector_of(29), of_68)


def test_foreign_layouts_are_refused(astronaut: NDArray[np.uint8], detector: Detector) -> None:
    face = annotated("one", astronaut, np.ones((86, 2)))
    with pytest.raises(ConfigurationError, match="annotated with POINTS86"):
        evaluate(detector, AnnotatedFaces("scut", "POINTS86", np.arange(86), [face]))


def test_official_rectangles_are_mapped_to_the_crop_of_the_labels(
    astronaut: NDArray[np.uint8], detector: Detector
) -> None:
    rng = np.random.default_rng(1)
    faces = []
    for _ in range(20):
        points = rng.uniform(0, 100, (68, 2)) + rng.uniform(0, 300, 2)
        points[0], points[1] = points.min(axis=0), points.min(axis=0) + 110  # a square box
        middle = points[0] + 55 - [0, 11]
        rectangle = np.concatenate([middle - 55, middle + 55])
        faces.append(annotated("one", astronaut, points, rectangle=rectangle))
    fitted = fit_official_map(detector, split_of(faces))
    assert fitted.shift == pytest.approx((0, 0.1), abs=1e-6)
    assert fitted.scale == pytest.approx(1.4)


def test_missing_rectangles_and_wrong_options_are_named(
    astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    faces, some_map = split_of([annotated("one", astronaut, points)]), BoxMap((0, 0), 1)
    with pytest.raises(DataError, match="no official rectangles"):
        fit_official_map(detector, faces)
    with pytest.raises(DataError, match="no official rectangles"):
        evaluate(detector, faces, boxes="official", official_map=some_map)
    with pytest.raises(ConfigurationError, match="fit_official_map"):
        evaluate(detector, faces, boxes="official")
    with pytest.raises(ConfigurationError, match="labels, official, detected"):
        evaluate(detector, faces, boxes="guessed")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="no jitter"):
        evaluate(detector, faces, boxes="detected", jitter=Jitter(0.1))


def test_jitter_moves_by_the_shift_and_scales_about_the_center() -> None:
    boxes = np.tile([10.0, 20, 30, 60], (50, 1))
    moved = Jitter(shift=0.1)(boxes) - boxes
    assert np.allclose(moved[:, :2], moved[:, 2:])
    assert np.allclose(np.linalg.norm(moved[:, :2], axis=1), 4)
    assert np.ptp(np.arctan2(moved[:, 1], moved[:, 0])) > 5
    assert np.allclose(Jitter(shift=0.2)(boxes) - boxes, 2 * moved)
    assert np.allclose(Jitter(scale=2)(boxes), [0, 0, 40, 80])
    assert not np.allclose(Jitter(0.1, seed=1)(boxes), Jitter(0.1)(boxes))


def test_refinement_makes_up_for_worse_boxes(
    astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    faces = split_of([annotated(str(i), astronaut, points) for i in range(2)])
    once, twice = (jitter_curve(detector, faces, (0, 0.2), (1,), refine=n) for n in (0, 1))
    assert [point.severity for point in once.shifts] == [0, 0.2]
    assert once.shifts[0] == once.scales[0]._replace(severity=0)
    assert once.shifts[0].nme < 0.02
    assert once.shifts[1].nme > 1.2 * once.shifts[0].nme
    assert twice.shifts[1].nme < once.shifts[1].nme
    assert detector.refine == 0  # the caller's detector keeps its own setting


def test_progress_runs_up_to_all_faces(
    astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    calls: list[tuple[int, int]] = []
    faces = split_of([annotated(str(i), astronaut, points) for i in range(2)])
    jitter_curve(detector, faces, (0, 0.1), (1,), progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


# ----------------------------------------------------------------------------------------- report


def small_evaluation() -> Evaluation:
    """Three faces with eyes 100 pixels apart: off by 2 and by 12 pixels, and missed."""
    truth = np.tile(200 + 150 * W300_68.mean_shape, (3, 1, 1))
    truth *= 100 / NORMALIZATIONS["interocular"](truth, W300_68)[:, None, None]
    predicted = truth + np.array([[[2, 0]], [[0, 12]], [[np.nan, np.nan]]])
    scores = np.where(np.isnan(predicted[..., 0]), np.nan, 0.9)
    return Evaluation(
        names=("a.png", "b.png", "c.png"),
        layout=W300_68,
        truth=truth,
        predicted=predicted,
        scores=scores,
        units={name: unit(truth, W300_68) for name, unit in NORMALIZATIONS.items()},
        subsets=(frozenset({"pose"}), frozenset({"pose", "blur"}), frozenset()),
        skipped=("d.png: cannot be read",),
    )


def faces_of(evaluation: Evaluation) -> AnnotatedFaces:
    image = np.full((500, 500, 3), 128, np.uint8)
    rows = zip(evaluation.names, evaluation.truth, strict=True)
    return split_of([annotated(name, image, truth) for name, truth in rows])


def test_the_summary_has_all_faces_subsets_parts_and_points() -> None:
    report = summarize(small_evaluation(), {"model": "some"})
    assert report["faces"] == 3
    assert report["nme"] == pytest.approx(7)
    assert (report["fr8"], report["fr10"]) == (pytest.approx(66.67), pytest.approx(66.67))
    assert report["auc10"] == pytest.approx(80 / 3, abs=0.02)
    assert report["nme_interval"] == [2, 12]
    assert list(report["subsets"]) == ["blur", "pose"]
    assert report["subsets"]["pose"]["nme"] == pytest.approx(7)
    assert report["subsets"]["blur"]["nme"] == pytest.approx(12)
    assert report["parts"]["jaw"] == pytest.approx(7)
    assert report["points"][8]["name"] == "chin"
    assert report["points"][8]["faces"] == 2
    assert report["calibration_error"] == pytest.approx(40)
    assert report["model"] == "some"


def test_a_summary_of_nothing_found_is_valid_json() -> None:
    evaluation = small_evaluation()
    nothing = replace(evaluation, predicted=np.full_like(evaluation.predicted, np.nan))
    report = json.loads(json.dumps(summarize(nothing, {}), allow_nan=False))
    assert report["nme"] is None
    assert report["fr10"] == 100
    assert "| all | 3 | 3 |" in to_markdown(summarize(nothing, {}), {})


def test_a_report_folder_has_tables_and_pictures(tmp_path: Path) -> None:
    evaluation = small_evaluation()
    settings = {"model": "some"}
    report = summarize(evaluation, settings)
    faces = faces_of(evaluation)
    written = write_report(tmp_path / "new", report, evaluation, faces, settings)
    assert {path.name for path in written} == {
        *("report.json", "report.md", "ced.png", "ced.csv", "points.csv", "faces.csv"),
        "failures.png",
    }
    rows = list(csv.DictReader((tmp_path / "new" / "faces.csv").open()))
    assert rows[1] == {"name": "b.png", "nme": "12.0", "missed": "0"}
    assert rows[2] == {"name": "c.png", "nme": "", "missed": "1"}
    curve = list(csv.DictReader((tmp_path / "new" / "ced.csv").open()))
    assert float(curve[-1]["all"]) == pytest.approx(1 / 3, abs=1e-6)
    assert float(curve[200]["pose"]) == 0.5
    text = (tmp_path / "new" / "report.md").read_text()
    assert "| pose | 2 | 0 | 7.00 |" in text
    assert "d.png: cannot be read" in text
    for path in tmp_path.glob("new/*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 200


def test_the_gallery_shows_the_worst_faces_first_in_two_colors() -> None:
    evaluation = small_evaluation()
    picture = Image.open(io.BytesIO(failure_gallery(evaluation, faces_of(evaluation), count=2)))
    pixels = np.asarray(picture).astype(int)
    red = (pixels[..., 0] - pixels[..., 1] > 100).any(axis=0)
    green = (pixels[..., 1] - pixels[..., 0] > 100).any(axis=0)
    missed, worst = slice(0, 256), slice(256, 512)
    assert picture.width == 512
    assert (green[missed].any(), red[missed].any()) == (True, False)
    assert green[worst].any()
    assert red[worst].any()


# -------------------------------------------------------------------------------------------- files


def write_split(folder: Path, image: NDArray[np.uint8], points: Array) -> None:
    folder.mkdir()
    Image.fromarray(image).save(folder / "photo.png")
    row = {"image": "photo.png", "points": points.tolist(), "split": "val"}
    (folder / "annotations.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")


def test_the_command_prints_tables_or_json_alone_and_writes_a_report(
    tmp_path: Path, astronaut: NDArray[np.uint8], points: Array
) -> None:
    write_split(tmp_path / "set", astronaut, points)
    command = ["eval", "--data", str(tmp_path / "set"), "--split", "val", "--no-flip-test"]
    result = CliRunner().invoke(app, [*command, "--json", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["nme"] < 2
    assert (figures["boxes"], figures["refine"], figures["mirror"]) == ("labels", 0, False)
    assert figures == json.loads((tmp_path / "out" / "report.json").read_text())
    result = CliRunner().invoke(app, [*command, "--normalize", "box"])
    assert result.exit_code == 0, result.output
    assert "square root of the tight box's area" in result.stdout
    result = CliRunner().invoke(app, [*command, "--boxes", "official"])
    assert isinstance(result.exception, ConfigurationError | DataError)
    assert CliRunner().invoke(app, [*command, "--boxes", "detected", "--jitter"]).exit_code == 2
