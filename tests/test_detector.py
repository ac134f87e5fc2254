import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hihlandmark import ConfigurationError, Detector, Face, ImageError, WeightsError
from hihlandmark.crop import BoxMap, tight_boxes
from hihlandmark.face_detection import Detections
from hihlandmark.heatmap import Decoded
from hihlandmark.layouts import convert, get_layout
from hihlandmark.models.base import Heatmaps
from hihlandmark.weights import find_weights, load_model, save_weights

DetectorOf = Callable[[int], Detector]
Photo = NDArray[np.uint8]

# Where features of the astronaut are, in pixels, read off the enlarged image by eye.
EYES_AND_MOUTH = {"left_eye": (203, 102), "right_eye": (247, 104), "outer_lips": (223, 145)}


def points_of(faces: list[Face]) -> NDArray[np.float32]:
    return np.stack([face.points for face in faces])


@pytest.mark.parametrize("layout", [98, 68])
def test_points_sit_on_the_features_of_a_real_face(
    layout: int, astronaut: Photo, detector_of: DetectorOf
) -> None:
    (face,) = detector_of(layout).predict(astronaut)
    for part, place in EYES_AND_MOUTH.items():
        assert np.linalg.norm(face[part].mean(axis=0) - place) < 5, part
    assert face.scores.mean() > 0.7


def test_all_layouts_agree_on_shared_points(astronaut: Photo, detector_of: DetectorOf) -> None:
    faces = {size: detector_of(size).predict(astronaut)[0] for size in (98, 68, 29)}
    for size in (68, 29):
        converted = faces[98].to(size)
        exact = ~converted.approximate
        distance = np.linalg.norm(converted.points - faces[size].points, axis=1)[exact]
        assert np.median(distance) < 0.05 * faces[98].interocular


def test_no_face_is_an_empty_list(detector_of: DetectorOf) -> None:
    assert detector_of(98).predict(np.zeros((300, 200, 3), np.uint8)) == []


def test_points_follow_the_image_when_it_is_moved_and_enlarged(
    astronaut: Photo, detector_of: DetectorOf
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


def test_a_mirrored_photo_gives_mirrored_points(astronaut: Photo, detector_of: DetectorOf) -> None:
    detector = detector_of(98)
    (face,) = detector.predict(astronaut)
    (mirrored,) = detector.predict(astronaut[:, ::-1])
    back = mirrored.points[detector.layout.mirror] * (-1, 1) + (astronaut.shape[1] - 1, 0)
    error = np.linalg.norm(back - face.points, axis=1)
    assert error.mean() < 0.05 * face.interocular


def collage(photo: Photo, count: int) -> Photo:
    return np.concatenate([photo[30:230, 130:330]] * count, axis=1)


def test_many_images_give_what_each_gives_alone(astronaut: Photo) -> None:
    detector = Detector(98, device="cpu", batch_size=4)
    images = [
        astronaut,
        np.zeros((50, 60, 3), np.uint8),
        collage(astronaut, 3),
        astronaut[:400, :380],
        np.full((30, 500, 3), 128, np.uint8),
        collage(astronaut, 2),
    ]
    together = list(detector.predict_many(images))
    alone = [detector.predict(image) for image in images]
    assert [len(faces) for faces in together] == [1, 0, 3, 1, 0, 2]
    for many, one in zip(together, alone, strict=True):
        assert isinstance(many, list)
        for a, b in zip(many, one, strict=True):
            assert np.abs(a.points - b.points).max() < 1e-3


def test_images_are_read_as_they_are_needed(astronaut: Photo) -> None:
    read = 0

    def endless() -> Iterator[Photo]:
        nonlocal read
        while True:
            read += 1
            yield astronaut

    detector = Detector(98, device="cpu", batch_size=2, refine=0)
    results = detector.predict_many(endless(), workers=2)
    assert [len(next(results)) for _ in range(3)] == [1, 1, 1]  # type: ignore[arg-type]
    assert read <= 8


def test_an_unreadable_image_is_raised_or_handed_out_in_its_place(
    astronaut: Photo, detector_of: DetectorOf
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
    astronaut: Photo, detector_of: DetectorOf
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


def test_refining_corrects_a_bad_box(astronaut: Photo) -> None:
    good = Detector(98, device="cpu", refine=1)
    (face,) = good.predict(astronaut)
    box = tight_boxes(face.points)
    side = (box[2:] - box[:2]).max()
    bad = box + np.array([0.12, 0.1, 0.12, 0.1], np.float32) * side
    errors = []
    for refine in (0, 2):
        detector = Detector(98, device="cpu", refine=refine)
        (found,) = detector.predict(astronaut, boxes=bad, box_kind="landmarks")
        errors.append(np.linalg.norm(found.points - face.points, axis=1).mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("refine", "flip_test", "right", "wrong"),
    [(0, False, 1, 1), (0, True, 2, 2), (1, False, 1, 2), (1, True, 2, 3), (3, True, 2, 3)],
)
def test_the_network_runs_no_more_often_than_the_box_needs(
    refine: int, flip_test: bool, right: int, wrong: int, astronaut: Photo
) -> None:
    """A crop is cut anew only where the points say so, and its mirror image only of the last."""
    detector = Detector(68, device="cpu", refine=refine, flip_test=flip_test)
    runtime = detector.runtime
    crops_run = 0

    def counting(crops: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor | None]:
        nonlocal crops_run
        crops_run += len(crops)
        return runtime(crops)

    detector.runtime = counting  # type: ignore[assignment]
    (face,) = detector.predict(astronaut)
    box = tight_boxes(face.points)
    for moved, expected in ((0, right), (0.15 * (box[2] - box[0]), wrong)):
        crops_run = 0
        detector.predict(astronaut, boxes=box + moved, box_kind="landmarks")
        assert crops_run == expected


def test_both_decoders_find_the_same_face(astronaut: Photo, detector_of: DetectorOf) -> None:
    (face,) = detector_of(98).predict(astronaut)
    (other,) = Detector(98, device="cpu", decoder="argmax").predict(astronaut)
    distance = np.linalg.norm(face.points - other.points, axis=1).mean()
    assert 0 < distance < 0.1 * face.interocular


def test_covariances_are_those_of_a_distribution(astronaut: Photo, detector_of: DetectorOf) -> None:
    (face,) = detector_of(98).predict(astronaut)
    assert (np.linalg.eigvalsh(face.covariance) > 0).all()
    assert ((face.scores >= 0) & (face.scores <= 1)).all()
    (doubled,) = detector_of(98).predict(
        np.array(Image.fromarray(astronaut).resize((1024, 1024), Image.Resampling.BICUBIC))
    )
    ratio = np.median(np.linalg.det(doubled.covariance) / np.linalg.det(face.covariance))
    assert 8 < ratio < 32, "areas grow fourfold, so determinants sixteenfold"


class OneBox:
    """A face detector of the user's own, that always finds the middle of the image."""

    name = "mtcnn"

    def detect(self, images: list[Photo]) -> list[Detections]:
        return [Detections(np.array([[180, 61, 267, 172]]), np.array([0.5])) for _ in images]


def test_a_face_detector_of_ones_own_is_used(astronaut: Photo) -> None:
    (face,) = Detector(98, device="cpu", face_detector=OneBox()).predict(astronaut)
    assert face.box_score == 0.5
    assert face.box.tolist() == [180, 61, 267, 172]


def test_auto_says_which_device_it_took(caplog: pytest.LogCaptureFixture) -> None:
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
        ({"weights": "nowhere.safetensors"}, WeightsError, r"nowhere\.safetensors"),
        ({"face_detector": "haar"}, ConfigurationError, "'mtcnn', 'centerface'"),
        ({"refine": -1}, ConfigurationError, "refine"),
        ({"batch_size": 0}, ConfigurationError, "batch_size"),
        ({"decoder": "guess"}, ConfigurationError, "local_soft_argmax"),
        ({"runtime": "tensorflow"}, ConfigurationError, "openvino"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Detector(**arguments)


def test_an_unknown_kind_of_box_lists_the_known_ones(
    astronaut: Photo, detector_of: DetectorOf
) -> None:
    with pytest.raises(ConfigurationError, match="centerface, landmarks, mtcnn"):
        detector_of(98).predict(astronaut, boxes=[[0, 0, 50, 50]], box_kind="yolo")


def test_the_map_from_boxes_is_the_cards(detector_of: DetectorOf) -> None:
    detector = detector_of(98)
    entry = detector.card.crop["boxes"]["mtcnn"]
    assert detector.box_map("mtcnn") == BoxMap(tuple(entry["shift"]), entry["scale"])


def test_points_that_fall_together_still_have_a_crop(
    astronaut: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector(29, device="cpu", refine=1)

    def collapsed(integer: torch.Tensor, *_: Any, **__: Any) -> Decoded:
        points = torch.full((len(integer), 29, 2), 100.0)
        covariance = torch.eye(2).tile(len(integer), 29, 1, 1)
        return Decoded(points, points[..., 0] / 100, covariance, points[..., 0] > 0)

    monkeypatch.setattr("hihlandmark.detector.decode", collapsed)
    (face,) = detector.predict(astronaut, boxes=[[180, 61, 267, 172]])
    assert np.isfinite(face.points).all()


def test_an_empty_heatmap_is_a_point_of_score_zero_and_harms_no_other(astronaut: Photo) -> None:
    detector = Detector(68, "awing-small", device="cpu")
    (face,) = detector.predict(astronaut)
    runtime = detector.runtime

    def emptied(crops: NDArray[np.uint8]) -> Heatmaps:
        maps = runtime(crops)
        integer = maps.integer.clone()
        integer[:, [30, 48, 54]] = -0.1  # the tip of the nose and the mouth's corners, mirrored too
        return maps._replace(integer=integer)

    detector.runtime = emptied  # type: ignore[assignment]
    (found,) = detector.predict(astronaut)
    empty = np.isin(np.arange(68), [30, 48, 54])
    apart = np.linalg.norm(found.points - face.points, axis=1) / face.interocular
    assert apart[~empty].max() < 0.05
    assert np.isfinite(found.points).all()
    assert np.isfinite(found.covariance).all()
    assert (found.scores[empty] < 0.02).all()
    assert (found.scores[~empty] > found.scores[empty].max()).all()


@pytest.mark.parametrize("layout", [98, 68, 29])
def test_a_hidden_part_of_the_face_is_where_the_rest_says(layout: int, astronaut: Photo) -> None:
    """A gray square over one eye: with the shape prior its points stay nearer to the true ones."""
    plain = Detector(layout, device="cpu", refine=0, shape_prior=False)
    with_prior = Detector(layout, device="cpu", refine=0)
    assert plain.shape_prior is None
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


def test_a_shape_prior_that_the_weights_do_not_bring_is_named(tmp_path: Path) -> None:
    card = find_weights("hih-small").card
    network = load_model("hih-small").network
    save_weights(tmp_path, card, network.state_dict())
    assert Detector(98, weights=tmp_path, device="cpu").shape_prior is None
    with pytest.raises(ConfigurationError, match="brings no shape prior of WFLW98"):
        Detector(98, weights=tmp_path, device="cpu", shape_prior=True)
