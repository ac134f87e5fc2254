"""Reads state dicts of the official HIH implementation (github.com/starhiking/HeatmapInHeatmap).

Only names and shapes are translated here; reading the checkpoint file is ``weights.py``'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.models.hih import HIH, HIHConfiguration
from hihlandmark.models.registry import LAYOUT_POINTS, configuration_of

LAYOUT_OF = {points: name for name, points in LAYOUT_POINTS.items()}

Rules = tuple[tuple[str, str], ...]

# Patterns in our names and what official names have in their place, applied one after another. In
# this direction, an error can call a missing tensor by the name that the user's file should have.
RULES: Rules = (
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
    (r"\.(idle_)?skip\.", ".skip_layer."),
)

# Heads of the paper's other experiments, by a layer that only they have.
OTHER_HEADS = {
    "offset_head.vit.": "a vision transformer head (VIT)",
    "offset_head.fc.": "a coordinate regression head (AFC)",
    "offset_head.conv2.": "an offset map head (OD)",
}


def from_official(
    state_dict: Mapping[str, torch.Tensor],
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """An official state dict -> the configuration for `build_model` ("hih") and our state dict.

    Names may begin with ``module.``, as torch's DataParallel writes them. Stacks, features, depth,
    points and decimal features and bins follow from names and shapes; the layout is the one with as
    many points; the crop is 256 pixels wide, as in every released configuration.

    Raises `WeightsError`, which names the tensors at fault, when some are missing, unknown or of
    another shape, and when the checkpoint has a head other than the decimal heatmap.
    """
    theirs = {re.sub(r"^(module\.)+", "", name): tensor for name, tensor in state_dict.items()}
    configuration = _configuration(theirs)
    try:
        with torch.device("meta"):
            expected = HIH(HIHConfiguration(**configuration)).state_dict()
    except ConfigurationError as error:
        raise WeightsError(f"this is not a checkpoint of the official HIH: {error}") from error
    rules = (*RULES, *_hourglass_rules(configuration["depth"]))
    official = {name: _rename(name, rules) for name in expected}
    _refuse(
        {
            "missing": [name for name in official.values() if name not in theirs],
            "unknown": sorted(theirs.keys() - official.values()),
            "of another shape": [
                name
                for ours, name in official.items()
                if name in theirs and theirs[name].shape != expected[ours].shape
            ],
        }
    )
    return configuration, {ours: theirs[name] for ours, name in official.items()}


def _configuration(theirs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What names and shapes say about the network; `from_official` checks that all else fits."""
    _refuse({"not tensors": [n for n, t in theirs.items() if not isinstance(t, torch.Tensor)]})
    for prefix, head in OTHER_HEADS.items():
        if any(name.startswith(prefix) for name in theirs):
            raise WeightsError(
                f"this checkpoint of the official HIH has {head}: {prefix}*. Only heatmap heads "
                "(head_type 'hih') can be converted"
            )
    matrices = ("hg0_conv_pred.weight", "offset_head.conv1.conv.weight")
    _refuse({"missing": [name for name in matrices if name not in theirs]})
    _refuse({"of another shape": [name for name in matrices if theirs[name].ndim != 4]})
    points, features = theirs[matrices[0]].shape[:2]
    decimal_features = theirs[matrices[1]].shape[0]
    if points not in LAYOUT_OF:
        raise WeightsError(
            f"hg0_conv_pred.weight predicts {points} points; known are the layouts of "
            f"{', '.join(map(str, LAYOUT_OF))} points"
        )
    down_blocks = _count(theirs, r"offset_head\.down_ops\.(\d+)\.conv1\.conv\.weight")
    usual = configuration_of("hih", [LAYOUT_OF[points]])
    return {
        **usual,
        "stacks": _count(theirs, r"hg(\d+)_conv_pred\.weight"),
        "features": features,
        "depth": _count(theirs, r"hg0\.res(\d+)_1\.conv1\.conv\.weight"),
        "decimal_features": decimal_features,
        # The pooling before the blocks halves the heatmap, too.
        "decimal_bins": (usual["input_size"] // 4) >> (down_blocks + 1),
    }


def _count(theirs: Mapping[str, torch.Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in theirs)


def _hourglass_rules(depth: int) -> Rules:
    """The official hourglass numbers its levels from the innermost, 1; ours nests them."""
    inner = r"inner\."
    levels = tuple(
        (rf"^(hg\d+)\.{inner * level}{ours}\.", rf"\1.res{depth - level}_{theirs}.")
        for level in range(depth)
        for theirs, ours in enumerate(("upper", "down", "up"), start=1)
    )
    return (*levels, (rf"^(hg\d+)\.{inner * depth}", r"\1.res_center."))


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _refuse(faults: Mapping[str, list[str]]) -> None:
    """Raises `WeightsError` for tensors at fault, ten of each kind by name."""
    listed = [
        f"{len(names)} {kind}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        for kind, names in faults.items()
        if names
    ]
    if listed:
        raise WeightsError(
            f"this is not a state dict of the official HIH; tensors {'; '.join(listed)}"
        )
