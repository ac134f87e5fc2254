"""Weights onto the Hugging Face Hub, with a page that tells people what they are.

Bringing them from there is the business of `weights`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hihlandmark.errors import WeightsError
from hihlandmark.weights import (
    DEFAULT_MODEL,
    ModelCard,
    find_weights,
    split_hub_id,
    verify_weights,
)


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
    return f"---\n{metadata.to_yaml()}\n---\n\n{card_text(card, repository)}"


def card_text(card: ModelCard, repository: str | None = None) -> str:
    """What a card says, as Markdown: use, figures, training data, licence, files."""
    layouts = card.configuration["layouts"]
    source = f'weights="{repository}"' if repository else f'model="{card.name}"'
    sections = [
        f"# {card.name}",
        f"Face landmarks by a network of architecture `{card.architecture}`, for "
        f"[hihlandmark](https://pypi.org/project/hihlandmark/). Layouts: "
        f"{', '.join(f'{name} ({count} points)' for name, count in layouts.items())}.",
        f"```python\nfrom hihlandmark import Detector\n\n"
        f'faces = Detector({next(iter(layouts.values()))}, {source}).predict("photo.jpg")\n```',
        "## Figures",
        _figures(card),
        "## Training data",
        _table(
            ("data", "images", "licence"),
            ((each["name"], str(each["images"]), each["licence"]) for each in card.training_data),
        )
        if card.training_data
        else "Not stated.",
        "## Licence",
        card.licence,
        "## Files",
        _table(("file", "SHA-256"), ((name, f"`{sha}`") for name, sha in card.files.items())),
    ]
    return "\n\n".join(sections) + "\n"


def _figures(card: ModelCard) -> str:
    if not card.figures:
        return "None were measured."
    rows = (
        (
            each["split"],
            str(each["points"]),
            str(each.get("faces", "")),
            each["metric"],
            str(each["value"]),
            f"`{each['command']}`",
        )
        for each in card.figures
    )
    return _table(("split", "points", "faces", "metric", "value", "command"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
