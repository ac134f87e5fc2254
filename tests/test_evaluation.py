import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import annotated, split_of
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector, ImageError
from hihlandmark.cli import app
from hihlandmark.crop import BoxMap, tight_boxes
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.errors import DataError
from hihlandmark.evaluation import (
    NORMALIZATIONS,
    Evaluation,
    Jitter,
    area_under_curve,
    calibration_error,
    calibration_error_interval,
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
from hihlandmark.evaluation.metrics import point_distances
from hihlandmark.evaluation.report import (
    failure_gallery,
    refuse_other_files,
    summarize,
    to_markdown,
    write_report,
)
from hihlandmark.layouts import COFW29, W300_68

Array = NDArray[np.floating]


# ---------------------------------------------------------------------------------------- metrics


def test_errors_are_in_units_of_the_pair() -> None:
    truth = np.array([[[0.0, 0.0], [10.0, 0.0], [5.0, 5.0]]])
    predicted = truth + np.array([[[0, 0], [0, 1], [3, 4]]])
    assert np.allclose(normalized_errors(predicted, truth, (0, 1)), [[0, 0.1, 0.5]])


def test_errors_without_a_unit_are_unknown() -> None:
    truth = np.array([[[1.0, 2.0], [1.0, 2.0], [5.0, 5.0]]])
    assert np.isnan(normalized_errors(truth + 1, truth, (0, 1))).all()


def test_units_are_lengths_of_the_annotated_face() -> None:
    truth = np.full((1, 68, 2), 10.0)
    truth[0, 0], truth[0, 16] = (0, 5), (40, 35)  # the box: 40 wide, 30 high
    truth[0, 36:42], truth[0, 42:48] = (10, 20), (26, 20)  # pupils: the means of the eyes
    truth[0, 36], truth[0, 45] = (4, 20), (32, 20)  # outer corners, 28 apart
    units = {name: unit(truth, W300_68)[0] for name, unit in NORMALIZATIONS.items()}
    assert units == pytest.approx(
        {"interocular": 28, "interpupil": 18, "box": np.sqrt(40 * 30), "diagonal": 50}
    )
    truth = np.full((2, 68, 2), np.nan)
    truth[0, 3], truth[0, 60] = (1, 1), (4, 5)
    assert NORMALIZATIONS["diagonal"](truth, W300_68) == pytest.approx([5, np.nan], nan_ok=True)


def test_unknown_points_have_no_distance_and_missed_ones_an_infinite_one() -> None:
    truth = np.array([[0.0, 0.0], [0.0, 0.0], [np.nan, 0.0], [np.nan, np.nan]])
    predicted = np.array([[3.0, 4.0], [np.nan, 0.0], [1.0, 1.0], [np.nan, np.nan]])
    expected = [5, np.inf, np.nan, np.nan]
    assert np.array_equal(point_distances(predicted, truth), expected, equal_nan=True)


def test_failure_rate_counts_faces_above_the_threshold_and_missed_ones() -> None:
    assert failure_rate(np.array([0.05, 0.10, 0.11, np.inf])) == 0.5
    assert failure_rate(np.array([0.05, 0.10, 0.11, np.inf]), 0.08) == 0.75


def test_faces_without_annotation_are_left_out_of_all_metrics() -> None:
    errors = np.array([0.02, np.nan, 0.2])
    assert failure_rate(errors) == 0.5
    assert mean_error(errors) == pytest.approx(0.11)
    assert area_under_curve(errors) == pytest.approx(area_under_curve(errors[[0, 2]]))
    assert exact_area_under_curve(errors) == pytest.approx(0.4)
    assert cumulative_errors(errors)[-1, 1] == 0.5


def test_area_under_the_curve_is_simpsons_rule_on_a_grid() -> None:
    # The weights of Simpson's rule on 1001 points are 1, 4, 2, 4, ..., 4, 1, in all 3000. A face
    # at point 500 adds those from there on: 2 + 250 * 4 + 249 * 2 + 1; one just above, 2 less.
    assert area_under_curve(np.array([0.05])) == pytest.approx(1501 / 3000)
    assert area_under_curve(np.array([0.05005])) == pytest.approx(1499 / 3000)
    assert area_under_curve(np.array([0.0])) == 1
    assert area_under_curve(np.array([0.0, 0.5, np.inf, np.inf])) == 0.25


def test_confidence_intervals_are_those_of_a_mean_and_repeatable() -> None:
    values = np.random.default_rng(5).normal(7, 2, 400)
    low, high = confidence_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert confidence_interval(values) == (low, high)
    assert confidence_interval(values, level=0.5)[1] < high
    assert confidence_interval(np.array([1.0, np.nan, 1.0])) == (1, 1)
    assert np.isnan(confidence_interval(np.array([np.nan]))).all()


def test_ece_is_zero_when_calibrated_and_large_when_overconfident() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((100, 200))
    errors = np.where(rng.random(scores.shape) < scores, 0.01, 0.2)
    assert calibration_error(scores, errors) < 0.02
    assert calibration_error(np.ones_like(scores), errors) > 0.4
    for claimed in (scores, np.ones_like(scores)):
        low, high = calibration_error_interval(claimed, errors)
        assert 0 < low < high < low + 0.1
        assert low - 0.02 < calibration_error(claimed, errors) < high
    unknown = np.full_like(errors, np.nan)
    assert np.isnan(calibration_error_interval(scores, unknown)).all()


# --------------------------------------------------------------------------------------- protocol


@pytest.fixture(scope="module")
def points(astronaut: NDArray[np.uint8], detector: Detector) -> Array:
    """The astronaut's 68 points by this detector, from a crop around such points."""
    (face,) = detector.with_options(refine=2).predict(astronaut)
    return face.points.astype(float)


@pytest.fixture
def twins(astronaut: NDArray[np.uint8], points: Array) -> AnnotatedFaces:
    return split_of(*[annotated(astronaut, points, name) for name in "ab"])


@pytest.mark.parametrize("boxes", ["labels", "official", "detected"])
def test_a_detector_agrees_with_itself(
    boxes: Any, astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    rectangle = tight_boxes(points) + np.array([-10, -10, 10, 10])
    shifted = points + W300_68.interocular(points) / 10
    faces = split_of(
        annotated(astronaut, points, "same", rectangle=rectangle),
        annotated(astronaut, shifted, "shifted", rectangle=rectangle),
    )
    official_map = fit_official_map(detector, faces) if boxes == "official" else None
    evaluation = evaluate(detector, faces, boxes=boxes, official_map=official_map)
    assert evaluation.names == ("same", "shifted")
    assert evaluation.errors.shape == evaluation.scores.shape == (2, 68)
    assert not evaluation.missed.any()
    same, moved = evaluation.face_errors
    assert same < 0.02
    assert moved == pytest.approx(np.sqrt(2) / 10, abs=0.02)


def test_a_face_that_is_not_found_is_a_failure_and_not_part_of_the_nme(
    astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    blank = np.zeros_like(astronaut)
    elsewhere = points + np.array([-100, 150])
    faces = [(astronaut, points, "here"), (blank, points, "blank"), (astronaut, elsewhere, "away")]
    faces = split_of(*[annotated(*face) for face in faces])
    evaluation = evaluate(detector, faces, boxes="detected")
    assert evaluation.missed.tolist() == [False, True, True]
    figures = summarize(evaluation, {})
    assert figures["missed"] == 2
    assert figures["nme"] < 2
    assert figures["fr10"] == pytest.approx(66.67)


def test_missed_faces_are_failures_in_units_that_their_labels_do_not_define() -> None:
    evaluation = small_evaluation()
    truth = evaluation.truth.copy()
    truth[2, 36] = np.nan
    units = {"interocular": NORMALIZATIONS["interocular"](truth, W300_68)}
    assert np.isinf(replace(evaluation, truth=truth, units=units).face_errors[2])


def test_unknown_points_are_ignored(
    astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    some = points.copy()
    some[[20, 60]] = np.nan
    evaluation = evaluate(detector, split_of(annotated(astronaut, some)))
    assert np.flatnonzero(np.isnan(evaluation.errors[0])).tolist() == [20, 60]
    assert evaluation.face_errors[0] < 0.02


def test_unusable_faces_are_skipped_and_named(
    astronaut: NDArray[np.uint8], detector: Detector, points: Array
) -> None:
    faces = split_of(
        annotated(ImageError("cannot read broken.png"), points, "broken"),
        annotated(astronaut, points, "fine"),
        annotated(astronaut, np.full((68, 2), np.nan), "unlabeled"),
        annotated(astronaut, points + 2000, "outside"),
    )
    evaluation = evaluate(detector, faces)
    assert evaluation.names == ("fine",)
    skipped = [message.partition(":")[0] for message in evaluation.skipped]
    assert skipped == ["broken", "unlabeled", "outside"]
    with pytest.raises(DataError, match=r"broken\.png"):
        evaluate(detector, split_of(*faces.faces[:1]))


def test_layouts_that_share_points_are_compared_on_these(
    astronaut: NDArray[np.uint8], detector_of: Callable[[int], Detector]
) -> None:
    (face,) = detector_of(98).predict(astronaut)
    converted = face.to_layout(68)
    of_68 = split_of(annotated(astronaut, converted.points))
    evaluation = evaluate(detector_of(98), of_68)
    assert evaluation.layout is W300_68
    assert (np.isnan(evaluation.errors[0]) == converted.approximate).all()
    assert evaluation.face_errors[0] < 0.02
    assert f"{(~converted.approximate).sum()} of the 68 points" in evaluation.remarks[0]

    of_98 = split_of(annotated(astronaut, face.points))
    assert evaluate(detector_of(68), of_98).face_errors[0] < 0.05
    with pytest.raises(ConfigurationError, match="layout=68"):
        evaluate(detector_of(29), of_68)
    scut = AnnotatedFaces("scut", "POINTS86", np.arange(86), [of_68[0]])
    with pytest.raises(ConfigurationError, match="POINTS86"):
        evaluate(detector_of(68), scut)


def test_official_rectangles_are_mapped_to_the_crop_of_the_labels(
    astronaut: NDArray[np.uint8], detector: Detector
) -> None:
    rng = np.random.default_rng(1)
    faces = []
    for _ in range(20):
        points = rng.uniform(0, 100, (68, 2)) + rng.uniform(0, 300, 2)
        points[0], points[1] = points.min(axis=0), points.min(axis=0) + 110  # a square box
        center = points[0] + 55 - [0, 11]
        rectangle = np.concatenate([center - 55, center + 55])
        faces.append(annotated(astronaut, points, rectangle=rectangle))
    fitted = fit_official_map(detector, split_of(*faces))
    assert fitted.shift == pytest.approx((0, 0.1), abs=1e-6)
    assert fitted.scale == pytest.approx(1.4)


@pytest.mark.parametrize(
    ("options", "error", "keyword"),
    [
        ({"boxes": "official", "official_map": BoxMap((0, 0), 1)}, DataError, "rectangles"),
        ({"boxes": "official"}, ConfigurationError, "fit_official_map"),
        ({"boxes": "guessed"}, ConfigurationError, "labels, official, detected"),
        ({"boxes": "detected", "jitter": Jitter(0.1)}, ConfigurationError, "jitter"),
    ],
)
def test_missing_rectangles_and_wrong_options_are_named(
    detector: Detector, twins: AnnotatedFaces, options: dict, error: type, keyword: str
) -> None:
    with pytest.raises(error, match=keyword):
        evaluate(detector, twins, **options)
    with pytest.raises(DataError, match="rectangles"):
        fit_official_map(detector, twins)


def test_jitter_moves_by_the_shift_and_scales_about_the_center() -> None:
    boxes = np.tile([10.0, 20, 30, 60], (50, 1))
    moved = Jitter(shift=0.1)(boxes) - boxes
    assert np.allclose(moved[:, :2], moved[:, 2:])
    assert np.allclose(np.linalg.norm(moved[:, :2], axis=1), 4)
    assert np.ptp(np.arctan2(moved[:, 1], moved[:, 0])) > 5
    assert np.allclose(Jitter(shift=0.2)(boxes) - boxes, 2 * moved)
    assert np.allclose(Jitter(scale=2)(boxes), [0, 0, 40, 80])
    assert not np.allclose(Jitter(0.1, seed=1)(boxes), Jitter(0.1)(boxes))


def test_refinement_makes_up_for_worse_boxes(detector: Detector, twins: AnnotatedFaces) -> None:
    calls: list[tuple[int, int]] = []
    once, twice = (
        jitter_curve(
            detector, twins, (0, 0.2), (1,), refine=n, progress=lambda *call: calls.append(call)
        )
        for n in (0, 1)
    )
    assert calls == [(done, 4) for done in range(1, 5)] * 2
    assert [point.severity for point in once.shifts] == [0, 0.2]
    assert once.shifts[0] == once.scales[0]._replace(severity=0)
    assert once.shifts[0].nme < 0.02
    assert once.shifts[1].nme > 1.2 * once.shifts[0].nme
    assert twice.shifts[1].nme < once.shifts[1].nme


# ----------------------------------------------------------------------------------------- report


def small_evaluation() -> Evaluation:
    """Three faces with eyes 100 pixels apart: off by 2 and by 12 pixels, and missed."""
    truth = np.tile(200 + 150 * W300_68.mean_shape, (3, 1, 1))
    truth *= 100 / NORMALIZATIONS["interocular"](truth, W300_68)[:, None, None]
    predicted = truth + np.array([[[2, 0]], [[0, 12]], [[np.nan, np.nan]]])
    return Evaluation(
        names=("a.png", "b.png", "c.png"),
        layout=W300_68,
        truth=truth,
        predicted=predicted,
        scores=np.where(np.isnan(predicted[..., 0]), np.nan, 0.9),
        units={name: unit(truth, W300_68) for name, unit in NORMALIZATIONS.items()},
        subsets=(frozenset({"pose"}), frozenset({"pose", "blur"}), frozenset()),
        skipped=("d.png: cannot be read",),
    )


def faces_of(evaluation: Evaluation) -> AnnotatedFaces:
    image = np.full((500, 500, 3), 128, np.uint8)
    rows = zip(evaluation.names, evaluation.truth, strict=True)
    return split_of(*[annotated(image, truth, name) for name, truth in rows])


def test_the_summary_has_all_faces_subsets_parts_and_points() -> None:
    report = summarize(small_evaluation(), {"model": "some"})
    assert (report["faces"], report["model"]) == (3, "some")
    assert (report["nme"], report["fr8"], report["fr10"]) == pytest.approx((7, 66.67, 66.67))
    assert report["auc10"] == pytest.approx(80 / 3, abs=0.02)
    assert report["nme_interval"] == [2, 12]
    nme_by_subset = {name: figures["nme"] for name, figures in report["subsets"].items()}
    assert nme_by_subset == pytest.approx({"blur": 12, "pose": 7})
    assert report["parts"]["jaw"] == pytest.approx(7)
    assert (report["points"][8]["name"], report["points"][8]["faces"]) == ("chin", 2)
    assert report["calibration_error"] == pytest.approx(40)


def test_a_summary_without_found_faces_is_valid_json() -> None:
    evaluation = small_evaluation()
    nothing = replace(evaluation, predicted=np.full_like(evaluation.predicted, np.nan))
    report = json.loads(json.dumps(summarize(nothing, {}), allow_nan=False))
    assert (report["nme"], report["fr10"]) == (None, 100)
    assert "| all | 3 | 3 |" in to_markdown(summarize(nothing, {}), {})


def test_a_report_replaces_reports_only(tmp_path: Path) -> None:
    refuse_other_files(tmp_path / "new")
    (tmp_path / "points.csv").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"points\.csv is not of a report"):
        refuse_other_files(tmp_path)
    report = summarize(small_evaluation(), {})
    (tmp_path / "report.json").write_text(json.dumps(report))
    refuse_other_files(tmp_path)


def test_a_report_folder_has_tables_and_figures(tmp_path: Path) -> None:
    evaluation = small_evaluation()
    report, folder = summarize(evaluation, {"model": "some"}), tmp_path / "new"
    folder.mkdir()
    (folder / "jitter.csv").write_text("of an earlier report")
    (folder / "mine.txt").write_text("kept")
    written = write_report(folder, report, evaluation, faces_of(evaluation), {"model": "some"})
    tables = {"report.json", "report.md", "ced.csv", "points.csv", "faces.csv"}
    assert {path.name for path in written} == {*tables, "ced.png", "failures.png"}
    assert {*folder.iterdir()} == {*written, folder / "mine.txt"}
    rows = list(csv.DictReader((folder / "faces.csv").open()))
    assert rows[1] == {"name": "b.png", "nme": "12.0", "missed": "0"}
    assert rows[2] == {"name": "c.png", "nme": "", "missed": "1"}
    curve = list(csv.DictReader((folder / "ced.csv").open()))
    assert float(curve[-1]["all"]) == pytest.approx(1 / 3, abs=1e-6)
    assert float(curve[200]["pose"]) == 0.5
    text = (folder / "report.md").read_text()
    assert "| pose | 2 | 0 | 7.00 |" in text
    assert "d.png: cannot be read" in text
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()


def test_the_gallery_shows_the_worst_faces_first_in_two_colors() -> None:
    evaluation = small_evaluation()
    image = Image.open(io.BytesIO(failure_gallery(evaluation, faces_of(evaluation), count=2)))
    pixels = np.asarray(image).astype(int)
    red = (pixels[..., 0] - pixels[..., 1] > 100).any(axis=0)
    green = (pixels[..., 1] - pixels[..., 0] > 100).any(axis=0)
    missed, worst = slice(0, 256), slice(256, 512)
    assert image.width == 512
    assert (green[missed].any(), red[missed].any()) == (True, False)
    assert (green[worst].any(), red[worst].any()) == (True, True)


def test_the_command_prints_tables_or_json_alone_and_writes_a_report(
    tmp_path: Path, astronaut: NDArray[np.uint8], points: Array
) -> None:
    data, out = tmp_path / "set", tmp_path / "out"
    data.mkdir()
    Image.fromarray(astronaut).save(data / "image.png")
    row = {"image": "image.png", "points": points.tolist(), "split": "val"}
    (data / "annotations.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    command = ["eval", "--data", str(data), "--split", "val", "--no-flip-test"]
    result = CliRunner().invoke(app, [*command, "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["nme"] < 2
    assert len(report["weights"]) == 64
    assert (report["boxes"], report["refine"], report["flip_test"]) == ("labels", 0, False)
    assert report == json.loads((out / "report.json").read_text())
    result = CliRunner().invoke(app, [*command, "--normalize", "box"])
    assert result.exit_code == 0, result.output
    assert "square root" in result.stdout
    result = CliRunner().invoke(app, [*command, "--boxes", "official"])
    assert isinstance(result.exception, ConfigurationError | DataError)
    assert CliRunner().invoke(app, [*command, "--boxes", "detected", "--jitter"]).exit_code == 2


def test_faces_that_the_unit_cannot_measure_are_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    points = (COFW29.mean_shape * 60 + 100).tolist()
    for corner in COFW29.ocular_pair:
        points[corner] = None
    row = {"image": "a.png", "points": points, "split": "val"}
    (tmp_path / "annotations.jsonl").write_text(json.dumps(row) + "\n")
    options = ["eval", "--data", str(tmp_path), "--split", "val"]
    result = CliRunner().invoke(app, options)
    assert isinstance(result.exception, DataError)
    assert "--normalize interocular" in str(result.exception)
    assert CliRunner().invoke(app, [*options, "--normalize", "box"]).exit_code == 0


def test_faces_whose_unit_is_0_are_not_judged() -> None:
    evaluation = small_evaluation()
    units = dict(evaluation.units)
    units["interocular"] = units["interocular"].copy()
    units["interocular"][0] = 0
    errors = replace(evaluation, units=units).face_errors
    assert np.isnan(errors[0])
    np.testing.assert_array_equal(errors[1:], evaluation.face_errors[1:])
