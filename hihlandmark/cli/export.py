"""`hihlandmark export`: a network as a file for another runtime."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from hihlandmark.cli.options import LayoutName, LayoutOption, ModelOption, WeightsOption


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
) -> None:
    """Write the network for one layout as ONNX, OpenVINO or TorchScript, and compare its points."""
    from hihlandmark.layouts import get_layout
    from hihlandmark.runtimes.export import export as export_model
    from hihlandmark.weights import load_model

    loaded = load_model(weights, model=model)
    path, parity = export_model(
        loaded, get_layout(layout.value).name, to.value, out, decoded=decode
    )
    print(path)
    print(
        f"{parity.points} points of drawn faces lie at most {parity.largest:.2g} crop pixels from "
        f"PyTorch's, all but one of a thousand within {parity.usual:.2g}"
    )
