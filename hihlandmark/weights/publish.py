"""Weights onto the Hugging Face Hub, with a page that tells people what they are.

Bringing them from there is the business of `weights`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hihlandmark.errors import WeightsError
from hihlandmark.weights import DEFAULT_MODEL, find_weights, split_hub_id, verify_weights
from hihlandmark.weights.card import ModelCard


def push_weights(
    weights: str | Path | None,
    repository: str,
    *,
    model: str = DEFAULT_MODEL,
    private: bool = False,
    message: str | None = None,
) -> str:
    """Upload weights and their card to a model repository of the Hub, in one commit.

    ``weights`` and ``model``: as `find_weights` takes them; files are verified first.
    ``repository``: "owner/name" or "owner/name@branch"; repository and branch are made where they
    are not there. ``private`` matters for a new repository only. A README.md that is there already
    is left alone; without one the page of `model_page` is written. Returns "owner/name@commit",
    which `Detector(weights=...)` takes. Raises `WeightsError` when that cannot be done.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = find_weights(weights, model=model)
    verify_weights(files)
    name, branch = split_hub_id(repository, None)
    card = files.card
    contents: dict[str, Path | bytes] = {path.name: path for path in files.paths}
    contents[f"{card.name}.json"] = card.to_json().encode()
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if branch != "main":
            api.create_branch(name, branch=branch, exist_ok=True)
        if not api.file_exists(name, "README.md", revision=branch):
            contents["README.md"] = model_page(card, repository).encode()
        commit = api.create_commit(
            name,
            [CommitOperationAdd(path, content) for path, content in contents.items()],
            commit_message=message or f"{card.name}, by hihlandmark",
            revision=branch,
        )
    except Exception as error:  # HTTP errors are of another package with each huggingface_hub.
        raise WeightsError(_push_problem(error, name)) from error
    return f"{name}@{commit.oid}"


def _push_problem(error: Exception, repository: str) -> str:
    """What went wrong while uploading, and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set: unset it to upload to {repository}."
    if status in (401, 403):
        return (
            f"The Hub does not let you write to {repository}: set HF_TOKEN to a token with write "
            "permission of an account that may, or log in with `hf auth login`."
        )
    return (
        f"{repository} could not be written to ({type(error).__name__}: {error}). "
        "Check the connection and HF_ENDPOINT, and try again: what is there is not harmed."
    )


def model_page(card: ModelCard, repository: str | None = None) -> str:
    """The README.md of a model repository, Markdown with the Hub's metadata, from its card.

    ``repository`` is what the example loads the weights from; None: the packaged name.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        license="other",
        license_name="see-model-page",
        library_name="hihlandmark",
        pipeline_tag="keypoint-detection",
        tags=["face-landmarks", "face-alignment", card.architecture],
    )
    points = next(iter(card.configuration["layouts"].values()))
    source = f'weights="{repository}"' if repository else f'model="{card.name}"'
    text = (
        f"# {card.name}",
        "Weights for face landmarks with hihlandmark (`pip install hihlandmark`).",
        "```python\nfrom hihlandmark import Detector\n\n"
        f'faces = Detector({points}, {source}).predict("photo.jpg")\n```',
        *card_sections(card, "##"),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(text) + "\n"


_FIGURES = {
    "split": "data",
    "boxes": "boxes",
    "points": "points",
    "faces": "faces",
    "missed": "missed",
    "value": "NME, %",
    "fr10": "FR10, %",
    "auc10": "AUC10",
    "calibration_error": "calibration error, %",
}
"""Keys of a card's figures, and how their columns are called."""


def card_sections(card: ModelCard, heading: str) -> Iterator[str]:
    """What a card says, as blocks of Markdown under headings such as ``"##"``."""
    configuration, normalization = card.configuration, card.normalization
    sizes = {key: configuration[key] for key in ("stacks", "features", "depth")}
    layouts = (f"{points} ({name})" for name, points in configuration["layouts"].items())
    yield card.license
    yield markdown_table(
        ("", ""),
        [
            ("Architecture", f"`{card.architecture}`, {_pairs(sizes)}"),
            ("Points", ", ".join(layouts)),
            ("Crop", f"{configuration['input_size']} pixels a side, RGB"),
            ("Normalization", f"mean {normalization['mean']}, deviation {normalization['std']}"),
            ("Reading", _pairs(card.decoding)),
            *(("SHA-256", f"`{name}`<br>`{digest}`") for name, digest in card.files.items()),
        ],
    )
    yield f"{heading} Measured"
    if card.figures:
        rows = [[figure.get(key, "") for key in _FIGURES] for figure in card.figures]
        yield markdown_table(tuple(_FIGURES.values()), rows)
        commands = dict.fromkeys(figure["command"] for figure in card.figures)
        yield "\n".join(["```sh", *commands, "```"])
    else:
        yield "Nothing was measured."
    yield f"{heading} Trained on"
    training_data = [(each["name"], each["images"], each["license"]) for each in card.training_data]
    yield markdown_table(("data", "images", "license"), training_data)
    yield f"{heading} From boxes to crops"
    boxes = [(f"`{kind}`", box["shift"], box["scale"]) for kind, box in card.crop["boxes"].items()]
    yield markdown_table(("kind of box", "shift of the center", "side"), boxes)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = (header, ("---",) * len(header), *rows)
    cells = ((str(cell).replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
