"""Why faces are found or not, and the second search of images without a face."""

import numpy as np
import pytest
from skimage.data import astronaut, chelsea
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector
from hihlandmark.cli import app
from hihlandmark.explanation import dropped_candidates
from hihlandmark.face_detection import AutoSizeFaceDetector, Detections, make_face_detector


class OptionFaceDetector:
    """Knows all faces of an image, and returns those that its options admit.

    ``faces``: rows of box and score; the face detector sees them from ``needs`` on.
    """

    name = "mtcnn"

    def __init__(self, faces, needs=0, detection_size=100):
        self.faces, self.needs = np.array(faces, float).reshape(-1, 5), needs
        self.detection_size, self.min_face, self.min_score = detection_size, 20, 0.7
        self.searched = []

    def detect(self, images):
        self.searched.append((images[0].shape[:2], self.detection_size))
        sides = (self.faces[:, 2:4] - self.faces[:, :2]).max(axis=1, initial=0)
        sides = sides if len(self.faces) else np.zeros(0)
        kept = (sides >= self.min_face) & (self.faces[:, 4] >= self.min_score)
        kept &= self.detection_size >= self.needs
        return [Detections(self.faces[kept, :4], self.faces[kept, 4]) for _ in images]


@pytest.fixture(scope="module")
def detector():
    return Detector(29)


def test_every_reason_is_named():
    image = np.zeros((300, 300, 3), np.uint8)
    faces = [
        (10, 10, 60, 60, 0.9),
        (100, 100, 110, 112, 0.9),  # small
        (150, 150, 190, 190, 0.3),  # low score
        (12, 10, 62, 60, 0.8),  # overlaps the first
    ]
    search = OptionFaceDetector(faces)
    found = Detections([faces[0][:4]], [0.9])
    dropped, reasons = dropped_candidates(search, image, found)
    np.testing.assert_array_equal(dropped.boxes, [each[:4] for each in faces[1:]])
    for reason, word in zip(reasons, ("small", "score", "overlap"), strict=True):
        assert word in reason
    assert (search.min_face, search.min_score) == (20, 0.7)


def test_a_larger_search_is_proposed():
    search = OptionFaceDetector([(10, 10, 60, 60, 0.9)], needs=200)
    _, (reason,) = dropped_candidates(search, np.zeros((300, 300, 3), np.uint8), Detections.none())
    assert "detection_size=200" in reason


def test_a_face_of_low_reliability_is_named_and_dropped(detector):
    explained = detector.explain(astronaut(), min_reliability=1.0)
    assert [each.is_found for each in explained.candidates] == [False]
    assert "unreliable" in explained.table().markdown()
    assert detector.predict(astronaut(), min_reliability=1.0) == []
    assert len(next(iter(detector.predict_many([astronaut()], min_reliability=0.5)))) == 1
    drawn = explained.draw()
    assert drawn.shape == astronaut().shape
    assert (drawn != astronaut()).any()


def test_found_and_small_faces_are_explained(detector):
    (candidate,) = detector.explain(astronaut()).candidates
    assert candidate.is_found
    strict = detector.with_options(min_face=200)
    (candidate,) = strict.explain(astronaut()).candidates
    assert "min_face" in candidate.reason
    assert detector.explain(np.zeros((64, 64, 3), np.uint8)).candidates == []


def test_auto_searches_once_more_only_when_nothing_is_found():
    image = np.zeros((300, 300, 3), np.uint8)
    seen = OptionFaceDetector([(10, 10, 60, 60, 0.9)])
    assert len(AutoSizeFaceDetector(seen).detect([image])[0]) == 1
    assert len(seen.searched) == 1

    hidden = OptionFaceDetector([(10, 10, 60, 60, 0.9)], needs=200)
    assert len(AutoSizeFaceDetector(hidden).detect([image])[0]) == 1
    assert [size for _, size in hidden.searched] == [100, 200]

    none = OptionFaceDetector([])
    assert len(AutoSizeFaceDetector(none).detect([image[:80, :80]])[0]) == 0
    assert [shape for shape, _ in none.searched] == [(80, 80), (120, 120)]


def test_auto_returns_boxes_in_pixels_of_the_image():
    class AroundBright:
        name = "mtcnn"

        def detect(self, images):
            (image,) = images
            if len(image) < 100:
                return [Detections.none(five_points=True)]
            rows, columns = np.nonzero(image[..., 0])
            box = [columns.min(), rows.min(), columns.max(), rows.max()]
            return [Detections([box], [0.9], np.full((1, 5, 2), box[:2]))]

    image = np.zeros((80, 60, 3), np.uint8)
    image[30:50, 10:40] = 255
    (found,) = make_face_detector(AroundBright(), detection_size="auto").detect([image])
    np.testing.assert_array_equal(found.boxes, [[10, 30, 39, 49]])
    np.testing.assert_array_equal(found.five_points[0, 0], [10, 30])


def test_the_command_explains_one_image(tmp_path):
    from PIL import Image

    for name, image in {"cat": chelsea(), "face": astronaut()}.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    run = CliRunner().invoke
    command = ["predict", "--layout", "29", "--explain", "--detection-size", "auto"]
    face = run(app, [*command, str(tmp_path / "face.png"), "--out", str(tmp_path / "out")])
    assert face.exit_code == 0
    assert "found" in face.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["explanation.png"]
    assert run(app, [*command, str(tmp_path)]).exit_code == 2
    assert run(app, [*command[:-1], "large", str(tmp_path / "cat.png")]).exit_code == 2


def test_the_command_explains_a_very_large_image_as_predict_reads_it(tmp_path, monkeypatch):
    from PIL import Image

    path, out = tmp_path / "face.png", tmp_path / "out"
    Image.fromarray(astronaut()).save(path)
    monkeypatch.setattr("hihlandmark.image.LARGE_PIXELS", 200_000)
    command = ["predict", str(path), "--layout", "29", "--explain", "--out", str(out)]
    assert CliRunner().invoke(app, command).exit_code == 0
    with Image.open(out / "explanation.png") as drawing:
        assert drawing.size == (256, 256)


def test_a_limit_outside_of_0_to_1_is_refused(detector):
    with pytest.raises(ConfigurationError, match="min_reliability"):
        detector.predict(astronaut(), min_reliability=2)


@pytest.mark.parametrize("limit", [2, "x", float("nan")])
def test_the_limit_of_an_explanation_is_checked(detector, limit):
    with pytest.raises(ConfigurationError, match="min_reliability"):
        detector.explain(astronaut(), min_reliability=limit)
