"""Reads state dicts of Adaptive Wing's implementation (github.com/protossw512/AdaptiveWingLoss)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hihlandmark.models.registry import configuration_of
from hihlandmark.weights.convert.state import Converted, OfficialState, Rules, numbered_levels

_RULES: Rules = (
    (r"^stem\.0\.", "conv1.conv."),
    (r"^stem\.1\.", "bn1."),
    (r"^stem\.3\.", "conv2."),
    (r"^stem\.5\.", "conv3."),
    (r"^stem\.6\.", "conv4."),
    (r"^stacks\.(\d+)\.coordinates\.", r"m\1.coordconv.conv."),
    (r"^stacks\.(\d+)\.hourglass\.", r"m\1."),
    (r"^stacks\.(\d+)\.residual\.", r"top_m_\1."),
    (r"^stacks\.(\d+)\.linear\.0\.", r"conv_last\1."),
    (r"^stacks\.(\d+)\.linear\.1\.", r"bn_end\1."),
    (r"^predict\.(\d+)\.", r"l\1."),
    (r"^merge_features\.(\d+)\.", r"bl\1."),
    (r"^merge_predictions\.(\d+)\.", r"al\1."),
    (r"\.wide\.0\.", ".bn1."),
    (r"\.wide\.2\.", ".conv1."),
    (r"\.middle\.0\.", ".bn2."),
    (r"\.middle\.2\.", ".conv2."),
    (r"\.narrow\.0\.", ".bn3."),
    (r"\.narrow\.2\.", ".conv3."),
    (r"\.skip\.", ".downsample."),
)


def from_official(state_dict: Mapping[str, torch.Tensor]) -> Converted:
    """Convert an official state dict to a configuration for `build_model` and our state dict.

    Stacks, features, depth and points follow from names and shapes. The crop is 256 pixels wide, as
    in the released code.

    Raises:
        WeightsError: tensors are missing, unknown or of another shape.
    """
    theirs = OfficialState("Adaptive Wing", state_dict)
    maps, features = theirs.shape("l0.weight")[:2]
    boundary = 1
    configuration = {
        **configuration_of("awing", [theirs.layout_of(maps - boundary, "l0.weight")]),
        "stacks": theirs.count(r"l(\d+)\.weight"),
        "features": features,
        "depth": theirs.count(r"m0\.b1_(\d+)\.conv1\.weight"),
    }
    levels = numbered_levels(r"m\d+", configuration["depth"], "b{branch}_{level}", "b2_plus_1")
    return configuration, theirs.translate("awing", configuration, (*_RULES, *levels))
