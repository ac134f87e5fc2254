"""Reads state dicts of the official ADNet implementation (github.com/huangyangyu/ADNet)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hihlandmark.errors import WeightsError
from hihlandmark.models.blocks import BlurPool
from hihlandmark.models.registry import configuration_of
from hihlandmark.weights.convert.state import Converted, OfficialState, Rules

_RULES: Rules = (
    (r"^stem\.0\.", "pre.0.conv."),
    (r"^stem\.1\.", "pre.0.bn."),
    (r"^stem\.3\.", "pre.1."),
    (r"^stem\.5\.", "pre.3."),
    (r"^stem\.6\.", "pre.4."),
    (r"^stacks\.(\d+)\.coordinates\.", r"hgs.\1.coordconv.conv."),
    (r"^stacks\.(\d+)\.hourglass\.", r"hgs.\1."),
    (r"^stacks\.(\d+)\.residual\.", r"features.\1.0."),
    (r"^stacks\.(\d+)\.linear\.0\.", r"features.\1.1.conv."),
    (r"^stacks\.(\d+)\.linear\.1\.", r"features.\1.1.bn."),
    (r"^predict_(\w+)\.(\d+)\.", r"out_\1.\2.conv."),
    (r"^merge_(\w+)\.(\d+)\.", r"merge_\1.\2.conv."),
    (r"_edges\.", "_edgemaps."),
    (r"_points\.", "_pointmaps."),
    (r"\.upper\.", ".up1."),
    (r"\.down\.", ".low1."),
    (r"\binner\.", "low2."),
    (r"\.up\.", ".low3."),
    (r"\.residual\.0\.0\.", ".bn1."),
    (r"\.residual\.0\.2\.", ".conv1.conv."),
    (r"\.residual\.1\.0\.", ".bn2."),
    (r"\.residual\.1\.2\.", ".conv2.conv."),
    (r"\.residual\.2\.0\.", ".bn3."),
    (r"\.residual\.2\.2\.", ".conv3.conv."),
    (r"\.(?:skip|unused_shortcut)\.", ".skip_layer.conv."),
)


def from_official(state_dict: Mapping[str, torch.Tensor]) -> Converted:
    """Convert an official state dict to a configuration for `build_model` and our state dict.

    Stacks, features, depth, points, edges and the kind of pooling follow from names, shapes and the
    table of edges in the state dict. The crop is 256 pixels wide, as in the released
    configurations. The converted network takes RGB, the official one BGR.

    Raises:
        WeightsError: tensors are missing, unknown, of another shape, or have unexpected values.
    """
    theirs = OfficialState("ADNet", state_dict)
    points, features = theirs.shape("out_heatmaps.0.conv.weight")[:2]
    layout = theirs.layout_of(points, "out_heatmaps.0.conv.weight")
    configuration = {
        **configuration_of("adnet", [layout]),
        "stacks": theirs.count(r"out_heatmaps\.(\d+)\.conv\.weight"),
        "features": features,
        "depth": theirs.count(r"hgs\.0\.(low2\.)*up1\.conv1\.conv\.weight"),
        "edges": {layout: _take_edges(theirs, points)},
    }
    configuration["blur_pool"] = _take_blur(theirs, configuration["stacks"], configuration["depth"])
    weights = theirs.translate("adnet", configuration, _RULES)
    # OpenCV hands the official network its crops as BGR, ours are RGB.
    stem = weights["stem.0.weight"]
    weights["stem.0.weight"] = stem[:, [2, 1, 0, *range(3, stem.shape[1])]]
    return configuration, weights


def _take_edges(theirs: OfficialState, points: int) -> list[list[int]]:
    """Remove the matrix (P, E) of points on edges, and return the points of each edge.

    The points are in ascending order: the order along the line is not stored, and attention does
    not need it.
    """
    names = ("e2h_transform.weight", "e2h_transform.bias")
    theirs.raise_if_any({"missing": [name for name in names if name not in theirs.tensors]})
    matrix, bias = (theirs.tensors.pop(name).float() for name in names)
    if matrix.ndim != 4 or matrix.shape[0] != points or bias.shape != (points,):
        theirs.raise_if_any({"of another shape": list(names)})
    on_edge = matrix[:, :, 0, 0] > 0.5
    # A moving average of the network ("net_ema") leaves the numbers near 0 and 1.
    exact = torch.allclose(matrix[:, :, 0, 0], on_edge.float(), atol=1e-3)
    if not exact or not torch.allclose(bias, (~on_edge.any(dim=1)).float(), atol=1e-3):
        raise WeightsError(
            f"{' and '.join(names)} are no table of edges: the weight must be 1 where a point is "
            "on an edge and 0 elsewhere, the bias 1 for points on no edge and 0 for others"
        )
    return [torch.nonzero(edge).flatten().tolist() for edge in on_edge.T]


def _take_blur(theirs: OfficialState, stacks: int, depth: int) -> bool:
    """Remove the equal filters of blur pooling, and return whether there were any.

    The released configurations do not blur, but the released weights for WFLW do.
    """
    levels = [f"hgs.{n}.{'low2.' * level}" for n in range(stacks) for level in range(depth)]
    names = ["pre.2.1.filt", *(f"{level}pool1.1.filt" for level in levels)]
    if not any(name in theirs.tensors for name in names):
        return False
    theirs.raise_if_any({"missing": [name for name in names if name not in theirs.tensors]})
    kernel = BlurPool().kernel
    for name in names:
        found = theirs.tensors.pop(name)
        if found.shape[1:] != kernel.shape[1:] or not torch.allclose(
            found.float(), kernel.expand_as(found), atol=1e-3
        ):
            raise WeightsError(
                f"{name} is another filter than that of the official ADNet and cannot be converted"
            )
    return True
