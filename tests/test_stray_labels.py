"""Training, evaluation, calibration and packing leave out labels that cannot be right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import PLAIN, batches, write_set
from numpy.typing import NDArray
from PIL import Image

from hihlandmark import Detector
from hihlandmark.calibration.fit import measure_points
from hihlandmark.datasets import packed, read_faces
from hihlandmark.datasets.inspection import before_and_after, inspect_split
from hihlandmark.evaluation.protocol import evaluate
from hihlandmark.layouts import W300_68

POINTS = W300_68.mean_shape * 70 + 60
"""Of images of 120 x 120 pixels, in a file of 6 lines: 2 are good, 3 skipped, 1 is far outside."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", POINTS, faces=2)
    path = tmp_path / "set" / "annotations.jsonl"
    good = json.loads(path.read_text().splitlines()[0])
    far = {**good, "points": [[-1300, 0], *good["points"][1:]]}
    lines = [
        json.dumps({**good, "points": [[x, 0], *good["points"][1:]]}) for x in (1e308, 10**400)
    ]
    path.write_text(path.read_text() + "\n".join([*lines, "[" * 100_000, json.dumps(far)]) + "\n")
    return tmp_path


def test_training_goes_on_with_the_other_faces(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = batches(data, sets=[{"folder": "set"}], augmentation=PLAIN)
    loaded = [some[step][0] for step in range(4)]
    assert len(some.faces.faces[0]) == 3
    assert sum(int(batch.unreadable.sum()) for batch in loaded) == 4  # a third of 12 samples
    assert all(np.isfinite(batch.points).all() for batch in loaded)
    assert "train_0.png#2 of set is skipped: its point 0" in caplog.text


def test_counting_and_packing_name_them(data: Path, tmp_path: Path) -> None:
    faces = read_faces(data / "set", "train")
    content = inspect_split(faces)
    assert [len(content.skipped), len(content.unreadable or ())] == [3, 1]
    pytest.importorskip("datasets")
    report = packed.pack([faces], tmp_path / "pack")
    assert (report.faces, len(report.skipped)) == (2, 4)


def test_a_face_of_one_point_can_be_shown(tmp_path: Path) -> None:
    write_set(tmp_path, np.full((68, 2), 20.0))
    assert before_and_after(read_faces(tmp_path, "train"), [0], None).any()


@pytest.mark.parametrize("points", [np.full((68, 2), np.inf), np.full((68, 2), np.nan), POINTS[:5]])
def test_a_bad_row_of_a_pack_is_skipped(tmp_path: Path, points: NDArray[np.floating]) -> None:
    datasets = pytest.importorskip("datasets")
    write_set(tmp_path / "set", POINTS, faces=3)
    packed.pack([read_faces(tmp_path / "set", "train")], tmp_path / "pack")
    table = tmp_path / "pack" / packed.TABLE
    rows = list(datasets.Dataset.from_file(str(table)))
    rows[1]["points"] = points.ravel().tolist()
    with packed._table_writer(tmp_path / "new.arrow") as write:
        for row in rows:
            write(row)
    (tmp_path / "new.arrow").replace(table)
    faces = read_faces(tmp_path / "pack", "train")
    assert len(faces) == 2
    assert [message.partition(": ")[0] for message in faces.skipped] == ["faces.arrow, row 1"]


def test_evaluation_and_calibration_leave_them_out(
    data: Path, astronaut: NDArray[np.uint8], detector: Detector
) -> None:
    for image in (data / "set").glob("*.png"):
        Image.fromarray(astronaut[60:180, 160:280]).save(image)
    faces = read_faces(data / "set", "train")
    evaluation = evaluate(detector, faces)
    assert (len(evaluation), len(evaluation.skipped)) == (2, 4)
    assert "10 sides outside" in evaluation.skipped[-1]
    (message,) = measure_points(detector, faces).skipped
    assert message.startswith("train_0.png#2: its point 0")
