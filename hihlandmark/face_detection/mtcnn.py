"""MTCNN (Zhang et al., arXiv 1604.02878) as carried by facenet-pytorch, made safe for any image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hihlandmark.face_detection.base import Detections, check_image
from hihlandmark.face_detection.mtcnn_cascade import Cascade
from hihlandmark.face_detection.resizing import check_options, in_image, shrunk
from hihlandmark.runtimes.pytorch import resolve_device

# 0.63 of the time that images of 1024-1280 pixels take as they are, for 93 % of the faces in crowds
# (97 % of those of 40 pixels or more) and every portrait: benchmarks/face_detection.py.
DETECTION_SIZE = 800
# With 40 instead, a third of the time is saved and almost half of the faces in crowds are lost.
MIN_FACE = 20
# Of the boxes with 0.7 to 0.9 on the same images, about half show no face; above, few.
MIN_SCORE = 0.9

# The smallest face worth a search, in pixels of the image searched: the default of the authors
# of MTCNN, too.
_SMALLEST_SEARCHED = 20.0
# The results count pixels from 1, as in Matlab, and boxes end at the centers of the pixels that
# they hold. Measured, too: faces searched at half the size came back 1.1 pixels further right and
# down, in boxes 1.3 pixels smaller.
_BOX_OFFSET = np.array([-1.5, -1.5, -0.5, -0.5])
_POINT_OFFSET = -1.0


class MTCNNFaceDetector:
    """Finds faces and their five points with MTCNN, in an image of bounded size.

    One object may serve several threads.

    Images are searched one by one: each gives the same boxes whatever else is in a call.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a `torch.device`.
        runtime: what runs the networks, see `Detector`.
        detection_size: longest side in pixels of the image searched; a larger image is shrunk to
            it by area averaging, a smaller one is searched as it is.
        min_face: side in pixels of the image as given below which a face is not wanted: no box
            whose longer side is shorter is returned. The larger, the faster. In a shrunk image no
            face that is shorter than 20 pixels there is looked for, whatever this says.
        min_score: boxes with a score (0..1) of less are left out.

    Raises:
        ConfigurationError: an argument is out of range or the device is not there.
    """

    name = "mtcnn"

    def __init__(
        self,
        device: str | torch.device = "auto",
        *,
        runtime: str = "auto",
        detection_size: int = DETECTION_SIZE,
        min_face: float = MIN_FACE,
        min_score: float = MIN_SCORE,
    ) -> None:
        check_options(detection_size, min_face, min_score, _SMALLEST_SEARCHED)
        resolved = resolve_device(device)
        # Dozens of small steps, of which each costs MPS more than the CPU.
        self.device = torch.device("cpu") if resolved.type == "mps" else resolved
        self.detection_size, self.min_face, self.min_score = detection_size, min_face, min_score
        self._cascade = Cascade(self.device, runtime)

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """RGB images (H, W, 3) uint8 of any mixed sizes -> the `Detections` of each, best first.

        Boxes are cut at the centers of the image's outermost pixels, so that they lie in
        [0, W - 1] x [0, H - 1]; the five points may lie outside of the image.
        Raises `ImageError` for what is not such an image.
        """
        for image in images:
            check_image(image)
        return [self._detect(image) for image in images]

    def _detect(self, image: NDArray[np.uint8]) -> Detections:
        picture, factors = shrunk(image, self.detection_size)
        smallest = max(self.min_face * factors.min(), _SMALLEST_SEARCHED)
        boxes, scores, points = self._cascade.search(picture, smallest, self.min_score)
        boxes, points = boxes + _BOX_OFFSET, points + _POINT_OFFSET
        return in_image(boxes, scores, points, factors, image, self.min_face)
