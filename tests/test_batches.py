from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import LAYOUTS, PLAIN, tiny, write_set

from hihlandmark import ConfigurationError
from hihlandmark.crop import tight_boxes
from hihlandmark.datasets import read_faces
from hihlandmark.errors import DataError
from hihlandmark.layouts import W300_68, WFLW98, convert
from hihlandmark.training.config import TrainingSet
from hihlandmark.training.data import (
    Batch,
    TrainingBatches,
    UnlabeledBatch,
    lent_points,
    usable_faces,
)
from hihlandmark.training.schedule import Plan


def batches(data: Path, process: int = 0, processes: int = 1, **changes: Any) -> TrainingBatches:
    configuration = tiny(**changes)
    sets = [
        usable_faces(s, read_faces(data / s.folder, s.split, layout=s.layout))
        for s in configuration.sets
    ]
    settings = configuration.self_training
    unlabeled = [read_faces(data / s.folder, s.split) for s in settings.sets] if settings else []
    plan = Plan(
        configuration, sum(map(len, sets)), processes * configuration.optimizer.accumulation
    )
    return TrainingBatches(configuration, plan, LAYOUTS, sets, unlabeled, process, processes)


def labeled(step: tuple[Batch, UnlabeledBatch | None]) -> Batch:
    return step[0]


def test_a_batch_holds_each_faces_own_points_and_those_it_lends(data: Path) -> None:
    batch = labeled(batches(data, augmentation=PLAIN, sets=[{"folder": "WFLW98"}])[0])
    assert batch.crops.shape == (3, 64, 64, 3)
    # The tight box's longer side is 1/1.4 of the crop, its center the crop's.
    expected = WFLW98.mean_shape * 64 / 1.4 + 31.5
    assert np.allclose(batch.points[0, :98], expected, atol=1e-3)
    assert (batch.weights[:, :98] == 1).all()
    lent = batch.weights[0, 98:].numpy()
    assert set(np.unique(lent)) == {0, np.float32(0.3)}
    to_68, exact = convert(expected, WFLW98, W300_68)
    given = batch.weights[0, 98 : 98 + 68].numpy() > 0
    assert np.array_equal(given, exact)
    assert np.allclose(batch.points[0, 98 : 98 + 68][given], to_68[exact], atol=1e-3)


def test_a_flipped_face_keeps_its_point_order(data: Path) -> None:
    """The mean shape is its own mirror image: only a wrong mirror table would move its points."""
    sets = [{"folder": "W300_68"}]
    flipped = batches(data, augmentation={**PLAIN, "flip": 1.0}, sets=sets)
    plain = batches(data, augmentation=PLAIN, sets=sets)
    assert np.allclose(labeled(flipped[0]).points, labeled(plain[0]).points, atol=0.6)


def test_points_outside_of_the_crop_are_not_taught(data: Path) -> None:
    sets = [{"folder": "COFW29", "box_scale": 0.8}]
    batch = labeled(batches(data, augmentation=PLAIN, sets=sets)[0])
    own = batch.weights[0, 98 + 68 :].numpy()
    points = batch.points[0, 98 + 68 :].numpy()
    outside = ((points < -0.5) | (points >= 63.5)).any(axis=1)
    assert outside.any()
    assert np.array_equal(own == 0, outside)


def test_unknown_and_ignored_points_are_not_taught(tmp_path: Path) -> None:
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


def test_a_tighter_crop_enlarges_the_face(data: Path) -> None:
    def face_side(scale: float) -> float:
        tight = batches(
            data, augmentation=PLAIN, sets=[{"folder": "WFLW98"}], canonical_scale=scale
        )
        box = tight_boxes(labeled(tight[0]).points[0, :98].double().numpy())
        return float((box[2:] - box[:2]).max())

    assert face_side(1.2) == pytest.approx(64 / 1.2, rel=1e-3)
    assert face_side(1.4) == pytest.approx(64 / 1.4, rel=1e-3)


def test_batches_depend_on_seed_and_step_alone(data: Path) -> None:
    one, two, other = batches(data), batches(data), batches(data, seed=2)
    one[0], one[3]
    for a, b in zip(labeled(one[2]), labeled(two[2]), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(labeled(one[2]).crops, labeled(one[1]).crops)
    assert not torch.equal(labeled(one[2]).crops, labeled(other[2]).crops)


def test_processes_see_together_what_one_with_a_larger_batch_sees(data: Path) -> None:
    stages = [{"steps": 3, "crop_size": 64, "batch_size": 2}]
    parts = [batches(data, p, 2, stages=stages)[1] for p in range(2)]
    whole = batches(data, stages=[{**stages[0], "batch_size": 4}])[1]
    assert torch.equal(torch.cat([labeled(p).crops for p in parts]), labeled(whole).crops)


def test_faces_without_a_box_are_left_out_and_named(tmp_path: Path) -> None:
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
    with pytest.raises(DataError, match="20 images in a row"):
        some[0]


def test_the_students_crop_lies_where_the_matrix_says(data: Path) -> None:
    settings = {"sets": [{"folder": "W300_68"}], "layouts": ["WFLW98"], "start": 2, "faces": 2}
    geometry = {**PLAIN, "rotation_degrees": 20, "scale": 0.1, "shift": 0.05, "flip": 0.5}
    some = batches(data, augmentation=geometry, self_training=settings)
    assert some[1][1] is None, "the teacher waits"
    extra = some[2][1]
    assert extra is not None
    assert extra.plain.shape == extra.augmented.shape == (2, 64, 64, 3)
    for plain, augmented, matrix in zip(*extra, strict=True):
        # The middle of the plain crop, found again in the augmented one.
        x, y = (matrix[:, :2] @ torch.tensor([31.5, 31.5]) + matrix[:, 2]).tolist()
        import cv2

        moved = cv2.warpAffine(plain.numpy(), matrix.double().numpy(), (64, 64))
        near = np.s_[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8]
        a, b = (np.float64(crop[near]).ravel() for crop in (moved, augmented.numpy()))
        assert np.corrcoef(a, b)[0, 1] > 0.5


def test_lent_points_go_both_ways() -> None:
    lent = lent_points({"WFLW98": 0, "W300_68": 98, "COFW29": 166})
    source, target = lent["W300_68"]
    pairs = set(zip(source.tolist(), target.tolist(), strict=True))
    assert (36, 60) in pairs, "outer corner of the left eye in WFLW's 98"
    assert (36, 166 + 8) in pairs, "and in COFW's 29"
    back = set(zip(*(column.tolist() for column in lent["WFLW98"]), strict=True))
    assert (60, 98 + 36) in back


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([{"folder": "COFW29", "ignored": [29]}], "name point 29; it has 29"),
        ([{"folder": "COFW29", "box_points": [400]}], "name point 400"),
    ],
)
def test_sets_that_do_not_fit_the_run_are_refused(data: Path, sets: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        batches(data, sets=sets)


def test_a_set_of_a_layout_that_is_not_learned_is_refused(data: Path) -> None:
    configuration = tiny(sets=[{"folder": "COFW29"}])
    plan = Plan(configuration, 3)
    faces = [read_faces(data / "COFW29", "train")]
    with pytest.raises(ConfigurationError, match="COFW29, which this run does not learn"):
        TrainingBatches(configuration, plan, {"WFLW98": 98}, faces)
