from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from builders import PLAIN, batches, tiny, write_set

from hihlandmark import ConfigurationError
from hihlandmark.datasets import read_faces
from hihlandmark.errors import DataError
from hihlandmark.layouts import W300_68, WFLW98, convert
from hihlandmark.training.config import TrainingSet
from hihlandmark.training.data import (
    Batch,
    TrainingBatches,
    UnlabeledBatch,
    shared_points,
    usable_faces,
)
from hihlandmark.training.schedule import Plan


def labeled(step: tuple[Batch, UnlabeledBatch | None]) -> Batch:
    return step[0]


def test_a_batch_has_the_points_of_the_face_and_those_shared_with_other_layouts(data: Path) -> None:
    batch = labeled(batches(data, augmentation=PLAIN, sets=[{"folder": "WFLW98"}])[0])
    assert batch.crops.shape == (3, 64, 64, 3)
    # The crop has 1.4 times the side of the tight box, and its center.
    expected = WFLW98.mean_shape * 64 / 1.4 + 31.5
    assert np.allclose(batch.points[0, :98], expected, atol=1e-3)
    assert (batch.weights[:, :98] == 1).all()
    assert set(np.unique(batch.weights[0, 98:])) == {0, np.float32(0.3)}
    to_68, exact = convert(expected, WFLW98, W300_68)
    given = batch.weights[0, 98 : 98 + 68].numpy() > 0
    assert np.array_equal(given, exact)
    assert np.allclose(batch.points[0, 98 : 98 + 68][given], to_68[exact], atol=1e-3)


def test_a_flipped_face_keeps_its_point_order(data: Path) -> None:
    """The mean shape is symmetric: only a wrong mirror table would move its points."""
    sets = [{"folder": "W300_68"}]
    flipped = batches(data, augmentation={**PLAIN, "flip": 1.0}, sets=sets)
    plain = batches(data, augmentation=PLAIN, sets=sets)
    assert np.allclose(labeled(flipped[0]).points, labeled(plain[0]).points, atol=0.6)


def test_ignored_points_have_no_weight(tmp_path: Path) -> None:
    points = W300_68.mean_shape * 70 + 60
    write_set(tmp_path / "set", points)
    own = slice(98, 98 + 68)
    sets = [{"folder": "set", "ignored": ["0-2", 40]}]
    batch = labeled(batches(tmp_path, augmentation=PLAIN, sets=sets)[0])
    unknown = {i for i, weight in enumerate(batch.weights[0, own]) if weight == 0}
    assert unknown == {0, 1, 2, 40}
    flipped = batches(tmp_path, augmentation={**PLAIN, "flip": 1.0}, sets=sets)
    weights = labeled(flipped[0]).weights[0, own]
    assert {i for i, weight in enumerate(weights) if weight == 0} == {16, 15, 14, 47}


def test_batches_depend_on_seed_and_step_only(data: Path) -> None:
    one, two, other = batches(data), batches(data), batches(data, seed=2)
    one[0], one[3]
    for a, b in zip(labeled(one[2]), labeled(two[2]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(labeled(one[2]).crops, labeled(one[1]).crops)
    assert not torch.equal(labeled(one[2]).crops, labeled(other[2]).crops)


def test_processes_together_have_the_samples_of_one_with_a_larger_batch(data: Path) -> None:
    stages = [{"steps": 3, "crop_size": 64, "batch_size": 2}]
    parts = [batches(data, p, 2, stages=stages)[1] for p in range(2)]
    whole = batches(data, stages=[{**stages[0], "batch_size": 4}])[1]
    assert torch.equal(torch.cat([labeled(p).crops for p in parts]), labeled(whole).crops)


def test_faces_without_a_box_are_skipped(tmp_path: Path) -> None:
    points = W300_68.mean_shape * 70 + 60
    write_set(tmp_path, points, faces=1)
    points[1:] = np.nan
    rows = (tmp_path / "annotations.jsonl").read_text()
    lone = rows.replace("\n", "").replace(rows.split('"points": ')[1].split(', "split"')[0], "LONE")
    lone = lone.replace("LONE", str([[3.0, 4.0]] + [None] * 67).replace("None", "null"))
    (tmp_path / "annotations.jsonl").write_text(rows + lone + "\n")
    faces = usable_faces(TrainingSet(), read_faces(tmp_path, "train"))
    assert len(faces) == 1
    assert faces.skipped == ["annotations.jsonl, line 2: no two points to cut a crop around"]
    with pytest.raises(DataError, match="no usable face"):
        usable_faces(TrainingSet(box_points=(1, 1)), faces)


def test_an_unreadable_image_is_replaced_and_counted(tmp_path: Path) -> None:
    write_set(tmp_path / "set", W300_68.mean_shape * 70 + 60)
    (tmp_path / "set" / "train_1.png").write_bytes(b"no image")
    some = batches(tmp_path, sets=[{"folder": "set"}], augmentation=PLAIN)
    assert sum(int(labeled(some[step]).unreadable.sum()) for step in range(4)) == 4
    for image in (tmp_path / "set").glob("*.png"):
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match="no image"):
        some[0]


def test_the_matrix_maps_the_plain_crop_to_the_augmented_one(data: Path) -> None:
    settings = {"sets": [{"folder": "W300_68"}], "layouts": ["WFLW98"], "start": 2, "faces": 2}
    geometry = {**PLAIN, "rotation_degrees": 20, "scale": 0.1, "shift": 0.05, "flip": 0.5}
    some = batches(data, augmentation=geometry, self_training=settings)
    assert some[1][1] is None, "self-training starts later"
    extra = some[2][1]
    assert extra is not None
    assert extra.plain.shape == extra.augmented.shape == (2, 64, 64, 3)
    for plain, augmented, matrix in zip(*extra, strict=True):
        # The middle of the plain crop, found again in the augmented one.
        x, y = (matrix[:, :2] @ torch.tensor([31.5, 31.5]) + matrix[:, 2]).tolist()
        moved = cv2.warpAffine(plain.numpy(), matrix.double().numpy(), (64, 64))
        near = np.s_[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8]
        a, b = (np.float64(crop[near]).ravel() for crop in (moved, augmented.numpy()))
        assert np.corrcoef(a, b)[0, 1] > 0.5


def test_shared_points_go_both_ways() -> None:
    shared = shared_points({"WFLW98": 0, "W300_68": 98, "COFW29": 166})
    source, target = shared["W300_68"]
    pairs = set(zip(source.tolist(), target.tolist(), strict=True))
    assert (36, 60) in pairs, "outer corner of the left eye in WFLW's 98"
    assert (36, 166 + 8) in pairs, "and in COFW's 29"
    back = set(zip(*(column.tolist() for column in shared["WFLW98"]), strict=True))
    assert (60, 98 + 36) in back


def test_a_set_must_have_the_points_that_it_names(data: Path) -> None:
    for change in ({"ignored": [29]}, {"box_points": [29]}):
        with pytest.raises(ConfigurationError, match="point 29"):
            batches(data, sets=[{"folder": "COFW29", **change}])


def test_a_set_must_have_a_trained_layout(data: Path) -> None:
    configuration = tiny(sets=[{"folder": "COFW29"}])
    plan = Plan(configuration, 3)
    faces = [read_faces(data / "COFW29", "train")]
    with pytest.raises(ConfigurationError, match="COFW29"):
        TrainingBatches(configuration, plan, {"WFLW98": 98}, faces)
