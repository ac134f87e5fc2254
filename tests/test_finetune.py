"""`hihlandmark finetune`: splits, layout files, new heads, weights that hold their layout."""

import json
import multiprocessing
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import PLAIN, annotated, split_of, tiny
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, DataError, Detector, Face, WeightsError
from hihlandmark.cli import app
from hihlandmark.crop import crop_matrix
from hihlandmark.datasets import dataset_splits, read_faces
from hihlandmark.evaluation.metrics import Evaluation
from hihlandmark.layouts import COFW29, LAYOUTS, MESH478, W300_68, WFLW98, Layout, get_layout
from hihlandmark.models.nested import Nested, NestedHead
from hihlandmark.shape_regression import ShapeRegression
from hihlandmark.training.config import FaceSet, TrainingSet
from hihlandmark.training.finetune import (
    Outcome,
    Split,
    _without_folder,
    _write_result,
    make_configuration,
    split_faces,
)
from hihlandmark.training.layout_file import describe, guess_mirror, read_layout_file
from hihlandmark.training.new_head import LocatedFace, add_head, fit_crop, points_inside
from hihlandmark.training.objectives import NORMALIZATION, decoding_of
from hihlandmark.training.trainer import build_training_network
from hihlandmark.weights import LoadedModel, correction_tensors, load_model, save_weights
from hihlandmark.weights.card import (
    Calibration,
    Correlation,
    CropContract,
    LayoutDefinition,
    ModelCard,
)

pytestmark = pytest.mark.usefixtures("one_thread", "own_layouts")

EYES = [*W300_68.parts["left_eye"], *W300_68.parts["right_eye"]]
NAMES = [W300_68.point_names[i] for i in EYES]


def write_pts(path: Path, points: NDArray[np.floating], image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path.with_suffix(".png"))
    lines = [f"{x:.3f} {y:.3f}" for x, y in points + 1]
    path.write_text("\n".join(["version: 1", f"n_points: {len(lines)}", "{", *lines, "}"]))


def write_faces(
    folder: Path, astronaut: NDArray[np.uint8], points: NDArray[np.floating], count: int
) -> Path:
    """Cuts of the astronaut with the face at different places, as .pts files."""
    for number in range(count):
        x, y = 100 + 5 * number, 10 + 3 * number
        cut = astronaut[y : y + 230, x : x + 230]
        write_pts(folder / f"{number}.pts", points - (x, y), cut)
    return folder


@pytest.fixture(scope="session")
def astronaut_points(detector: Detector, astronaut: NDArray[np.uint8]) -> NDArray[np.floating]:
    (face,) = detector.predict(astronaut)
    return face.points.astype(np.float64)


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of a narrow nested network for 68 and 29 points."""
    configuration = tiny(
        model="hih-small",
        network={"features": 8, "depth": 1, "decimal_features": 8, "input_size": 64},
        stages=[{"steps": 2, "batch_size": 2}],
        layouts=["W300_68", "COFW29"],
        augmentation=PLAIN,
    )
    card = ModelCard(
        name="small",
        architecture="nested",
        configuration=configuration.network_configuration(),
        normalization=NORMALIZATION,
        crop=CropContract(pixel_origin=0.5, boxes=configuration.box_maps()),
        decoding=decoding_of(configuration),
        training_data=(),
        license="for tests only",
    )
    folder = tmp_path_factory.mktemp("weights")
    save_weights(folder, card, build_training_network(configuration).state_dict())
    return folder


def layout_file(folder: Path, **values: Any) -> Path:
    path = folder / "eyes.json"
    path.write_text(json.dumps({"name": "EYES12", "points": NAMES, **values}))
    return path


def shapes(count: int = 6, seed: int = 0) -> NDArray[np.floating]:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.01, (count, 12, 2))
    return (W300_68.mean_shape[EYES] + noise) * 100 + 150


# The command


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["finetune", *map(str, arguments), "--workers", "0"])


@pytest.mark.slow
def test_known_layout_is_tuned_from_pts_files_and_the_command_resumes(
    tmp_path: Path,
    astronaut: NDArray[np.uint8],
    astronaut_points: NDArray[np.floating],
    tiny_weights: Path,
) -> None:
    faces = write_faces(tmp_path / "faces", astronaut, astronaut_points, 5)
    arguments = (faces, "--weights", tiny_weights, "--steps", 3)
    result = call(*arguments, "--out", tmp_path / "finetune")  # the name of its own record
    assert result.exit_code == 0, result.output
    assert "4 faces to learn from" in result.output
    assert "for tests only" in result.output
    assert re.search("did not help|helped", result.output)
    files = {path.name for path in (tmp_path / "finetune").iterdir()}
    assert files == {"tuned.json", "tuned.safetensors", "before-after.png", "finetune.json", "run"}
    loaded = load_model(tmp_path / "finetune")
    expected = f"hihlandmark finetune faces --out finetune --weights {tiny_weights.name} --steps 3"
    assert loaded.card.figures[0].command == expected
    assert loaded.card.license == "for tests only"
    assert loaded.card.training_data[-1].images == 4
    assert "W300_68" in loaded.card.calibration
    before = load_model(tiny_weights).network.state_dict()
    changed = {n for n, t in loaded.network.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all(name.startswith("heads.W300_68.") for name in changed), "few faces: the head alone"

    again = call(*arguments, "--out", tmp_path / "finetune")
    assert again.exit_code == 0, again.output
    assert load_model(tmp_path / "finetune").card.sha256 == loaded.card.sha256

    other = call(faces, "--weights", tiny_weights, "--steps", 4, "--out", tmp_path / "finetune")
    assert isinstance(other.exception, ConfigurationError)
    assert "steps" in str(other.exception)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "held_out", "kept"), [(0.0, 10, True), (0.5, 10, False), (0.5, 3, True)]
)
def test_a_shape_regression_stays_unless_it_now_does_harm(
    tmp_path: Path,
    astronaut: NDArray[np.uint8],
    astronaut_points: NDArray[np.floating],
    tiny_weights: Path,
    shift: float,
    held_out: int,
    kept: bool,
) -> None:
    loaded = load_model(tiny_weights)
    state = loaded.network.state_dict()
    # As of an auxiliary layout, which the result does not hold.
    mesh = Correlation(std=(1.0,) * 956, loadings=((0.5,),) * 956)
    calibration = {"MESH478": Calibration(correlation=mesh)}
    for layout in (W300_68, COFW29):
        zeros = np.zeros((2 * layout.size, 2 * layout.size))
        constant = np.full((layout.size, 2), shift)
        regression = ShapeRegression(np.asarray(layout.mean_shape), zeros, constant)
        state |= correction_tensors(layout.name, regression)
    card = loaded.card.model_copy(update={"calibration": calibration})
    weights = save_weights(tmp_path / "weights", card, state)
    faces = tmp_path / "faces"
    write_faces(faces / "train", astronaut, astronaut_points, 4)
    write_faces(faces / "val", astronaut, astronaut_points, held_out)
    result = call(faces, "--weights", weights, "--steps", 2, "--out", tmp_path / "tuned")
    assert result.exit_code == 0, result.output
    tuned = load_model(tmp_path / "tuned")
    assert set(tuned.card.calibration) == {"W300_68"}
    corrections = tuned.corrections
    assert "COFW29" in corrections, "its head has not changed"
    assert ("W300_68" in corrections) is kept


@pytest.mark.slow
def test_own_layout_is_learned_and_comes_with_the_weights(
    tmp_path: Path, astronaut: NDArray[np.uint8], astronaut_points: NDArray[np.floating]
) -> None:
    faces = write_faces(tmp_path / "faces", astronaut, astronaut_points[EYES], 5)
    result = call(faces, "--layout", layout_file(tmp_path), "--steps", 2, "--out", tmp_path / "own")
    assert result.exit_code == 0, result.output
    assert "left_eye_outer_corner - right_eye_outer_corner" in result.output
    LAYOUTS.pop("EYES12")

    detector = Detector(weights=tmp_path / "own", device="cpu", runtime="torch")
    assert detector.layout.name == "EYES12"
    (face,) = detector.predict(astronaut)
    assert np.linalg.norm(face.points - astronaut_points[EYES], axis=1).max() < 4
    old = Detector(68, weights=tmp_path / "own", device="cpu", precision="fp32", runtime="torch")
    (other,) = old.with_options(refine=0, flip_test=False).predict(astronaut)
    assert np.abs(other.points - astronaut_points).max() < 0.1, "other layouts stay as they are"

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        name, left = pool.apply(_of_other_process, (face,))
    assert name == "EYES12"
    np.testing.assert_allclose(left, face["left_eye_outer_corner"])
    assert pickle.loads(pickle.dumps(face)).layout is face.layout

    LAYOUTS.pop("EYES12")
    arguments = ["eval", "--data", faces, "--split", "train", "--weights", tmp_path / "own"]
    measured = CliRunner().invoke(app, [*map(str, arguments), "--runtime", "torch", "--json"])
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["layout"] == "EYES12"


def _of_other_process(face: Face) -> tuple[str, NDArray[np.floating]]:
    return face.layout.name, face["left_eye_outer_corner"]


@pytest.mark.slow
def test_unreadable_images_are_named(
    tmp_path: Path,
    astronaut: NDArray[np.uint8],
    astronaut_points: NDArray[np.floating],
    tiny_weights: Path,
) -> None:
    for split in ("train", "val"):
        write_faces(tmp_path / "faces" / split, astronaut, astronaut_points, 3)
        (tmp_path / "faces" / split / "1.png").write_bytes(b"no image")
    arguments = ("--weights", tiny_weights, "--steps", 1, "--out", tmp_path / "tuned")
    result = call(tmp_path / "faces", *arguments)
    assert result.exit_code == 0, result.output
    assert "unreadable images were replaced by another face" in result.stdout
    assert "unreadable: train/1.png" in result.stdout
    assert "not measured: val/1.png" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ((), DataError, "format"),
        (("--weights", "adnet-small"), ConfigurationError, "nested"),
        (("--weights", "nowhere"), WeightsError, "nowhere"),
    ],
)
def test_wrong_arguments_are_errors(
    tmp_path: Path, arguments: tuple[str, ...], error: type[Exception], word: str
) -> None:
    result = call(tmp_path, "--out", tmp_path / "out", *arguments)
    assert isinstance(result.exception, error)
    assert word in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_points_without_a_layout_file_and_used_folders_are_errors(
    tmp_path: Path, tiny_weights: Path
) -> None:
    image = np.zeros((300, 300, 3), np.uint8)
    for number, shape in enumerate(shapes()):
        write_pts(tmp_path / "faces" / f"{number}.pts", shape, image)
    result = call(tmp_path / "faces", "--weights", tiny_weights, "--out", tmp_path / "out")
    assert isinstance(result.exception, DataError)
    assert "layout file" in str(result.exception)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    arguments = ("--weights", tiny_weights, "--layout", layout_file(tmp_path))
    result = call(tmp_path / "faces", *arguments, "--out", tmp_path / "out")
    assert isinstance(result.exception, ConfigurationError)
    assert "something else" in str(result.exception)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_interrupted_run_says_what_is_kept(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hihlandmark.training.finetune.train", interrupted)
    image = np.zeros((300, 300, 3), np.uint8)
    for number in range(4):
        write_pts(tmp_path / "faces" / f"{number}.pts", W300_68.mean_shape * 100 + 150, image)
    result = call(tmp_path / "faces", "--weights", tiny_weights, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "the same command continues" in result.stderr


# Faces


def test_split_is_by_image_and_the_same_every_time(tmp_path: Path) -> None:
    points = (W300_68.mean_shape * 50 + 60).tolist()
    rows = []
    for number in range(10):
        Image.new("RGB", (120, 120)).save(tmp_path / f"{number}.png")
        rows += [{"image": f"{number}.png", "points": points, "split": "train"}] * 2
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    split, again = split_faces(tmp_path, "auto"), split_faces(tmp_path, "auto")
    assert (len(split.faces), len(split.val_faces)) == (16, 4)
    images = [{face.name.partition("#")[0] for face in faces} for faces in split[2:4]]
    assert not images[0] & images[1]
    assert split.val == again.val
    assert "no split val" in split.note


def test_image_in_train_and_val_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (120, 120)).save(tmp_path / "1.png")
    points = (W300_68.mean_shape * 50 + 60).tolist()
    rows = [{"image": "1.png", "points": points, "split": split} for split in ("train", "val")]
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"1\.png"):
        split_faces(tmp_path, "auto")


def test_one_image_is_an_error(tmp_path: Path) -> None:
    write_pts(tmp_path / "1.pts", W300_68.mean_shape * 50 + 60, np.zeros((120, 120, 3), np.uint8))
    with pytest.raises(DataError, match="one image"):
        split_faces(tmp_path, "auto")


def test_many_bad_annotations_are_an_error(tmp_path: Path) -> None:
    image, shape = np.zeros((120, 120, 3), np.uint8), W300_68.mean_shape * 50 + 60
    for number in range(4):
        write_pts(tmp_path / f"{number}.pts", shape + (np.nan if number < 2 else 0), image)
    with pytest.raises(DataError, match="nan"):
        split_faces(tmp_path, "auto")


def test_pts_folders_are_read_with_any_number_of_points_and_their_splits(tmp_path: Path) -> None:
    image = np.zeros((300, 300, 3), np.uint8)
    for split in ("val", "train"):
        write_pts(tmp_path / split / "1.pts", shapes()[0], image)
    assert dataset_splits(tmp_path) == ("pts", ["train", "val"])
    faces = read_faces(tmp_path, "val", needs_mirror=False)
    np.testing.assert_allclose(faces[0].points, shapes()[0], atol=1e-3)
    with pytest.raises(DataError, match="12 points"):
        read_faces(tmp_path, "val")
    write_pts(tmp_path / "val" / "2.pts", W300_68.mean_shape * 50 + 60, image)
    with pytest.raises(DataError, match="several layouts"):
        read_faces(tmp_path, "val")


# Layout files


@pytest.mark.parametrize("layout", [WFLW98, W300_68, COFW29, MESH478], ids=str)
@pytest.mark.parametrize("degrees", [0, 8])
def test_mirror_pairs_are_guessed_from_a_shape(layout: Layout, degrees: int) -> None:
    square = np.array([0, 0, 1, np.deg2rad(degrees)])
    turned = layout.mean_shape @ crop_matrix(square, 1)[:, :2].T
    np.testing.assert_array_equal(guess_mirror(turned), layout.mirror)


def test_layout_is_completed_by_names_or_by_the_shape(tmp_path: Path) -> None:
    by_names = describe(layout_file(tmp_path), shapes())
    by_shape = describe(layout_file(tmp_path, points=12), shapes())
    expected = [EYES.index(int(W300_68.mirror[i])) for i in EYES]
    assert by_names.layout.mirror.tolist() == by_shape.layout.mirror.tolist() == expected
    assert by_names.layout.ocular_pair == (0, 9)
    assert "mean shape" in by_shape.guessed[0]
    shape = by_names.layout.mean_shape
    np.testing.assert_allclose(shape[expected] * (-1, 1), shape, atol=1e-9)


def test_layout_file_in_toml_with_contours_and_left_out_points(tmp_path: Path) -> None:
    path = tmp_path / "EYES.toml"
    path.write_text(
        "points = 12\nnormalizing_pair = [0, 9]\n[[contours]]\npoints = [0, 1, 2, 3]\nclosed = true"
    )
    assert read_layout_file(path)[0] == "EYES"
    kept = [i for i in range(12) if i not in (1, 8)]  # a mirror pair
    layout = describe(path, shapes(), kept).layout
    assert layout.size == 10
    assert layout.contours[0] == ((0, 1, 2), True)
    assert layout.point_names[layout.ocular_pair[1]] == "point_9"
    assert layout.mirror.tolist() == layout.mirror[layout.mirror][layout.mirror].tolist()


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"points": NAMES[:11]}, "11 points"),
        ({"points": [*NAMES[:11], NAMES[0]]}, "more than once"),
        ({"point": 3}, "unknown key"),
        ({"name": "no blanks"}, "name"),
        ({"mirror_pairs": [[0, 12]]}, "no point 12"),
        ({"mirror_pairs": [[0, 1], [1, 2]]}, "more than once"),
        ({"normalizing_pair": ["left_eye_outer_corner", "nose"]}, "nose"),
        ({"points": ["left_a", *(f"p{i}" for i in range(11))]}, "left_a"),
        ({"mirror_pairs": []}, "normalizing_pair"),
    ],
)
def test_wrong_layout_files_are_errors(tmp_path: Path, values: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        describe(layout_file(tmp_path, **values), shapes())


def test_unsymmetric_points_need_given_pairs(tmp_path: Path) -> None:
    skewed = shapes() * 1.0
    skewed[:, 6:, 1] += 60
    skewed[:, 6:] = (skewed[:, 6:] - skewed[:, 6:7]) * (1, 9) + skewed[:, 6:7]
    with pytest.raises(DataError, match="not symmetric"):
        describe(layout_file(tmp_path, points=12), skewed)


def test_unreadable_layout_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("points =")
    for name in ("bad.toml", "missing.json"):
        with pytest.raises(ConfigurationError, match=name):
            read_layout_file(tmp_path / name)


# Weights with a layout


def eyes() -> Layout:
    definition = {
        "point_names": NAMES,
        "mirror": [EYES.index(int(W300_68.mirror[i])) for i in EYES],
        "contours": [[list(range(6)), True]],
        "ocular_pair": [0, 9],
        "pupils": [[0], [9]],
        "mean_shape": W300_68.mean_shape[EYES].tolist(),
        "parts": {"points": list(range(12))},
    }
    return LayoutDefinition.model_validate(definition).layout("EYES12")


def test_layout_survives_card_and_pickle() -> None:
    layout = eyes()
    again = LayoutDefinition.of(layout).layout("EYES12")
    assert again.contours == layout.contours
    np.testing.assert_array_equal(again.mirror, layout.mirror)
    content = pickle.dumps(layout)
    restored = pickle.loads(content)
    assert get_layout("eyes12") is restored
    assert pickle.loads(content) is restored
    assert pickle.loads(pickle.dumps(W300_68)) is W300_68
    assert len(pickle.dumps(MESH478)) < 200, "built-in layouts go by name"


def test_other_layout_of_the_same_name_is_an_error() -> None:
    content = pickle.dumps(eyes())
    other = LayoutDefinition.of(eyes()).model_copy(update={"ocular_pair": (3, 6)})
    LAYOUTS["EYES12"] = other.layout("EYES12")
    with pytest.raises(ConfigurationError, match="normalizing pair"):
        pickle.loads(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"mirror": [0] * 12},
        {"mirror": [1, 2, 0, *range(3, 12)]},
        {"point_names": ["same"] * 12},
        {"ocular_pair": [0, 12]},
        {"mean_shape": [[0.0, 0.0]]},
        {"contours": [[[0, -1], False]]},
    ],
)
def test_wrong_definitions_are_refused(changes: dict[str, Any]) -> None:
    values = LayoutDefinition.of(eyes()).model_dump(mode="json") | changes
    with pytest.raises(ValueError, match="LayoutDefinition"):
        LayoutDefinition.model_validate(values)


def test_card_without_the_points_of_its_layout_is_refused(tiny_weights: Path) -> None:
    values = json.loads((tiny_weights / "small.json").read_text())
    values["layouts"] = {"EYES12": LayoutDefinition.of(eyes()).model_dump(mode="json")}
    with pytest.raises(WeightsError, match="layouts"):
        ModelCard.from_json(json.dumps(values))


# The new head


def located(count: int = 4) -> list[LocatedFace]:
    image = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    square = np.array([150.0, 150, 140, 0])
    return [LocatedFace(image, shape, square) for shape in shapes(count)]


@pytest.mark.parametrize("rank", [0, 3])
def test_new_head_keeps_the_other_heads_and_starts_from_known_points(
    tiny_weights: Path, rank: int
) -> None:
    model = load_model(tiny_weights)
    if rank:
        configuration = {**model.card.configuration, "decimal_rank": rank}
        model = LoadedModel(
            model.network, model.card.model_copy(update={"configuration": configuration}), {}
        )
        network = _with_rank(configuration)
        model = model._replace(network=network)
    network, apart = add_head(model, "EYES12", located(), torch.device("cpu"))
    assert isinstance(network, Nested)
    assert isinstance(model.network, Nested)
    crops = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before, after = model.network(crops), network(crops)
    for name in ("W300_68", "COFW29"):
        torch.testing.assert_close(after[name].integer, before[name].integer)
    head = network.heads["EYES12"]
    assert isinstance(head, NestedHead)
    known = torch.cat([other.embedding for other in model.network.heads.values()])  # type: ignore[misc]
    assert torch.cdist(head.embedding, known).amin(dim=1).max() == 0
    assert apart > 0


def _with_rank(configuration: dict[str, Any]) -> Nested:
    from hihlandmark.models.registry import build_model

    torch.manual_seed(0)
    network = build_model("nested", configuration)
    assert isinstance(network, Nested)
    return network.eval()


def test_crop_is_fitted_and_points_outside_of_it_are_found() -> None:
    faces = located()
    box_map = fit_crop(faces)
    boxes = np.array([[*each.points.min(axis=0), *each.points.max(axis=0)] for each in faces])
    np.testing.assert_allclose(box_map.squares(boxes)[:, 2], 140, rtol=0.1)
    assert points_inside(faces).all()
    far = [each._replace(points=np.vstack([each.points, [[20.0, 20]]])) for each in faces]
    assert points_inside(far).tolist() == [True] * 12 + [False]


def test_fields_that_a_card_omits_are_not_those_of_the_registered_model(tiny_weights: Path) -> None:
    card = load_model(tiny_weights).card
    configuration = {k: v for k, v in card.configuration.items() if k != "fine_rank"}
    card = card.model_copy(update={"configuration": configuration})
    made = make_configuration(card, _SplitOf(400), COFW29, False, tiny_weights, None, "cpu")  # type: ignore[arg-type]
    assert made.network_configuration()["fine_rank"] == 0


def test_settings_follow_the_number_of_faces(tiny_weights: Path) -> None:
    card = load_model(tiny_weights).card

    def stages(count: int, is_new: bool) -> tuple[list[tuple[str, ...]], bool]:
        split = _SplitOf(count)
        made = make_configuration(card, split, W300_68, is_new, tiny_weights, None, "cpu")  # type: ignore[arg-type]
        assert {stage.crop_size for stage in made.stages} == {64}, "the network's input size"
        if made.distillation:  # the new head has nothing to teach
            assert made.distillation.layouts == (("COFW29",) if is_new else None)
        return [stage.trained for stage in made.stages], made.distillation is not None

    def steps(given: int | None) -> list[int | None]:
        split = _SplitOf(400)
        made = make_configuration(card, split, W300_68, True, tiny_weights, given, "cpu")  # type: ignore[arg-type]
        return [stage.steps for stage in made.stages]

    assert steps(None) == [250, 400]
    assert steps(100) == [25, 75]
    assert steps(1) == [1]

    head = ("heads.W300_68.",)
    assert stages(10, False) == ([head], False)
    assert stages(40, False) == ([()], True)
    assert stages(40, True) == ([head], False)
    assert stages(400, True) == ([head, ()], True)


def test_faces_that_may_be_of_a_layout_of_the_weights_are_no_guess(
    tmp_path: Path, astronaut: NDArray[np.uint8], tiny_weights: Path
) -> None:
    loaded = load_model(tiny_weights)
    own = replace(W300_68, name="OWN68")
    definitions = {"OWN68": LayoutDefinition.of(own)}
    configuration = {**loaded.card.configuration, "layouts": {"OWN68": 68, "COFW29": 29}}
    card = loaded.card.model_copy(update={"layouts": definitions, "configuration": configuration})
    state = {
        name.replace("W300_68", "OWN68"): each for name, each in loaded.network.state_dict().items()
    }
    save_weights(tmp_path / "own", card, state)
    faces = write_faces(tmp_path / "faces", astronaut, W300_68.mean_shape * 50 + (200, 100), 4)
    result = call(faces, "--weights", tmp_path / "own", "--out", tmp_path / "out")
    assert isinstance(result.exception, ConfigurationError)
    assert "--annotated OWN68" in str(result.exception)
    assert split_faces(faces, "auto", annotated="OWN68").faces.layout == "OWN68"


class _SplitOf:
    """A split of a number of faces, of which only the number matters."""

    def __init__(self, count: int) -> None:
        from hihlandmark.training.config import FaceSet, TrainingSet

        self.faces, self.training, self.val = range(count), TrainingSet(), FaceSet()


def evaluation(error: float, count: int) -> Evaluation:
    """That of so many faces, with the error in pixels."""
    truth = np.stack([W300_68.mean_shape * 100] * count)
    found = truth + np.array([error, 0])
    units = {"interocular": np.full(count, 60.0)}
    return Evaluation(
        tuple(map(str, range(count))), W300_68, truth, found, np.ones((count, 68)), units
    )


@pytest.mark.parametrize(
    ("shift", "count", "word"),
    [
        (-0.5, 10, "Fine-tuning helped"),
        (0.5, 10, "did not help"),
        (-0.5, 9, "9 held-out faces are too few .* chance"),
        (-0.5, 1, "1 held-out face is too few .* chance"),
        (0.5, 1, "did not help"),
    ],
)
def test_verdict_says_plainly_whether_it_helped(shift: float, count: int, word: str) -> None:
    before, after = evaluation(1.0, count), evaluation(1.0 + shift, count)
    assert re.search(word, Outcome(Path("card"), Path("drawing"), 3, before, after).verdict)


def test_a_calibration_that_is_kept_for_want_of_faces_is_reported(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(tiny_weights)
    card = loaded.card.model_copy(update={"calibration": {"W300_68": Calibration(bias=0.5)}})
    state = loaded.network.state_dict()
    monkeypatch.setattr("hihlandmark.training.finetune.read_average", lambda path: state)
    faces = split_of(annotated(np.zeros((9, 9, 3), np.uint8), W300_68.mean_shape))
    split = Split(TrainingSet(), FaceSet(), faces, faces, "")
    said: list[str] = []
    path = _write_result(
        loaded._replace(card=card),
        split,
        W300_68,
        tmp_path / "out",
        tmp_path,
        "cpu",
        evaluation(1.0, 3),
        said.append,
    )
    assert load_model(path).card.calibration["W300_68"].bias == 0.5
    assert said == ["fewer than 10 held-out faces: the calibration of small is kept"]


def test_commands_of_cards_name_files_without_folders_and_repositories_whole(
    tmp_path: Path,
) -> None:
    path = tmp_path / "eyes.toml"
    path.write_text("")
    names = [_without_folder(each) for each in (None, path, "owner/name@v1", "hih-small")]
    assert names == [None, "eyes.toml", "owner/name@v1", "hih-small"]
