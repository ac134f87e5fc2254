"""Weights: cards, the search order, verification, the Hub, saving and converting."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import Hub
from official_states import small_state
from safetensors.torch import load_file, save
from typer.testing import CliRunner

from hihlandmark import list_models
from hihlandmark.cli import app
from hihlandmark.crop import CANONICAL_CROP, CANONICAL_SCALE, BoxMap, complete_box_maps
from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.models.registry import build_model
from hihlandmark.shape_prior import ShapePrior
from hihlandmark.shape_regression import ShapeRegression
from hihlandmark.weights import (
    Calibration,
    ModelCard,
    correction_tensors,
    find,
    find_weights,
    load_model,
    pull_weights,
    read_weights,
    save_weights,
    verify_weights,
)
from hihlandmark.weights.card import Decoding
from hihlandmark.weights.convert import convert_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {
    "stacks": 1,
    "features": 16,
    "depth": 4,
    "decimal_features": 16,
    "input_size": 256,
    "layouts": {"COFW29": 29},
    "auxiliary_layouts": {},
}


NORMALIZATION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def card(name: str = "tiny", **changes: Any) -> ModelCard:
    given = ModelCard(
        name=name,
        architecture="hih",
        configuration=TINY,
        normalization=NORMALIZATION,
        crop={
            "pixel_origin": 0.5,
            "boxes": {
                "mtcnn": {"shift": [0.0, 0.1], "scale": 1.2},
                "landmarks:COFW29": {"shift": [0.0, -0.05], "scale": 1.5},
            },
        },
        decoding={"decoder": "local_soft_argmax", "activation": "softmax", "stride": 4},
        calibration={"COFW29": {"bias": 1.5}},
        training_data=[{"name": "made up", "license": "CC0-1.0", "images": 3}],
        license="Apache-2.0",
        figures=[
            {"split": "val", "points": 29, "metric": "NME", "value": 3.0, "command": "true", "n": 1}
        ],
    )
    return given.model_copy(update=changes)


def described(**changes: Any) -> dict[str, Any]:
    """The JSON values of a card with a weights file."""
    values = json.loads(card(file="tiny.safetensors", sha256="0" * 64).to_json()) | changes
    return {name: value for name, value in values.items() if value is not None}


def tiny_network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model("hih", TINY)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a saved tiny network: tiny.safetensors and tiny.json."""
    folder = tmp_path / "saved"
    save_weights(folder, card(), tiny_network().state_dict())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Cards


LINEAR = {"decoder": "mean", "activation": "linear", "stride": 8}


@pytest.mark.parametrize("decoding", [LINEAR, {**LINEAR, "align_corners": True}])
def test_card_survives_json(decoding: dict[str, Any]) -> None:
    given = ModelCard.from_json(json.dumps(described(decoding=decoding)))
    assert given.decoding == Decoding(**decoding)
    assert ModelCard.from_json(given.to_json()) == given


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema": 3}, "update hihlandmark"),
        ({"color": "red"}, "color"),
        ({"crop": None}, "crop"),
        ({"calibration": {"COFW29": {"bias": 10**400}}}, "calibration.COFW29.bias"),
        ({"license": " "}, "license"),
        ({"name": "../tiny"}, "name"),
        ({"configuration": {"layouts": 3}}, "configuration"),
        ({"configuration": {"layouts": {}, "auxiliary_layouts": [1]}}, "configuration"),
        ({"normalization": {"mean": [0, 0, 0], "std": [1, 1, 0]}}, "normalization.std.2"),
        ({"crop": {"pixel_origin": 0, "boxes": {"m": {"shift": [0], "scale": 1}}}}, "m.shift"),
        ({"crop": {"pixel_origin": 0, "boxes": {"m": {"shift": [0, 0], "scale": 0}}}}, "boxes"),
        ({"decoding": {**LINEAR, "decoder": "guess"}}, "decoding.decoder"),
        ({"file": ""}, "weights file"),
        ({"file": "../../x.safetensors"}, "file"),
        ({"sha256": "0" * 63}, "sha256"),
        ({"training_data": [{"name": "a", "license": "b"}]}, "training_data.0.images"),
    ],
)
def test_card_with_a_wrong_field_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(WeightsError, match=named):
        ModelCard.from_json(json.dumps(described(**change)))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": NaN}', "[" * 100_000, '{"a":' * 99_999]
)
def test_card_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(WeightsError, match="not valid JSON"):
        ModelCard.from_json(text)


def schema_1(**changes: Any) -> dict[str, Any]:
    """A card as the first release candidates wrote it."""
    data = {"name": "300-W", "licence": "research only"}  # codespell:ignore licence
    box = {"shift": [0.0095, 0.1361], "scale": 1.1103}
    figure = {"split": "w300", "points": 68, "metric": "NME", "value": 3.5, "command": "eval"}
    return {
        "schema": 1,
        "name": "hih-small",
        "architecture": "hih",
        "configuration": {"stacks": 1, "layouts": {"WFLW98": 98}, "idle_skips": False},
        "normalisation": NORMALIZATION,  # codespell:ignore normalisation
        "crop": {"pixel_origin": 0.5, "boxes": {"mtcnn": box}},
        "decoding": {"decoder": "expectation", "bin_centre": 0.5, "activation": "softmax"},
        "training_data": [{**data, "images": 2010}],
        "licence": "Research use only",  # codespell:ignore licence
        "calibration": {"WFLW98": {"bias": -2.65164, "spread": -0.05402}},
        "figures": [{**figure, "mirror": True}],
        "files": {"hih-small.safetensors": "a" * 64},
        **changes,
    }


def test_card_of_schema_1_is_read() -> None:
    old = ModelCard.from_json(json.dumps(schema_1()))
    assert (old.file, old.sha256) == ("hih-small.safetensors", "a" * 64)
    assert old.decoding == Decoding(decoder="local_soft_argmax", activation="softmax", stride=4)
    assert old.configuration["unused_shortcuts"] is False
    assert old.crop.boxes == {"mtcnn": BoxMap((0.0095, 0.1361), 1.1103)}
    assert old.calibration == {"WFLW98": Calibration(bias=-2.65164, spread=-0.05402)}
    assert (old.license, old.training_data[0].license) == ("Research use only", "research only")
    assert old.figures[0].model_dump()["flip_test"] is True
    assert ModelCard.from_json(old.to_json()) == old


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"files": {"a.safetensors": "a" * 64, "b.safetensors": "b" * 64}}, "one weights file"),
        ({"files": {}}, "weights file"),
        ({"decoding": []}, "decoding"),
        ({"licence": 3}, "license"),  # codespell:ignore licence
    ],
)
def test_card_of_schema_1_with_a_wrong_field_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(WeightsError, match=named):
        ModelCard.from_json(json.dumps(schema_1(**change)))


# Saving and reading


def test_saved_network_computes_the_same_to_half_precision(saved: Path) -> None:
    network, read_card, _ = load_model(saved)
    original = tiny_network().eval()
    crop = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        expected, actual = original(crop)["COFW29"], network(crop)["COFW29"]
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert read_card.name == "tiny"
    torch.testing.assert_close(actual.integer, expected.integer, rtol=0, atol=5e-3)
    torch.testing.assert_close(actual.decimal, expected.decimal, rtol=0, atol=5e-3)


def test_shape_priors_travel_with_the_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prior = ShapePrior(rng.normal(size=(29, 2)), rng.normal(size=(3, 29, 2)), 0.02, 0.3)
    tensors = tiny_network().state_dict() | correction_tensors("COFW29", prior)
    _, _, corrections = load_model(save_weights(tmp_path, card(), tensors))
    ((layout, read),) = corrections.items()
    assert layout == "COFW29"
    assert isinstance(read, ShapePrior)
    assert read.mean == pytest.approx(prior.mean, abs=2e-3)
    assert read.modes == pytest.approx(prior.modes, abs=2e-3)
    assert (read.noise, read.covariance_scale) == pytest.approx((0.02, 0.3), rel=1e-3)


def regression(inputs: int = 58) -> ShapeRegression:
    rng = np.random.default_rng(0)
    return ShapeRegression(*(rng.normal(size=shape) for shape in ((29, 2), (inputs, 58), (29, 2))))


@pytest.mark.parametrize("inputs", [58, 116])
def test_shape_regressions_travel_with_the_weights(tmp_path: Path, inputs: int) -> None:
    stored = regression(inputs)
    tensors = tiny_network().state_dict() | correction_tensors("COFW29", stored)
    read = load_model(save_weights(tmp_path, card(), tensors)).corrections["COFW29"]
    assert isinstance(read, ShapeRegression)
    for name in ("mean", "weights", "constant"):
        assert getattr(read, name) == pytest.approx(getattr(stored, name), abs=2e-3)


@pytest.mark.parametrize("lost", ["mean", "weights", "constant"])
def test_a_broken_shape_regression_is_refused(tmp_path: Path, lost: str) -> None:
    whole = correction_tensors("COFW29", regression())
    nowhere = torch.full_like(whole[f"shape_regression.COFW29.{lost}"], 1e300)  # infinite when read
    for broken in (torch.zeros(5), torch.zeros(87, 58), nowhere, None):
        tensors = {**whole, f"shape_regression.COFW29.{lost}": broken}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        path = save_weights(tmp_path, card(), tiny_network().state_dict() | kept)
        with pytest.raises(WeightsError, match="shape regression of COFW29"):
            load_model(path)


@pytest.mark.parametrize("lost", ["mean", "modes", "scales"])
def test_a_broken_shape_prior_is_refused(tmp_path: Path, lost: str) -> None:
    prior = correction_tensors("COFW29", ShapePrior(np.zeros((29, 2)), np.zeros((3, 29, 2)), 0.02))
    for broken in (torch.zeros(5), None):
        tensors = {**prior, f"shape_prior.COFW29.{lost}": broken}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        path = save_weights(tmp_path, card(), tiny_network().state_dict() | kept)
        with pytest.raises(WeightsError, match="shape prior of COFW29"):
            load_model(path)


def test_floats_are_stored_in_half_and_integers_as_they_are(tmp_path: Path) -> None:
    state = {
        "weight": torch.tensor([1.5], dtype=torch.float64),
        "large": torch.tensor([1e6]),
        "count": torch.tensor(2**40),
        "view": torch.arange(6.0).view(2, 3).T,
    }
    save_weights(tmp_path, card(), state)
    stored = load_file(tmp_path / "tiny.safetensors")
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "weight": torch.float16,
        "large": torch.float32,
        "count": torch.int64,
        "view": torch.float16,
    }
    for name, tensor in state.items():
        assert torch.equal(stored[name].to(tensor.dtype), tensor)


def test_failed_save_leaves_the_earlier_weights_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved)
    with pytest.raises(WeightsError, match="'weight' holds NaN"):
        save_weights(saved, card(), {"weight": torch.tensor([float("nan")])})

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_weights(saved, card(), tiny_network(seed=1).state_dict())
    assert contents(saved) == before


def test_changed_byte_is_refused(saved: Path) -> None:
    file = saved / "tiny.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256"):
        verify_weights(find_weights(saved))
    with pytest.raises(WeightsError, match="SHA-256"):
        load_model(saved)


def write_as_described(folder: Path, content: bytes, **changes: Any) -> None:
    """A weights file with any content, and a card that has its SHA-256."""
    (folder / "tiny.safetensors").write_bytes(content)
    digest = sha256(content).hexdigest()
    written = card(file="tiny.safetensors", sha256=digest, **changes)
    (folder / "tiny.json").write_text(written.to_json())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"configuration": TINY | {"stacks": 2}}, r"Missing.*stacks\.1\."),
        ({"configuration": TINY | {"auxiliary_layouts": {"E86": 86}}}, "auxiliary_heads.E86"),
        ({"configuration": TINY | {"wings": 2}}, "wings"),
        ({"architecture": "oracle"}, "oracle"),
    ],
)
def test_file_of_another_architecture_and_truncated_file_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_as_described(tmp_path, save(tiny_network().state_dict()), **changes)
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path)
    write_as_described(tmp_path, save({"w": torch.ones(100)})[:-50])
    with pytest.raises(WeightsError, match="complete"):
        read_weights(find_weights(tmp_path))


# Finding: paths and packaged names


@pytest.mark.parametrize("name", ["", "tiny.json", "tiny.safetensors"])
def test_weights_are_found_by_folder_card_and_file(saved: Path, name: str) -> None:
    for given in (saved / name, str(saved / name)):
        assert find_weights(given).path == saved / "tiny.safetensors"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pth", "convert"),
        ("alone.safetensors", r"alone\.json"),
        ("missing.safetensors", "no such file"),
        ("notes.txt", "not a weights file"),
        ("empty", "no weights"),
        ("nothing/at/all", "no such file"),
        ("swapped.safetensors", "describes"),
        ("lonely.json", "missing"),
    ],
)
def test_paths_without_usable_weights_are_refused(saved: Path, name: str, message: str) -> None:
    for file in ("model.pth", "alone.safetensors", "notes.txt", "swapped.safetensors"):
        (saved / file).write_bytes(b"anything")
    (saved / "swapped.json").write_text((saved / "tiny.json").read_text())
    (saved / "lonely.json").write_text(json.dumps(described(file="lonely.safetensors")))
    (saved / "empty").mkdir()
    with pytest.raises(WeightsError, match=message):
        find_weights(saved / name)


def test_folder_of_several_models_is_asked_for_the_named_one(saved: Path) -> None:
    save_weights(saved, card("other"), {"w": torch.ones(1)})
    assert find_weights(saved, model="other").card.name == "other"
    with pytest.raises(WeightsError, match="several models"):
        find_weights(saved, model="third")
    for command in ("path", "verify"):
        found = CliRunner().invoke(app, ["weights", command, str(saved), "--model", "other"])
        assert found.exit_code == 0, found.output
        assert "other" in found.output


@pytest.fixture
def packaged(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny weights as if they had been installed with the package."""
    package = saved.parent / "hihlandmark"
    package.mkdir()
    saved.rename(package / "packaged_weights")
    monkeypatch.setattr(find, "__file__", str(package / "weights" / "find.py"))
    return package


def test_packaged_weights_are_found_by_name_in_a_wheel_and_in_a_checkout(packaged: Path) -> None:
    folder = packaged / "packaged_weights"
    for _ in range(2):
        assert find_weights(model="tiny").path == folder / "tiny.safetensors"
        assert find_weights("tiny").path.parent == folder
        for given in ({"model": "huge"}, {"weights": "huge"}):
            with pytest.raises(WeightsError, match=r"'huge'.*tiny"):
                find_weights(**given)
        if folder.name != "weights":
            folder = folder.rename(packaged.parent / "weights")


def test_list_models_verifies_every_packaged_model(packaged: Path) -> None:
    folder = packaged / "packaged_weights"
    save_weights(folder, card("damaged"), {"w": torch.ones(1)})
    (folder / "damaged.safetensors").write_bytes(b"")
    (folder / "broken.json").write_text("{")
    broken, damaged, tiny = list_models()
    assert (tiny.name, tiny.layouts, tiny.license) == ("tiny", ("COFW29",), "Apache-2.0")
    assert tiny.size == (folder / "tiny.safetensors").stat().st_size
    assert [figure.value for figure in tiny.nme] == [3.0]
    assert tiny.problem is None
    assert "SHA-256" in str(damaged.problem)
    assert "JSON" in str(broken.problem)


def test_revision_of_anything_but_a_repository_is_refused(saved: Path) -> None:
    for given in (None, saved, "hih-small"):
        with pytest.raises(ConfigurationError, match="revision"):
            find_weights(given, revision="v1")


# The Hub


def test_first_use_downloads_second_does_not_and_offline_works(saved: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from hihlandmark.weights import find_weights, verify_weights; "
        "files = find_weights(sys.argv[1]); verify_weights(files); print(files.source)"
    )
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1",
        "TQDM_POSITION": "-1",  # shows the progress bar although nobody watches
    }

    def use(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, "me/faces"],
            env=environment | more,
            check=True,
            capture_output=True,
            text=True,
        )

    with Hub() as hub:
        commit = hub.commit("me/faces", contents(saved))
        first = use(HF_ENDPOINT=hub.url)
        assert sorted(hub.downloads) == ["tiny.json", "tiny.safetensors"]
        assert "tiny.safetensors: 100%" in first.stderr
        assert first.stdout == f"me/faces@{commit}, from the Hub\n"
        hub.requests.clear()
        second = use(HF_ENDPOINT=hub.url)
        assert hub.requests == []
        assert second.stdout == f"me/faces@{commit}, from the Hugging Face cache\n"
    offline = use(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert offline.stdout == second.stdout


def test_revisions_are_pinned_until_pulled(hub: Hub, saved: Path) -> None:
    first = hub.commit("me/faces", contents(saved))
    assert first in find_weights("me/faces").source
    save_weights(saved, card(), tiny_network(seed=1).state_dict())
    second = hub.commit("me/faces", contents(saved))
    assert first in find_weights("me/faces").source
    assert second in pull_weights("me/faces").source
    assert second in find_weights("me/faces").source
    for pinned in (find_weights(f"me/faces@{first}"), find_weights("me/faces", revision=first)):
        assert first in pinned.source
        verify_weights(pinned)
    with pytest.raises(ConfigurationError, match="contradict"):
        find_weights(f"me/faces@{first}", revision=second)


def test_card_and_files_are_of_one_commit(
    hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit("me/faces", contents(saved))
    save_weights(saved, card(), tiny_network(seed=1).state_dict())
    download = huggingface_hub.hf_hub_download

    def download_then_move_branch(*arguments: Any, **options: Any) -> str:
        path = download(*arguments, **options)
        hub.commit("me/faces", contents(saved))
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download_then_move_branch)
    verify_weights(find_weights("me/faces"))


def test_broken_download_fails_cleanly_and_is_resumed_later(
    hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # huggingface_hub resumes behind the last whole chunk: the tiny file needs tiny ones.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    hub.commit("me/faces", contents(saved))
    hub.cuts = [1000] + [0] * 100
    with pytest.raises(WeightsError, match="connection"):
        find_weights("me/faces")
    hub.cuts.clear()
    verify_weights(find_weights("me/faces"))
    assert "bytes=1000-" in [r.range for r in hub.requests]


def test_cached_file_that_is_damaged_is_pulled_again(hub: Hub, saved: Path) -> None:
    hub.commit("me/faces", contents(saved))
    find_weights("me/faces").path.resolve().write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="hihlandmark weights pull"):
        verify_weights(find_weights("me/faces"))
    verify_weights(pull_weights("me/faces"))


def test_cache_chooses_among_the_models_of_the_repository(hub: Hub, saved: Path) -> None:
    save_weights(saved, card("other"), tiny_network(seed=1).state_dict())
    hub.commit("me/both", contents(saved))
    assert find_weights("me/both", model="other").card.name == "other"
    assert find_weights("me/both", model="tiny").card.name == "tiny"
    hub.requests.clear()
    assert find_weights("me/both", model="tiny").card.name == "tiny"
    assert hub.requests == []


def test_hub_refusals_say_what_to_do(
    hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit("me/gated", contents(saved))
    hub.repositories["me/gated"].token = "hf_right"
    hub.commit("me/empty", {"README.md": b""})
    for weights, message in {
        "me/absent": "no me/absent",
        "me/empty@v9": "no such revision",
        "me/empty": "no weights with a model card",
        "me/gated": "HF_TOKEN",
    }.items():
        with pytest.raises(WeightsError, match=message):
            find_weights(weights)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    verify_weights(find_weights("me/gated"))
    with pytest.raises(ConfigurationError, match="owner/name"):
        pull_weights("gated")


# Converting


def write_checkpoint(path: Path, state: dict[str, torch.Tensor], **more: object) -> Path:
    """What the authors' code writes: NumPy numbers and the optimizer's state among it."""
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    best_nme = {"epoch": 59, "nme": np.float64(4.08), "loss": np.float32(0.5), "count": np.int64(1)}
    torch.save({"state_dict": state, "best_nme": best_nme, "epoch": 59} | more, path)
    return path


def save_adnet(path: Path, state: dict[str, torch.Tensor]) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    everything = {
        "net": state,
        "net_ema": {name: tensor * 0 for name, tensor in state.items()},
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [200, 350]).state_dict(),
        "epoch": 499,
    }
    torch.save(everything, path)


# The architecture, its pixel origin, and one tensor under their name and ours.
HIH = ("hih", 0.0, "offset_head.head.1.weight", "decimal_head.predict.weight")
ADNET = ("adnet", 0.5, "pre.1.conv1.conv.weight", "stem.3.residual.0.2.weight")
AWING = ("awing", 0.0, "l0.weight", "predict.0.weight")


@pytest.mark.parametrize(
    ("write", "system"),
    [
        (write_checkpoint, HIH),
        (save_adnet, ADNET),
        (write_checkpoint, AWING),
        (lambda path, state: torch.save(state, path), AWING),
    ],
)
def test_official_checkpoint_is_converted(
    tmp_path: Path, write: Callable[[Path, dict[str, torch.Tensor]], object], system: Any
) -> None:
    architecture, origin, theirs, ours = system
    official = small_state(architecture)
    write(tmp_path / "best.pth", official)
    converted = convert_checkpoint(tmp_path / "best.pth", tmp_path / "out", "own")
    network, read_card, _ = load_model(converted)
    assert read_card.architecture == architecture
    assert read_card.configuration["layouts"] == {"COFW29": 29}
    assert read_card.crop.pixel_origin == origin
    assert "landmarks:COFW29" in read_card.crop.boxes
    assert torch.equal(network.state_dict()[ours], official[theirs].half().float())
    if architecture == "adnet":  # BGR becomes RGB, the channels of coordinates stay
        bgr, rgb = official["pre.0.conv.weight"], network.state_dict()["stem.0.weight"]
        assert torch.equal(rgb, bgr[:, [2, 1, 0, *range(3, bgr.shape[1])]].half().float())


def test_converted_crops_are_the_same_square_from_every_box(tmp_path: Path) -> None:
    """For a face whose boxes lie as in `CANONICAL_CROP` around one canonical square."""
    torch.save(small_state("awing"), tmp_path / "WFLW.pth")
    card_path = convert_checkpoint(tmp_path / "WFLW.pth", tmp_path / "out", "awing-cofw")
    own = ModelCard.from_json(card_path.read_text()).crop.boxes
    assert own.keys() == {"landmarks:COFW29"}
    converted = complete_box_maps(own)
    assert converted.keys() == CANONICAL_CROP.keys()
    face = 100 / CANONICAL_SCALE  # longer side of the box of 98 points, canonical side 100
    for kind, square in converted.items():
        canonical = CANONICAL_CROP[kind]
        box = 100 / canonical.scale
        center = [(s - c) * box for s, c in zip(square.shift, canonical.shift, strict=True)]
        # As stated for the 98 points: 0.136 of their box above its center, 1.48 times as large.
        assert center == pytest.approx([0, -0.136 * face], abs=0.02)
        assert square.scale * box == pytest.approx(1.48 * face, abs=0.02)


class RunsCode:
    """Unpickled, it would make the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    checkpoint = write_checkpoint(tmp_path / "best.pth", small_state("hih"), note=RunsCode(trap))
    with pytest.raises(WeightsError, match="may run code"):
        convert_checkpoint(checkpoint, tmp_path / "out", "hih-cofw")
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"not a pickle",
        b"PK\x03\x04 cut",
        [torch.ones(1)],
        {},
        {"net": {}},
        {"epoch": 3},
        {"net": {"epoch": 3}},
        {"state_dict": {"module.weight": torch.ones(1)}},
    ],
    ids=repr,
)
def test_what_is_no_official_checkpoint_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "best.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=r"best\.pth"):
        convert_checkpoint(path, tmp_path, "hih-cofw")


@pytest.mark.parametrize(
    ("system", "lost"),
    [("hih", "hg0_conv_pred.weight"), ("adnet", "e2h_transform.bias"), ("awing", "l0.bias")],
)
def test_incomplete_official_checkpoint_is_refused_by_name(
    tmp_path: Path, system: str, lost: str
) -> None:
    state = small_state(system)
    del state[lost]
    torch.save(state, tmp_path / "best.pth")
    with pytest.raises(WeightsError, match=f"missing: {lost}"):
        convert_checkpoint(tmp_path / "best.pth", tmp_path, "hih-cofw")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("configuration.layouts", -1),
        ("configuration.layouts", {}),
        ("configuration.layouts.WFLW98", -1),
        ("configuration.layouts.WFLW98", []),
        ("configuration.auxiliary_layouts.MESH478", {}),
        ("configuration.layouts.WFLW98", 10**12),
        ("configuration.layouts", {"WFLW98.a": 98}),
        ("configuration.features", 1e30),
        ("configuration.features", 10**30),
        ("configuration.features", 4 * 10**9),
        ("configuration.stacks", 1e30),
        ("configuration.stacks", 10**30),
        ("configuration.depth", 10**6),
        ("configuration.input_size", 192 * 10**9),
        ("configuration.encoder", ["a"]),
        ("crop.boxes.landmarks:WFLW98.scale", float("nan")),
        ("crop.boxes.landmarks:WFLW98.scale", 1e300),
        ("crop.boxes.landmarks:WFLW98.shift", [1e300, 0]),
        ("normalization.std", [1e-300] * 3),
        ("calibration.WFLW98.covariance_scale", 1e300),
        ("file", "a" * 5000 + ".safetensors"),
    ],
)
def test_absurd_values_of_a_card_are_errors(field: str, value: object, tmp_path: Path) -> None:
    files = find_weights("hih-small")
    values = json.loads(files.path.with_suffix(".json").read_text())
    *parents, last = field.split(".")
    place = values
    for name in parents:
        place = place[name]
    place[last] = value
    shutil.copy(files.path, tmp_path)
    (tmp_path / "hih-small.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "name", ["a" * 5000, "a" * 300 + "/b", "owner/name@" + "r" * 5000, "~nosuchuser/x", "a\0b"]
)
def test_names_that_no_file_can_have_are_errors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError) as caught:
        find_weights(name)
    assert len(str(caught.value)) < 1000


def test_a_path_with_weights_comes_before_packaged_weights_of_its_name(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hih-small").mkdir()
    assert find_weights("hih-small").source == "hih-small, packaged", "there are none in the folder"
    for other in ("x.json", "x.safetensors"):
        (tmp_path / "hih-small" / other).write_text("{}")
    assert find_weights("hih-small").source == "hih-small, packaged", "nor here"
    for other in ("x.json", "x.safetensors"):
        (tmp_path / "hih-small" / other).unlink()
    for name, content in contents(saved).items():
        (tmp_path / "hih-small" / name).write_bytes(content)
    assert find_weights("hih-small").card.name == "tiny"
    assert find_weights(model="hih-small").source == "hih-small, packaged"


def test_cache_finds_the_card_beside_other_json_files(hub: Hub, saved: Path) -> None:
    hub.commit("me/faces", {**contents(saved), "config.json": b"{}"})
    assert find_weights("me/faces").card.name == "tiny"
    (Path(find_weights("me/faces").path).parent / "config.json").write_text("{}")
    hub.requests.clear()
    assert find_weights("me/faces").card.name == "tiny"
    assert hub.requests == []


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_converted_checkpoint_replaces_no_file(tmp_path: Path, suffix: str) -> None:
    write_checkpoint(tmp_path / "best.pth", small_state("hih"))
    (tmp_path / f"own{suffix}").write_text("mine")
    with pytest.raises(ConfigurationError, match="exists already"):
        convert_checkpoint(tmp_path / "best.pth", tmp_path, "own")
    assert (tmp_path / f"own{suffix}").read_text() == "mine"
