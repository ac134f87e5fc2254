"""`hihlandmark export`: a network as a file for another runtime."""

from __future__ import annotations

from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from hihlandmark.cli.options import (
    LayoutName,
    LayoutOption,
    ModelOption,
    WeightsOption,
    make_detector,
)
from hihlandmark.errors import ConfigurationError, ImageError

# Half of them for the ranges, half to see what INT8 costs.
_FEWEST_CROPS, _MOST_CROPS = 20, 200


class ExportFormat(str, Enum):
    """Keys of `runtimes.export.TARGETS`."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCHSCRIPT = "torchscript"


def export(
    to: Annotated[ExportFormat, typer.Option("--to", help="Format of the file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the file and its JSON.")],
    layout: LayoutOption = LayoutName.WFLW98,
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    decode: Annotated[
        bool,
        typer.Option("--decode", help="Points in crop pixels come out, instead of raw heatmaps."),
    ] = False,
    int8: Annotated[
        Path | None,
        typer.Option(
            "--int8",
            help="Compute in INT8, with the ranges seen on faces of this folder of photos. ONNX.",
        ),
    ] = None,
) -> None:
    """Write the network for one layout as ONNX, OpenVINO or TorchScript, and compare its points."""
    from hihlandmark.layouts import get_layout
    from hihlandmark.runtimes.export import export as export_model
    from hihlandmark.weights import load_model

    loaded = load_model(weights, model=model)
    path, parity = export_model(
        loaded,
        get_layout(layout.value).name,
        to.value,
        out,
        decoded=decode,
        calibration=_face_crops(int8, layout, model, weights) if int8 else None,
    )
    print(path)
    faces = "other faces" if int8 else "drawn faces"
    print(
        f"{parity.points} points of {faces} lie at most {parity.largest:.2g} crop pixels from "
        f"PyTorch's, all but one of a thousand within {parity.usual:.2g}"
    )


def _face_crops(folder: Path, layout: LayoutName, model: str, weights: str | None) -> Any:
    """Crops (N, S, S, 3) of the faces in a folder's images, `_MOST_CROPS` at most."""
    import numpy as np

    from hihlandmark.io import find_images
    from hihlandmark.runtimes.int8 import crops_of_faces

    photos = [item for item in find_images([str(folder)]) if not isinstance(item, ImageError)]
    detector = make_detector(layout, model, weights=weights)
    crops = list(islice(crops_of_faces(detector, (each.path for each in photos)), _MOST_CROPS))
    if len(crops) < _FEWEST_CROPS:
        raise ConfigurationError(
            f"{folder}: {len(crops)} faces in {len(photos)} photos, INT8 needs {_FEWEST_CROPS}: "
            "give a folder of more photos"
        )
    return np.stack(crops)
