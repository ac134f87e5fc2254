import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub
from numpy.typing import NDArray
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector, WeightsError, list_models
from hihlandmark.cli import app
from hihlandmark.weights import find_weights, pull_weights, verify_weights
from hihlandmark.weights.publish import model_page, push_weights

NAME = "adnet-small"


def test_what_was_pushed_is_pulled_and_gives_the_same_points(
    hub: Hub, astronaut: NDArray[np.uint8]
) -> None:
    pushed = push_weights(NAME, "me/faces")
    repository, commit = pushed.split("@")
    assert repository == "me/faces"
    assert hub.repositories["me/faces"].branches["main"] == commit
    files = pull_weights(pushed)
    verify_weights(files)
    assert files.card == find_weights(NAME).card
    box = [[178, 59, 267, 173]]
    points = [
        Detector(29, weights=weights, device="cpu", refine=0)
        .predict(astronaut, boxes=box)[0]
        .points
        for weights in (NAME, pushed)
    ]
    np.testing.assert_array_equal(*points)


def test_command_creates_branch_and_private_repository(hub: Hub) -> None:
    arguments = ["weights", "push", NAME, "me/secret@try", "--private"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert find_weights(result.stdout.rpartition("uploaded: ")[2].strip()).card.name == NAME
    repo = hub.repositories["me/secret"]
    assert repo.private
    assert f"{NAME}.json" in repo.commits[repo.branches["try"]]
    assert repo.commits[repo.branches["main"]] == {}


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_without_permission_nothing_is_written(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.write_token = "hf_right"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(WeightsError, match="HF_TOKEN"):
        push_weights(NAME, "me/faces")
    assert hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    push_weights(NAME, "me/faces")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("HF_HUB_OFFLINE", True, "HF_HUB_OFFLINE"), ("ENDPOINT", "http://127.0.0.1:9", "connection")],
)
@pytest.mark.parametrize("use", [pull_weights, lambda repository: push_weights(NAME, repository)])
def test_hub_that_cannot_be_reached_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, use: Any, option: str, value: Any, message: str
) -> None:
    monkeypatch.setattr(f"huggingface_hub.constants.{option}", value)
    with pytest.raises(WeightsError, match=message):
        use("me/faces")
    assert hub.requests == []


def test_damaged_weights_and_wrong_names_are_refused(hub: Hub, tmp_path: Path) -> None:
    files = find_weights(NAME)
    for path in (files.path, files.path.with_suffix(".json")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / f"{NAME}.safetensors").open("ab") as damaged:
        damaged.write(b"x")
    with pytest.raises(WeightsError, match="SHA-256"):
        push_weights(tmp_path, "me/faces")
    with pytest.raises(ConfigurationError, match="owner/name"):
        push_weights(NAME, "faces")
    assert hub.requests == []


@pytest.mark.parametrize("name", [row.name for row in list_models()])
def test_page_states_the_content_of_the_card(name: str) -> None:
    card = find_weights(name).card
    head, text = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", model_page(card), re.S).groups()
    assert "license: other" in head
    assert "library_name: hihlandmark" in head
    assert card.license in text
    assert card.sha256 in text
    for each in card.training_data:
        assert f"| {each.name} | {each.images} | {each.license} |" in text
    for each in card.figures:
        boxes = getattr(each, "boxes", "")
        assert f"| {each.split} | {boxes} | {each.points} |" in text
        assert f"| {each.metric} | {each.value} |" in text
        assert f"\n{each.command}\n" in text


def test_the_page_of_a_layout_of_the_weights_own_uses_their_default() -> None:
    card = find_weights(NAME).card
    own = card.model_copy(update={"layouts": {"MINE": None}})
    assert 'Detector(98, weights="me/faces")' in model_page(card, "me/faces")
    assert 'Detector(weights="me/faces")' in model_page(own, "me/faces")
