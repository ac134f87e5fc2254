"""Where weights are: a path, packaged with the library, in the Hugging Face cache, on the Hub.

The model card ``NAME.json`` lies beside the weights file. Nothing is read from the weights here,
and huggingface_hub does the fetching.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hihlandmark.errors import ConfigurationError, WeightsError, abbreviate
from hihlandmark.weights.card import NAME, WEIGHT_FILE, ModelCard

DEFAULT_MODEL = "hih-small"

_HUB_ID = re.compile(rf"(?P<repository>{NAME.pattern}/{NAME.pattern})(@(?P<revision>\S+))?")
_PICKLES = {".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".tar", ".bin"}
_HUB_TIMEOUT = 10.0
"""Seconds to wait for the Hub's listing of a repository: huggingface_hub itself sets no limit."""


@dataclass(frozen=True)
class WeightFiles:
    """Weights that were found.

    Attributes:
        card: the model card.
        path: of the weights file.
        card_path: of the card, by which these weights are found again.
        source: where they were found: a path, or the name of packaged weights or of a repository.
    """

    card: ModelCard
    path: Path
    card_path: Path
    source: str


def find_weights(
    weights: str | Path | None = None, *, model: str = DEFAULT_MODEL, revision: str | None = None
) -> WeightFiles:
    """Find weights without reading them: by path, packaged name, in the cache, then on the Hub.

    A repository in the cache is used without asking the Hub: `pull_weights` updates a branch.

    Args:
        weights: None for the packaged ``model``; a packaged name; a path to a ``.safetensors``
            file, a card or a folder; or a Hub repository, "owner/name" or "owner/name@revision".
        model: which card to take where a folder or repository holds several.
        revision: branch, tag or commit of a Hub repository; None: "main".

    Raises:
        WeightsError: nothing was found.
        ConfigurationError: a revision was given for something that is no repository.
    """
    text = model if weights is None else os.fspath(weights)
    try:
        return _find(weights, text, model, revision)
    # Of the file system, or pathlib's for "~nobody" and for NUL.
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"There are no weights {text!r:.100}: {error!s:.200}") from error


def _find(weights: str | Path | None, text: str, model: str, revision: str | None) -> WeightFiles:
    path = Path(text).expanduser()
    packaged = weights is None or (
        isinstance(weights, str) and text in packaged_cards() and not _holds_weights(path)
    )
    is_weight_path = path.suffix.lower() in {".safetensors", ".json", *_PICKLES}
    is_hub_id = isinstance(weights, str) and _HUB_ID.fullmatch(text)
    if is_hub_id and not (packaged or is_weight_path or path.exists()):
        found = _find_cached(text, model, revision)
        return found or pull_weights(text, model=model, revision=revision)
    if revision is not None:
        raise ConfigurationError(
            f"revision={revision!r} needs a repository of the Hub as owner/name, not {weights!r}."
        )
    return find_packaged(text) if packaged else _find_path(path, model)


def packaged_cards() -> dict[str, Path]:
    """Names and cards of the packaged weights: inside a wheel, or in the source checkout."""
    package = Path(__file__).parents[1]
    # A folder "weights" beside an installed package would belong to another project.
    inside, checkout = package / "packaged_weights", package.parent / "weights"
    folder = inside if inside.is_dir() else checkout
    return {card.stem: card for card in sorted(folder.glob("*.json"))}


def find_packaged(name: str) -> WeightFiles:
    """The packaged weights of a name. Raises `WeightsError` when there are none."""
    cards = packaged_cards()
    if name not in cards:
        raise WeightsError(
            f"There are no packaged weights {name!r}: give one of {abbreviate(cards, 20)}, a path, "
            "or owner/name on the Hub."
        )
    return _file_beside(cards[name], f"{name}, packaged")


def _holds_weights(path: Path) -> bool:
    """Whether a path is a folder with weights, rather than a packaged name."""
    if not path.is_dir():
        return False
    cards = _cards_with_weights(file.name for file in path.iterdir())
    return any(_is_card(path / name) for name in cards)


def _find_path(path: Path, model: str) -> WeightFiles:
    if path.name in ("last.pt", "best.pt"):
        raise WeightsError(
            f"{path} is a checkpoint of a run: repeat its `hihlandmark train` with `--export "
            "FOLDER`, and give that folder."
        )
    if path.suffix.lower() in _PICKLES:
        raise WeightsError(f"{path} may run code: use `hihlandmark weights convert` on pickles.")
    if path.is_dir():
        cards = _cards_with_weights(file.name for file in path.iterdir())
        card_path = path / _choose_card(cards, model, f"The folder {path}")
        return _file_beside(card_path, str(card_path))
    if not path.is_file():
        raise WeightsError(
            f"There are no weights {str(path)!r:.200}: no such file or folder, no repository "
            f"of the Hub (owner/name), and none of the packaged {abbreviate(packaged_cards(), 20)}."
        )
    card_path = path.with_suffix(".json")
    if path != card_path and not WEIGHT_FILE.fullmatch(path.name):
        raise WeightsError(f"{path} is not a weights file: give .safetensors, or its card .json.")
    if not card_path.is_file():
        raise WeightsError(f"{path} has no model card: copy {card_path.name} beside it.")
    found = _file_beside(card_path, str(card_path))
    if path not in (card_path, found.path):
        raise WeightsError(
            f"{card_path} describes {found.card.file}, not {path.name}: copy both from one place."
        )
    return found


def _cards_with_weights(names: Iterable[str]) -> set[str]:
    """The names of cards with a weights file beside them, among the file names of a folder."""
    present = set(names)
    matches = (WEIGHT_FILE.fullmatch(name) for name in present)
    return {f"{match['name']}.json" for match in matches if match} & present


def _choose_card(cards: set[str], model: str, where: str) -> str:
    """The card of ``model``, or another one when it is the only one."""
    if not cards:
        raise WeightsError(f"{where} has no weights with a model card: NAME.safetensors, NAME.json")
    if len(cards) > 1 and f"{model}.json" not in cards:
        raise WeightsError(f"{where} has several models, name one of {abbreviate(cards, 20)}")
    return f"{model}.json" if len(cards) > 1 else next(iter(cards))


def _read_card(path: Path) -> ModelCard:
    try:
        return ModelCard.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, WeightsError) as error:
        raise WeightsError(f"{path}: {error}") from error


def _is_card(path: Path) -> bool:
    """Whether a JSON file is a model card."""
    with suppress(WeightsError):
        _read_card(path)
        return True
    return False


def _file_beside(card_path: Path, source: str) -> WeightFiles:
    card = _read_card(card_path)
    path = card_path.with_name(card.file)
    if not path.is_file():
        raise WeightsError(f"{path} is missing: copy it beside the model card {card_path.name}.")
    return WeightFiles(card, path, card_path, source)


def pull_weights(
    repository: str, *, model: str = DEFAULT_MODEL, revision: str | None = None
) -> WeightFiles:
    """Download a repository's weights from the Hub into the Hugging Face cache, where missing.

    The arguments are those of `find_weights`. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are
    honored. A cached file that is damaged is downloaded again.

    Raises:
        WeightsError: the weights could not be downloaded.
        ConfigurationError: the repository's name is malformed, or two revisions are given.
    """
    from huggingface_hub import HfApi, hf_hub_download

    repository, revision = split_hub_id(repository, revision)
    try:
        info = HfApi().model_info(repository, revision=revision, timeout=_HUB_TIMEOUT)
        cards = _cards_with_weights(sibling.rfilename for sibling in info.siblings or [])
        card_file = _choose_card(cards, model, f"The repository {repository}")
        # The branch is resolved to a commit once, so that card and weights belong together.
        card_path = Path(hf_hub_download(repository, card_file, revision=revision))
        commit = card_path.parent.name
        # All cards, so that the cache chooses among the same ones as the Hub.
        for other in cards - {card_file}:
            hf_hub_download(repository, other, revision=commit)
        card = _read_card(card_path)
        file = hf_hub_download(repository, card.file, revision=commit)
        # The cache returns a damaged file for ever, unless it is forced to download it again.
        if hashlib.sha256(Path(file).read_bytes()).hexdigest() != card.sha256:
            hf_hub_download(repository, card.file, revision=commit, force_download=True)
    except WeightsError:
        raise
    except Exception as error:  # The class of HTTP errors differs among huggingface_hub's releases.
        raise WeightsError(hub_problem(error, f"{repository}@{revision}")) from error
    return _file_beside(card_path, f"{repository}@{commit}, from the Hub")


def split_hub_id(repository: str, revision: str | None) -> tuple[str, str]:
    """Split "owner/name@revision" into ("owner/name", revision), "main" where there is none.

    Raises `ConfigurationError` for a malformed name and for two different revisions.
    """
    hub_id = _HUB_ID.fullmatch(repository)
    if not hub_id:
        raise ConfigurationError(
            f"{repository!r} is no Hub repository: write owner/name or owner/name@revision."
        )
    if revision and hub_id["revision"] and revision != hub_id["revision"]:
        raise ConfigurationError(f"{repository!r} and revision={revision!r} contradict each other.")
    return hub_id["repository"], revision or hub_id["revision"] or "main"


def _find_cached(repository: str, model: str, revision: str | None) -> WeightFiles | None:
    """The weights in the Hugging Face cache, or None when something is missing there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = split_hub_id(repository, revision)
    try:
        snapshot = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        # Weights of which the card alone is there are to be downloaded.
        cards = {path.name for path in snapshot.glob("*.json") if _is_card(path)}
        card_file = _choose_card(cards, model, repository)
        source = f"{repository}@{snapshot.name}, from the Hugging Face cache"
        return _file_beside(snapshot / card_file, source)
    except (LocalEntryNotFoundError, WeightsError):
        return None


def hub_problem(error: Exception, where: str) -> str:
    """What went wrong on the Hub with "owner/name@revision", and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set: unset it to load or upload {where}."
    # A gated repository is also "not found" for huggingface_hub: the order matters.
    if isinstance(error, errors.GatedRepoError):
        return f"{where} is gated: accept its terms on the Hub, and set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return f"The Hub has no {where}, or HF_TOKEN does not permit access: check both."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The Hub has no such revision of the repository: {where}."
    return (
        f"{where} could not be loaded or uploaded: check the connection and HF_ENDPOINT "
        f"({type(error).__name__}: {error})."
    )
