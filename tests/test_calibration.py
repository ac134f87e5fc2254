"""Calibrations: scores, fits, reliability, and cards on disk."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from builders import write_teacher
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector
from hihlandmark.calibration import report as report_module
from hihlandmark.calibration.fit import (
    PointStatistics,
    calibrated,
    cross_validated,
    fit,
    measure_points,
)
from hihlandmark.calibration.metrics import (
    area_under_roc,
    bootstrap_area_under_roc,
    expected_calibration_error,
    reliability_bins,
)
from hihlandmark.calibration.report import (
    METRIC,
    card_to_write,
    draw_reliability,
    report_calibration,
    store_calibration,
)
from hihlandmark.cli.calibrate import calibrate
from hihlandmark.crop import CANONICAL_CROP, BoxMap, crop_matrix, transform_points
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.errors import DataError, ImageError, WeightsError
from hihlandmark.layouts import EXACT_98_68, WFLW98, get_layout
from hihlandmark.runtimes.base import CropLandmarks
from hihlandmark.weights import Calibration, ModelCard, WeightFiles, find_weights
from hihlandmark.weights.card import MAX_KNOTS, CropContract, Figure

W300_68 = get_layout(68)


# Scores of a calibration


def scores(calibration: Calibration, variance: float, mass: float, interocular: float) -> float:
    covariance = np.eye(2)[None, None] * variance
    return float(calibration.scores(covariance, np.array([[mass]]), np.array([interocular]))[0, 0])


def test_a_wider_heatmap_scores_lower_at_any_size_of_the_face() -> None:
    calibration = Calibration()
    assert scores(calibration, 1, 0.9, 60) > scores(calibration, 25, 0.9, 60)
    assert scores(calibration, 4, 0.9, 60) > scores(calibration, 4, 0.3, 60)
    assert np.isclose(scores(calibration, 4, 0.8, 60), scores(calibration, 4 * 9, 0.8, 180))


def test_knots_bend_the_score_between_and_beyond_them() -> None:
    bent = Calibration(bias=0, spread=0, mass=1, knots=((0.2, 0.1), (0.6, 0.3)))
    logits = np.log(np.array([0.1, 0.4, 0.6, 0.9]) / (1 - np.array([0.1, 0.4, 0.6, 0.9])))
    features = np.stack([np.ones(4), np.zeros(4), logits], axis=-1)
    assert bent.scores_of(features) == pytest.approx([0.1, 0.2, 0.3, 0.3])


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"slope": 1.5}, "slope"),
        ({"covariance_scale": 0}, "covariance_scale"),
        ({"knots": [[0.5, 0.2], [0.4, 0.3]]}, "knots"),
        ({"knots": [[0.1, 0.3], [0.4, 0.2]]}, "knots"),
        ({"knots": [[0.1, 0.3], [0.4, 1.2]]}, "knots"),
        ({"knots": [[p / 30, p / 30] for p in range(30)]}, "knots"),
        ({"point_bias": [0.5, "high"]}, "point_bias"),
    ],
)
def test_a_card_with_a_broken_calibration_is_refused(values: dict[str, Any], field: str) -> None:
    card = json.loads(find_weights().card.to_json())
    with pytest.raises(WeightsError, match=rf"WFLW98\.{field}"):
        ModelCard.from_json(json.dumps(card | {"calibration": {"WFLW98": values}}))


@pytest.mark.parametrize(
    "values",
    [
        {"point_bias": [0.5] * 68},
        {"correlation": {"std": [1.0] * 136, "loadings": [[0.5]] * 136}},
    ],
)
def test_a_card_with_the_calibration_of_another_layout_is_refused(values: dict[str, Any]) -> None:
    card = json.loads(find_weights().card.to_json())
    for name in ("W300_68", "UNKNOWN"):
        assert ModelCard.from_json(json.dumps(card | {"calibration": {name: values}}))
    with pytest.raises(WeightsError, match="WFLW98 must have as many points"):
        ModelCard.from_json(json.dumps(card | {"calibration": {"WFLW98": values}}))


# Reliability


def test_calibration_error_is_the_gap_in_each_bin_weighted_by_its_points() -> None:
    claimed = np.array([0.12, 0.18, 0.95, 1.0])
    true = np.array([True, False, True, True])
    bins = reliability_bins(claimed, true)
    assert bins.counts.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins.shares[[1, 9]].tolist() == [0.5, 1.0]
    assert np.isnan(bins.scores[0])
    gaps = abs(0.5 - 0.15) * 2 / 4 + abs(1 - 0.975) * 2 / 4
    assert expected_calibration_error(claimed, true) == pytest.approx(gaps)


def test_area_under_roc_counts_pairs_of_the_same_stratum_and_halves_ties() -> None:
    random = np.random.default_rng(0)
    strata = np.repeat(["brow", "chin", "nose"], 30)
    values, positive = random.integers(0, 6, 90).astype(float), random.random(90) < 0.3
    values[strata == "chin"] += 10  # would win every pair with a point of another stratum
    pairs = values[positive][:, None] - values[~positive]
    won = (pairs > 0) + 0.5 * (pairs == 0)
    expected = won[strata[positive][:, None] == strata[~positive]].mean()
    assert area_under_roc(values, positive) == pytest.approx(won.mean())
    assert area_under_roc(values, positive, strata) == pytest.approx(expected)
    low, high = bootstrap_area_under_roc(values, positive, np.arange(90), strata, resamples=200)
    assert low < expected < high


def test_the_interval_is_wider_when_points_of_a_face_go_together() -> None:
    random = np.random.default_rng(1)
    face = np.repeat(np.arange(12), 40)
    positive = np.isin(face, (2, 5, 7)) & (random.random(480) < 0.7)
    values = 0.3 * positive + random.standard_normal(12)[face] + 0.1 * random.standard_normal(480)
    low, high = bootstrap_area_under_roc(values, positive, face, resamples=200)
    assert low < area_under_roc(values, positive) < high
    alone = bootstrap_area_under_roc(values, positive, np.arange(480), resamples=200)
    assert high - low > 1.5 * (alone[1] - alone[0])


# Fitting


def statistics_of(
    probability: Callable[[NDArray[np.floating]], NDArray[np.floating]], faces: int = 60
) -> PointStatistics:
    """Points whose chance to be near is a function of their log odds of mass."""
    random = np.random.default_rng(3)
    odds = random.uniform(-3, 3, (faces, 50))
    near = random.random(odds.shape) < probability(odds)
    distances = 4 * np.square(random.standard_normal((*odds.shape, 2))).sum(axis=-1)
    return PointStatistics(
        np.stack([np.ones_like(odds), np.zeros_like(odds), odds], axis=-1),
        np.where(near, 0.01, 0.2),
        distances,
        np.full(odds.shape, np.nan),
    )


def test_the_fit_recovers_weights_and_covariance_scale() -> None:
    fitted = fit(statistics_of(lambda odds: 1 / (1 + np.exp(0.5 - 0.8 * odds)), faces=400))
    assert (fitted.bias, fitted.mass) == pytest.approx((-0.5, 0.8), abs=0.1)
    assert fitted.covariance_scale == pytest.approx(4, rel=0.1)


def test_parts_of_the_face_have_their_own_bias() -> None:
    # With equal heatmaps, points of the jaw are near less often.
    random = np.random.default_rng(5)
    share = np.full(68, 0.9)
    share[list(W300_68.parts["jaw"])] = 0.6
    near = random.random((200, 68)) < share
    features = np.concatenate([np.ones((200, 68, 1)), random.normal(size=(200, 68, 2))], axis=-1)
    statistics = PointStatistics(
        features,
        np.where(near, 0.01, 0.2),
        random.chisquare(2, near.shape),
        np.full(near.shape, np.nan),
        layout=W300_68,
    )
    fitted = fit(statistics)
    assert fitted.scores_of(features).mean(axis=0) == pytest.approx(share, abs=0.03)
    # A part and its mirror image share one.
    bias = np.array(fitted.point_bias)
    assert bias == pytest.approx(bias[W300_68.mirror])
    assert fitted.bias + bias[0] == pytest.approx(np.log(0.6 / 0.4), abs=0.15)
    assert fit(statistics.select(np.arange(20))).point_bias == ()
    assert fit(replace(statistics, layout=None)).point_bias == ()


@pytest.mark.filterwarnings("error")
def test_reliability_and_visibility_stay_when_scores_are_calibrated() -> None:
    packaged = find_weights("hih-small").card.calibration["WFLW98"]
    before = packaged.model_copy(update={"point_bias": ()})
    statistics = statistics_of(lambda odds: 1 / (1 + np.exp(-odds)), faces=8)
    after = report_calibration(statistics, before).after
    assert before.reliability is not None
    assert (after.reliability, after.visibility) == (before.reliability, before.visibility)
    assert after.bias != before.bias


def test_isotonic_fits_what_no_logistic_curve_does() -> None:
    # The chance jumps from 0.1 to 0.4 and then to 0.9.
    statistics = statistics_of(lambda odds: np.select([odds < -1, odds < 2], [0.1, 0.4], 0.9))
    errors = {}
    for method in ("logistic", "isotonic"):
        report = report_calibration(statistics, Calibration(), method)  # type: ignore[arg-type]
        errors[method] = report.figures("after, other faces")["calibration_error"]
    assert errors["isotonic"] < 3 < 5 < errors["logistic"]
    knots = np.array(fit(statistics, "isotonic").knots)
    assert 2 < len(knots) <= MAX_KNOTS
    assert (np.diff(knots[:, 0]) > 0).all()
    assert (np.diff(knots[:, 1]) >= 0).all()


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_scores_stay_below_one_when_every_point_was_near(method: Any) -> None:
    statistics = statistics_of(np.ones_like, faces=3)
    judged = calibrated(fit(statistics, method), statistics).scores
    assert ((judged > 0.9) & (judged < 1)).all()


def test_a_face_is_judged_by_a_calibration_fitted_on_others() -> None:
    statistics = statistics_of(lambda odds: 1 / (1 + np.exp(-odds)), faces=2)
    statistics.distances[:] = [[1.0], [4.0]]
    unit = 2 * np.log(2)
    judged = cross_validated(statistics).distances
    assert np.allclose(judged, np.array([[1 / 4], [4 / 1]]) * unit, rtol=1e-3)
    with pytest.raises(DataError, match="too few"):
        cross_validated(statistics.select(np.array([0])))


def test_faces_of_one_photograph_are_judged_together() -> None:
    statistics = statistics_of(lambda odds: 1 / (1 + np.exp(-odds)), faces=3)
    statistics.distances[:] = [[1.0], [4.0], [4.0]]
    statistics = replace(statistics, photos=("a", "b", "b"))
    judged = cross_validated(statistics).distances
    unit = 2 * np.log(2)
    assert np.allclose(judged, np.array([[1 / 4], [4 / 1], [4 / 1]]) * unit, rtol=1e-3)
    assert statistics.select(np.array([2, 0])).photos == ("b", "a")
    alone = cross_validated(statistics.select(np.array([1, 2]))).distances
    assert np.allclose(alone, unit, rtol=1e-3), "faces of a single photograph are divided"


def test_low_scores_that_find_hidden_points_are_reported_and_drawn(tmp_path: Path) -> None:
    statistics = statistics_of(lambda odds: 1 / (1 + np.exp(-odds)), faces=8)
    assert report_calibration(statistics, Calibration()).hidden_points("before") is None
    statistics.hidden[:] = statistics.features[..., 2] < -2.5
    report = report_calibration(statistics, Calibration())
    found = report.hidden_points("after, same faces")
    assert found is not None
    assert found["auroc"] == 1.0
    assert found["hidden"] + found["visible"] == 400
    assert report.summary()["hidden_points"]["before"]["auroc"] == 1.0
    assert json.loads(json.dumps(report.summary()))["points"] == 400
    draw_reliability(report, tmp_path / "new" / "diagram.png")
    with Image.open(tmp_path / "new" / "diagram.png") as diagram:
        assert np.asarray(diagram).std() > 10
    with pytest.raises(ConfigurationError, match=r"diagram\.png"):
        draw_reliability(report, tmp_path / "new" / "diagram.png" / "diagram.png")


# Measuring


def annotated(points: NDArray[np.floating], layout: str = "FIVE", **more: Any) -> AnnotatedFaces:
    """Faces (N, P, 2) on images that are gray in the value of their index."""

    def image_of(index: int) -> Callable[[], NDArray[np.uint8]]:
        return lambda: np.full((200, 200, 3), index, np.uint8)

    faces = [
        AnnotatedFace(f"face {i}", image_of(i), p, "val", **more) for i, p in enumerate(points)
    ]
    return AnnotatedFaces("a set", layout, get_layout(layout).mirror, faces)


def detector_off_by(points: NDArray[np.floating], offset: float, layout: str = "FIVE") -> Any:
    """A detector that knows faces (N, P, 2) by their gray, and is off by some crop pixels in x."""
    box_map = BoxMap((0.1, 0.0), 1.5)

    def predict_crops(crops: NDArray[np.uint8]) -> CropLandmarks:
        truth = points[crops[:, 32, 32, 0].astype(int)]
        boxes = np.concatenate([truth.min(axis=1), truth.max(axis=1)], axis=1)
        found = transform_points(crop_matrix(box_map.squares(boxes), 64), truth)
        found[..., 0] += offset
        covariance = np.broadcast_to(np.diag([4.0, 9.0]), (*found.shape, 2))
        return CropLandmarks(found, covariance, np.full(found.shape[:2], 0.8))

    return SimpleNamespace(
        layout=get_layout(layout),
        landmarker=SimpleNamespace(layout=get_layout(layout), crop_size=64),
        box_map=lambda kind: box_map,
        predict_crops=predict_crops,
    )


@pytest.fixture
def points() -> NDArray[np.floating]:
    """The five points of 20 faces, each larger than the one before."""
    shape = np.array([[0, 0], [20, 0], [10, 10], [2, 20], [18, 20]], float)
    return np.stack([80 + shape * (1 + i / 20) for i in range(20)])


def test_every_face_is_measured_in_its_own_crop(points: NDArray[np.floating]) -> None:
    statistics = measure_points(detector_off_by(points, 3.0), annotated(points))
    assert statistics.features.shape == (20, 5, 3)
    # A crop of 64 pixels shows 1.5 boxes of 20: eyes 20 apart are 128 / 3 crop pixels apart.
    assert np.allclose(statistics.errors, 3 / (128 / 3))
    assert np.allclose(statistics.distances, 9 / 4, atol=1e-4)
    assert np.isnan(statistics.hidden).all()
    assert not statistics.near.any()
    assert measure_points(detector_off_by(points, 2.0), annotated(points)).near.all()
    calibration = fit(measure_points(detector_off_by(points, 1.0), annotated(points)))
    assert calibration.covariance_scale == pytest.approx(1 / 4 / (2 * np.log(2)), rel=1e-3)


def test_mirrored_crops_are_a_second_view_of_each_face(points: NDArray[np.floating]) -> None:
    detector = detector_off_by(points, 0.0)
    plain = measure_points(detector, annotated(points))
    landmarker = detector.landmarker
    landmarker.flip_test = False
    landmarker.correct = lambda found: found

    def off_by_turns(crops: NDArray[np.uint8]) -> tuple[CropLandmarks, CropLandmarks]:
        found = detector.predict_crops(crops)
        return found, found._replace(points=found.points + np.array([4.0, 0.0]))

    landmarker.decode_views = off_by_turns
    both = measure_points(detector, annotated(points), mirrored=True)
    assert (both.faces, both.views, len(both.errors)) == (20, 2, 40)
    np.testing.assert_array_equal(both.errors[::2], plain.errors)
    assert np.allclose(both.errors[1::2], 4 / (128 / 3))
    assert both.select(np.array([3])).features.shape == (2, 5, 3)
    assert cross_validated(both).scores.shape == (40, 5)
    landmarker.flip_test = True
    assert measure_points(detector, annotated(points), mirrored=True).views == 1


def test_views_of_a_face_count_as_one_face() -> None:
    layout = get_layout(68)
    rng = np.random.default_rng(0)

    def fitted(views: int) -> Calibration:
        features = np.concatenate([np.ones((60, 68, 1)), rng.normal(size=(60, 68, 2))], axis=2)
        errors = np.abs(rng.normal(0, 0.05, (60, 68)))
        statistics = PointStatistics(features, errors, errors, errors, layout=layout, views=views)
        return fit(statistics)

    assert fitted(views=1).point_bias, "60 faces are enough for a bias of each part"
    assert not fitted(views=2).point_bias, "30 faces are not"


def test_points_and_faces_without_annotation_or_image_are_left_out(
    points: NDArray[np.floating],
) -> None:
    def unreadable() -> NDArray[np.uint8]:
        raise ImageError("cut short")

    partly = points.copy()
    partly[1, 0] = partly[4, 2] = np.nan
    faces = annotated(partly, source="list.txt, line 7")
    broken = [replace(faces[0], load_image=unreadable), *list(faces)[1:]]
    statistics = measure_points(detector_off_by(points, 3.0), replace(faces, faces=broken))
    assert len(statistics.errors) == 18
    assert np.argwhere(~statistics.known).tolist() == [[2, 2]]
    assert np.allclose(statistics.errors[statistics.known], 3 / (128 / 3))
    assert statistics.skipped[0] == "face 0: cut short"
    assert "face 1" in statistics.skipped[1]
    assert "list.txt, line 7" in statistics.skipped[1]
    for few, message in ((broken[:1], "cut short"), ([], "empty")):
        with pytest.raises(DataError, match=message):
            measure_points(detector_off_by(points, 3.0), replace(faces, faces=few))


def test_only_points_of_both_layouts_count() -> None:
    points98 = get_layout(98).mean_shape[None] * 60 + 90
    visible = np.arange(98) != EXACT_98_68[30]
    faces = annotated(points98, "WFLW98", visible=visible)

    detector = detector_off_by(points98, 0.0, "WFLW98")
    detector.landmarker.layout = W300_68
    detector.predict_crops = lambda crops: CropLandmarks(
        np.random.default_rng(0).uniform(0, 64, (1, 68, 2)),
        np.broadcast_to(np.eye(2), (1, 68, 2, 2)),
        np.full((1, 68), 0.5),
    )
    statistics = measure_points(detector, faces)
    exact = np.isin(np.arange(68), list(EXACT_98_68))
    assert 0 < exact.sum() < 68
    assert (statistics.known[0] == exact).all()
    assert np.flatnonzero(statistics.hidden[0] == 1).tolist() == [30]
    assert (np.isnan(statistics.hidden[0]) == ~exact).all()


# Model cards on disk


FIGURE = Figure(split="a val", points=68, metric=METRIC, value=1.0, command="calibrate")
NEW = Calibration(
    bias=-1.0, spread=-0.5, mass=0.25, covariance_scale=0.5, knots=((0.1, 0.2), (0.9, 0.8))
)


@pytest.fixture
def own(tmp_path: Path) -> WeightFiles:
    """A user's own copy of the packaged weights."""
    packaged = find_weights()
    folder = tmp_path / "own"
    folder.mkdir()
    for path in (packaged.path, packaged.path.with_suffix(".json")):
        (folder / path.name).write_bytes(path.read_bytes())
    return find_weights(folder)


def test_the_card_beside_a_users_weights_is_changed_for_one_layout(own: WeightFiles) -> None:
    target = card_to_write(own, None)
    assert target == own.path.with_suffix(".json")
    for _ in range(2):
        store_calibration(own, target, W300_68, NEW, FIGURE)
    card, before = find_weights(target).card, own.card
    assert card.calibration == before.calibration | {"W300_68": NEW}
    assert card.sha256 == before.sha256
    of_68 = [figure for figure in card.figures if figure.points == 68]
    assert [figure for figure in of_68 if figure.metric == METRIC] == [FIGURE]
    assert not any("calibration_error" in figure.model_dump() for figure in of_68)
    others = [[figure for figure in c.figures if figure.points != 68] for c in (card, before)]
    assert others[0] == others[1]


def test_packaged_and_linked_cards_are_changed_in_a_copy_only(
    own: WeightFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert card_to_write(find_weights(), None) is None
    link = tmp_path / "snapshot"
    link.mkdir()
    for path in own.path.parent.iterdir():
        (link / path.name).symlink_to(path)
    assert card_to_write(find_weights(link), None) is None
    module = str(tmp_path / "calibration" / "report.py")
    monkeypatch.setattr(report_module, "__file__", module)
    assert card_to_write(own, None) is None


def test_layouts_are_calibrated_one_after_the_other_into_the_same_copy(tmp_path: Path) -> None:
    files, out = find_weights(), tmp_path / "copy"
    before = files.path.with_suffix(".json").read_bytes()
    for layout in (W300_68, get_layout(29)):
        target = card_to_write(files, out)
        assert target is not None
        figure = FIGURE.model_copy(update={"points": layout.size})
        store_calibration(files, target, layout, NEW, figure)
    changed = {"COFW29": NEW, "W300_68": NEW}
    assert find_weights(out).card.calibration == files.card.calibration | changed
    assert files.path.with_suffix(".json").read_bytes() == before


def test_a_copy_never_replaces_other_weights(own: WeightFiles) -> None:
    target = own.path.with_suffix(".json")
    target.write_text(own.card.model_copy(update={"sha256": "0" * 64}).to_json())
    with pytest.raises(ConfigurationError, match="other weights"):
        card_to_write(find_weights(), target.parent)
    target.unlink()
    own.path.write_bytes(b"of another program")
    with pytest.raises(ConfigurationError, match="other weights"):
        card_to_write(find_weights(), target.parent)
    with pytest.raises(ConfigurationError, match="folder"):
        card_to_write(find_weights(), own.path)


def test_a_failed_calibration_leaves_the_card_unchanged(
    own: WeightFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = own.path.with_suffix(".json")
    before = target.read_bytes()

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(report_module, "write_atomically", full)
        with pytest.raises(WeightsError, match="No space"):
            store_calibration(own, target, W300_68, NEW, FIGURE)
    own.path.write_bytes(own.path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="SHA-256"):
        store_calibration(own, target, W300_68, NEW, FIGURE)
    assert target.read_bytes() == before


# The command


app = typer.Typer()
app.command()(calibrate)


@pytest.fixture(scope="module")
def faces_on_disk(
    tmp_path_factory: pytest.TempPathFactory,
    astronaut: NDArray[np.uint8],
    detector_of: Callable[[int], Detector],
) -> Path:
    """A data folder with two faces in split "val" and one in "more", with visibility."""
    (face,) = detector_of(29).predict(astronaut)
    folder = tmp_path_factory.mktemp("sets") / "mini29"
    folder.mkdir()
    Image.fromarray(astronaut).save(folder / "image.png")
    rows = []
    for index, split in enumerate(("val", "val", "more")):
        shift = np.linspace(0, face.interocular / 10, 29)[:, None] * (index + 1) / 2
        hidden = [int(score < np.median(face.scores)) for score in face.scores]
        row = {"image": "image.png", "points": (face.points + shift).tolist(), "split": split}
        rows.append(json.dumps({**row, "visible": hidden}))
    (folder / "annotations.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_the_command_reports_and_writes_a_calibrated_copy(
    faces_on_disk: Path, tmp_path: Path
) -> None:
    packaged = find_weights().path.with_suffix(".json")
    before = packaged.read_bytes()
    out = tmp_path / "copy"
    arguments = ["--data", str(faces_on_disk), *("--split", "val") * 2, "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--split", "more"])
    assert result.exit_code == 0, result.output
    assert "3 faces" in result.stdout
    assert "no card was changed" in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--split", "more", "--held-out", "1"])
    assert isinstance(result.exception, ConfigurationError)
    assert "--held-out" in str(result.exception)
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["faces"] == 2
    assert set(summary["figures"]) == {"before", "after, same faces", "after, other faces"}
    assert summary["hidden_points"]["before"]["auroc"] > 0.6
    assert Path(summary["diagram"]).is_file()
    card = find_weights(out).card
    written = card.calibration["COFW29"]
    assert written.correlation is not None
    assert written.visibility is not None, "it is kept"
    kept = dict.fromkeys(("correlation", "reliability", "visibility"))
    plain = written.model_copy(update=kept)
    assert plain == Calibration(**summary["calibration"]["after"])
    assert "--data DATA/mini29 --split val --layout 29" in card.figures[-1].command
    assert packaged.read_bytes() == before


def test_a_converted_layout_calibrates_the_one_that_the_network_predicts(
    faces_on_disk: Path, tmp_path: Path
) -> None:
    kind = "landmarks:WFLW98"
    crop = CropContract(pixel_origin=0.5, boxes={kind: CANONICAL_CROP[kind]})
    weights = write_teacher(tmp_path / "own", {"crop": crop}, layouts=["WFLW98"])
    rows = (faces_on_disk / "annotations.jsonl").read_text().splitlines()
    data = tmp_path / "faces98"
    data.mkdir()
    shutil.copy(faces_on_disk / "image.png", data)
    points = (WFLW98.mean_shape * 90 + 220).tolist()
    values = {"image": "image.png", "split": "val", "points": points}
    (data / "annotations.jsonl").write_text("\n".join([json.dumps(values)] * len(rows)))
    arguments = ["--data", str(data), "--split", "val", "--weights", str(weights)]
    arguments += ["--layout", "68", "--annotated", "WFLW98", "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    command = find_weights(weights).card.figures[-1].command
    assert command.endswith("--layout 98 --method logistic --annotated WFLW98")
    assert set(find_weights(weights).card.calibration) == {"WFLW98"}
    fitted = Detector(68, weights=weights, device="cpu", runtime="torch").pipeline.calibration
    assert fitted != Calibration()


def test_few_far_points_leave_the_scores_to_spread_and_mass() -> None:
    few = statistics_of(np.ones_like, faces=5)
    random = np.random.default_rng(0)
    spread = [0, -3.0, 3.0] * random.random(few.features.shape)
    few = replace(few, features=few.features + spread)
    easy = fit(few)
    scores = easy.scores_of(few.features)
    assert scores.mean() == pytest.approx(250.5 / 251, abs=1e-3)
    unsure = easy.scores_of(few.features + np.array([0, 3.0, -8.0]))
    assert unsure.mean() < 0.5, "a hidden mouth has low scores"
