"""Convert official checkpoints of HIH, ADNet and Adaptive Wing to weights with a card.

The names of their tensors are in `systems`, other facts about them here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hihlandmark.crop import CANONICAL_CROP, BoxMap
from hihlandmark.errors import ConfigurationError, WeightsError, abbreviate
from hihlandmark.weights.card import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CropContract,
    Decoding,
    ModelCard,
    Normalization,
)
from hihlandmark.weights.convert.systems import (
    Converted,
    from_adnet,
    from_awing,
    from_hih,
    plain_names,
)
from hihlandmark.weights.files import save_weights

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


def convert_checkpoint(
    checkpoint: Path, folder: Path, name: str, layout: str | None = None
) -> Path:
    """Convert a checkpoint of the HIH, ADNet or Adaptive Wing authors to safetensors and a card.

    The names of its tensors tell the system. The card states its decoding, normalization and crop.

    The checkpoint is a pickle of a state dict, alone or in a dict as "state_dict" or "net", its
    keys with or without the prefix "module.". It is opened with ``weights_only=True``. ``layout``
    is the expected layout; None accepts any. Returns the path of the card.

    Raises:
        WeightsError: the file is no such checkpoint, has another layout, or holds other objects.
    """
    state = _read_checkpoint(checkpoint)
    system = _system_of(state, checkpoint)
    try:
        configuration, state = system.from_official(state)
    except (ConfigurationError, WeightsError) as error:
        raise WeightsError(f"{checkpoint} is not a checkpoint of {system.name}: {error}") from error
    (found,) = configuration["layouts"]
    if layout is not None and found != layout:
        raise WeightsError(f"{checkpoint} has the layout {found}, not {layout}: leave layout out.")
    maps = _official_crop(found, system.crop_layout or found, system.crop)
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


def _official_crop(layout: str, crop_layout: str, square: BoxMap) -> dict[str, BoxMap]:
    """The maps from each kind of box to the crop that ``square`` gives for ``crop_layout``."""
    # Its place in the canonical square, whose place in all kinds of boxes is known.
    canonical = CANONICAL_CROP[f"landmarks:{crop_layout}"]
    ratio = square.scale / canonical.scale
    offset = np.subtract(square.shift, canonical.shift) / canonical.scale
    maps = {}
    for kind, box_map in CANONICAL_CROP.items():
        if kind == f"landmarks:{layout}" or not kind.startswith("landmarks:"):
            x, y = np.round(box_map.shift + offset * box_map.scale, 4).tolist()
            maps[kind] = BoxMap((x, y), round(box_map.scale * ratio, 4))
    return maps


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
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise WeightsError(
            f"{path} is no state dict, nor has one as {' or '.join(_STATE_DICTS)}: {_SAVE}"
        )
    return state
