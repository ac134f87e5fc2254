import csv
import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from builders import annotated, split_of
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector, ImageError, load_image
from hihlandmark.cli import app
from hihlandmark.crop import tight_boxes
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.evaluation import (
    CORRUPTIONS,
    CurvePoint,
    Robustness,
    corrupted,
    evaluate,
    measure_robustness,
    robustness_curve,
)
from hihlandmark.evaluation.corruptions import JPEG_FACE, UNCORRUPTED, RobustnessCurve
from hihlandmark.evaluation.report import summarize, tables, to_markdown, write_report

Array = NDArray[np.floating]
SPOTS = np.array([[100.3, 90.6], [180.8, 95.2], [140.5, 187.4], [120.1, 140.9]])


def spotted(points: Array, size: int = 300, sigma: float = 4) -> NDArray[np.uint8]:
    """A gray image (size, size, 3) with a soft bright spot at each point."""
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1)
    distances = ((grid[:, :, None] - points) ** 2).sum(axis=-1)
    light = np.exp(-distances / (2 * sigma**2)).sum(axis=-1)
    return np.repeat((20 + 200 * light).round().astype(np.uint8)[..., None], 3, axis=-1)


def light_around(image: NDArray[np.uint8], points: Array, radius: float) -> Array:
    """The center of the light (P, 2) within a radius of each point (P, 2)."""
    rows, columns = np.indices(image.shape[:2])
    grid = np.stack([columns, rows], axis=-1)
    light = image.astype(float).mean(axis=2) - 20
    centers = []
    for point in points:
        near = np.linalg.norm(grid - point, axis=-1) < radius
        centers.append(np.average(grid[near], axis=0, weights=light[near].clip(min=0) + 1e-9))
    return np.array(centers)


def longer_side(points: Array) -> float:
    box = tight_boxes(points)
    return float((box[2:] - box[:2]).max())


@pytest.mark.parametrize(
    ("name", "severity"),
    [(name, severity) for name, c in CORRUPTIONS.items() for severity in c.severities],
)
def test_points_stay_on_their_feature(name: str, severity: float) -> None:
    faces = split_of(*[annotated(spotted(SPOTS), SPOTS)] * 2)
    for face in corrupted(faces, CORRUPTIONS[name], severity):
        scale = longer_side(face.points) / longer_side(SPOTS) if name in ("size", "jpeg") else 1
        centers = light_around(face.load_image(), face.points, 14 * scale)
        # In pixels of the spots, which are few in the smallest image.
        assert np.abs(centers - face.points).max() < (0.5 if name == "jpeg" else 0.2)


def test_uncorrupted_images_are_copies_and_black_beyond_their_edge() -> None:
    image = np.random.default_rng(0).integers(1, 256, (240, 240, 3), dtype=np.uint8)
    (face,) = corrupted(split_of(annotated(image, SPOTS)), UNCORRUPTED, 0)
    crop, offset = face.load_image(), face.points - SPOTS
    left, top = np.rint(offset[0]).astype(int)
    assert np.allclose(offset, (left, top))
    assert len(crop) == round(3 * longer_side(SPOTS))
    seen = crop[max(top, 0) : top + 240, max(left, 0) : left + 240]
    assert np.array_equal(seen, image[max(-top, 0) :, max(-left, 0) :][: len(seen), : len(seen[0])])
    assert (crop > 0).all(axis=2).sum() == seen.shape[0] * seen.shape[1]


def test_faces_are_shrunk_to_a_size_and_smaller_ones_are_unchanged_and_counted(
    detector: Detector, astronaut: NDArray[np.uint8], points: Array
) -> None:
    large = annotated(astronaut, points, "large")
    assert longer_side(points) > 64
    small = replace(corrupted(split_of(large), CORRUPTIONS["size"], 40)[0], name="small")
    faces = split_of(large, small)
    in_pixels = [longer_side(face.points) for face in corrupted(faces, CORRUPTIONS["size"], 48)]
    assert in_pixels == pytest.approx([48, 40], abs=0.3)
    (remark,) = robustness_curve(detector, faces, CORRUPTIONS["size"], (48, 32)).remarks
    assert "1 of 2" in remark


def test_faces_are_compressed_at_one_size_and_lower_qualities_keep_less() -> None:
    faces = split_of(*[annotated(spotted(k * SPOTS, k * 300), k * SPOTS) for k in (1, 2)])
    for face in corrupted(faces, CORRUPTIONS["jpeg"], 40):
        assert longer_side(face.points) == pytest.approx(JPEG_FACE, abs=0.3)
    best, good, bad = (
        corrupted(faces, CORRUPTIONS["jpeg"], quality)[0].load_image().astype(int)
        for quality in (100, 60, 5)
    )
    assert np.abs(best - good).mean() < np.abs(best - bad).mean() / 2


def test_blur_grows_with_the_face() -> None:
    edge = np.zeros((600, 600, 3), np.uint8)
    edge[:, 300:] = 255
    points = SPOTS - SPOTS.mean(axis=0)
    faces = split_of(*[annotated(edge, 300 + k * points) for k in (1, 2)])
    # The slope of an edge under a Gaussian of sigma: 255 / (sigma * sqrt(2 pi)).
    sigma = 0.05 * longer_side(SPOTS)
    for factor, face in enumerate(corrupted(faces, CORRUPTIONS["blur"], 5), start=1):
        crop = face.load_image()
        slope = np.diff(crop[len(crop) // 2, :, 0].astype(float)).max()
        assert slope == pytest.approx(255 / (factor * sigma * np.sqrt(2 * np.pi)), rel=0.2)


def test_gray_images_have_no_color() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    crop = corrupted(split_of(annotated(image, SPOTS)), CORRUPTIONS["gray"], 1)[0].load_image()
    assert np.ptp(crop, axis=2).max() == 0
    assert np.ptp(crop) > 100


@pytest.mark.parametrize("degrees", CORRUPTIONS["rotation"].severities)
def test_images_are_rotated_in_alternating_directions_and_contain_the_crop(degrees: float) -> None:
    faces = split_of(*[annotated(spotted(SPOTS), SPOTS)] * 2)
    for sign, face in zip((-1, 1), corrupted(faces, CORRUPTIONS["rotation"], degrees), strict=True):
        before, after = ((p[1] - p[0]) @ (1, 1j) for p in (SPOTS, face.points))
        assert after / before == pytest.approx(np.exp(1j * sign * np.deg2rad(degrees)))
        box = tight_boxes(face.points)
        center, half = (box[:2] + box[2:]) / 2, 0.75 * longer_side(face.points)
        assert (center - half > 0).all()
        assert (center + half < len(face.load_image())).all()


def test_official_rectangles_move_with_the_face() -> None:
    rectangle = tight_boxes(SPOTS) + np.array([-10, -10, 10, 10.0])
    faces = split_of(annotated(spotted(SPOTS), SPOTS, rectangle=rectangle))
    (small,) = corrupted(faces, CORRUPTIONS["size"], 32)
    margins = (small.rectangle - tight_boxes(small.points)) * longer_side(SPOTS) / 32
    assert margins == pytest.approx([-10, -10, 10, 10], abs=0.3)
    (rotated,) = corrupted(faces, CORRUPTIONS["rotation"], 90)
    low, high = rotated.rectangle.reshape(2, 2)
    assert high - low == pytest.approx(rectangle[2:] - rectangle[:2])
    center = tight_boxes(rotated.points).reshape(2, 2).mean(axis=0)
    assert (low + high) / 2 == pytest.approx(center)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_images_are_read_by_other_processes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(spotted(SPOTS)).save(path)
    face = replace(annotated(spotted(SPOTS), SPOTS), load_image=partial(load_image, path))
    (one,) = corrupted(split_of(face), CORRUPTIONS[name], CORRUPTIONS[name].severities[-1])
    copy = pickle.loads(pickle.dumps(one))
    assert np.array_equal(copy.load_image(), one.load_image())


def test_invalid_severities_and_wrong_labels_are_named(detector: Detector) -> None:
    faces = split_of(annotated(spotted(SPOTS), SPOTS))
    with pytest.raises(ConfigurationError, match="quality"):
        corrupted(faces, CORRUPTIONS["jpeg"], 0)
    with pytest.raises(ConfigurationError, match="severity"):
        robustness_curve(detector, faces, CORRUPTIONS["jpeg"], ())
    far_off = split_of(annotated(spotted(SPOTS), 10 * SPOTS))
    with pytest.raises(ImageError, match="as large as the image"):
        corrupted(far_off, UNCORRUPTED, 0)[0].load_image()


def test_unknown_points_stay_unknown() -> None:
    some = np.where(np.arange(4)[:, None] == 2, np.nan, SPOTS)
    faces = split_of(annotated(spotted(SPOTS), some), annotated(spotted(SPOTS), SPOTS * np.nan))
    part, nothing = corrupted(faces, CORRUPTIONS["rotation"], 30)
    assert np.isnan(part.points).any(axis=1).tolist() == [False, False, True, False]
    assert np.isnan(nothing.points).all()


# ------------------------------------------------------------------------------------- measuring


@pytest.fixture(scope="module")
def points(astronaut: NDArray[np.uint8], detector: Detector) -> Array:
    """The astronaut's 68 points as predicted by this detector."""
    (face,) = detector.predict(astronaut)
    return face.points.astype(float)


@pytest.fixture
def astronauts(astronaut: NDArray[np.uint8], points: Array) -> AnnotatedFaces:
    return split_of(*[annotated(astronaut, points, name) for name in "ab"])


def test_errors_grow_with_the_severity(detector: Detector, astronauts: AnnotatedFaces) -> None:
    curve = robustness_curve(detector, astronauts, CORRUPTIONS["blur"], (0, 3, 15))
    assert [point.severity for point in curve.points] == [0, 3, 15]
    none, some, much = (point.nme for point in curve.points)
    assert 1.5 * none < some
    assert 1.5 * some < much
    by_box = robustness_curve(detector, astronauts, CORRUPTIONS["blur"], (3,), normalization="box")
    assert by_box.points[0].nme != pytest.approx(some, rel=0.05)


def test_faces_that_are_not_found_in_a_corrupted_image_are_failures(
    detector: Detector, astronauts: AnnotatedFaces
) -> None:
    curve = robustness_curve(detector, astronauts, CORRUPTIONS["size"], (64, 6), boxes="detected")
    found, lost = curve.points
    assert (found.missed, found.failure_rate) == (0, 0)
    assert (lost.missed, lost.failure_rate) == (2, 1)
    assert np.isnan(lost.nme)
    assert curve.fails_from == 6


def curve_of(*failure_rates: float) -> RobustnessCurve:
    rotation = CORRUPTIONS["rotation"]
    points = [
        CurvePoint(severity, 8, 0, rate, (rate / 2, 1), rate)
        for severity, rate in zip(rotation.severities, failure_rates, strict=False)
    ]
    return RobustnessCurve(rotation, tuple(points))


def test_robustness_includes_uncorrupted_images_and_reports_progress(
    detector: Detector, astronauts: AnnotatedFaces
) -> None:
    calls: list[tuple[int, int]] = []
    some = {
        "size": replace(CORRUPTIONS["size"], severities=(64, 32)),
        "gray": CORRUPTIONS["gray"],
    }
    measured = measure_robustness(
        detector, astronauts, some, progress=lambda *call: calls.append(call)
    )
    assert calls == [(done, 8) for done in range(1, 9)]
    assert [len(curve.points) for curve in measured.curves.values()] == [2, 1]
    errors = evaluate(detector, astronauts).face_errors
    plain = measured.uncorrupted
    assert (plain.faces, plain.missed, plain.failure_rate) == (2, 0, 0)
    assert plain.nme == pytest.approx(errors.mean(), abs=1e-5)


# ---------------------------------------------------------------------------------------- report


def test_the_report_has_a_table_per_corruption_and_the_severity_of_failure(
    tmp_path: Path, detector: Detector, astronauts: AnnotatedFaces
) -> None:
    nan = float("nan")
    size = CORRUPTIONS["size"]
    robustness = Robustness(
        CurvePoint(0, 8, 0, 0.03, (0.02, 0.04), 0),
        {
            "rotation": curve_of(0.1, 0.2, 0.75),
            "size": RobustnessCurve(size, (CurvePoint(24, 8, 8, nan, (nan, nan), 1),), ("few",)),
            "gray": replace(curve_of(0.1), corruption=CORRUPTIONS["gray"]),
        },
    )
    evaluation = evaluate(detector, astronauts)
    report = summarize(evaluation, {}, robustness=robustness)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["robustness"]["curves"]["size"]["points"][0]["nme"] is None
    *_, rotation, _, _, summary = tables(report)
    assert rotation.rows[0][:4] == ("none", "8", "0", "3.00")
    assert rotation.rows[3] == ("45", "8", "0", "75.00", "37.50–100.00", "75.00")
    assert [row[:2] for row in summary.rows] == [
        ("rotation", 45),
        ("size", 24),
        ("gray", "nowhere"),
    ]
    assert "- few" in to_markdown(report, {})

    write_report(tmp_path, report, evaluation, astronauts, {}, robustness=robustness)
    rows = list(csv.DictReader((tmp_path / "robustness.csv").open()))
    assert [row["corruption"] for row in rows] == ["", *["rotation"] * 3, "size", "gray"]
    assert list(rows[3].values()) == ["rotation", "45", "8", "0", "75.0", "37.5", "100", "75.0"]
    with Image.open(tmp_path / "robustness.png") as image:
        image.load()


def test_the_command_measures_every_kth_face_on_corrupted_images(
    tmp_path: Path,
    astronaut: NDArray[np.uint8],
    points: Array,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.fromarray(astronaut).save(tmp_path / "image.png")
    row = json.dumps({"image": "image.png", "points": points.tolist(), "split": "val"})
    (tmp_path / "annotations.jsonl").write_text(f"{row}\n" * 3, encoding="utf-8")
    for name in set(CORRUPTIONS) - {"gray"}:
        monkeypatch.delitem(CORRUPTIONS, name)  # type: ignore[arg-type]  # a dict at run time
    command = ["eval", "--data", str(tmp_path), "--split", "val", "--no-flip-test", "--every", "2"]
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [*command, "--robustness", "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["faces"], report["every"]) == (3, 2)
    assert report["robustness"]["uncorrupted"]["faces"] == 2
    assert list(report["robustness"]["curves"]) == ["gray"]
    assert (out / "robustness.png").is_file()
    assert CliRunner().invoke(app, command).exit_code == 2  # --every alone


def test_severities_may_be_an_array(
    detector: Detector, astronaut: NDArray[np.uint8], points: Array
) -> None:
    faces = split_of(annotated(astronaut, points, "one"))
    curve = robustness_curve(detector, faces, CORRUPTIONS["size"], np.array([48.0]))
    assert len(curve.points) == 1
