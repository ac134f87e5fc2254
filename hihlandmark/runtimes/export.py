"""Writes a network for one layout to a file, proves it equal to PyTorch, and runs such files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.crop import complete_box_maps
from hihlandmark.errors import ConfigurationError, ExportError, missing_extra
from hihlandmark.layouts import BUILT_IN, get_layout
from hihlandmark.runtimes import RUNTIMES, ConvertedRuntime
from hihlandmark.runtimes.base import FileFormat, Precision, Run
from hihlandmark.runtimes.devices import CPU, AnyDevice
from hihlandmark.runtimes.graph import CropGraph, folded
from hihlandmark.runtimes.onnxruntime import import_onnxruntime
from hihlandmark.runtimes.pytorch import run_module
from hihlandmark.torch_state import default_torch_state
from hihlandmark.weights import LoadedModel
from hihlandmark.weights.card import NAME, Decoding, ModelCard
from hihlandmark.writing import refuse_existing

MAX_DIFFERENCE = 0.05
"""Crop pixels by which a point of an exported network may differ from PyTorch's in fp32."""
MAX_USUAL_DIFFERENCE = 0.01
"""Likewise for all but one point in a thousand."""
_PARITY_CROPS = 16
_INT8_BATCH = 8


@dataclass(frozen=True)
class Parity:
    """The distance of an exported network's points from PyTorch's in fp32, in crop pixels.

    ``points``: how many were compared; ``largest`` distance; ``usual``: the 99.9th percentile.
    """

    points: int
    largest: float
    usual: float


def export_formats() -> dict[str, tuple[str, FileFormat]]:
    """The formats to export to: name -> the runtime that reads it, and the format."""
    return {
        backend.file.name: (runtime, backend.file)
        for runtime, backend in RUNTIMES.items()
        if backend.file
    }


@default_torch_state()
def export(
    weights: LoadedModel,
    layout: str,
    to: str,
    folder: str | Path,
    *,
    calibration: Image | None = None,
) -> tuple[Path, Parity]:
    """Write a loaded model for one layout, and compare it with PyTorch.

    The file takes crops (N, S, S, 3) uint8 RGB, any number of them, and returns their points
    (N, P, 2) in crop pixels, then the other arrays of `CropLandmarks` that the network has. A JSON
    file beside it names them, with the model card.

    Args:
        weights: network and card.
        layout: name of the layout.
        to: name of a format of `export_formats`.
        folder: made if it does not exist.
        calibration: crops (N, S, S, 3) of faces. The network then computes in INT8, within the
            ranges that it shows on every other crop; the rest show how far its points move, which
            is reported, not judged. For ONNX.

    Returns:
        The path of the file, and its `Parity`.

    Raises:
        ExportError: points differ by more than rounding explains; nothing is written then.
        ConfigurationError: this cannot be exported.
    """
    folder = Path(folder)
    network, card, _ = weights
    formats = export_formats()
    if to not in formats:
        raise ConfigurationError(f"cannot export to {to!r}; there are {', '.join(formats)}")
    if layout not in (heads := card.heads):
        raise ConfigurationError(
            f"{card.name} has no head for {layout}, only for {', '.join(heads)}: choose one of "
            "these"
        )
    if calibration is not None and (to != "onnx" or len(calibration) < 2):
        raise ConfigurationError(
            f"INT8 is for ONNX and needs two crops or more, not {to!r} and {len(calibration)}"
        )
    _, file = formats[to]
    size = card.configuration["input_size"]
    arguments = ([layout], card.normalization, card.decoding, card.crop.pixel_origin)
    graph = CropGraph(folded(network, [layout]), *arguments).on_pixels(size)
    name = f"{card.name}-{_file_part(layout)}"
    if calibration is not None:
        name += "-int8"
    target, facts_path = folder / f"{name}{file.suffix}", folder / f"{name}.json"
    refuse_existing(target)
    if not _is_of(facts_path, card, layout):  # files in several formats share it
        refuse_existing(facts_path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        written = Path(temporary) / f"{name}{file.suffix}"
        file.write(graph, written)
        if calibration is None:
            crops = drawn_faces(layout, size)
        else:
            quantize(written, calibration[::2])
            crops = calibration[1::2]
        parity = compare(file.run(written, CPU, "fp32"), CropGraph(network, *arguments), crops)
        if calibration is None:
            require_parity(parity, f"{card.name} as {to}")
        facts = {
            "input": f"crops (N, {size}, {size}, 3) uint8 RGB",
            "outputs": list(graph.outputs),
            "layout": layout,
            "precision": "fp32" if calibration is None else "int8",
            "parity": asdict(parity),
            "boxes": {k: asdict(each) for k, each in complete_box_maps(card.crop.boxes).items()},
            "card": json.loads(card.to_json()),
        }
        (Path(temporary) / facts_path.name).write_text(json.dumps(facts, indent=2) + "\n")
        parts = sorted(Path(temporary).iterdir())
        for part in parts:
            if part.name != facts_path.name:
                refuse_existing(folder / part.name)
        for part in parts:
            part.replace(folder / part.name)
    return target, parity


def _file_part(layout: str) -> str:
    """What names a layout in names of files: its number of points, or the name of one's own."""
    # Cards from elsewhere may have names that lead outside of the folder.
    is_own = layout not in BUILT_IN and NAME.fullmatch(layout)
    return layout if is_own else str(get_layout(layout).size)


def _is_of(path: Path, card: ModelCard, layout: str) -> bool:
    """Whether a JSON file is one that `export` wrote of these weights and this layout."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return bool(facts["layout"] == layout and facts["card"] == json.loads(card.to_json()))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def exported_runtime(
    path: Path, layout: str, card: ModelCard, decoding: Decoding, device: AnyDevice
) -> ConvertedRuntime:
    """The runtime of a file that `export` wrote.

    Args:
        path: of the file.
        layout: the layout that is wanted.
        card: of the weights that it must hold.
        decoding: the decoding that is wanted: it is part of the file.
        device: where it runs.

    Raises:
        ConfigurationError: it is no such file, or it holds other weights, another layout or
            another decoder.
    """
    by_suffix = {file.suffix: (runtime, file) for runtime, file in export_formats().values()}
    if path.suffix not in by_suffix or not path.exists():
        raise ConfigurationError(
            f"runtime {str(path)!r} is neither a runtime nor an existing exported file "
            f"({', '.join(by_suffix)})"
        )
    runtime, file = by_suffix[path.suffix]
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        exported, of_layout = ModelCard.from_json(json.dumps(facts["card"])), facts["layout"]
        precision = _precision_of(facts, path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} cannot be run: the .json that `hihlandmark export` writes beside it is "
            f"missing or damaged ({error})"
        ) from error
    devices = RUNTIMES[runtime].devices
    problem = None
    if of_layout != layout:
        problem = f"it finds the points of {of_layout}, not of {layout}: ask for that layout"
    elif exported.sha256 != card.sha256:
        problem = f"it holds other weights than {card.name}: export it again, or give its weights"
    elif exported.decoding != decoding:
        problem = (
            f"it decodes by {exported.decoding.decoder}, not by {decoding.decoder}: leave the "
            "decoder out"
        )
    elif devices and device.type not in devices:
        problem = f"it runs on {', '.join(devices)}, not on {device}: choose device='cpu'"
    if problem:
        raise ConfigurationError(f"{path} cannot be run: {problem}")
    try:
        run = file.run(path, device, "fp32")
    except ConfigurationError:
        raise
    except Exception as error:  # runtimes raise errors of many kinds
        raise ConfigurationError(
            f"{path} cannot be run: it is damaged or incomplete ({error}): export it again"
        ) from error
    return ConvertedRuntime(runtime, run, precision)


def _precision_of(facts: dict[str, Any], path: Path) -> Precision:
    """The precision of an exported file; the JSON of early versions does not state it."""
    by_name = "int8" if path.stem.endswith("-int8") else "fp32"
    found: Precision = facts.get("precision", by_name)
    if found not in get_args(Precision):
        raise ValueError(f"unknown precision {found!r}")
    return found


def quantize(path: Path, crops: Image) -> None:
    """Turn an ONNX file in fp32 into one in INT8, by static quantization of ONNX Runtime.

    Weights and activations are rounded within the ranges that they have on ``crops`` (N, S, S, 3);
    weights by channel, and to 7 bits, so that sums do not overflow on processors without VNNI.
    """
    import_onnxruntime()
    with missing_extra("onnx"):
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Crops(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Image] = iter(
                [crops[start : start + _INT8_BATCH] for start in range(0, len(crops), _INT8_BATCH)]
            )

        def get_next(self) -> dict[str, Image] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"crops": batch}

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    # Only convolutions: decoding needs all digits of its positions.
    nodes = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
    quantize_static(
        str(prepared),
        str(path),
        Crops(),
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=nodes,
    )
    prepared.unlink()


# Comparing


def compare(exported: Run, graph: CropGraph, crops: Image) -> Parity:
    """`Parity` of an exported graph on crops (N, S, S, 3)."""
    expected, *_ = run_module(graph)(crops)
    points, *_ = exported(crops)
    distances = np.linalg.norm(expected - points, axis=-1).ravel()
    distances = np.nan_to_num(distances, nan=np.inf)
    return Parity(distances.size, float(distances.max()), float(np.percentile(distances, 99.9)))


def require_parity(parity: Parity, what: str) -> None:
    """Raise `ExportError` when points differ by more than rounding explains."""
    if parity.largest > MAX_DIFFERENCE or parity.usual > MAX_USUAL_DIFFERENCE:
        raise ExportError(
            f"{what} does not give the points of PyTorch: {parity.largest:.3g} crop pixels off at "
            f"most, {parity.usual:.3g} for all but one of a thousand points; allowed are "
            f"{MAX_DIFFERENCE} and {MAX_USUAL_DIFFERENCE}. Nothing was written. Please report it "
            "with the versions that `hihlandmark doctor` prints"
        )


def drawn_faces(layout: str, size: int, count: int = _PARITY_CROPS) -> Image:
    """Crops (count, size, size, 3) of line drawings of faces, the same ones every time.

    Networks find points in them as in real images; on noise every heatmap is flat, and every point
    random.
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
