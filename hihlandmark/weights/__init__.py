"""Weights and model cards: find, verify, read, save, publish and convert."""

from hihlandmark.weights.files import (
    DEFAULT_MODEL,
    SHARD_BYTES,
    LoadedModel,
    PackagedWeights,
    WeightFiles,
    find_weights,
    list_weights,
    load_model,
    pull_weights,
    read_weights,
    save_weights,
    shape_prior_tensors,
    split_hub_id,
    verify_weights,
)

__all__ = [
    "DEFAULT_MODEL",
    "SHARD_BYTES",
    "LoadedModel",
    "PackagedWeights",
    "WeightFiles",
    "find_weights",
    "list_weights",
    "load_model",
    "pull_weights",
    "read_weights",
    "save_weights",
    "shape_prior_tensors",
    "split_hub_id",
    "verify_weights",
]
