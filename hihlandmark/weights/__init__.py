"""Weights and model cards: find, verify, read, save, publish and convert."""

from hihlandmark.weights.card import Calibration, ModelCard
from hihlandmark.weights.files import (
    LoadedModel,
    OpenedModel,
    PackagedModel,
    list_models,
    load_model,
    open_model,
    read_weights,
    register_layouts,
    save_weights,
    shape_prior_tensors,
    verify_weights,
)
from hihlandmark.weights.find import DEFAULT_MODEL, WeightFiles, find_weights, pull_weights

__all__ = [
    "DEFAULT_MODEL",
    "Calibration",
    "LoadedModel",
    "ModelCard",
    "OpenedModel",
    "PackagedModel",
    "WeightFiles",
    "find_weights",
    "list_models",
    "load_model",
    "open_model",
    "pull_weights",
    "read_weights",
    "register_layouts",
    "save_weights",
    "shape_prior_tensors",
    "verify_weights",
]
