"""Writes a network for one layout to a file of another format, and proves it equal."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from hihlandmark.errors import ConfigurationError, ExportError
from hihlandmark.heatmap import read_heatmaps
from hihlandmark.layouts import get_layout
from hihlandmark.runtimes.base import Outputs, Run
from hihlandmark.runtimes.formats import TARGETS, run_module
from hihlandmark.runtimes.graph import CropGraph, folded
from hihlandmark.runtimes.int8 import quantize
from hihlandmark.weights import LoadedModel
from hihlandmark.weights.card import Decoding

LARGEST_DIFFERENCE = 0.05
"""Crop pixels by which a point of an exported network may differ from PyTorch's in float32."""
USUAL_DIFFERENCE = 0.01
"""Likewise of all but one point in a thousand."""
_PARITY_CROPS = 16


@dataclass(frozen=True)
class Parity:
    """How far an exported network's points lie from PyTorch's in float32, in crop pixels."""

    points: int
    largest: float
    usual: float
    """The 99.9th percentile."""


def export(
    weights: LoadedModel,
    layout: str,
    to: str,
    folder: Path,
    *,
    decoded: bool = False,
    calibration: NDArray[np.uint8] | None = None,
) -> tuple[Path, Parity]:
    """Writes a loaded model for one layout as ``to``, one of `TARGETS`, and compares it.

    The graph takes crops (N, S, S, 3) uint8 RGB, any number of them, and returns what
    `CropGraph.outputs` names: raw heatmaps, or with ``decoded`` points in crop pixels, their masses
    and covariances. A JSON file beside it says so, with the model card. Returns the path and how
    far its points lie from PyTorch's. Raises `ExportError`, and leaves nothing behind, when that is
    further than rounding explains, and `ConfigurationError` for what cannot be exported.

    ``calibration``: crops (N, S, S, 3) of faces. The network then computes in INT8, within the
    ranges that it shows on every other one of them; the rest of them tell how far its points move,
    which is reported, not judged. For ONNX.
    """
    network, card, _ = weights
    if to not in TARGETS:
        raise ConfigurationError(f"cannot export to {to!r}; there is {', '.join(TARGETS)}")
    if layout not in card.configuration["layouts"]:
        raise ConfigurationError(
            f"{card.name} has no head for {layout}, only for "
            f"{', '.join(card.configuration['layouts'])}: choose one of these layouts"
        )
    if calibration is not None and (to != "onnx" or len(calibration) < 2):
        raise ConfigurationError(
            f"INT8 is for ONNX and needs two crops or more, not {to!r} and {len(calibration)}"
        )
    target, size = TARGETS[to], card.configuration["input_size"]
    decoding = card.decoding if decoded else None
    graph = CropGraph(folded(network), layout, card.normalization, decoding).on_pixels(size)
    marks = ["decoded"] * decoded + ["int8"] * (calibration is not None)
    name = "-".join([card.name, str(get_layout(layout).size), *marks])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        written = Path(temporary) / f"{name}{target.suffix}"
        target.write(graph, written)
        reference = CropGraph(network, layout, card.normalization, decoding)
        if calibration is None:
            crops = drawn_faces(layout, size)
        else:
            quantize(written, calibration[::2])
            crops = calibration[1::2]
        parity = compare(target.run(written), reference, card.decoding, crops)
        if calibration is None:
            require_parity(parity, f"{card.name} as {to}")
        facts = {
            "input": f"crops (N, {size}, {size}, 3) uint8 RGB",
            "outputs": graph.outputs,
            "decoded": decoded,
            "layout": layout,
            "parity": asdict(parity),
            "card": json.loads(card.to_json()),
        }
        (Path(temporary) / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
        for part in Path(temporary).iterdir():
            part.replace(folder / part.name)
    return folder / f"{name}{target.suffix}", parity


# Comparing


def compare(
    exported: Run, graph: CropGraph, decoding: Decoding, crops: NDArray[np.uint8]
) -> Parity:
    """`Parity` of an exported graph on crops (N, S, S, 3)."""
    ours = _points(run_module(graph)(crops), graph, decoding)
    theirs = _points(exported(crops), graph, decoding)
    distances = np.linalg.norm(ours - theirs, axis=-1).ravel()
    # A point that both do not find is equal; one that only one finds is infinitely far.
    neither = (np.isnan(ours) & np.isnan(theirs)).any(axis=-1).ravel()
    distances = np.where(neither, 0, np.nan_to_num(distances, nan=np.inf))
    return Parity(distances.size, float(distances.max()), float(np.percentile(distances, 99.9)))


def require_parity(parity: Parity, what: str) -> None:
    """Raises `ExportError` when points lie further apart than rounding explains."""
    if parity.largest > LARGEST_DIFFERENCE or parity.usual > USUAL_DIFFERENCE:
        raise ExportError(
            f"{what} does not give the points of PyTorch: {parity.largest:.3g} crop pixels off at "
            f"most, {parity.usual:.3g} in all but one of a thousand points; allowed are "
            f"{LARGEST_DIFFERENCE} and {USUAL_DIFFERENCE}. Nothing was written. Please report it "
            "with the versions that `hihlandmark doctor` prints"
        )


def drawn_faces(layout: str, size: int, count: int = _PARITY_CROPS) -> NDArray[np.uint8]:
    """Crops (count, size, size, 3) of line drawings of faces, the same ones every time.

    Networks find points in them as they do in images, where noise would leave every heatmap flat
    and every point to chance.
    """
    shape, lines = get_layout(layout).mean_shape, get_layout(layout).contours
    rng = np.random.default_rng(98)
    crops = rng.integers(90, 200, (count, size, size, 3), dtype=np.uint8)
    for crop in crops:
        points = shape * size * rng.uniform(0.6, 0.75) + size / 2 + rng.normal(0, size / 40, 2)
        points = points + rng.normal(0, size / 150, points.shape)
        cv2.GaussianBlur(crop, (0, 0), size / 40, dst=crop)
        for line in lines:
            places = np.round(points[list(line.indices)]).astype(np.int32)
            color = [int(each) for each in rng.integers(0, 90, 3)]
            cv2.polylines(crop, [places], line.closed, color, max(1, size // 85), cv2.LINE_AA)
    return crops


def _points(outputs: Outputs, graph: CropGraph, decoding: Decoding) -> NDArray[np.floating]:
    """Points (N, P, 2) in crop pixels of what a graph returned, decoded unless they are."""
    if graph.decoding is not None:
        return outputs[0]
    integer, *decimal = (torch.from_numpy(np.asarray(each)) for each in outputs)
    return read_heatmaps(integer, decimal[0] if decimal else None, decoding).points.numpy()
