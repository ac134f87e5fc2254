"""Weights files: verify, read, save, and load into a network.

Weights are safetensors, ``NAME.safetensors``, with the model card ``NAME.json`` beside them. The
card states the SHA-256 of the file; nothing is read from it before it has been verified.
"""

from __future__ import annotations

import hashlib
import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.layouts import find_or_register
from hihlandmark.shape_prior import ShapePrior
from hihlandmark.shape_regression import ShapeCorrection, ShapeRegression
from hihlandmark.torch_state import default_torch_state
from hihlandmark.weights.card import Figure, ModelCard
from hihlandmark.weights.find import (
    DEFAULT_MODEL,
    WeightFiles,
    find_packaged,
    find_weights,
    packaged_cards,
)
from hihlandmark.writing import refuse_existing, write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

logger = logging.getLogger(__name__)

_PARTS = {
    "shape_prior": ("mean", "modes", "scales"),
    "shape_regression": ("mean", "weights", "constant"),
}
"""Tensors of each kind of `ShapeCorrection`."""


class LoadedModel(NamedTuple):
    """A network, its card, and what corrects points by each other, by name of the layout."""

    network: nn.Module
    card: ModelCard
    corrections: dict[str, ShapeCorrection]


class OpenedModel(NamedTuple):
    """Verified weights without their network: reading them imports no PyTorch.

    ``make_network`` makes the network of a `LoadedModel`, and raises `WeightsError` where card and
    weights do not fit.
    """

    make_network: Callable[[], nn.Module]
    card: ModelCard
    corrections: dict[str, ShapeCorrection]


@dataclass(frozen=True)
class PackagedModel:
    """One row of `list_models`.

    Attributes:
        name: what `Detector(model=...)` takes.
        size: of the weights file, in bytes.
        nme: the NME figures of the card, in per cent.
        problem: what is wrong with card or weights file; None when they were verified.
    """

    name: str
    layouts: tuple[str, ...] = ()
    size: int = 0
    license: str = ""
    nme: tuple[Figure, ...] = field(default=(), repr=False)
    problem: str | None = None


def list_models() -> list[PackagedModel]:
    """The packaged models, each verified, in alphabetical order.

    >>> names = [row.name for row in list_models() if "COFW29" in row.layouts]
    """
    return [_packaged_model(name) for name in packaged_cards()]


def _packaged_model(name: str) -> PackagedModel:
    try:
        files = find_packaged(name)
        size = len(verify_weights(files))
    except WeightsError as error:
        return PackagedModel(name, problem=str(error))
    card = files.card
    nme = tuple(figure for figure in card.figures if "NME" in figure.metric)
    return PackagedModel(name, tuple(card.configuration["layouts"]), size, card.license, nme)


def load_model(
    weights: str | Path | None = None, *, model: str = DEFAULT_MODEL, revision: str | None = None
) -> LoadedModel:
    """The network of a card with its weights, float32, in evaluation mode, on the CPU.

    The arguments are those of `find_weights`.

    Raises:
        WeightsError: nothing was found, or the file does not fit the card.
        ConfigurationError: as `find_weights`, or another layout has the name of one in the card.
    """
    opened = open_model(weights, model=model, revision=revision)
    return LoadedModel(opened.make_network(), opened.card, opened.corrections)


def open_model(
    weights: str | Path | None = None, *, model: str = DEFAULT_MODEL, revision: str | None = None
) -> OpenedModel:
    """Find and verify weights, and register the layouts of their card. Errors as `load_model`."""
    files = find_weights(weights, model=model, revision=revision)
    # Hash and tensors come from the same bytes: a file replaced in between is not read.
    content = verify_weights(files)
    register_layouts(files.card)
    corrections = _read_corrections(content, files)
    logger.info("Loaded %s: %s", files.card.name, files.source)
    return OpenedModel(partial(_make_network, files, content), files.card, corrections)


def register_layouts(card: ModelCard) -> None:
    """Make the layouts of a card known. Raises `ConfigurationError` for a name that is taken."""
    for name, definition in card.layouts.items():
        find_or_register(definition.layout(name))


@default_torch_state()
def _make_network(files: WeightFiles, content: bytes) -> nn.Module:
    import torch

    from hihlandmark.models.registry import build_model

    state = _tensors(files, content)
    for layout in files.card.configuration["layouts"]:
        for kind in _PARTS:
            for name in _part_names(kind, layout):
                state.pop(name, None)
    arguments = files.card.architecture, files.card.configuration
    try:
        with torch.device("meta"):  # other shapes may need more memory than there is
            build_model(*arguments).load_state_dict(state, assign=True)
        network = build_model(*arguments)
        network.load_state_dict(state)
    # PyTorch's errors list the tensors at fault, or are about numbers that it cannot take.
    except (
        ConfigurationError,
        ArithmeticError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise WeightsError(
            f"The card ({files.card.architecture!r}) and the weights of {files.source} do not fit, "
            f"take both from one place: {textwrap.shorten(str(error), 400)}"
        ) from error
    return network.float().eval()


def verify_weights(files: WeightFiles) -> bytes:
    """Return the content of the weights file, or raise `WeightsError` for another SHA-256."""
    try:
        content = files.path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{files.path} cannot be read: {error}") from error
    if (digest := hashlib.sha256(content).hexdigest()) != files.card.sha256:
        raise WeightsError(
            f"{files.path} was damaged or replaced, its SHA-256 is {digest}, not "
            f"{files.card.sha256}: fetch it again (`hihlandmark weights pull`)."
        )
    return content


def read_weights(files: WeightFiles) -> dict[str, torch.Tensor]:
    """The tensors of the verified weights file, on the CPU, in the type as stored.

    Raises `WeightsError` if the file has another SHA-256 or is no safetensors.
    """
    return _tensors(files, verify_weights(files))


def _tensors(files: WeightFiles, content: bytes) -> dict[str, torch.Tensor]:
    import safetensors.torch

    with _safetensors_errors(files):
        return safetensors.torch.load(content)


@contextmanager
def _safetensors_errors(files: WeightFiles) -> Iterator[None]:
    import safetensors

    try:
        yield
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{files.path} is not a complete safetensors file: {error}. Fetch it again."
        ) from error


def correction_tensors(layout: str, correction: ShapeCorrection) -> dict[str, torch.Tensor]:
    """A layout's correction as tensors that `save_weights` stores beside those of the network."""
    import torch

    if isinstance(correction, ShapePrior):
        scales = np.array([correction.noise, correction.covariance_scale])
        kind, parts = "shape_prior", (correction.mean, correction.modes, scales)
    else:
        kind = "shape_regression"
        parts = (correction.mean, correction.weights, correction.constant)
    return dict(zip(_part_names(kind, layout), map(torch.tensor, parts), strict=True))


def _part_names(kind: str, layout: str) -> list[str]:
    return [f"{kind}.{layout}.{part}" for part in _PARTS[kind]]


def _read_corrections(content: bytes, files: WeightFiles) -> dict[str, ShapeCorrection]:
    """The corrections of `correction_tensors` by layout."""
    import safetensors

    with _safetensors_errors(files):
        stored = dict(safetensors.deserialize(content))
    found: dict[str, ShapeCorrection] = {}
    for layout, points in files.card.configuration["layouts"].items():
        for kind in _PARTS:
            names = [name for name in _part_names(kind, layout) if name in stored]
            what = f"The {kind.replace('_', ' ')} of {layout} in {files.source}"
            try:
                parts = [_array(stored[name]) for name in names]
            except KeyError as error:
                raise WeightsError(
                    f"{what} is of type {error}; it must be one of {', '.join(_DTYPES)}"
                ) from error
            if parts:
                found[layout] = _correction(kind, parts, points, what)
    return found


def _correction(kind: str, parts: Sequence[FloatArray], points: int, what: str) -> ShapeCorrection:
    """The correction of a kind with its ``parts``; ``what`` begins the error's message."""
    shapes = [part.shape for part in parts]
    count = len(parts[1]) if len(parts) == 3 else 0
    expected = {
        "shape_prior": [(points, 2), (count, points, 2), (2,)],
        "shape_regression": [(points, 2), (count, 2 * points), (points, 2)],
    }
    is_regression = kind == "shape_regression"
    if shapes != expected[kind] or (is_regression and count not in (2 * points, 4 * points)):
        raise WeightsError(f"{what} has wrong shapes: {shapes}")
    if not all(np.isfinite(part).all() for part in parts):
        raise WeightsError(f"{what} holds NaN or infinity: fetch it again")
    mean, second, last = parts
    if kind == "shape_prior":
        noise, covariance_scale = last.tolist()
        return ShapePrior(mean, second, noise, covariance_scale)
    return ShapeRegression(mean, second, last)


_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
"""Types of corrections, by safetensors' names."""


def _array(stored: Mapping[str, Any]) -> FloatArray:
    """A tensor of ``safetensors.deserialize``, in float64."""
    array = np.frombuffer(stored["data"], _DTYPES[stored["dtype"]])
    return array.reshape(stored["shape"]).astype(np.float64)


def refuse_existing_weights(folder: Path, name: str) -> None:
    """Raise `ConfigurationError` where `save_weights` would replace a file."""
    for suffix in (".safetensors", ".json"):
        refuse_existing(folder / f"{name}{suffix}")


def save_weights(folder: str | Path, card: ModelCard, state: Mapping[str, torch.Tensor]) -> Path:
    """Write tensors as safetensors with the card beside them.

    Floating-point tensors are stored as float16, or float32 where float16 would overflow; others as
    they are. Each file is replaced in one step, the card last.

    Returns:
        The path of the card, whose ``file`` and ``sha256`` are filled in.

    Raises:
        WeightsError: a tensor holds NaN or infinity.
    """
    folder = Path(folder)
    import safetensors.torch

    content = safetensors.torch.save({name: _stored(name, each) for name, each in state.items()})
    file, sha256 = f"{card.name}.safetensors", hashlib.sha256(content).hexdigest()
    card = card.model_copy(update={"file": file, "sha256": sha256})
    write_atomically(folder / file, content)
    card_path = folder / f"{card.name}.json"
    write_atomically(card_path, card.to_json().encode())
    return card_path


def _stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the type that goes into a file: safetensors refuses tensors that share memory."""
    import torch

    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if half.isfinite().all():
        return half
    if not tensor.isfinite().all():
        raise WeightsError(f"The tensor {name!r} holds NaN or infinity: save an earlier state.")
    return tensor.float()
