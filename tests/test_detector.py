import io
import logging
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import encoded
from PIL import Image, ImageSequence

from hihlandmark import ConfigurationError, Detector, Face, ImageError, WeightsError
from hihlandmark.arrays import FloatArray
from hihlandmark.arrays import Image as Pixels
from hihlandmark.crop import tight_boxes
from hihlandmark.face_detection import Detections
from hihlandmark.layouts import convert, get_layout
from hihlandmark.runtimes import CropLandmarks, PrecisionChoice
from hihlandmark.shape_regression import ShapeRegression
from hihlandmark.weights import find_weights, load_model, save_weights

DetectorOf = Callable[[int], Detector]

# Positions of features of the astronaut in pixels, read off the enlarged image by eye.
EYES_AND_MOUTH = {"left_eye": (203, 102), "right_eye": (247, 104), "outer_lips": (223, 145)}


def with_runtime(detector: Detector, runtime: Callable[[Pixels], CropLandmarks]) -> Detector:
    """The detector with another runtime behind its landmarker."""
    other = detector.with_options()
    other.landmarker = replace(detector.landmarker, runtime=runtime)
    other.pipeline = replace(detector.pipeline, landmarker=other.landmarker)
    return other


def points_of(faces: list[Face]) -> FloatArray:
    return np.stack([face.points for face in faces])


@pytest.mark.parametrize("layout", [98, 68])
def test_points_sit_on_the_features_of_a_real_face(
    layout: int, astronaut: Pixels, detector_of: DetectorOf
) -> None:
    (face,) = detector_of(layout).predict(astronaut)
    for part, place in EYES_AND_MOUTH.items():
        assert np.linalg.norm(face[part].mean(axis=0) - place) < 5, part
    assert face.scores.mean() > 0.7


def test_all_layouts_agree_on_shared_points(astronaut: Pixels, detector_of: DetectorOf) -> None:
    faces = {size: detector_of(size).predict(astronaut)[0] for size in (98, 68, 29)}
    for size in (68, 29):
        converted = faces[98].to_layout(size)
        exact = ~converted.approximate
        distance = np.linalg.norm(converted.points - faces[size].points, axis=1)[exact]
        assert np.median(distance) < 0.05 * faces[98].interocular


def test_no_face_is_an_empty_list(detector_of: DetectorOf) -> None:
    assert detector_of(98).predict(np.zeros((300, 200, 3), np.uint8)) == []


def test_points_follow_the_image_when_it_is_moved_and_enlarged(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    detector = detector_of(98)
    (face,) = detector.predict(astronaut)
    shifted = np.zeros((700, 700, 3), np.uint8)
    shifted[100:612, 60:572] = astronaut
    twice = np.array(Image.fromarray(astronaut).resize((1024, 1024), Image.Resampling.BICUBIC))
    box = tight_boxes(face.points)
    moved = detector.predict(
        shifted, boxes=box + np.array([60, 100, 60, 100]), box_kind="landmarks"
    )[0]
    enlarged = detector.predict(twice, boxes=(box + 0.5) * 2 - 0.5, box_kind="landmarks")[0]
    again = detector.predict(astronaut, boxes=box, box_kind="landmarks")[0]
    tolerance = 0.02 * face.interocular
    assert np.abs(moved.points - [60, 100] - again.points).max() < tolerance / 10
    error = np.linalg.norm((enlarged.points + 0.5) / 2 - 0.5 - again.points, axis=1)
    assert error.mean() < tolerance


def test_a_mirrored_image_gives_mirrored_points(astronaut: Pixels, detector_of: DetectorOf) -> None:
    detector = detector_of(98)
    (face,) = detector.predict(astronaut)
    (mirrored,) = detector.predict(astronaut[:, ::-1])
    back = mirrored.points[detector.layout.mirror] * (-1, 1) + (astronaut.shape[1] - 1, 0)
    error = np.linalg.norm(back - face.points, axis=1)
    assert error.mean() < 0.05 * face.interocular


def collage(image: Pixels, count: int) -> Pixels:
    return np.concatenate([image[30:230, 130:330]] * count, axis=1)


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"batch_size": 5}, {"refine": 1}])
def test_many_images_give_the_same_as_one_by_one(
    astronaut: Pixels, detector_of: DetectorOf, options: dict[str, int]
) -> None:
    assert_independent_of_batch(detector_of(98).with_options(**options), astronaut, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "precision", "tolerance"),
    [
        ("torch", "bf16", 0.1),
        ("openvino", "fp32", 1e-3),
        ("openvino", "bf16", 0.1),
        ("openvino", "int8", 0.1),
    ],
)
def test_points_depend_on_no_batch_in_any_precision(
    astronaut: Pixels, runtime: str, precision: PrecisionChoice, tolerance: float
) -> None:
    pytest.importorskip(runtime)
    detector = Detector(98, device="cpu", runtime=runtime, precision=precision)
    assert detector.runtime.precision == precision
    assert_independent_of_batch(detector, astronaut, tolerance)


def assert_independent_of_batch(detector: Detector, astronaut: Pixels, tolerance: float) -> None:
    """Points differ by less than ``tolerance`` pixels between one and many images at once."""
    images = [
        astronaut,
        np.zeros((50, 60, 3), np.uint8),
        collage(astronaut, 3),
        astronaut[:400, :380],
        np.full((30, 500, 3), 128, np.uint8),
        collage(astronaut, 2),
    ]
    together = list(detector.predict_many(images))
    separate = detector.with_options(batch_size=1)  # each crop and each mirror image by itself
    alone = [separate.predict(image) for image in images]
    assert [len(faces) for faces in together] == [1, 0, 3, 1, 0, 2]
    for many, one in zip(together, alone, strict=True):
        assert isinstance(many, list)
        for a, b in zip(many, one, strict=True):
            assert np.abs(a.points - b.points).max() < tolerance


def test_images_are_read_as_they_are_needed(astronaut: Pixels) -> None:
    read = 0

    def endless() -> Iterator[Pixels]:
        nonlocal read
        while True:
            read += 1
            yield astronaut

    detector = Detector(98, device="cpu", precision="fp32", batch_size=2, refine=0)
    results = detector.predict_many(endless(), workers=2)
    assert [len(next(results)) for _ in range(3)] == [1, 1, 1]  # type: ignore[arg-type]
    assert read <= 8


def test_an_unreadable_image_is_raised_or_yielded_in_its_place(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    detector = detector_of(98)
    images = [astronaut, "missing.jpg", astronaut]
    results = list(detector.predict_many(images, on_error="yield"))
    assert isinstance(results[1], ImageError)
    assert "missing.jpg" in str(results[1])
    assert isinstance(results[0], list)
    assert isinstance(results[2], list)
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        list(detector.predict_many(images))


def test_given_boxes_keep_their_order_and_score_one(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    detector = detector_of(68)
    (face,) = detector.predict(astronaut)
    box = tight_boxes(face.points)
    two = detector.predict(astronaut, boxes=np.stack([box + 4, box]), box_kind="landmarks")
    assert [f.box_score for f in two] == [1, 1]
    assert np.allclose(two[0].box, box + 4)
    assert np.linalg.norm(points_of(two) - face.points, axis=-1).mean() < 0.05 * face.interocular
    assert detector.predict(astronaut, boxes=[]) == []


def test_a_box_of_few_points_needs_a_larger_crop(detector_of: DetectorOf) -> None:
    shape = get_layout(98).mean_shape * 100
    square_98 = detector_of(98).box_map("landmarks").squares(tight_boxes(shape))
    points_29, _ = convert(shape, 98, 29)
    square_29 = detector_of(29).box_map("landmarks").squares(tight_boxes(points_29))
    assert square_29[0, 2] == pytest.approx(square_98[0, 2], rel=0.08)
    assert np.allclose(square_29[0, :2], square_98[0, :2], atol=0.08 * square_98[0, 2])


def test_refining_corrects_a_bad_box(astronaut: Pixels) -> None:
    good = Detector(98, device="cpu", precision="fp32", refine=1)
    (face,) = good.predict(astronaut)
    box = tight_boxes(face.points)
    side = (box[2:] - box[:2]).max()
    bad = box + np.array([0.12, 0.1, 0.12, 0.1], np.float32) * side
    errors = []
    for refine in (0, 2):
        detector = Detector(98, device="cpu", precision="fp32", refine=refine)
        (found,) = detector.predict(astronaut, boxes=bad, box_kind="landmarks")
        errors.append(np.linalg.norm(found.points - face.points, axis=1).mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("refine", "flip_test", "right", "wrong"),
    [(0, False, 1, 1), (0, True, 2, 2), (1, False, 1, 2), (1, True, 2, 3), (3, True, 2, 3)],
)
def test_the_network_runs_no_more_often_than_the_box_needs(
    refine: int,
    flip_test: bool,
    right: int,
    wrong: int,
    astronaut: Pixels,
    detector_of: DetectorOf,
) -> None:
    """Only a face whose points moved too far is cropped again, and only the last crop flipped."""
    detector = detector_of(68).with_options(refine=refine, flip_test=flip_test)
    runtime = detector.runtime
    crops_run = 0

    def counting(crops: Pixels) -> CropLandmarks:
        nonlocal crops_run
        crops_run += len(crops)
        return runtime(crops)

    detector = with_runtime(detector, counting)
    (face,) = detector.predict(astronaut)
    box = tight_boxes(face.points)
    for moved, expected in ((0, right), (0.15 * (box[2] - box[0]), wrong)):
        crops_run = 0
        detector.predict(astronaut, boxes=box + moved, box_kind="landmarks")
        assert crops_run == expected


def test_both_decoders_find_the_same_face(astronaut: Pixels, detector_of: DetectorOf) -> None:
    (face,) = detector_of(98).predict(astronaut)
    (other,) = Detector(98, device="cpu", precision="fp32", decoder="argmax").predict(astronaut)
    distance = np.linalg.norm(face.points - other.points, axis=1).mean()
    assert 0 < distance < 0.1 * face.interocular


def test_covariances_are_those_of_a_distribution(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    (face,) = detector_of(98).predict(astronaut)
    assert (np.linalg.eigvalsh(face.covariance) > 0).all()
    assert ((face.scores >= 0) & (face.scores <= 1)).all()
    (doubled,) = detector_of(98).predict(
        np.array(Image.fromarray(astronaut).resize((1024, 1024), Image.Resampling.BICUBIC))
    )
    ratio = np.median(np.linalg.det(doubled.covariance) / np.linalg.det(face.covariance))
    assert 8 < ratio < 32, "areas grow fourfold, so determinants sixteenfold"


class OneBox:
    """A face detector of the user's own, which returns one box."""

    name = "mtcnn"

    def detect(self, images: list[Pixels]) -> list[Detections]:
        return [Detections(np.array([[180, 61, 267, 172]]), np.array([0.5])) for _ in images]


def test_a_custom_face_detector_is_used(astronaut: Pixels) -> None:
    (face,) = Detector(98, device="cpu", precision="fp32", face_detector=OneBox()).predict(
        astronaut
    )
    assert face.box_score == 0.5
    assert face.box.tolist() == [180, 61, 267, 172]


def test_auto_logs_its_device(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hihlandmark"):
        Detector(98)
    assert any("device:" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layout": 97}, ConfigurationError, "98"),
        ({"model": "hih-huge"}, WeightsError, "hih-small"),
        ({"device": "cuda:99"}, ConfigurationError, "this machine has"),
        ({"device": "gpu"}, ConfigurationError, "'cuda'"),
        ({"weights": "nowhere.safetensors"}, WeightsError, "nowhere"),
        ({"face_detector": "haar"}, ConfigurationError, "'mtcnn', 'centerface'"),
        ({"refine": -1}, ConfigurationError, "refine"),
        ({"batch_size": 0}, ConfigurationError, "batch_size"),
        ({"decoder": "guess"}, ConfigurationError, "local_soft_argmax"),
        ({"decoder": "quarter_shift"}, ConfigurationError, "one of soft, argmax, mean"),
        ({"decoder": "soft", "model": "awing-small"}, ConfigurationError, "local_soft_argmax"),
        ({"min_box_score": 2}, ConfigurationError, "min_box_score"),
        ({"runtime": "tensorflow"}, ConfigurationError, "openvino"),
        ({"runtime": None}, ConfigurationError, "runtime"),
        ({"weights": 5}, ConfigurationError, "weights"),
        ({"model": None}, ConfigurationError, "model"),
        ({"detection_size": "big"}, ConfigurationError, "'auto'"),
        ({"compile": "no"}, ConfigurationError, "compile"),
        ({"flip_test": "no"}, ConfigurationError, "flip_test"),
    ],
)
def test_an_invalid_argument_is_named(
    arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Detector(**arguments)


def test_an_unknown_kind_of_box_lists_the_known_ones(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    with pytest.raises(ConfigurationError, match="mtcnn"):
        detector_of(98).predict(astronaut, boxes=[[0, 0, 50, 50]], box_kind="yolo")


def test_a_kind_of_box_without_boxes_is_an_error(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    five = [[[200, 110], [240, 110], [220, 130], [205, 150], [235, 150]]]
    for given in ({}, {"boxes": [[180, 61, 267, 172]], "five_points": five}):
        with pytest.raises(ConfigurationError, match="box_kind"):
            detector_of(98).predict(astronaut, box_kind="dlib", **given)


def test_a_revision_is_a_string() -> None:
    with pytest.raises(ConfigurationError, match="revision"):
        Detector(weights="owner/name", revision=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("box_kind", "message"),
    [("yolo", "yolo"), ("", "no crop"), (["mtcnn"], "string")],
)
def test_an_unknown_kind_of_box_is_an_error_without_boxes_as_well(
    box_kind: Any, message: str, astronaut: Pixels, detector_of: DetectorOf
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        detector_of(98).predict(astronaut, box_kind=box_kind)


@pytest.mark.parametrize(
    ("name", "bad"),
    [("flip_test", "no"), ("shape_prior", 0), ("any_rotation", "no"), ("any_rotation", None)],
)
def test_a_flag_is_true_or_false(name: str, bad: object, detector_of: DetectorOf) -> None:
    detector = detector_of(98)
    assert not detector.with_options(flip_test=np.False_).landmarker.flip_test
    with pytest.raises(ConfigurationError, match=name):
        detector.with_options(**{name: bad})


def test_many_images_are_an_iterable(detector_of: DetectorOf) -> None:
    for bad in (None, 5):
        with pytest.raises(ImageError, match="list"):
            detector_of(98).predict_many(bad)  # type: ignore[call-overload]


def test_an_empty_path_is_named_as_such(detector_of: DetectorOf) -> None:
    with pytest.raises(ImageError, match="empty"):
        detector_of(98).predict("")


def test_points_that_coincide_still_have_a_crop(astronaut: Pixels, detector_of: DetectorOf) -> None:
    def collapsed(crops: Pixels) -> CropLandmarks:
        count = len(crops)
        covariance = np.tile(np.eye(2), (count, 29, 1, 1))
        return CropLandmarks(np.full((count, 29, 2), 100.0), covariance, np.ones((count, 29)))

    detector = with_runtime(detector_of(29), collapsed)
    (face,) = detector.predict(astronaut, boxes=[[180, 61, 267, 172]])
    assert np.isfinite(face.points).all()


def test_an_empty_heatmap_has_score_0_and_harms_no_other_point(astronaut: Pixels) -> None:
    detector = Detector(68, "awing-small", device="cpu", precision="fp32")
    (face,) = detector.predict(astronaut)
    runtime, size = detector.runtime, detector.landmarker.crop_size
    # The tip of the nose and the corners of the mouth, which are symmetric.
    empty = np.isin(np.arange(68), [30, 48, 54])

    def emptied(crops: Pixels) -> CropLandmarks:
        points, covariance, mass = (array.copy() for array in runtime(crops)[:3])
        points[:, empty] = (size - 1) / 2
        covariance[:, empty] = np.eye(2) * size**2 / 12
        mass[:, empty] = 0
        return CropLandmarks(points, covariance, mass)

    (found,) = with_runtime(detector, emptied).predict(astronaut)
    apart = np.linalg.norm(found.points - face.points, axis=1) / face.interocular
    assert apart[~empty].max() < 0.05
    assert np.isfinite(found.points).all()
    assert np.isfinite(found.covariance).all()
    assert (found.scores[empty] < 0.02).all()
    assert (found.scores[~empty] > found.scores[empty].max()).all()


@pytest.mark.parametrize("layout", [98, 68, 29])
def test_the_shape_prior_places_a_hidden_part_of_the_face(
    layout: int, astronaut: Pixels, detector_of: DetectorOf
) -> None:
    """A gray square over one eye: with the shape prior its points stay nearer to the true ones."""
    with_prior = Detector(layout, "adnet-small", device="cpu", precision="fp32", refine=0)
    plain = with_prior.with_options(shape_prior=False)
    assert plain.landmarker.shape_prior is None
    boxes = {"boxes": [[180, 61, 267, 172]], "box_kind": "mtcnn"}
    (face,) = plain.predict(astronaut, **boxes)
    hidden = astronaut.copy()
    hidden[85:125, 180:222] = 128
    part = list(plain.layout.parts["left_eye"])
    errors = [
        np.linalg.norm(detector.predict(hidden, **boxes)[0].points - face.points, axis=1)[part]
        for detector in (plain, with_prior)
    ]
    assert errors[1].mean() < errors[0].mean()


@pytest.mark.parametrize("layout", [98, 68, 29])
def test_packaged_points_are_corrected_by_a_shape_regression(
    layout: int, astronaut: Pixels, detector_of: DetectorOf
) -> None:
    detector = detector_of(layout)
    assert isinstance(detector.landmarker.shape_prior, ShapeRegression)
    (face,) = detector.predict(astronaut)
    (plain,) = detector.with_options(shape_prior=False).predict(astronaut)
    apart = np.linalg.norm(face.points - plain.points, axis=1) / face.interocular
    assert 0.001 < apart.mean() < 0.03


def test_a_missing_shape_prior_is_an_error(tmp_path: Path) -> None:
    card = find_weights("hih-small").card
    network = load_model("hih-small").network
    save_weights(tmp_path, card, network.state_dict())
    assert (
        Detector(98, weights=tmp_path, device="cpu", precision="fp32").landmarker.shape_prior
        is None
    )
    with pytest.raises(ConfigurationError, match="shape prior"):
        Detector(98, weights=tmp_path, device="cpu", precision="fp32", shape_prior=True)


def test_the_card_decides_on_the_flip_test_and_an_argument_overrides_it(
    detector_of: DetectorOf,
) -> None:
    detector = detector_of(68)
    assert not detector.card.flip_test
    assert not detector.landmarker.flip_test
    assert detector.with_options(flip_test=True).landmarker.flip_test
    other = Detector(68, "awing-small", device="cpu", precision="fp32")
    assert other.card.flip_test is None
    assert other.landmarker.flip_test
    assert not other.with_options(flip_test=False).landmarker.flip_test


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((0, 192, 192, 3), np.uint8),
        np.zeros((192, 192, 3), np.uint8),
        np.zeros((1, 128, 128, 3), np.uint8),
        np.zeros((1, 192, 192, 3), np.float32),
    ],
)
def test_what_is_no_crop_is_refused(detector_of: DetectorOf, crops: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"crops must be .* \(N, 192, 192, 3\) uint8"):
        detector_of(68).predict_crops(crops)


def test_a_flip_test_of_a_network_that_is_not_symmetric_is_refused(
    detector_of: DetectorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = detector_of(68)
    crop = detector.card.crop.model_copy(update={"pixel_origin": 0.0})
    monkeypatch.setattr(detector, "card", detector.card.model_copy(update={"crop": crop}))
    assert not detector.with_options(flip_test=None).landmarker.flip_test
    with pytest.raises(ConfigurationError, match="not symmetric"):
        detector.with_options(flip_test=True)


def test_options_are_changed_without_loading_the_network_again(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    detector = detector_of(68)
    quick = detector.with_options(refine=1, flip_test=False)
    assert quick.runtime is detector.runtime
    assert (quick.pipeline.refine, quick.landmarker.flip_test) == (1, False)
    assert detector.pipeline.refine == 0
    fresh = Detector(68, device="cpu", precision="fp32", refine=1, flip_test=False)
    np.testing.assert_array_equal(
        points_of(quick.predict(astronaut)), points_of(fresh.predict(astronaut))
    )
    with pytest.raises(ConfigurationError, match="refinements"):
        detector.with_options(refinements=2)


def test_a_pickled_detector_gives_the_same_points(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    detector = detector_of(29).with_options(refine=1)
    again = pickle.loads(pickle.dumps(detector))
    assert again.pipeline.refine == 1
    np.testing.assert_array_equal(
        points_of(again.predict(astronaut)), points_of(detector.predict(astronaut))
    )


def frames_of_one_object(kind: str, frames: list[Pixels]) -> Iterator[Any]:
    """Frames as an iterator gives them that reuses its object, or a file under all of them."""
    if kind == "array":
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer
    elif kind == "tar":
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for number, frame in enumerate(frames):
                member = tarfile.TarInfo(f"{number}.png")
                data = encoded(frame)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        content.seek(0)
        with tarfile.open(fileobj=content) as archive:
            for member in archive:
                with archive.extractfile(member) as file:
                    yield file
    else:
        content = io.BytesIO()
        first, *others = map(Image.fromarray, frames)
        first.save(content, kind, save_all=True, append_images=others)
        yield from ImageSequence.Iterator(Image.open(content))


@pytest.mark.parametrize("kind", ["array", "tar", "TIFF", "PNG"])
def test_images_of_an_iterator_are_those_that_it_gave(
    detector: Detector, astronaut: Pixels, kind: str
) -> None:
    frames = [np.roll(astronaut, 30 * number, axis=1) for number in range(5)]
    found = detector.predict_many(frames_of_one_object(kind, frames), workers=3)
    middles = [float(face.points[:, 0].mean()) for (face,) in found]
    np.testing.assert_allclose(np.diff(middles), 30, atol=1.5)


def test_large_files_of_an_iterator_are_read_as_little_as_others(detector: Detector) -> None:
    class Endless(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1) -> bytes:
            Endless.most = max(Endless.most, size if size is not None else -1, -1)
            return b"x" * min(size if size is not None and size >= 0 else 10**9, 10**6)

    limited = detector.with_options(max_bytes=1000)
    (found,) = limited.predict_many((Endless() for _ in range(1)), on_error="yield")
    assert isinstance(found, ImageError)
    assert Endless.most < 2**21, "not all at once"


def test_members_of_an_archive_may_stand_in_a_list(detector: Detector, astronaut: Pixels) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number in range(6):
            data = encoded(np.roll(astronaut, 20 * number, axis=1))
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    content.seek(0)
    with tarfile.open(fileobj=content) as archive:
        members: list[Any] = [archive.extractfile(member) for member in archive]
        found = list(detector.predict_many(members, workers=4))
    middles = [float(face.points[:, 0].mean()) for (face,) in found]
    np.testing.assert_allclose(np.diff(middles), 20, atol=1.5)


@pytest.mark.parametrize("limit", [1.5e6, sys.maxsize, 2**60])
def test_files_of_iterators_are_read_within_any_limit(
    detector: Detector, astronaut: Pixels, limit: float
) -> None:
    file = io.BytesIO(encoded(astronaut))
    (faces,) = detector.with_options(max_bytes=limit).predict_many(each for each in [file])
    assert len(faces) == 1


def test_a_read_only_image_is_predicted_as_any_other(detector: Detector, astronaut: Pixels) -> None:
    assert not astronaut.flags.writeable
    assert detector.load_image(astronaut).pixels is astronaut
    (found,), (expected,) = detector.predict(astronaut), detector.predict(astronaut.copy())
    np.testing.assert_array_equal(found.points, expected.points)


@pytest.mark.parametrize(
    ("found", "keyword"),
    [
        ([Detections([[9, 9, 9, 40]], [0.9])], r"x1 < x2"),
        ([Detections([[40, 40, 9, 9]], [0.9])], r"x1 < x2"),
        ([Detections([[9, 9, np.nan, 40]], [0.9])], "finite"),
        ([Detections([[9, 9, 40, 40]], [np.nan])], "finite"),
        ([([[9, 9, 40, 40]], [0.9])], "Detections"),
        ([], "Detections"),
        (None, "Detections"),
    ],
)
def test_what_a_face_detector_of_a_users_own_gives_is_checked(
    astronaut: Pixels, detector_of: DetectorOf, found: Any, keyword: str
) -> None:
    class Own:
        name = "mtcnn"

        def detect(self, images: Any) -> Any:
            return found

    detector = detector_of(29).with_options(face_detector=Own())
    with pytest.raises(ConfigurationError, match=f"'mtcnn'.*{keyword}"):
        detector.predict(astronaut)


def test_options_that_a_face_detector_does_not_let_set_stay(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    @dataclass(frozen=True)
    class Fixed:
        name: str = "mtcnn"
        min_score: float = 0.5
        detection_size: int = 100

        def detect(self, images: Any) -> list[Detections]:
            # Only of the image with a border.
            return [
                Detections([[300, 180, 390, 300]], [0.9])
                if image.shape[0] > astronaut.shape[0]
                else Detections.none()
                for image in images
            ]

    detector = detector_of(29).with_options(face_detector=Fixed(), detection_size="auto")
    (face,) = detector.predict(astronaut)
    np.testing.assert_array_equal(face.box, [172, 52, 262, 172])
    assert detector.explain(astronaut).candidates[0].is_found


def test_tables_are_no_lists_of_images(detector_of: DetectorOf) -> None:
    table = pytest.importorskip("pandas").DataFrame({"image": ["a.png"]})
    for images in ({"image": "a.png"}, table):
        with pytest.raises(ImageError, match="a column"):
            list(detector_of(29).predict_many(images))


def test_boxes_may_be_a_list_of_tensors_without_gradients(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    box = torch.tensor([178.0, 62, 268, 172])
    (face,) = detector_of(29).predict(astronaut, boxes=[box])
    np.testing.assert_array_equal(face.box, box)
    with pytest.raises(ConfigurationError, match="boxes"):
        detector_of(29).predict(astronaut, boxes=[box.requires_grad_()])


def test_a_box_of_landmarks_of_a_converted_layout_has_a_crop(
    astronaut: Pixels, detector_of: DetectorOf
) -> None:
    detector = Detector("five", device="cpu", precision="fp32")
    (found,) = detector.predict(astronaut)
    box = [*found.points.min(axis=0), *found.points.max(axis=0)]
    (again,) = detector.predict(astronaut, boxes=[box], box_kind="landmarks")
    assert np.linalg.norm(again.points - found.points, axis=1).mean() < 0.05 * found.interocular
