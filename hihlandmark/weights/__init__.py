"""Weights and model cards: find, verify, read, save, publish and convert."""

from hihlandmark.weights.card import Calibration, ModelCard
from hihlandmark.weights.files import (
    LoadedModel,
    OpenedModel,
    PackagedModel,
    correction_tensors,
    list_models,
    load_model,
    open_model,
    read_weights,
    register_layouts,
    save_weights,
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
    "correction_tensors",
    "find_weights",
    "list_models",
    "load_model",
    "open_model",
    "pull_weights",
    "read_weights",
    "register_layouts",
    "save_weights",
    "verify_weights",
]
