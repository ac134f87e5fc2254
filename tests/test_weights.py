"""Weights: cards, the search order, verification, the Hub, saving and converting."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import Hub, local_hub
from official_states import small_state
from safetensors.torch import load_file, save

from hihlandmark import weights as weights_module
from hihlandmark.crop import CANONICAL_CROP, CANONICAL_SCALE
from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.heatmap import Activation, Decoder
from hihlandmark.models.registry import build_model
from hihlandmark.shape_prior import ShapePrior
from hihlandmark.weights import (
    SHARD_BYTES,
    find_weights,
    list_weights,
    load_model,
    pull_weights,
    read_weights,
    save_weights,
    shape_prior_tensors,
    verify_weights,
)
from hihlandmark.weights.card import ACTIVATIONS, DECODERS, Decoding, ModelCard
from hihlandmark.weights.convert.checkpoint import convert_checkpoint

TINY: dict[str, Any] = {
    "stacks": 1,
    "features": 16,
    "depth": 4,
    "decimal_features": 16,
    "input_size": 256,
    "layouts": {"COFW29": 29},
    "auxiliary_layouts": {},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def card(name: str = "tiny", **changes: Any) -> ModelCard:
    given = ModelCard(
        name=name,
        architecture="hih",
        configuration=TINY,
        normalization={"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        crop={
            "pixel_origin": 0.5,
            "boxes": {
                "mtcnn": {"shift": [0.0, 0.1], "scale": 1.2},
                "landmarks:COFW29": {"shift": [0.0, -0.05], "scale": 1.5},
            },
        },
        decoding={"decoder": "local_soft_argmax", "bin_center": 0.5, "activation": "softmax"},
        calibration={"COFW29": {"slope": 1.5}},
        training_data=[{"name": "made up", "license": "CC0-1.0", "images": 3}],
        license="Apache-2.0",
        figures=[
            {"split": "val", "points": 29, "metric": "NME", "value": 3.0, "command": "true", "n": 1}
        ],
    )
    return replace(given, **changes)


def tiny_network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model("hih", TINY)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a saved tiny network: tiny.safetensors and tiny.json."""
    folder = tmp_path / "saved"
    save_weights(folder, card(), tiny_network().state_dict())
    return folder


def as_json(given: ModelCard) -> dict[str, Any]:
    return json.loads(given.to_json())


# Cards


LINEAR: Decoding = {"decoder": "mean", "bin_center": 0.5, "activation": "linear"}


@pytest.mark.parametrize("decoding", [LINEAR, {**LINEAR, "align_corners": True}])
def test_card_survives_json(decoding: Decoding) -> None:
    given = card(files={"tiny.safetensors": "0" * 64}, decoding=decoding)
    assert ModelCard.from_json(given.to_json()) == given


def test_card_knows_the_decoders_and_activations_of_heatmap() -> None:
    assert set(DECODERS) == set(typing.get_args(Decoder))
    assert set(ACTIVATIONS) == set(typing.get_args(Activation))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2.*update hihlandmark"),
        ({"schema": "1"}, "schema is '1'"),
        ({"color": "red"}, "unknown fields: color"),
        ({"license": " "}, "'license' must be a text"),
        ({"name": "../tiny"}, "'name'"),
        ({"configuration": []}, "'configuration' must be an object"),
        ({"normalization": {"mean": [0, 0, 0]}}, "fields mean, std"),
        ({"normalization": {"mean": [0, 0, 0], "std": [1, 1, 0]}}, "normalization.std"),
        ({"crop": {"pixel_origin": True, "boxes": {}}}, "crop.pixel_origin"),
        ({"crop": {"pixel_origin": 0, "boxes": {"m": {"shift": [0], "scale": 1}}}}, "m.shift"),
        (
            {"decoding": {"decoder": "guess", "bin_center": 0, "activation": "softmax"}},
            "argmax, expectation, mean, quarter_shift, not 'guess'",
        ),
        ({"decoding": {**LINEAR, "align_corners": 1}}, "decoding.align_corners"),
        ({"decoding": {**LINEAR, "corners": True}}, "an object with the fields activation"),
        ({"decoding": {"decoder": "mean", "align_corners": True}}, "fields activation, bin_cen"),
        ({"files": {}}, "names no weight files"),
        ({"files": {"../../x.safetensors": "0" * 64}}, "'files'"),
        ({"files": {"x.pth": "0" * 64}}, "'files'"),
        ({"files": {"x.safetensors": "0" * 63}}, "SHA-256"),
        ({"training_data": [{"name": "a", "license": "b"}]}, r"training_data\[0\]"),
        ({"figures": [{"split": "val"}]}, r"figures\[0\]"),
    ],
)
def test_card_with_a_wrong_field_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    values = as_json(card(files={"tiny.safetensors": "0" * 64})) | change
    with pytest.raises(WeightsError, match=message):
        ModelCard.from_json(json.dumps(values))


def test_card_without_a_field_is_refused_by_name() -> None:
    values = as_json(card())
    del values["crop"]
    with pytest.raises(WeightsError, match="lacks fields: crop"):
        ModelCard.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": NaN}', "[" * 100_000])
def test_card_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(WeightsError, match=r"not valid JSON|not a JSON object"):
        ModelCard.from_json(text)


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
    tensors = tiny_network().state_dict() | shape_prior_tensors("COFW29", prior)
    _, _, priors = load_model(save_weights(tmp_path, card(), tensors))
    assert list(priors) == ["COFW29"]
    read = priors["COFW29"]
    assert read.mean == pytest.approx(prior.mean, abs=2e-3)
    assert read.modes == pytest.approx(prior.modes, abs=2e-3)
    assert (read.noise, read.covariance_scale) == pytest.approx((0.02, 0.3), rel=1e-3)


@pytest.mark.parametrize("lost", ["mean", "modes", "scales"])
def test_a_broken_shape_prior_is_refused(tmp_path: Path, lost: str) -> None:
    prior = shape_prior_tensors("COFW29", ShapePrior(np.zeros((29, 2)), np.zeros((3, 29, 2)), 0.02))
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


def test_save_refuses_weights_of_a_diverged_training(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="'weight' holds NaN"):
        save_weights(tmp_path, card(), {"weight": torch.tensor([float("nan")])})
    assert list(tmp_path.iterdir()) == []


def test_large_weights_are_cut_into_shards_of_at_most_16_mib(tmp_path: Path) -> None:
    state = {f"w{i}": torch.full((3 * 2**20,), float(i)) for i in range(5)}
    card_path = save_weights(tmp_path, card(), state)
    shards = [tmp_path / f"tiny-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(tmp_path.iterdir()) == sorted([card_path, *shards])
    assert max(shard.stat().st_size for shard in shards) <= SHARD_BYTES
    for given in (card_path, shards[1]):
        files = find_weights(given)
        assert list(files.paths) == shards
        assert {name: float(t[0]) for name, t in read_weights(files).items()} == {
            f"w{i}": i for i in range(5)
        }
    # A smaller network under the same name leaves none of them behind.
    save_weights(tmp_path, card(), {"w": torch.ones(1)})
    assert sorted(tmp_path.iterdir()) == [card_path, tmp_path / "tiny.safetensors"]


def test_failed_save_leaves_the_earlier_weights_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_weights(saved, card(), tiny_network(seed=1).state_dict())
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_changed_byte_is_refused(saved: Path) -> None:
    file = saved / "tiny.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    files = find_weights(saved)
    with pytest.raises(WeightsError, match=r"tiny\.safetensors.*SHA-256"):
        verify_weights(files)
    with pytest.raises(WeightsError, match=r"tiny\.safetensors.*SHA-256"):
        load_model(saved)


def write_as_described(folder: Path, contents: dict[str, bytes], **changes: Any) -> None:
    """Weight files with any content, and a card that has the right SHA-256 of each."""
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "tiny.json").write_text(card(files=files, **changes).to_json())


def test_truncated_safetensors_is_refused(tmp_path: Path) -> None:
    content = save({"w": torch.ones(100)})
    write_as_described(tmp_path, {"tiny.safetensors": content[:-50]})
    with pytest.raises(WeightsError, match="not a complete safetensors file"):
        read_weights(find_weights(tmp_path))


def test_shards_with_a_tensor_in_common_are_refused(tmp_path: Path) -> None:
    shard = save({"w": torch.ones(1)})
    names = [f"tiny-0000{i}-of-00002.safetensors" for i in (1, 2)]
    write_as_described(tmp_path, dict.fromkeys(names, shard))
    with pytest.raises(WeightsError, match="repeats tensors of another shard: w"):
        read_weights(find_weights(tmp_path))


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (TINY | {"stacks": 2}, "does not fit.*missing: stacks.1.* and [0-9]+ more"),
        (TINY | {"features": 32}, "does not fit.*of another shape: .* more"),
        (TINY | {"auxiliary_layouts": {"E86": 86}}, "missing: auxiliary_heads.E86.bias"),
        (TINY | {"wings": 2}, "cannot be built.*wings"),
    ],
)
def test_card_of_another_architecture_is_refused(
    tmp_path: Path, configuration: dict[str, Any], message: str
) -> None:
    content = save(tiny_network().state_dict())
    write_as_described(tmp_path, {"tiny.safetensors": content}, configuration=configuration)
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path)


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    content = save({"w": torch.ones(1)})
    write_as_described(tmp_path, {"tiny.safetensors": content}, architecture="oracle")
    with pytest.raises(WeightsError, match="oracle"):
        load_model(tmp_path)


# Finding: paths and packaged names


@pytest.mark.parametrize("name", ["", "tiny.json", "tiny.safetensors"])
def test_weights_are_found_by_folder_card_and_file(saved: Path, name: str) -> None:
    for given in (saved / name, str(saved / name)):
        assert find_weights(given).paths == (saved / "tiny.safetensors",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pth", "hihlandmark weights convert"),
        ("model.pt", "hihlandmark weights convert"),
        ("alone.safetensors", r"no model card: alone\.json"),
        ("missing.safetensors", "no weight file"),
        ("notes.txt", "not a weight file"),
        ("empty", "no weights with a model card"),
        ("nothing/at/all", "no weights.*no such file"),
        ("tiny-00001-of-00002.safetensors", "not about tiny-00001-of-00002"),
    ],
)
def test_paths_without_usable_weights_say_what_to_do(saved: Path, name: str, message: str) -> None:
    for file in ("model.pth", "model.pt", "alone.safetensors", "notes.txt"):
        (saved / file).write_bytes(b"anything")
    (saved / "tiny-00001-of-00002.safetensors").write_bytes(b"anything")
    (saved / "empty").mkdir()
    with pytest.raises(WeightsError, match=message):
        find_weights(saved / name)


def test_card_without_its_file_is_refused(saved: Path) -> None:
    (saved / "tiny.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"missing: tiny\.safetensors"):
        find_weights(saved / "tiny.json")


def test_folder_of_several_models_is_asked_for_the_named_one(saved: Path) -> None:
    save_weights(saved, card("other"), {"w": torch.ones(1)})
    assert find_weights(saved, model="other").card.name == "other"
    with pytest.raises(WeightsError, match="several models"):
        find_weights(saved, model="third")


@pytest.fixture
def packaged(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny weights as if they had been installed with the package."""
    package = saved.parent / "hihlandmark"
    package.mkdir()
    saved.rename(package / "packaged_weights")
    monkeypatch.setattr(weights_module, "__file__", str(package / "weights.py"))
    return package


def test_packaged_weights_are_found_by_name(packaged: Path) -> None:
    assert find_weights(model="tiny").card == find_weights("tiny").card
    assert find_weights("tiny").paths[0].parent == packaged / "packaged_weights"
    with pytest.raises(WeightsError, match=r"'huge'.*packaged are: tiny"):
        find_weights(model="huge")
    with pytest.raises(WeightsError, match=r"'huge'.*packaged are: tiny"):
        find_weights("huge")


def test_packaged_weights_of_a_source_checkout_are_found(packaged: Path) -> None:
    (packaged / "packaged_weights").rename(packaged.parent / "weights")
    assert find_weights("tiny").paths[0].parent == packaged.parent / "weights"


def test_list_verifies_every_packaged_model(packaged: Path) -> None:
    folder = packaged / "packaged_weights"
    save_weights(folder, card("damaged"), {"w": torch.ones(1)})
    (folder / "damaged.safetensors").write_bytes(b"")
    (folder / "broken.json").write_text("{")
    rows = {row.name: row for row in list_weights()}
    assert list(rows) == ["broken", "damaged", "tiny"]
    assert rows["tiny"].problem is None
    assert rows["tiny"].files is not None
    assert "SHA-256" in str(rows["damaged"].problem)
    assert "not valid JSON" in str(rows["broken"].problem)


def test_revision_of_anything_but_a_repository_is_refused(saved: Path) -> None:
    for given in (None, saved, "hih-small"):
        with pytest.raises(ConfigurationError, match="revision"):
            find_weights(given, revision="v1")


# The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local Hub that huggingface_hub talks to, with an empty cache and without waiting."""
    with local_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_offline_and_not_cached_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"not in the Hugging Face cache.*HF_HUB_OFFLINE"):
        find_weights("me/faces")
    assert hub.requests == []


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


def test_broken_download_resumes(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # huggingface_hub resumes behind the last whole chunk: the tiny file needs tiny ones.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    hub.commit("me/faces", contents(saved))
    hub.cuts = [1000]
    verify_weights(find_weights("me/faces"))
    assert [r.range for r in hub.requests if r.method == "GET"][-1] == "bytes=1000-"


def test_download_that_stays_broken_fails_cleanly_and_succeeds_later(hub: Hub, saved: Path) -> None:
    hub.commit("me/faces", contents(saved))
    hub.cuts = [1000] + [0] * 100
    with pytest.raises(WeightsError, match=r"could not be downloaded.*try again"):
        find_weights("me/faces")
    hub.cuts.clear()
    verify_weights(find_weights("me/faces"))


def test_cached_file_that_is_damaged_is_pulled_again(hub: Hub, saved: Path) -> None:
    hub.commit("me/faces", contents(saved))
    file = find_weights("me/faces").paths[0]
    file.resolve().write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="hihlandmark weights pull"):
        verify_weights(find_weights("me/faces"))
    verify_weights(pull_weights("me/faces"))


def test_hub_weights_of_wrong_digest_or_architecture_are_refused(hub: Hub, saved: Path) -> None:
    other = save(tiny_network(seed=1).state_dict())
    hub.commit("me/digest", contents(saved) | {"tiny.safetensors": other})
    with pytest.raises(WeightsError, match="SHA-256"):
        load_model("me/digest")
    values = as_json(find_weights(saved).card)
    values["configuration"]["features"] = 32
    hub.commit("me/swapped", contents(saved) | {"tiny.json": json.dumps(values).encode()})
    with pytest.raises(WeightsError, match="does not fit"):
        load_model("me/swapped")


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
        "me/absent": "no repository me/absent.*check the spelling",
        "me/empty@v9": "no revision 'v9'",
        "me/empty": "no weights with a model card",
        "me/gated": "HF_TOKEN",
    }.items():
        with pytest.raises(WeightsError, match=message):
            find_weights(weights)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    verify_weights(find_weights("me/gated"))
    with pytest.raises(ConfigurationError, match="owner/name"):
        pull_weights("gated")


def test_hub_out_of_reach_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub() as gone:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", gone.url)
    with pytest.raises(WeightsError, match=r"could not be downloaded.*connection"):
        find_weights("me/faces")


# Converting


def write_checkpoint(path: Path, state: dict[str, torch.Tensor], **more: object) -> Path:
    """What the authors' code writes: NumPy numbers and the optimizer's state among it."""
    best_nme = {"epoch": 59, "nme": np.float64(4.08), "loss": np.float32(0.5), "count": np.int64(1)}
    optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}
    everything = {"state_dict": state, "best_nme": best_nme, "optimizer": optimizer, "epoch": 59}
    torch.save(everything | more, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_checkpoint_is_converted(tmp_path: Path, prefix: str) -> None:
    official = small_state("hih")
    state = {f"{prefix}{name}": tensor for name, tensor in official.items()}
    checkpoint = write_checkpoint(tmp_path / "best.pth", state)
    card_path = convert_checkpoint(checkpoint, tmp_path / "out", "hih-cofw", layout="COFW29")
    network, read_card, _ = load_model(card_path)
    assert read_card.configuration["layouts"] == {"COFW29": 29}
    assert read_card.crop["pixel_origin"] == 0.0
    assert read_card.crop["boxes"]["landmarks:COFW29"] == {"shift": [0.0, 0.0], "scale": 1.2}
    assert "mtcnn" in read_card.crop["boxes"]
    assert read_card.decoding == {
        "decoder": "argmax",
        "bin_center": 0.0,
        "activation": "linear",
    }
    predict = official["offset_head.head.1.weight"]
    assert torch.equal(network.state_dict()["decimal_head.predict.weight"], predict.half().float())
    with pytest.raises(WeightsError, match="layout COFW29, not WFLW98"):
        convert_checkpoint(checkpoint, tmp_path / "out", "hih-wflw", layout="WFLW98")


def test_official_checkpoint_of_adnet_is_converted(tmp_path: Path) -> None:
    official = small_state("adnet")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    everything = {
        "net": official,
        "net_ema": {name: tensor * 0 for name, tensor in official.items()},
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [200, 350]).state_dict(),
        "epoch": 499,
    }
    torch.save(everything, tmp_path / "train.pkl")
    card_path = convert_checkpoint(tmp_path / "train.pkl", tmp_path / "out", "adnet-cofw")
    network, read_card, _ = load_model(card_path)
    assert read_card.architecture == "adnet"
    assert read_card.configuration["edges"]["COFW29"][0] == [0, 2, 4, 5]
    assert read_card.normalization == {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    assert read_card.crop["pixel_origin"] == 0.5
    assert read_card.crop["boxes"]["landmarks:COFW29"] == {"shift": [0.0, 0.0], "scale": 1.0}
    assert read_card.decoding == {
        "decoder": "mean",
        "bin_center": 0.5,
        "activation": "linear",
        "align_corners": True,
    }
    bgr, rgb = official["pre.0.conv.weight"], network.state_dict()["stem.0.weight"]
    assert torch.equal(rgb[:, :3], bgr[:, :3].flip(1).half().float())
    assert torch.equal(rgb[:, 3:], bgr[:, 3:].half().float())  # of coordinates


@pytest.mark.parametrize("alone", [True, False])
def test_official_checkpoint_of_adaptive_wing_is_converted(tmp_path: Path, alone: bool) -> None:
    official = small_state("awing")
    torch.save(official if alone else {"state_dict": official}, tmp_path / "WFLW.pth")
    card_path = convert_checkpoint(tmp_path / "WFLW.pth", tmp_path / "out", "awing-cofw")
    network, read_card, _ = load_model(card_path)
    assert read_card.architecture == "awing"
    assert read_card.normalization == {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    assert read_card.crop["pixel_origin"] == 0.0
    assert read_card.decoding == {
        "decoder": "quarter_shift",
        "bin_center": 0.5,
        "activation": "linear",
    }
    predict = official["l0.weight"]
    assert torch.equal(network.state_dict()["predict.0.weight"], predict.half().float())


def test_converted_crops_are_the_same_square_from_every_box(tmp_path: Path) -> None:
    """Of a face whose boxes lie as `CANONICAL_CROP` has it, all around one canonical square."""
    torch.save(small_state("awing"), tmp_path / "WFLW.pth")
    card_path = convert_checkpoint(tmp_path / "WFLW.pth", tmp_path / "out", "awing-cofw")
    converted = ModelCard.from_json(card_path.read_text()).crop["boxes"]
    assert converted.keys() == {"mtcnn", "centerface", "landmarks:COFW29"}
    face = 100 / CANONICAL_SCALE  # longer side of the box of 98 points, canonical side 100
    for kind, square in converted.items():
        canonical = CANONICAL_CROP[kind]
        box = 100 / canonical.scale
        center = [(s - c) * box for s, c in zip(square["shift"], canonical.shift, strict=True)]
        # As stated for the 98 points: 0.136 of their box above its center, 1.48 times as large.
        assert center == pytest.approx([0, -0.136 * face], abs=0.02)
        assert square["scale"] * box == pytest.approx(1.48 * face, abs=0.02)


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


def test_what_is_no_official_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    with pytest.raises(WeightsError, match="cannot be read"):
        convert_checkpoint(path, tmp_path, "hih-cofw")
    for content in (b"", b"not a pickle", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"best\.pth"):
            convert_checkpoint(path, tmp_path, "hih-cofw")
    nothing: list[object] = [[torch.ones(1)], {}, {"net": {}}]
    for no_state in nothing:
        torch.save(no_state, path)
        with pytest.raises(WeightsError, match='no state dict and has no "state_dict" or "net"'):
            convert_checkpoint(path, tmp_path, "hih-cofw")
    for no_tensors in ({"epoch": 3}, {"net": {"epoch": 3}}):
        torch.save(no_tensors, path)
        with pytest.raises(WeightsError, match="not all tensors"):
            convert_checkpoint(path, tmp_path, "hih-cofw")
    write_checkpoint(path, {"module.weight": torch.ones(1)})
    with pytest.raises(
        WeightsError, match=r"of a known system: .*HIH \(pre_conv.*; its first are weight"
    ):
        convert_checkpoint(path, tmp_path, "hih-cofw")


@pytest.mark.parametrize(
    ("system", "lost", "message"),
    [
        ("hih", "hg0_conv_pred.weight", "HIH: .* 1 missing: hg0_conv_pred.weight"),
        ("adnet", "e2h_transform.bias", "ADNet: .* 1 missing: e2h_transform.bias"),
        ("awing", "l0.bias", "Adaptive Wing: .* 1 missing: l0.bias"),
    ],
)
def test_official_checkpoint_that_lacks_a_tensor_is_refused(
    tmp_path: Path, system: str, lost: str, message: str
) -> None:
    state = small_state(system)
    del state[lost]
    checkpoint = write_checkpoint(tmp_path / "best.pth", state)
    with pytest.raises(WeightsError, match=rf"best\.pth is not a checkpoint of {message}"):
        convert_checkpoint(checkpoint, tmp_path, "cofw")
