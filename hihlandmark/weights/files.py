"""Weights files: verify, read, save, and load into a network.

Weights are safetensors, ``NAME.safetensors``, with the model card ``NAME.json`` beside them. The
card states the SHA-256 of the file; nothing is read from it before it has been verified.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.errors import ConfigurationError, WeightsError, abbreviate
from hihlandmark.shape_prior import ShapePrior
from hihlandmark.weights.card import Figure, ModelCard
from hihlandmark.weights.find import (
    DEFAULT_MODEL,
    WeightFiles,
    find_packaged,
    find_weights,
    packaged_cards,
)
from hihlandmark.writing import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

logger = logging.getLogger(__name__)

_SHAPE_PRIOR = re.compile(r"shape_prior\.(?P<layout>\w+)\.(?P<part>mean|modes|scales)")
"""Names of the tensors of a `ShapePrior`; ``scales`` are its noise and its covariance_scale."""


class LoadedModel(NamedTuple):
    """A network, its card, and the shape priors stored with its weights, by name of the layout."""

    network: nn.Module
    card: ModelCard
    shape_priors: dict[str, ShapePrior]


@dataclass(frozen=True)
class PackagedModel:
    """One row of `list_models`.

    Attributes:
        name: what `Detector(model=...)` takes.
        layouts: names of the layouts that it predicts.
        size: of the weights file, in bytes.
        license: the terms of the weights.
        nme: the NME figures of the card, in per cent.
        problem: what is wrong with card or weights file; None when they were verified.
    """

    name: str
    layouts: tuple[str, ...] = ()
    size: int = 0
    license: str = ""
    nme: tuple[Figure, ...] = ()
    problem: str | None = None


def list_models() -> list[PackagedModel]:
    """The packaged models, each verified, in alphabetical order.

    >>> [row.name for row in list_models() if "COFW29" in row.layouts]
    ['adnet-small', 'awing-small', 'hih-small']
    """
    return [_packaged_row(name) for name in packaged_cards()]


def _packaged_row(name: str) -> PackagedModel:
    try:
        files = find_packaged(name)
        size = len(_verified_bytes(files))
    except WeightsError as error:
        return PackagedModel(name, problem=str(error))
    card = files.card
    nme = tuple(figure for figure in card.figures if "NME" in figure.metric)
    return PackagedModel(name, tuple(card.configuration["layouts"]), size, card.license, nme)


def load_model(
    weights: str | Path | None = None, *, model: str = DEFAULT_MODEL, revision: str | None = None
) -> LoadedModel:
    """The network of a card with its weights, float32, in evaluation mode, on the CPU.

    Args:
        weights: as `find_weights`.
        model: as `find_weights`.
        revision: as `find_weights`.

    Raises:
        WeightsError: nothing was found, or the file does not fit the card.
        ConfigurationError: as `find_weights`.
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


def verify_weights(files: WeightFiles) -> None:
    """Raise `WeightsError` unless the weights file has the SHA-256 of the card."""
    _verified_bytes(files)


def read_weights(files: WeightFiles) -> dict[str, torch.Tensor]:
    """Verify the weights file, then read its tensors, on the CPU, in the type as stored.

    Raises:
        WeightsError: the file has another SHA-256 or is no safetensors.
    """
    import safetensors
    import safetensors.torch

    try:
        # Hash and tensors come from the same bytes: a file replaced in between is not read.
        return safetensors.torch.load(_verified_bytes(files))
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{files.path} is not a complete safetensors file: {error}. Fetch it again."
        ) from error


def _verified_bytes(files: WeightFiles) -> bytes:
    try:
        content = files.path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{files.path} cannot be read: {error}. Check its permissions, or fetch it again."
        ) from error
    if (digest := hashlib.sha256(content).hexdigest()) != files.card.sha256:
        raise WeightsError(
            f"{files.path} is not the file that its model card describes: SHA-256 {digest}, "
            f"expected {files.card.sha256}. It is damaged or was replaced: fetch it again (from "
            "the Hub with `hihlandmark weights pull`)."
        )
    return content


def _require_fit(network: nn.Module, state: Mapping[str, torch.Tensor], files: WeightFiles) -> None:
    """Raise `WeightsError` unless the tensors are those of the network, in names and shapes."""
    expected = network.state_dict()
    common = expected.keys() & state.keys()
    problems = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "of another shape": {n for n in common if expected[n].shape != state[n].shape},
    }
    found = [f"{problem}: {abbreviate(names)}" for problem, names in problems.items() if names]
    if found:
        raise WeightsError(
            f"The architecture of the card ({files.card.architecture!r}) does not fit the weights "
            f"of {files.source}: {'; '.join(found)}. Take the card and the weights from one place."
        )


def shape_prior_tensors(layout: str, prior: ShapePrior) -> dict[str, torch.Tensor]:
    """A layout's prior as tensors that `save_weights` stores beside those of the network."""
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
    """The network's tensors, and the priors of `shape_prior_tensors` by layout.

    Raises:
        WeightsError: a prior lacks a part or has another shape than its layout.
    """
    state: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, FloatArray]] = {}
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
                f"{expected}. Take the card and the weights from one place."
            )
        noise, covariance_scale = arrays["scales"].tolist()
        priors[layout] = ShapePrior(arrays["mean"], arrays["modes"], noise, covariance_scale)
    return state, priors


def save_weights(folder: Path, card: ModelCard, state: Mapping[str, torch.Tensor]) -> Path:
    """Write tensors as safetensors with the card beside them.

    Floating-point tensors are stored as float16, or float32 where float16 would overflow; others as
    they are. Each file is replaced in one step, the card last.

    Args:
        folder: made if need be.
        card: its ``file`` and ``sha256`` are filled in.
        state: tensors by name.

    Returns:
        The path of the card.

    Raises:
        WeightsError: a tensor holds NaN or infinity.
    """
    import safetensors.torch

    content = safetensors.torch.save({name: _stored(name, each) for name, each in state.items()})
    file, sha256 = f"{card.name}.safetensors", hashlib.sha256(content).hexdigest()
    card = card.model_copy(update={"file": file, "sha256": sha256})
    write_atomically(folder / file, content)
    card_path = folder / f"{card.name}.json"
    write_atomically(card_path, card.to_json().encode())
    return card_path


def _stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the type that goes into a file."""
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
