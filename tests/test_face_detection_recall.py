from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.data import astronaut
from typer.testing import CliRunner

from hihlandmark.cli import app
from hihlandmark.errors import DataError
from hihlandmark.evaluation.detection import is_found, read_boxes

WIDER = """0--Parade/one.jpg
2
178 62 90 110 0 0 0 0 0 0
10 20 5 6 2 0 0 1 0 0
0--Parade/none.jpg
0
0 0 0 0 0 0 0 0 0 0
"""


@pytest.fixture
def wider(tmp_path: Path) -> Path:
    folder = tmp_path / "WIDER_val" / "images" / "0--Parade"
    folder.mkdir(parents=True)
    for name in ("one", "none"):
        image = astronaut() if name == "one" else np.zeros((90, 90, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{name}.jpg"), image[..., ::-1])
    (tmp_path / "wider_face_split").mkdir()
    (tmp_path / "wider_face_split" / "wider_face_val_bbx_gt.txt").write_text(WIDER)
    return tmp_path


def test_boxes_of_wider_face_are_read_with_edges_between_pixels(wider):
    one, none = read_boxes(wider)
    np.testing.assert_array_equal(one.boxes[0], [177.5, 61.5, 267.5, 171.5])
    assert one.ignored.tolist() == [False, True]
    assert len(none.boxes) == len(none.ignored) == 0
    assert one.path.is_file()


def test_eval_counts_the_faces_that_are_found(wider):
    options = ["eval", "--detector", "mtcnn", "--data", str(wider), "--json"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(each["faces"], each["found"]) for each in report["recall"]] == [(1, 1), (1, 1)]
    assert report["boxes_per_image"] == 0.5
    assert (report["runtime"], report["precision"]) == ("torch", "fp32")
    assert (report["detection_size"], report["min_face"], report["min_score"]) == (640, 20, 0.71)
    refused = CliRunner().invoke(app, [*options, "--out", "report"])
    assert refused.exit_code == 2
    assert "recall alone" in refused.stderr


def test_eval_refuses_options_without_effect_on_recall(tmp_path):
    options = ["eval", "--detector", "mtcnn", "--data", str(tmp_path)]
    without_effect = ["--face-detector", "blazeface", "--refine", "0", "--no-flip-test"]
    without_effect += ["--boxes", "labels", "--weights", "w", "-o", "x"]
    refused = CliRunner().invoke(app, [*options, *without_effect], env={"COLUMNS": "300"})
    assert refused.exit_code == 2
    for option in ("--face-detector", "--refine", "--flip-test", "--boxes", "--weights", "--out"):
        assert option in refused.stderr
    with_effect = ["--device", "cpu", "--runtime", "torch", "--precision", "fp32", "--json"]
    with_effect += ["--min-face", "30", "--min-box-score", "0.8", "--detection-size", "auto"]
    taken = CliRunner().invoke(app, [*options, *with_effect])
    assert taken.exit_code != 2, "there are no boxes"
    assert "omit" not in taken.stderr


def test_one_box_finds_one_face():
    faces = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60.0]])
    assert is_found(faces, faces[:1]).tolist() == [True, False, False]
    assert is_found(faces, np.zeros((0, 4))).tolist() == [False, False, False]


@pytest.mark.parametrize("text", ["", "a.jpg\nmany\n", '{"image": "a.jpg"}'])
def test_files_of_another_format_are_errors(tmp_path, text):
    (tmp_path / "boxes.jsonl").write_text(text)
    with pytest.raises(DataError):
        read_boxes(tmp_path)


def test_blank_lines_between_images_are_no_end(wider):
    path = wider / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    path.write_text(path.read_text().replace("0--Parade/none.jpg", "\n0--Parade/none.jpg"))
    assert len(read_boxes(wider)) == 2
