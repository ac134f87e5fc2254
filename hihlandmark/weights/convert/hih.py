"""Reads state dicts of the official HIH implementation (github.com/starhiking/HeatmapInHeatmap)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hihlandmark.errors import WeightsError
from hihlandmark.models.registry import configuration_of
from hihlandmark.weights.convert.state import Converted, OfficialState, Rules, numbered_levels

_RULES: Rules = (
    (r"\.0\.weight$", ".conv.weight"),
    (r"\.1\.(\w+)$", r".bn.\1"),
    (r"^stem\.", "pre_conv."),
    (r"^stacks\.(\d+)\.hourglass\.", r"hg\1."),
    (r"^stacks\.(\d+)\.residual\.", r"hg\1_res1."),
    (r"^stacks\.(\d+)\.linear\.", r"hg\1_lin1."),
    (r"^stacks\.(\d+)\.predict\.", r"hg\1_conv_pred."),
    (r"^stacks\.(\d+)\.merge_features\.", r"hg\1_conv1."),
    (r"^stacks\.(\d+)\.merge_predictions\.", r"hg\1_conv2."),
    (r"^decimal_head\.widen\.", "offset_head.conv1."),
    (r"^decimal_head\.down\.(\d+)\.skip\.", r"offset_head.down_ops.\1.downsample.0."),
    (r"^decimal_head\.down\.", "offset_head.down_ops."),
    (r"^decimal_head\.mix\.", "offset_head.head.0."),
    (r"^decimal_head\.predict\.", "offset_head.head.1."),
    (r"\.residual\.0\.", ".conv1."),
    (r"\.residual\.1\.", ".conv2."),
    (r"\.residual\.2\.", ".conv3."),
    (r"\.(?:skip|unused_shortcut)\.", ".skip_layer."),
)

# Heads of the paper's other experiments, by a layer that only they have.
_OTHER_HEADS = {
    "offset_head.vit.": "a vision transformer head (VIT)",
    "offset_head.fc.": "a coordinate regression head (AFC)",
    "offset_head.conv2.": "an offset map head (OD)",
}


def from_official(state_dict: Mapping[str, torch.Tensor]) -> Converted:
    """Convert an official state dict to a configuration for `build_model` and our state dict.

    Stacks, features, depth, points and decimal features and bins follow from names and shapes. The
    crop is 256 pixels wide, as in every released configuration.

    Raises:
        WeightsError: tensors are missing, unknown or of another shape, or the checkpoint has a head
            other than the decimal heatmap.
    """
    theirs = OfficialState("HIH", state_dict)
    configuration = _configuration(theirs)
    levels = numbered_levels(r"hg\d+", configuration["depth"], "res{level}_{branch}", "res_center")
    return configuration, theirs.translate("hih", configuration, (*_RULES, *levels))


def _configuration(theirs: OfficialState) -> dict[str, Any]:
    """The configuration, from names and shapes."""
    for prefix, head in _OTHER_HEADS.items():
        if any(name.startswith(prefix) for name in theirs.tensors):
            raise WeightsError(
                f"this checkpoint of the official HIH has {head}: {prefix}*. Only heatmap heads "
                "(head_type 'hih') can be converted"
            )
    points, features = theirs.shape("hg0_conv_pred.weight")[:2]
    decimal_features = theirs.shape("offset_head.conv1.conv.weight")[0]
    usual = configuration_of("hih", [theirs.layout_of(points, "hg0_conv_pred.weight")])
    down_blocks = theirs.count(r"offset_head\.down_ops\.(\d+)\.conv1\.conv\.weight")
    return {
        **usual,
        "stacks": theirs.count(r"hg(\d+)_conv_pred\.weight"),
        "features": features,
        "depth": theirs.count(r"hg0\.res(\d+)_1\.conv1\.conv\.weight"),
        "decimal_features": decimal_features,
        # The pooling before the blocks also halves the heatmap.
        "decimal_bins": (usual["input_size"] // 4) >> (down_blocks + 1),
    }
