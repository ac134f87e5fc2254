"""Weight files and their model cards: find, fetch, verify, read, write. No network code.

Weights are safetensors, in one file ``NAME.safetensors`` or in shards
``NAME-00001-of-00003.safetensors``, with the model card ``NAME.json`` beside them. The card names
every file with its SHA-256; nothing is read from a file before it has been verified.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.weights.card import NAME, WEIGHT_FILE, ModelCard, abbreviate
from hihlandmark.writing import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hihlandmark.shape_prior import ShapePrior

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "hih-small"
SHARD_BYTES = 16 * 2**20
"""Largest file that `save_weights` writes: what the repository and the wheel take."""

_HUB_ID = re.compile(rf"(?P<repository>{NAME.pattern}/{NAME.pattern})(@(?P<revision>\S+))?")
_SHAPE_PRIOR = re.compile(r"shape_prior\.(?P<layout>\w+)\.(?P<part>mean|modes|scales)")
"""Names of the tensors of a `ShapePrior`; ``scales`` are its noise and its covariance_scale."""
_PICKLES = {".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".tar", ".bin"}
_HEADER_BYTES_PER_TENSOR = 160
"""Room for a tensor's entry in a safetensors header besides its name: dtype, shape, offsets."""
_HUB_TIMEOUT = 10.0
"""Seconds to wait for the Hub's listing of a repository: huggingface_hub itself sets no limit."""


class LoadedModel(NamedTuple):
    """A network, its card, and the shape priors that its weights bring, by name of the layout."""

    network: nn.Module
    card: ModelCard
    shape_priors: dict[str, ShapePrior]


@dataclass(frozen=True)
class WeightFiles:
    """Weights that were found: the card, its files in the order of the shards, and where from."""

    card: ModelCard
    paths: tuple[Path, ...]
    source: str


@dataclass(frozen=True)
class PackagedWeights:
    """One row of `list_weights`; ``problem`` is None when the files were found and verified."""

    name: str
    files: WeightFiles | None
    problem: str | None


# Finding


def find_weights(
    weights: str | Path | None = None, *, model: str = DEFAULT_MODEL, revision: str | None = None
) -> WeightFiles:
    """Find weights without reading them: a path, a packaged name, the cache, then the Hub.

    ``weights``: None for the packaged ``model``; a packaged name; a path to a ``.safetensors``
    file, a card, or a folder; or a Hub repository, "owner/name" or "owner/name@revision". A folder
    or repository that holds several cards is asked for ``model``. A repository that is cached at
    the revision (branch, tag or commit, default "main") is used without asking the Hub: see
    `pull_weights` to bring a branch up to date. Raises `WeightsError` when nothing is found, and
    `ConfigurationError` for a revision of anything but a repository.
    """
    text = model if weights is None else os.fspath(weights)
    packaged = weights is None or (isinstance(weights, str) and text in _packaged_cards())
    path = Path(text).expanduser()
    hub_id = _HUB_ID.fullmatch(text) if isinstance(weights, str) else None
    if packaged or path.exists() or not hub_id or _is_weight_path(path):
        if revision is not None:
            raise ConfigurationError(
                f"revision={revision!r} was given with weights={weights!r}: only repositories of "
                "the Hub, written owner/name, have revisions."
            )
        return _find_packaged(text) if packaged else _find_path(path, model)
    return _find_cached(text, model, revision) or pull_weights(text, model=model, revision=revision)


def pull_weights(
    repository: str, *, model: str = DEFAULT_MODEL, revision: str | None = None
) -> WeightFiles:
    """Bring a repository's weights from the Hub into the Hugging Face cache, where not yet there.

    ``repository``: "owner/name" or "owner/name@revision". The branch or tag is resolved to a commit
    once, so that card and files belong together. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE
    are honored; files are downloaded with huggingface_hub's progress bar, and a cached file that
    is damaged is downloaded again. Raises `WeightsError` when that cannot be done.
    """
    from huggingface_hub import HfApi, hf_hub_download

    repository, revision = split_hub_id(repository, revision)
    try:
        info = HfApi().model_info(repository, revision=revision, timeout=_HUB_TIMEOUT)
        names = [sibling.rfilename for sibling in info.siblings or []]
        cards = _cards_with_weights(names)
        card_file = _choose_card(cards, model, f"The repository {repository}")
        card_path = Path(hf_hub_download(repository, card_file, revision=revision))
        commit = card_path.parent.name
        # All cards, so that the cache chooses among the same ones as the Hub.
        for other in cards - {card_file}:
            hf_hub_download(repository, other, revision=commit)
        card = _read_card(card_path)
        for name, digest in card.files.items():
            file = hf_hub_download(repository, name, revision=commit)
            # The cache hands out a damaged file for ever, unless it is told to download again.
            if _sha256(Path(file).read_bytes()) != digest:
                hf_hub_download(repository, name, revision=commit, force_download=True)
    except WeightsError:
        raise
    except Exception as error:  # HTTP errors are of another package with each huggingface_hub.
        raise WeightsError(_hub_problem(error, repository, revision)) from error
    return _files_beside(card_path, card, f"{repository}@{commit}, from the Hub")


def list_weights() -> list[PackagedWeights]:
    """The weights that come with the package, each verified, in alphabetical order."""
    return [_packaged_row(name) for name in _packaged_cards()]


def _packaged_row(name: str) -> PackagedWeights:
    files = None
    try:
        files = _find_packaged(name)
        verify_weights(files)
    except WeightsError as error:
        return PackagedWeights(name, files, str(error))
    return PackagedWeights(name, files, None)


def _is_weight_path(path: Path) -> bool:
    return path.suffix.lower() in {".safetensors", ".json", *_PICKLES}


def _packaged_cards() -> dict[str, Path]:
    """Names and cards of the packaged weights: inside a wheel, or in the source checkout."""
    package = Path(__file__).parent.parent
    # Beside an installed package, a folder "weights" would be somebody else's.
    inside, checkout = package / "packaged_weights", package.parent / "weights"
    folder = inside if inside.is_dir() else checkout
    return {card.stem: card for card in sorted(folder.glob("*.json"))}


def _find_packaged(name: str) -> WeightFiles:
    cards = _packaged_cards()
    if name not in cards:
        raise WeightsError(
            f"There are no packaged weights {name!r}; packaged are: {abbreviate(cards, 20)}. "
            "Give one of them, a path, or a repository of the Hub as owner/name."
        )
    return _files_beside(cards[name], _read_card(cards[name]), f"{name}, packaged")


def _find_path(path: Path, model: str) -> WeightFiles:
    if path.suffix.lower() in _PICKLES:
        raise WeightsError(
            f"{path} is a pickled checkpoint, which may run code when it is opened: "
            "convert it with `hihlandmark weights convert`."
        )
    if path.is_dir():
        card_path = path / _choose_card(
            _cards_with_weights(file.name for file in path.iterdir()), model, f"The folder {path}"
        )
        return _files_beside(card_path, _read_card(card_path), str(card_path))
    if not path.exists() and not _is_weight_path(path):
        raise WeightsError(
            f"There are no weights {str(path)!r}: no such file or folder, no repository of the Hub "
            f"(owner/name), and not packaged; packaged are: {abbreviate(_packaged_cards(), 20)}."
        )
    if not path.is_file():
        raise WeightsError(f"There is no weight file {path}: check the path.")
    if path.suffix.lower() == ".json":
        return _files_beside(path, _read_card(path), str(path))
    weight_file = WEIGHT_FILE.fullmatch(path.name)
    if not weight_file:
        raise WeightsError(
            f"{path} is not a weight file: expected .safetensors, or its card .json."
        )
    card_path = path.with_name(f"{weight_file['name']}.json")
    if not card_path.is_file():
        raise WeightsError(
            f"{path} has no model card: {card_path.name} must be in the same folder. "
            "Copy it from where the weights are from."
        )
    card = _read_card(card_path)
    if path.name not in card.files:
        raise WeightsError(
            f"The model card {card_path} is not about {path.name}: it names {abbreviate(card.files)}. "
            "Copy the card and the files from one place."
        )
    return _files_beside(card_path, card, str(card_path))


def split_hub_id(repository: str, revision: str | None) -> tuple[str, str]:
    """ "owner/name@revision" -> ("owner/name", revision); "main" where neither gives one.

    Raises `ConfigurationError` for what is no repository's name, and for two revisions.
    """
    hub_id = _HUB_ID.fullmatch(repository)
    if not hub_id:
        raise ConfigurationError(
            f"{repository!r} is no repository of the Hub: write owner/name or owner/name@revision."
        )
    if revision and hub_id["revision"] and revision != hub_id["revision"]:
        raise ConfigurationError(
            f"{repository!r} and revision={revision!r} contradict each other: give one of them."
        )
    return hub_id["repository"], revision or hub_id["revision"] or "main"


def _find_cached(repository: str, model: str, revision: str | None) -> WeightFiles | None:
    """The files in the Hugging Face cache, or None when they are not all there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = split_hub_id(repository, revision)
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            local_files_only=True,
            allow_patterns=["*.json", "*.safetensors"],
        )
        snapshot = Path(folder)
        card_file = _choose_card({path.name for path in snapshot.glob("*.json")}, model, folder)
    except (LocalEntryNotFoundError, WeightsError):
        return None
    card = _read_card(snapshot / card_file)
    if not all((snapshot / name).is_file() for name in card.files):
        return None
    source = f"{repository}@{snapshot.name}, from the Hugging Face cache"
    return _files_beside(snapshot / card_file, card, source)


def _hub_problem(error: Exception, repository: str, revision: str) -> str:
    """What went wrong on the Hub, and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    where = f"{repository}@{revision}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{where} is not in the Hugging Face cache and HF_HUB_OFFLINE is set: unset it, or run "
            f"`hihlandmark weights pull {where}` once while online."
        )
    # A gated repository is also "not found" for huggingface_hub: the order matters.
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"The Hub does not let you read {repository}: accept its terms on its page, and set "
            "HF_TOKEN to a token of your account."
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return (
            f"The Hub has no repository {repository}, and there is no file or folder of that name "
            "here: check the spelling. If it is private, set HF_TOKEN to a token that may read it."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The repository {repository} has no revision {revision!r}: check its branches."
    if status == 404:
        return f"A file of {where} is missing on the Hub: {error}. Choose another revision."
    return (
        f"{where} could not be downloaded ({type(error).__name__}: {error}). "
        "Check the connection and HF_ENDPOINT, and try again."
    )


def _cards_with_weights(names: Iterable[str]) -> set[str]:
    """Of the file names in a folder, those of cards that have weights beside them."""
    present = set(names)
    matches = (WEIGHT_FILE.fullmatch(name) for name in present)
    return {f"{match['name']}.json" for match in matches if match} & present


def _choose_card(cards: set[str], model: str, where: str) -> str:
    """The card of ``model``, or another one when it is the only one."""
    if f"{model}.json" in cards:
        return f"{model}.json"
    if len(cards) == 1:
        return next(iter(cards))
    if cards:
        raise WeightsError(
            f"{where} holds several models, and none is {model!r}: {abbreviate(cards, 20)}. Name one."
        )
    raise WeightsError(
        f"{where} holds no weights with a model card: expected NAME.safetensors and NAME.json."
    )


def _read_card(path: Path) -> ModelCard:
    try:
        return ModelCard.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"The model card {path} cannot be read: {error}. Allow it, or fetch it again."
        ) from error
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _files_beside(card_path: Path, card: ModelCard, source: str) -> WeightFiles:
    paths = tuple(card_path.with_name(name) for name in card.files)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise WeightsError(
            f"Beside the model card {card_path} are missing: {abbreviate(missing)}. Copy them there."
        )
    return WeightFiles(card, paths, source)


# Verifying and reading


def verify_weights(files: WeightFiles) -> None:
    """Raise `WeightsError` unless every file has the SHA-256 that the card states."""
    for path in files.paths:
        _verified_bytes(path, files)


def read_weights(files: WeightFiles) -> dict[str, torch.Tensor]:
    """Verify all files, then read the tensors of all shards, on the CPU, in the type as stored.

    Raises `WeightsError` for a wrong SHA-256, a file that is no safetensors, and shards that have a
    tensor in common.
    """
    import safetensors
    import safetensors.torch

    # Hash and tensors come from the same bytes: a file replaced in between is not read.
    contents = [_verified_bytes(path, files) for path in files.paths]
    state: dict[str, torch.Tensor] = {}
    for path, content in zip(files.paths, contents, strict=True):
        try:
            shard = safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise WeightsError(
                f"{path} is not a complete safetensors file: {error}. Fetch it again."
            ) from error
        if twice := state.keys() & shard.keys():
            raise WeightsError(
                f"{path} repeats tensors of another shard: {abbreviate(twice)}. Fetch both again."
            )
        state |= shard
    return state


def load_model(
    weights: str | Path | None = None, *, model: str = DEFAULT_MODEL, revision: str | None = None
) -> LoadedModel:
    """The network of the card with its weights, float32, in evaluation mode, on the CPU.

    Arguments and errors as `find_weights` and `read_weights`; `WeightsError` also when the card's
    architecture is unknown or does not fit the tensors of the files.
    """
    from hihlandmark.models.registry import build_model

    files = find_weights(weights, model=model, revision=revision)
    state, shape_priors = _split_shape_priors(read_weights(files), files)
    try:
        network = build_model(files.card.architecture, files.card.configuration)
    except ConfigurationError as error:
        raise WeightsError(f"The network of {files.source} cannot be built: {error}") from error
    _require_fit(network, state, files)
    network.load_state_dict(state)
    logger.info("Loaded %s: %s", files.card.name, files.source)
    return LoadedModel(network.float().eval(), files.card, shape_priors)


def shape_prior_tensors(layout: str, prior: ShapePrior) -> dict[str, torch.Tensor]:
    """A layout's prior as the tensors that `save_weights` takes beside those of the network."""
    import torch

    parts = {
        "mean": prior.mean,
        "modes": prior.modes,
        "scales": np.array([prior.noise, prior.covariance_scale]),
    }
    return {f"shape_prior.{layout}.{part}": torch.from_numpy(a) for part, a in parts.items()}


def _split_shape_priors(
    tensors: Mapping[str, torch.Tensor], files: WeightFiles
) -> tuple[dict[str, torch.Tensor], dict[str, ShapePrior]]:
    """The network's tensors and, by layout, the priors that `shape_prior_tensors` made of theirs.

    Raises `WeightsError` for a prior that lacks a part or has another shape than its layout.
    """
    from hihlandmark.shape_prior import ShapePrior

    state: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, tensor in tensors.items():
        if match := _SHAPE_PRIOR.fullmatch(name):
            parts.setdefault(match["layout"], {})[match["part"]] = tensor.double().numpy()
        else:
            state[name] = tensor
    priors = {}
    for layout, arrays in parts.items():
        points = files.card.configuration.get("layouts", {}).get(layout)
        shapes = {name: array.shape for name, array in arrays.items()}
        count = shapes.get("modes", (0,))[0]
        expected = {"mean": (points, 2), "modes": (count, points, 2), "scales": (2,)}
        if shapes != expected:
            raise WeightsError(
                f"The shape prior of {layout} in {files.source} has parts {shapes}, expected "
                f"{expected}. Take the card and the files from one place."
            )
        noise, covariance_scale = arrays["scales"].tolist()
        priors[layout] = ShapePrior(arrays["mean"], arrays["modes"], noise, covariance_scale)
    return state, priors


def _require_fit(network: nn.Module, state: Mapping[str, torch.Tensor], files: WeightFiles) -> None:
    """Raise `WeightsError` unless the tensors are those of the network, in names and shapes."""
    expected = network.state_dict()
    troubles = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "of another shape": {
            name
            for name in expected.keys() & state.keys()
            if expected[name].shape != state[name].shape
        },
    }
    found = [f"{trouble}: {abbreviate(names)}" for trouble, names in troubles.items() if names]
    if found:
        raise WeightsError(
            f"The architecture of the card ({files.card.architecture!r}) does not fit the weights "
            f"of {files.source}: {'; '.join(found)}. Take the card and the files from one place."
        )


def _verified_bytes(path: Path, files: WeightFiles) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read: {error}. Allow it, or fetch it again."
        ) from error
    expected = files.card.files[path.name]
    if (digest := _sha256(content)) != expected:
        raise WeightsError(
            f"{path} is not the file that its model card describes: SHA-256 {digest}, expected "
            f"{expected}. It is damaged or was replaced: fetch it again (from the Hub with "
            "`hihlandmark weights pull`)."
        )
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Writing


def save_weights(folder: Path, card: ModelCard, state: Mapping[str, torch.Tensor]) -> Path:
    """Write tensors as safetensors with the card beside them; return the path of the card.

    Floating-point tensors are stored as float16, or float32 where float16 would overflow; others as
    they are. Files are of at most 16 MiB, unless one tensor is larger. ``card.files`` is filled in.
    Every file is replaced in one step, the card last; shards of an earlier save under the same name
    are removed. Raises `WeightsError` when a tensor holds NaN or infinity.
    """
    import safetensors.torch

    shards = _shards({name: _stored(name, tensor) for name, tensor in state.items()})
    names = [f"{card.name}.safetensors"]
    if len(shards) > 1:
        of = len(shards)
        names = [f"{card.name}-{i:05d}-of-{of:05d}.safetensors" for i in range(1, of + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, shard in zip(names, shards, strict=True):
        content = safetensors.torch.save(shard)
        files[name] = _sha256(content)
        write_atomically(folder / name, content)
    card_path = folder / f"{card.name}.json"
    write_atomically(card_path, card.model_copy(update={"file": names[0], "sha256": files[names[0]]}).to_json().encode())
    for path in folder.glob("*.safetensors"):
        match = WEIGHT_FILE.fullmatch(path.name)
        if match and match["name"] == card.name and path.name not in files:
            path.unlink()
    return card_path


def _stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A copy as it goes into a file."""
    import torch

    # A copy, because safetensors refuses tensors that share memory.
    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if half.isfinite().all():
        return half
    if not tensor.isfinite().all():
        raise WeightsError(f"The tensor {name!r} holds NaN or infinity: save an earlier state.")
    return tensor.float()


def _shards(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Tensors in their order, cut where a file would get larger than `SHARD_BYTES`."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        needed = tensor.nbytes + len(name.encode()) + _HEADER_BYTES_PER_TENSOR
        if shards[-1] and size + needed > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += needed
    return shards
