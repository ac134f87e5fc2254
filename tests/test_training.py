import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hihlandmark import ConfigurationError
from hihlandmark.heatmap import gaussian
from hihlandmark.layouts import COFW29, W300_68, WFLW98, convert
from hihlandmark.models import registry
from hihlandmark.training import loop
from hihlandmark.training.augmentation import Augmentation
from hihlandmark.training.datasets import TrainingBatches, lent_points
from hihlandmark.training.losses import csc, heatmap_mse, soft_label_cross_entropy
from hihlandmark.training.recipes import RECIPES, Recipe, Stage, TrainingSet, shortened

LAYOUTS = {"WFLW98": 98, "W300_68": 68, "COFW29": 29}
PLAIN = Augmentation(
    rotation_degrees=0,
    scale=0,
    shift=0,
    flip=0,
    colour=0,
    grey=0,
    blur=0,
    shrink=0,
    jpeg=0,
    occlusion=0,
)


def log_softmax(values: list[float]) -> list[float]:
    total = math.log(sum(map(math.exp, values)))
    return [value - total for value in values]


def test_losses_equal_hand_computed_values() -> None:
    predicted = torch.tensor([[[0.5, -1.0], [2.0, 0.0]]])
    target = torch.tensor([[[0.0, 0.0], [1.0, 0.5]]])
    assert heatmap_mse(predicted, target).item() == pytest.approx((0.25 + 1 + 1 + 0.25) / 4)
    p, q = log_softmax([0.5, -1, 2, 0]), log_softmax([0, 0, 1, 0.5])
    kl = sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
    assert csc(predicted, target).item() == pytest.approx(kl, rel=1e-5)
    entropy = -(p[2] * 1 + p[3] * 0.5) / 1.5
    assert soft_label_cross_entropy(predicted, target).item() == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("loss", [heatmap_mse, csc, soft_label_cross_entropy])
def test_losses_pass_the_gradient_check(loss) -> None:
    predicted = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    target = gaussian(torch.tensor([[1.0, 1.0], [2.0, 0.0]], dtype=torch.float64), 3, 1.0)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (predicted,))


def write_set(root: Path, name: str, points: np.ndarray, pictures: int = 3) -> None:
    folder = root / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(pictures):
        noise = rng.integers(0, 256, (120, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "points": points.tolist(), "split": "train"})
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "annotations.jsonl").write_text(lines, encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for layout in (WFLW98, W300_68, COFW29):
        write_set(root, layout.name, layout.mean_shape * 70 + 60)
    mirrors = {str(x.size): {"flip": x.mirror.tolist()} for x in (WFLW98, W300_68, COFW29)}
    (root / "points.json").write_text(json.dumps(mirrors))
    return root


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Six steps of a network of a few thousand parameters on crops of 128 pixels."""
    tiny: Mapping[str, object] = {
        "stacks": 1,
        "features": 8,
        "depth": 3,
        "decimal_features": 8,
        "input_size": 128,
        "layouts": LAYOUTS,
        "auxiliary_layouts": {},
    }
    models = {**registry.MODELS, "tiny": registry.ModelEntry("hih", tiny)}
    monkeypatch.setattr(loop, "MODELS", models)
    sets = tuple(TrainingSet(name, name, 1.0, 1.4) for name in LAYOUTS)
    stages = (Stage(4, 64, 3, 1e-2, warm_up=2), Stage(2, 128, 2, 1e-3, warm_up=1))
    return Recipe("tiny", sets, {}, stages)


def test_a_batch_holds_each_faces_own_points_and_those_it_lends(data: Path, recipe: Recipe) -> None:
    plain = replace(recipe, augmentation=PLAIN, sets=(TrainingSet("WFLW98", "WFLW98", 1, 1.4),))
    batch = TrainingBatches(data, plain, LAYOUTS)[0]
    assert batch.crops.shape == (3, 64, 64, 3)
    # The tight box's longer side is 1/1.4 of the crop, its centre the crop's.
    expected = WFLW98.mean_shape * 64 / 1.4 + 31.5
    assert np.allclose(batch.points[0, :98], expected, atol=1e-3)
    assert (batch.weights[:, :98] == 1).all()
    lent = batch.weights[0, 98:].numpy()
    assert set(np.unique(lent)) == {0, np.float32(recipe.shared_weight)}
    to_68, exact = convert(expected, WFLW98, W300_68)
    given = batch.weights[0, 98 : 98 + 68].numpy() > 0
    assert np.array_equal(given, exact)
    assert np.allclose(batch.points[0, 98 : 98 + 68][given], to_68[exact], atol=1e-3)


def test_a_flipped_face_keeps_its_point_order(data: Path, recipe: Recipe) -> None:
    """The mean shape is its own mirror image: only a wrong mirror table would move its points."""
    sets = (TrainingSet("W300_68", "W300_68", 1, 1.4),)
    flipped = replace(recipe, augmentation=replace(PLAIN, flip=1.0), sets=sets)
    plain = replace(recipe, augmentation=PLAIN, sets=sets)
    a = TrainingBatches(data, flipped, LAYOUTS)[0].points
    b = TrainingBatches(data, plain, LAYOUTS)[0].points
    assert np.allclose(a, b, atol=0.6)


def test_points_outside_of_the_crop_are_not_taught(data: Path, recipe: Recipe) -> None:
    close = replace(
        recipe, augmentation=PLAIN, sets=(TrainingSet("COFW29", "COFW29", 1, box_scale=0.8),)
    )
    batch = TrainingBatches(data, close, LAYOUTS)[0]
    own = batch.weights[0, 98 + 68 :].numpy()
    points = batch.points[0, 98 + 68 :].numpy()
    outside = ((points < -0.5) | (points >= 63.5)).any(axis=1)
    assert outside.any()
    assert np.array_equal(own == 0, outside)


def test_batches_depend_on_seed_and_step_alone(data: Path, recipe: Recipe) -> None:
    one, two = (TrainingBatches(data, recipe, LAYOUTS) for _ in range(2))
    one[0], one[3]
    for a, b in zip(one[2], two[2], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one[2].crops, one[1].crops)


@pytest.mark.parametrize("size", [64, 128])
def test_looks_change_pixels_and_keep_the_shape(size: int) -> None:
    loud = Augmentation(colour=1, grey=1, blur=1, shrink=1, jpeg=1, occlusion=1)
    crop = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    changed = loud.look(crop.copy(), np.random.default_rng(2))
    assert changed.shape == crop.shape
    assert changed.dtype == np.uint8
    assert np.any(changed != crop)


def test_lent_points_go_both_ways() -> None:
    lent = lent_points({"WFLW98": 0, "W300_68": 98, "COFW29": 166})
    source, target = lent["W300_68"]
    pairs = set(zip(source.tolist(), target.tolist(), strict=True))
    assert (36, 60) in pairs, "outer corner of the left eye in WFLW's 98"
    assert (36, 166 + 8) in pairs, "and in COFW's 29"
    back = set(zip(*(column.tolist() for column in lent["WFLW98"]), strict=True))
    assert (60, 98 + 36) in back


def test_the_learning_rate_warms_up_and_falls_in_every_stage(recipe: Recipe) -> None:
    rates = [loop.learning_rate(recipe, step) for step in range(recipe.steps)]
    assert rates[0] < rates[1] > rates[2] > rates[3]
    assert rates[4] == pytest.approx(1e-3)
    assert rates[5] < rates[4]


def run(recipe: Recipe, data: Path, folder: Path, **options) -> dict[str, torch.Tensor]:
    checkpoint = loop.train(
        recipe, data, folder, device=torch.device("cpu"), workers=0, save_every=1, **options
    )
    return loop.read_average(checkpoint)


class Killed(Exception):
    """Stands for a signal between two steps."""


def test_a_killed_run_ends_as_one_that_was_not(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(recipe, data, tmp_path / "whole")
    save = loop._save

    def save_or_die(checkpoint, parts, recipe, step):
        if step == 4:
            raise Killed
        save(checkpoint, parts, recipe, step)

    monkeypatch.setattr(loop, "_save", save_or_die)
    with pytest.raises(Killed):
        run(recipe, data, tmp_path / "killed")
    monkeypatch.setattr(loop, "_save", save)
    resumed = run(recipe, data, tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    log = (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_training_lowers_the_loss_of_every_kind(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    for loss in ("cross_entropy", "paper"):
        longer = replace(
            recipe, stages=(Stage(40, 64, 3, 1e-2, warm_up=2),), augmentation=PLAIN, loss=loss
        )
        run(longer, data, tmp_path / loss)
        rows = [json.loads(x) for x in (tmp_path / loss / "log.jsonl").read_text().splitlines()]
        assert rows[-1]["integer"] < 0.96 * rows[0]["integer"], loss


def test_a_run_folder_of_another_recipe_is_refused(
    data: Path, recipe: Recipe, tmp_path: Path
) -> None:
    run(recipe, data, tmp_path / "run")
    with pytest.raises(ConfigurationError, match="another recipe"):
        run(replace(recipe, seed=2), data, tmp_path / "run")


def test_data_without_points_json_or_with_other_points_is_named(data: Path, recipe: Recipe) -> None:
    other = replace(recipe, sets=(TrainingSet("COFW29", "W300_68", 1, 1.4),))
    with pytest.raises(ConfigurationError, match="29 points a face"):
        TrainingBatches(data, other, LAYOUTS)
    (data / "points.json").unlink()
    with pytest.raises(ConfigurationError, match=r"points\.json"):
        TrainingBatches(data, recipe, LAYOUTS)


def test_recipes_can_be_shortened_and_started_late() -> None:
    recipe = RECIPES["hih-small"]
    assert shortened(recipe, 0.01).steps < recipe.steps / 50
    assert shortened(recipe, first_stage=2).stages == recipe.stages[1:]
    with pytest.raises(ConfigurationError, match="stages 1 to"):
        shortened(recipe, first_stage=9)
