"""`hihlandmark export`: a network as a file for another runtime."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import BadParameter, Option

from hihlandmark.cli import options
from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.writing import check_local

if TYPE_CHECKING:
    from hihlandmark.arrays import Image
    from hihlandmark.detector import Detector
    from hihlandmark.io import Source

logger = logging.getLogger(__name__)

ExportFormat = Literal["onnx", "openvino"]
"""The keys of `runtimes.export.export_formats`."""

_MIN_CROPS, _MAX_CROPS = 20, 200
"""Half of them give the ranges, half show the accuracy of INT8."""
_INT8 = "Compute in INT8, with the value ranges of the faces in this folder of images. For onnx."


def export(
    to: Annotated[ExportFormat, Option(help="Format of the file.")],
    out: Annotated[
        Path, Option("--out", "-o", callback=check_local, help="Folder for the file and its JSON.")
    ],
    layout: options.DefaultLayoutOption = None,
    model: options.ModelOption = "hih-small",
    weights: options.WeightsOption = None,
    int8: Annotated[Path | None, Option(metavar="IMAGES", help=_INT8)] = None,
    face_detector: options.FaceDetectorOption = "mtcnn",
) -> None:
    """Write the network for one layout as ONNX or OpenVINO, and compare its points."""
    import numpy as np

    from hihlandmark.detector import default_layout
    from hihlandmark.io import find_images
    from hihlandmark.layouts import get_layout
    from hihlandmark.runtimes.export import export as export_model
    from hihlandmark.weights import load_model

    crops = None
    if not int8 and face_detector != "mtcnn":
        raise BadParameter("--face-detector finds the faces of --int8: give its images")
    if int8 and to != "onnx":
        raise BadParameter(f"--int8 is for --to onnx, not {to}")
    if int8:
        detector = options.make_detector(
            layout, model, weights=weights, face_detector=face_detector
        )
        faces = list(islice(crops_of_faces(detector, find_images([str(int8)])), _MAX_CROPS))
        if len(faces) < _MIN_CROPS:
            raise ConfigurationError(
                f"{int8}: {options.counted(len(faces), 'face')} found, INT8 needs {_MIN_CROPS}: "
                "add images"
            )
        crops = np.stack(faces)
    loaded = load_model(weights, model=model)
    # After loading: weights may define layouts.
    chosen = (default_layout(loaded.card) if layout is None else get_layout(layout)).name
    if layout is None and chosen not in loaded.card.heads:  # converted from that of the weights
        chosen = loaded.card.heads[0]
    path, parity = export_model(loaded, chosen, to, out, calibration=crops)
    print(path)
    print(
        f"{parity.points} points of {'other' if int8 else 'drawn'} faces are at most "
        f"{parity.largest:.2g} crop pixels from those of PyTorch, 99.9 % of them within "
        f"{parity.usual:.2g}"
    )


def crops_of_faces(detector: Detector, images: Iterable[Source]) -> Iterator[Image]:
    """Crops (S, S, 3) of all faces, cut around their points like the last crop of a prediction.

    Images that cannot be read are logged and left out.
    """
    from hihlandmark.crop import crop_angles, cut_crop

    box_map, shape = detector.box_map("landmarks"), detector.layout.mean_shape
    for source in images:
        try:
            image = source.load()
        except ImageError as error:
            logger.warning("left out: %s", error)
            continue
        for face in detector.predict(image):
            points = face.points[None]
            (square,) = box_map.squares_around(points, crop_angles(points, shape))
            yield cut_crop(image, square, detector.landmarker.crop_size)
