"""Upload weights to the Hugging Face Hub, with a page made from their model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hihlandmark.errors import WeightsError
from hihlandmark.tables import Table
from hihlandmark.weights.card import ModelCard
from hihlandmark.weights.files import verify_weights
from hihlandmark.weights.find import DEFAULT_MODEL, find_weights, hub_problem, split_hub_id


def push_weights(
    weights: str | Path | None,
    repository: str,
    *,
    model: str = DEFAULT_MODEL,
    private: bool = False,
    message: str | None = None,
) -> str:
    """Upload weights and their card to a model repository of the Hub, in one commit.

    The weights, those of `find_weights`, are verified first. The repository, "owner/name" or
    "owner/name@branch", is made where missing, then ``private`` or not. A README.md that exists in
    it is left alone; otherwise the page of `model_page` is written.

    Returns "owner/name@commit", which `Detector(weights=...)` takes.

    Raises:
        WeightsError: the weights are damaged, or could not be uploaded.
        ConfigurationError: the repository's name is malformed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = find_weights(weights, model=model)
    content = verify_weights(files)
    name, branch = split_hub_id(repository, None)
    card, api = files.card, HfApi()
    contents = {card.file: content, f"{card.name}.json": card.to_json().encode()}
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if branch != "main":
            api.create_branch(name, branch=branch, exist_ok=True)
        if not api.file_exists(name, "README.md", revision=branch):
            contents["README.md"] = model_page(card, repository).encode()
        commit = api.create_commit(
            name,
            [CommitOperationAdd(path, each) for path, each in contents.items()],
            commit_message=message or f"{card.name}, by hihlandmark",
            revision=branch,
        )
    except Exception as error:  # The class of HTTP errors differs among huggingface_hub's releases.
        raise WeightsError(hub_problem(error, repository)) from error
    return f"{name}@{commit.oid}"


def model_page(card: ModelCard, repository: str | None = None) -> str:
    """The README.md of a model repository: Markdown with the Hub's metadata.

    The page's example loads the weights from ``repository``, or by the packaged name.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        license="other",
        license_name="see-model-page",
        library_name="hihlandmark",
        pipeline_tag="keypoint-detection",
        tags=["face-landmarks", "face-alignment", card.architecture],
    )
    source = f'weights="{repository}"' if repository else f'model="{card.name}"'
    if not card.layouts:  # a layout of the weights' own is their default
        source = f"{next(iter(card.configuration['layouts'].values()))}, {source}"
    text = (
        f"# {card.name}",
        "Weights for face landmarks with hihlandmark (`pip install hihlandmark`).",
        "```python\nfrom hihlandmark import Detector\n\n"
        f'faces = Detector({source}).predict("image.jpg")\n```',
        *card_sections(card, "##"),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(text) + "\n"


_FIGURES = {
    "split": "data",
    "boxes": "boxes",
    "points": "points",
    "faces": "faces",
    "missed": "missed",
    "precision": "precision",
    "metric": "metric",
    "value": "value",
    "fr10": "FR10, %",
    "auc10": "AUC10",
    "calibration_error": "calibration error, %",
}
"""Keys of a card's figures, and the titles of their columns."""


def card_sections(card: ModelCard, heading: str) -> Iterator[str]:
    """A card as blocks of Markdown, under headings such as "##"."""
    configuration, normalization = card.configuration, card.normalization
    names = ("encoder", "stacks", "features", "depth", "stride")
    sizes = {name: configuration[name] for name in names if name in configuration}
    layouts = (f"{points} ({name})" for name, points in configuration["layouts"].items())
    facts = [
        ("Architecture", f"`{card.architecture}`, {_pairs(sizes)}"),
        ("Points", ", ".join(layouts)),
        ("Crop", f"{configuration['input_size']} pixels a side, RGB"),
        ("Normalization", f"mean {normalization.mean}, std {normalization.std}"),
        ("Decoding", _pairs(card.decoding.model_dump())),
        ("SHA-256", f"`{card.file}`<br>`{card.sha256}`"),
    ]
    yield card.license
    yield Table("", ("", ""), facts).markdown()
    yield f"{heading} Measured"
    if card.figures:
        rows = [[each.model_dump().get(key) for key in _FIGURES] for each in card.figures]
        yield Table("", tuple(_FIGURES.values()), rows).markdown()
        yield "\n".join(["```sh", *dict.fromkeys(each.command for each in card.figures), "```"])
    else:
        yield "Nothing was measured."
    yield f"{heading} Trained on"
    sources = [(each.name, each.images, each.license) for each in card.training_data]
    yield Table("", ("data", "images", "license"), sources).markdown()
    yield f"{heading} From boxes to crops"
    boxes = [(f"`{kind}`", box.shift, box.scale) for kind, box in card.crop.boxes.items()]
    yield Table("", ("kind of box", "shift of the center", "side"), boxes).markdown()


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
