"""MTCNN (Zhang et al., arXiv 1604.02878) with the networks and weights of facenet-pytorch.

Unlike in facenet-pytorch's own search, which is slower, candidates are cut by OpenCV, and the
networks are run by any of the `runtimes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image, IndexArray
from hihlandmark.crop import halved
from hihlandmark.face_detection.base import (
    Detections,
    PickledByArguments,
    check_image,
    check_options,
    downscale,
    upscale_detections,
)
from hihlandmark.face_detection.boxes import best_boxes
from hihlandmark.logits import logit, sigmoid
from hihlandmark.runtimes import (
    PrecisionChoice,
    Run,
    available_precision,
    choose_runtime,
    make_run,
)
from hihlandmark.runtimes.base import ANY, PixelGraph
from hihlandmark.runtimes.devices import CPU, AnyDevice, resolve_device
from hihlandmark.versions import version_of

# Chosen by benchmarks/face_search.py, as are the thresholds: finds no fewer faces than the
# published search of an image of 800 pixels, in a fraction of the time.
DETECTION_SIZE = 640
MIN_FACE = 20
MIN_SCORE = 0.71

# The proposals are searched at this part of the detection size or less.
_PROPOSAL_SCALE = 0.5
_SMALLEST_SEARCHED = 20.0  # pixels; the smallest face of the published search
# The results count pixels from 1, as in Matlab, and boxes end at the centers of the pixels that
# they hold. Faces searched at half the size come back 1.1 pixels further right and down.
_BOX_OFFSET = np.array([-1.5, -1.5, -0.5, -0.5])
_POINT_OFFSET = -1.0
# Pixels. O-Net's boxes differ by 0.00003 pixels from one size of batch to another, and with them
# the crops and all points; rounded, they are nearly always the same.
_ROUNDED_TO = 0.25

# Side in pixels of the receptive field of one output cell of P-Net, and distance of two of them.
_WINDOW, _STRIDE = 12, 2
# Maximum overlap of two candidates: within a level, within the image, after R-Net, after O-Net;
# the first three 0.5, 0.7 and 0.7 as published, which finds no more faces (by the same script).
_OVERLAP_IN_LEVEL, _OVERLAP_IN_IMAGE, _OVERLAP_REFINED, _OVERLAP_SMALLER = 0.4, 0.6, 0.55, 0.7
# OpenVINO and OpenCV prepare a network for each new shape, which takes longer than running it. So
# sides of P-Net's input are multiples of this, and the others run in batches of few sizes:
# (largest, multiple). O-Net's are small and repeat, so that filling them up would cost more.
_CANVAS_MULTIPLE = 32
_BATCHES = {24: (32, 8), 48: (16, 1)}

ACTIVATION_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "PNet": {
        "network.conv1": (-128.0, 127.0),
        "network.conv2": (-1.8, 10.4),
        "network.conv3": (-6.5, 11.5),
    },
    "RNet": {
        "network.conv1": (-1.0, 1.0),
        "network.conv2": (-3.3, 4.3),
        "network.conv3": (-1.9, 3.3),
    },
}
"""For INT8, of the inputs of convolutions: benchmarks/fit_mtcnn_ranges.py. P-Net's last one,
whose rounding saves little and loses a few faces, and O-Net, which becomes no faster, are left out.
"""


class Search(NamedTuple):
    """How many candidates are searched.

    Attributes:
        factors: from the first level of the pyramid to the second, and from each of the others to
            the next. Few of the small levels would save little and miss large faces.
        proposals: scores at which P-Net lets a candidate pass, in the first level and in the
            others. Most of the false candidates are in the first.
        refined: that of R-Net.
    """

    factors: tuple[float, float]
    proposals: tuple[float, float]
    refined: float


QUICK = Search(factors=(0.577, 0.709), proposals=(0.85, 0.6), refined=0.8)
# About as published (0.709; 0.6; 0.7). For images in which the quick search finds nothing: it
# misses 1 of 110 portraits.
THOROUGH = Search(factors=(0.8, 0.8), proposals=(0.6, 0.6), refined=0.6)


class MTCNNFaceDetector(PickledByArguments):
    """Finds faces and their five points with MTCNN, in an image of bounded size.

    Images are searched one by one. One object may serve several threads.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a `torch.device`.
        runtime: what runs the networks, see `Detector`.
        precision: of the networks, see `Detector`; all but OpenVINO run them in fp32.
        detection_size: longest side in pixels of the image that is searched. Faces of 24 pixels in
            it are found reliably, smaller ones less often. What is found is verified in the image
            at about twice this size.
        min_face: side in pixels, in the image as given, of the smallest face wanted. The larger,
            the faster.
        min_score: confidence threshold: boxes with a lower score (0..1) are dropped.

    Raises:
        ConfigurationError: an argument is out of range or the device is not available.
    """

    name = "mtcnn"

    def __init__(
        self,
        device: str | AnyDevice = "auto",
        *,
        runtime: str = "auto",
        precision: PrecisionChoice = "auto",
        detection_size: int = DETECTION_SIZE,
        min_face: float = MIN_FACE,
        min_score: float = MIN_SCORE,
    ) -> None:
        check_options(detection_size, min_face, min_score, _SMALLEST_SEARCHED)
        resolved = resolve_device(device)
        # Dozens of small steps, of which each costs MPS more than the CPU.
        self.device = CPU if resolved.type == "mps" else resolved
        self.detection_size, self.min_face, self.min_score = detection_size, min_face, min_score
        self._network_options = {"device": device, "runtime": runtime, "precision": precision}
        self.runtime = choose_runtime(runtime, self.device)
        self.precision = available_precision(precision, self.runtime, self.device, has_ranges=True)
        self._cascade = Cascade(self.device, self.runtime, self.precision)

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """See `FaceDetector.detect`. Boxes lie in [0, W - 1] x [0, H - 1], five points anywhere."""
        for image in images:
            check_image(image)
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        # To no less than twice the detection size, and by a whole factor, which is fast.
        factor = max(1, max(image.shape[:2]) // (2 * self.detection_size))
        source, factors = downscale(image, -(-max(image.shape[:2]) // factor))
        scale = min(
            _PROPOSAL_SCALE * self.detection_size / max(source.shape[:2]),
            _WINDOW / max(self.min_face * factors.min(), _SMALLEST_SEARCHED),
        )
        for search in (QUICK, THOROUGH):
            boxes, scores, points = self._cascade.search(source, scale, self.min_score, search)
            if len(boxes):
                break
        boxes = (boxes / _ROUNDED_TO).round() * _ROUNDED_TO + _BOX_OFFSET
        points = points + _POINT_OFFSET
        return upscale_detections(boxes, scores, points, factors, image, self.min_face)


class Cascade:
    """Proposals (P-Net), refinement (R-Net) and output (O-Net), section II of the paper.

    Coordinates are the original's: pixels counted from 1, as in Matlab.
    """

    def __init__(
        self, device: AnyDevice, runtime: str = "auto", precision: PrecisionChoice = "auto"
    ) -> None:
        release = version_of("facenet-pytorch")

        def run_of(name: str, shape: tuple[int, ...], *outputs: str) -> Run:
            def make_graph() -> PixelGraph:
                from hihlandmark.models.mtcnn import mtcnn_network

                return PixelGraph(mtcnn_network(name), "pixels", shape, outputs)

            ranges = ACTIVATION_RANGES.get(name)
            return make_run(runtime, make_graph, f"{name} {release}", device, precision, ranges)

        self._propose = run_of("PNet", (1, ANY, ANY, 3), "moves_and_logit")
        self._refine = run_of("RNet", (ANY, 24, 24, 3), "moves", "scores")
        self._output = run_of("ONet", (ANY, 48, 48, 3), "moves", "five_points", "scores")

    def search(
        self, image: Image, scale: float, threshold: float, search: Search = QUICK
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Boxes (F, 4), scores (F,) and five points (F, 5, 2) of faces above a score.

        Args:
            image: (H, W, 3) uint8 RGB.
            scale: of the largest image in which proposals are searched: faces of about
                12 / ``scale`` pixels or more are found.
            threshold: of O-Net's score.
            search: how many candidates are searched.
        """
        halves = _halves(image)
        boxes = self._proposals(halves, scale, search)
        boxes, (moves, scores) = _classify(halves, boxes, self._refine, 24)
        passed = scores[:, 1] > search.refined
        boxes, moves, scores = boxes[passed], moves[passed], scores[passed, 1]
        best = best_boxes(boxes, scores, _OVERLAP_REFINED)
        boxes = _squares(_regressed(boxes[best], moves[best]))

        boxes, (moves, points, scores) = _classify(halves, boxes, self._output, 48)
        passed = scores[:, 1] > threshold
        boxes, moves, scores = boxes[passed], moves[passed], scores[passed, 1]
        # Five abscissae, then five ordinates.
        fractions = np.moveaxis(points[passed].reshape(-1, 2, 5), 1, 2)
        points = boxes[:, None, :2] + fractions * _sides(boxes)[:, None] - 1
        boxes = _regressed(boxes, moves)
        # As published, relative to the smaller box; boxes include their last pixel.
        best = best_boxes(boxes + np.array([0, 0, 1, 1]), scores, _OVERLAP_SMALLER, "smaller")
        return boxes[best], scores[best], points[best]

    def _proposals(self, halves: list[Image], scale: float, search: Search) -> FloatArray:
        """P-Net over the pyramid, which is one image for the network: square boxes (F, 4)."""
        height, width = halves[0].shape[:2]
        sizes = _pyramid_sizes(width, height, scale, search.factors)
        if not sizes:
            return np.zeros((0, 4))
        canvas, corners = _pyramid(halves, sizes)
        (output,) = self._propose(canvas[None])
        row, column = np.nonzero(output[0, 4] >= logit(min(search.proposals)))
        found = output[0, :, row, column]  # (F, 5)
        # Windows by their places in each of the levels (L, F, 2), of which they lie in one at most.
        low = np.stack([column, row], axis=1) * _STRIDE - np.array(corners)[:, None]
        is_in_level = ((low >= 0) & (low <= np.array(sizes)[:, None] - _WINDOW)).all(axis=2)
        is_in_level[0] &= found[:, 4] >= logit(search.proposals[0])
        is_in_level[1:] &= found[:, 4] >= logit(search.proposals[1])
        level, which = np.nonzero(is_in_level)
        low = low[level, which] + 1
        to_image = (np.array([width, height]) / sizes)[level]
        boxes = np.floor(np.concatenate([low * to_image, (low + _WINDOW - 1) * to_image], axis=1))
        moves, scores = found[which, :4], sigmoid(found[which, 4])
        level_shift = 2 * max(width, height) * level[:, None]  # no overlaps between levels
        best = best_boxes(boxes + level_shift, scores, _OVERLAP_IN_LEVEL)
        boxes, scores, moves = boxes[best], scores[best], moves[best]
        best = best_boxes(boxes, scores, _OVERLAP_IN_IMAGE)
        boxes, moves = boxes[best], moves[best]
        # Here, and only here, sides are counted without the last pixel.
        sides = boxes[:, 2:] - boxes[:, :2]
        return _squares(boxes + moves * np.tile(sides, 2))


def _halves(image: Image) -> list[Image]:
    """The image (H, W, 3), and copies of 1/2, 1/4, ... of its size, down to O-Net's input."""
    halves = [image]
    while min(halves[-1].shape[:2]) >= 2 * 48:
        halves.append(halved(halves[-1]))
    return halves


def _pyramid_sizes(
    width: int, height: int, scale: float, factors: tuple[float, float]
) -> list[tuple[int, int]]:
    """Widths and heights of an image at ``scale``, and of ever smaller copies, to one window."""
    sizes: list[tuple[int, int]] = []
    while round(min(height, width) * scale) >= _WINDOW:
        sizes.append((round(width * scale), round(height * scale)))
        scale *= factors[min(len(sizes) - 1, 1)]
    return sizes


def _pyramid(
    halves: list[Image], sizes: list[tuple[int, int]]
) -> tuple[Image, list[tuple[int, int]]]:
    """Copies of an image in sizes of `_pyramid_sizes`, in one image.

    Returns the image, and the (left, top) of each copy, which are multiples of P-Net's stride.
    """
    (whole_width, whole_height), corners = _packed(sizes)
    canvas = np.zeros((whole_height, whole_width, 3), np.uint8)
    which = _half_of(max(halves[0].shape[:2]) / np.max(sizes, axis=1), len(halves))
    for half, (width, height), (left, top) in zip(which, sizes, corners, strict=True):
        level = canvas[top : top + height, left : left + width]
        cv2.resize(halves[half], (width, height), dst=level, interpolation=cv2.INTER_LINEAR)
    return canvas, corners


def _packed(sizes: list[tuple[int, int]]) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Places for rectangles of given widths and heights, widest first, in one that holds them all.

    Each lies as high up as it fits. Returns the size of the whole, and the (left, top) of each.
    """
    whole = _round_up(sizes[0][0], _CANVAS_MULTIPLE)
    placed: list[tuple[int, int, int]] = []  # left, right, bottom

    def top_at(left: int, width: int) -> int:
        above = [bottom for start, end, bottom in placed if start < left + width and left < end]
        return max(above, default=0)

    corners = []
    for width, height in sizes:
        lefts = [0, *(right for _, right, _ in placed)]
        top, left = min((top_at(each, width), each) for each in lefts if each + width <= whole)
        corners.append((left, top))
        placed.append((left, _round_up(left + width, _STRIDE), _round_up(top + height, _STRIDE)))
    lowest = max(bottom for _, _, bottom in placed)
    return (whole, _round_up(lowest, _CANVAS_MULTIPLE)), corners


def _half_of(factors: FloatArray, count: int) -> IndexArray:
    """Which of ``count`` halves is the smallest that is not smaller than 1 / ``factors``."""
    return np.log2(factors).clip(0, count - 1).astype(np.intp)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _classify(
    halves: list[Image], boxes: FloatArray, run: Run, size: int
) -> tuple[FloatArray, list[FloatArray]]:
    """The boxes (F, 4) that hold a pixel of the image, and the outputs of a network for them.

    A box that reaches beyond the image is cut there, and the rest is resized to a square.
    """
    height, width = halves[0].shape[:2]
    corners = np.trunc(boxes).astype(int)
    low = corners[:, :2].clip(1) - 1
    high = corners[:, 2:].clip(max=(width, height))
    inside = (high > low).all(axis=1)
    low, high = low[inside], high[inside]
    which = _half_of((high - low).min(axis=1) / size, len(halves))
    steps = 2 ** which[:, None]
    parts = np.concatenate([which[:, None], low // steps, -(-high // steps)], axis=1)
    largest, multiple = _BATCHES[size]
    # The networks take no empty batch. The rest of the last batch stays black.
    pixels = np.zeros((_round_up(max(len(parts), 1), multiple), size, size, 3), np.uint8)
    for crop, (half, left, top, right, bottom) in zip(pixels, parts.tolist(), strict=False):
        part = halves[half][top:bottom, left:right]
        cv2.resize(part, (size, size), dst=crop, interpolation=cv2.INTER_LINEAR)
    starts = range(0, len(pixels), largest)
    batches = [run(pixels[start : start + largest]) for start in starts]
    outputs = [np.concatenate(each)[: len(parts)] for each in zip(*batches, strict=True)]
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
