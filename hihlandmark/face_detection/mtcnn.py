"""MTCNN (Zhang et al., arXiv 1604.02878) with the networks and weights of facenet-pytorch.

Unlike in facenet-pytorch's own search, which is slower, candidates are cut by OpenCV, and the
networks are run by any of the `runtimes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import nn

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.face_detection.base import (
    Detections,
    check_image,
    check_options,
    downscale,
    upscale_detections,
)
from hihlandmark.face_detection.boxes import best_boxes
from hihlandmark.runtimes import Run, make_run
from hihlandmark.runtimes.graph import ANY, PixelGraph
from hihlandmark.runtimes.pytorch import resolve_device
from hihlandmark.versions import version_of

# Takes 0.63 of the time of images of 1024-1280 pixels at full size, and finds 93 % of the faces in
# crowds and every portrait: benchmarks/face_detection.py.
DETECTION_SIZE = 800
MIN_FACE = 20  # with 40, it is faster by a third, and misses half of the faces in crowds
MIN_SCORE = 0.9  # of the boxes with 0.7 to 0.9, about half show no face; above, few

# The smallest face searched for, in pixels of the searched image: the default of the authors.
_SMALLEST_SEARCHED = 20.0
# The results count pixels from 1, as in Matlab, and boxes end at the centers of the pixels that
# they hold. Faces searched at half the size come back 1.1 pixels further right and down.
_BOX_OFFSET = np.array([-1.5, -1.5, -0.5, -0.5])
_POINT_OFFSET = -1.0

# Side in pixels of the receptive field of one output cell of P-Net, and distance of two of them.
_WINDOW, _STRIDE = 12, 2
_PYRAMID_FACTOR = 0.709  # to the next level: half of the area, as published
# Scores at which P-Net (0.6 as published, for one more face of 556) and R-Net let a candidate pass.
_EARLY_THRESHOLDS = (0.7, 0.7)
# Maximum overlap of two candidates: within a level, then within the image.
_OVERLAP_IN_LEVEL, _OVERLAP_IN_IMAGE = 0.5, 0.7
_BATCH_SIZE = 512  # of R-Net and O-Net, to limit memory


class MTCNNFaceDetector:
    """Finds faces and their five points with MTCNN, in an image of bounded size.

    Images are searched one by one. One object may serve several threads.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a `torch.device`.
        runtime: what runs the networks, see `Detector`.
        detection_size: longest side in pixels to which larger images are downscaled.
        min_face: side in pixels, in the image as given, of the smallest face wanted. The larger,
            the faster. Faces below 20 pixels in the downscaled image are not found.
        min_score: confidence threshold: boxes with a lower score (0..1) are dropped.

    Raises:
        ConfigurationError: an argument is out of range or the device is not available.
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

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """See `FaceDetector.detect`. Boxes lie in [0, W - 1] x [0, H - 1], five points anywhere."""
        for image in images:
            check_image(image)
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        small, factors = downscale(image, self.detection_size)
        smallest = max(self.min_face * factors.min(), _SMALLEST_SEARCHED)
        boxes, scores, points = self._cascade.search(small, smallest, self.min_score)
        boxes, points = boxes + _BOX_OFFSET, points + _POINT_OFFSET
        return upscale_detections(boxes, scores, points, factors, image, self.min_face)


class _OnPixels(nn.Module):
    """One of the networks, from pixels (N, H, W, 3) uint8."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What facenet-pytorch's network returns; the probabilities of a face come last."""
        normalized = (pixels.permute(0, 3, 1, 2).float() - 127.5) / 128
        outputs: tuple[torch.Tensor, ...] = self.network(normalized)
        return outputs


class Cascade:
    """Proposals (P-Net), refinement (R-Net) and output (O-Net), section II of the paper.

    Coordinates are the original's: pixels counted from 1, as in Matlab.
    """

    def __init__(self, device: torch.device, runtime: str = "auto") -> None:
        release = version_of("facenet-pytorch")

        def run_of(name: str, shape: tuple[int, ...], *outputs: str) -> Run:
            def make_graph() -> PixelGraph:
                from facenet_pytorch.models import mtcnn  # slow to import

                return PixelGraph(_OnPixels(getattr(mtcnn, name)()), "pixels", shape, outputs)

            return make_run(runtime, make_graph, f"{name} {release}", device)

        self._propose = run_of("PNet", (1, ANY, ANY, 3), "moves", "scores")
        self._refine = run_of("RNet", (ANY, 24, 24, 3), "moves", "scores")
        self._output = run_of("ONet", (ANY, 48, 48, 3), "moves", "five_points", "scores")

    def search(
        self, image: Image, smallest: float, threshold: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Boxes (F, 4), scores (F,) and five points (F, 5, 2) of faces of ``smallest`` pixels."""
        boxes = self._proposals(image, smallest)
        boxes, (moves, scores) = _classify(image, boxes, self._refine, 24)
        passed = scores[:, 1] > _EARLY_THRESHOLDS[1]
        boxes, moves, scores = boxes[passed], moves[passed], scores[passed, 1]
        best = best_boxes(boxes, scores, _OVERLAP_IN_IMAGE)
        boxes = _squares(_regressed(boxes[best], moves[best]))

        boxes, (moves, points, scores) = _classify(image, boxes, self._output, 48)
        passed = scores[:, 1] > threshold
        boxes, moves, scores = boxes[passed], moves[passed], scores[passed, 1]
        # Five abscissae, then five ordinates.
        fractions = np.moveaxis(points[passed].reshape(-1, 2, 5), 1, 2)
        points = boxes[:, None, :2] + fractions * _sides(boxes)[:, None] - 1
        boxes = _regressed(boxes, moves)
        # As published, relative to the smaller box; boxes include their last pixel.
        best = best_boxes(boxes + np.array([0, 0, 1, 1]), scores, _OVERLAP_IN_IMAGE, "smaller")
        return boxes[best], scores[best], points[best]

    def _proposals(self, image: Image, smallest: float) -> FloatArray:
        """P-Net over the pyramid: square boxes (F, 4)."""
        height, width = image.shape[:2]
        levels: list[FloatArray] = []
        for level in _pyramid(image, _WINDOW / smallest):
            moves, scores = self._propose(level[None])
            # Where the level has an odd side, the last cell would reach beyond it.
            rows, columns = ((np.array(level.shape[:2]) - _WINDOW) // _STRIDE + 1).tolist()
            score = scores[0, 1, :rows, :columns]
            row, column = np.nonzero(score >= _EARLY_THRESHOLDS[0])
            low = np.stack([column, row], axis=1) * _STRIDE + 1
            scale = np.array([level.shape[1] / width, level.shape[0] / height])
            boxes = np.floor(np.concatenate([low / scale, (low + _WINDOW - 1) / scale], axis=1))
            passed = score[row, column][:, None], moves[0, :, row, column]
            found = np.concatenate([boxes, *passed], axis=1)
            levels.append(found[best_boxes(boxes, found[:, 4], _OVERLAP_IN_LEVEL)])
        found = np.concatenate([np.zeros((0, 9)), *levels])
        found = found[best_boxes(found[:, :4], found[:, 4], _OVERLAP_IN_IMAGE)]
        boxes, moves = found[:, :4], found[:, 5:]
        # Here, and only here, sides are counted without the last pixel.
        sides = boxes[:, 2:] - boxes[:, :2]
        return _squares(boxes + moves * np.tile(sides, 2))


def _pyramid(image: Image, scale: float) -> list[Image]:
    """The image (H, W, 3) at ``scale``, and ever smaller copies down to one window."""
    height, width = image.shape[:2]
    levels: list[Image] = []
    while min(height, width) * scale >= _WINDOW:
        size = (int(width * scale + 1), int(height * scale + 1))
        # Each level from the previous one, which is only a little larger.
        source, how = (levels[-1], cv2.INTER_LINEAR) if levels else (image, cv2.INTER_AREA)
        levels.append(np.asarray(cv2.resize(source, size, interpolation=how), np.uint8))
        scale *= _PYRAMID_FACTOR
    return levels


def _classify(
    image: Image, boxes: FloatArray, run: Run, size: int
) -> tuple[FloatArray, list[FloatArray]]:
    """The boxes (F, 4) that hold a pixel of the image, and the outputs of a network for them.

    A box that reaches beyond the image is cut there, and the rest is resized to a square.
    """
    height, width = image.shape[:2]
    corners = np.trunc(boxes).astype(int)
    low = corners[:, :2].clip(1) - 1
    high = corners[:, 2:].clip(max=(width, height))
    inside = (high > low).all(axis=1)
    count = int(inside.sum())
    # The networks take no empty batch: use a black candidate instead.
    pixels = np.zeros((max(count, 1), size, size, 3), np.uint8)
    for crop, (left, top), (right, bottom) in zip(pixels, low[inside], high[inside], strict=False):
        part = image[top:bottom, left:right]
        cv2.resize(part, (size, size), dst=crop, interpolation=cv2.INTER_AREA)
    starts = range(0, len(pixels), _BATCH_SIZE)
    batches = [run(pixels[start : start + _BATCH_SIZE]) for start in starts]
    outputs = [np.concatenate(parts)[:count] for parts in zip(*batches, strict=True)]
    return boxes[inside], outputs


def _sides(boxes: FloatArray) -> FloatArray:
    """Widths and heights (F, 2), first and last pixel included."""
    return boxes[:, 2:] - boxes[:, :2] + 1


def _regressed(boxes: FloatArray, moves: FloatArray) -> FloatArray:
    """Boxes (F, 4) whose edges are moved by the network's moves (F, 4), in sides of the boxes."""
    return boxes + moves * np.tile(_sides(boxes), 2)


def _squares(boxes: FloatArray) -> FloatArray:
    """Squares with the centers of boxes (F, 4) and their longer sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(axis=1, keepdims=True)
    low = boxes[:, :2] + (sides - longer) / 2
    return np.concatenate([low, low + longer], axis=1)
