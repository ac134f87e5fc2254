"""The search of MTCNN: three networks, one after the other, over an image and its smaller copies.

Proposals (P-Net), refinement (R-Net) and output (O-Net) of Zhang et al., arXiv 1604.02878, section
II, with the networks and the weights of facenet-pytorch. Its own search, ``detect_face``, spends
most of its time outside of the networks: on one resize a candidate in PyTorch. Here candidates are
cut by OpenCV and the networks are run by any of the `runtimes`. Coordinates are the original's:
pixels counted from 1, as in Matlab.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.face_detection.overlap import best_boxes
from hihlandmark.runtimes import Run, make_run
from hihlandmark.runtimes.graph import ANY, PixelGraph

WINDOW = 12
"""Side in pixels of what one output cell of P-Net sees; its cells are two pixels apart."""
_STRIDE = 2
# From each level of the pyramid to the next one: half of the area, as published.
_PYRAMID_FACTOR = 0.709
# Scores at which P-Net and R-Net let a candidate pass. P-Net's is 0.6 as published: with 0.7 R-Net
# has a quarter less to do, and of 556 faces one fewer is found.
_EARLY_THRESHOLDS = (0.7, 0.7)
# Candidates that overlap by more are one: within a level, then within the image.
_SAME_IN_LEVEL, _SAME_IN_PICTURE = 0.5, 0.7
_REFINED_SIZE, _OUTPUT_SIZE = 24, 48
# R-Net and O-Net take so many candidates at once, for the memory's sake.
_CANDIDATES_AT_ONCE = 512


class Candidates(NamedTuple):
    """Boxes (F, 4) xyxy, scores (F,) and five points (F, 5, 2) in pixels counted from 1."""

    boxes: FloatArray
    scores: FloatArray
    five_points: FloatArray


class _OnPixels(nn.Module):
    """One of the networks, from pixels (N, H, W, 3) uint8."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What facenet-pytorch's network returns; the probabilities of a face come last."""
        outputs: tuple[torch.Tensor, ...] = self.network(
            (pixels.permute(0, 3, 1, 2).float() - 127.5) / 128
        )
        return outputs


class Cascade:
    """The three networks on a device, run by a runtime of `runtimes.RUNTIMES`, or "auto"."""

    def __init__(self, device: torch.device, runtime: str = "auto") -> None:
        release = version("facenet-pytorch")

        def run_of(name: str, shape: tuple[int, ...], *outputs: str) -> Run:
            def make_graph() -> PixelGraph:
                from facenet_pytorch.models import mtcnn  # slow to import

                return PixelGraph(_OnPixels(getattr(mtcnn, name)()), "pixels", shape, outputs)

            return make_run(runtime, make_graph, f"{name} {release}", device)

        refined, output = _REFINED_SIZE, _OUTPUT_SIZE
        self._propose = run_of("PNet", (1, ANY, ANY, 3), "moves", "scores")
        self._refine = run_of("RNet", (ANY, refined, refined, 3), "moves", "scores")
        self._output = run_of("ONet", (ANY, output, output, 3), "moves", "five_points", "scores")

    def search(self, picture: Image, smallest: float, threshold: float) -> Candidates:
        """Faces of ``smallest`` pixels or more in an image (H, W, 3), their scores above 0..1."""
        boxes = self._proposals(picture, smallest)
        boxes, (moves, scores) = _kept(picture, boxes, self._refine, _REFINED_SIZE)
        passed = scores[:, 1] > _EARLY_THRESHOLDS[1]
        boxes, moves, scores = boxes[passed], moves[passed], scores[passed, 1]
        best = best_boxes(boxes, scores, _SAME_IN_PICTURE)
        boxes = _squares(_moved(boxes[best], moves[best]))

        boxes, (moves, points, scores) = _kept(picture, boxes, self._output, _OUTPUT_SIZE)
        passed = scores[:, 1] > threshold
        boxes, moves, scores = boxes[passed], moves[passed], scores[passed, 1]
        # Five abscissae, then five ordinates.
        places = np.moveaxis(points[passed].reshape(-1, 2, 5), 1, 2)
        points = boxes[:, None, :2] + places * _sides(boxes)[:, None] - 1
        boxes = _moved(boxes, moves)
        best = _best_by_smaller(boxes, scores, _SAME_IN_PICTURE)
        return Candidates(boxes[best], scores[best], points[best])

    def _proposals(self, picture: Image, smallest: float) -> FloatArray:
        """P-Net over the pyramid: square boxes (F, 4)."""
        height, width = picture.shape[:2]
        levels: list[FloatArray] = []
        for level in pyramid(picture, WINDOW / smallest):
            moves, scores = self._propose(level[None])
            # Where the level has an odd side, the last cell would see beyond it.
            rows, columns = ((np.array(level.shape[:2]) - WINDOW) // _STRIDE + 1).tolist()
            score = scores[0, 1, :rows, :columns]
            row, column = np.nonzero(score >= _EARLY_THRESHOLDS[0])
            low = np.stack([column, row], axis=1) * _STRIDE + 1
            scale = np.array([level.shape[1] / width, level.shape[0] / height])
            boxes = np.concatenate(
                [np.floor(low / scale), np.floor((low + WINDOW - 1) / scale)], axis=1
            )
            found = np.concatenate(
                [boxes, score[row, column][:, None], moves[0, :, row, column]], axis=1
            )
            levels.append(found[best_boxes(boxes, found[:, 4], _SAME_IN_LEVEL)])
        found = np.concatenate([np.zeros((0, 9)), *levels])
        found = found[best_boxes(found[:, :4], found[:, 4], _SAME_IN_PICTURE)]
        boxes, moves = found[:, :4], found[:, 5:]
        # Here, and only here, sides are counted without the last pixel.
        sides = boxes[:, 2:] - boxes[:, :2]
        return _squares(boxes + moves * np.tile(sides, 2))


def pyramid(picture: Image, scale: float) -> list[Image]:
    """The image (H, W, 3) at ``scale``, and ever smaller copies down to one window."""
    height, width = picture.shape[:2]
    levels: list[Image] = []
    while min(height, width) * scale >= WINDOW:
        size = (int(width * scale + 1), int(height * scale + 1))
        # Each from the one before it, which has little more than it needs; the first one from all.
        source, how = (levels[-1], cv2.INTER_LINEAR) if levels else (picture, cv2.INTER_AREA)
        levels.append(np.asarray(cv2.resize(source, size, interpolation=how), np.uint8))
        scale *= _PYRAMID_FACTOR
    return levels


def _kept(
    picture: Image, boxes: FloatArray, run: Run, size: int
) -> tuple[FloatArray, list[FloatArray]]:
    """The boxes (F, 4) that hold a pixel of the image, and what a network says of each.

    A box that reaches beyond the image is cut there, and what is left is seen as a square.
    """
    height, width = picture.shape[:2]
    places = np.trunc(boxes).astype(int)
    low = places[:, :2].clip(1) - 1
    high = places[:, 2:].clip(max=(width, height))
    inside = (high > low).all(axis=1)
    count = int(inside.sum())
    # The networks take no empty batch: a black candidate stands in.
    pixels = np.zeros((max(count, 1), size, size, 3), np.uint8)
    for cut, (left, top), (right, bottom) in zip(pixels, low[inside], high[inside], strict=False):
        part = picture[top:bottom, left:right]
        cv2.resize(part, (size, size), dst=cut, interpolation=cv2.INTER_AREA)
    starts = range(0, len(pixels), _CANDIDATES_AT_ONCE)
    batches = [run(pixels[start : start + _CANDIDATES_AT_ONCE]) for start in starts]
    outputs = [np.concatenate(parts)[:count] for parts in zip(*batches, strict=True)]
    return boxes[inside], outputs


def _sides(boxes: FloatArray) -> FloatArray:
    """Widths and heights (F, 2), first and last pixel included."""
    return boxes[:, 2:] - boxes[:, :2] + 1


def _moved(boxes: FloatArray, moves: FloatArray) -> FloatArray:
    """Boxes (F, 4) whose sides are moved, by moves (F, 4) in lengths of the sides."""
    return boxes + moves * np.tile(_sides(boxes), 2)


def _squares(boxes: FloatArray) -> FloatArray:
    """Squares with the centers of boxes (F, 4) and their longer sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(axis=1, keepdims=True)
    low = boxes[:, :2] + (sides - longer) / 2
    return np.concatenate([low, low + longer], axis=1)


def _best_by_smaller(boxes: FloatArray, scores: FloatArray, overlap: float) -> NDArray[np.intp]:
    """As `best_boxes`, but the overlap is the share of the smaller box: no face lies in a face."""
    areas = _sides(boxes).prod(axis=1)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        low = np.maximum(boxes[kept, :2], boxes[index, :2])
        high = np.minimum(boxes[kept, 2:], boxes[index, 2:])
        shared = (high - low + 1).clip(min=0).prod(axis=1)
        if not (shared > overlap * np.minimum(areas[kept], areas[index])).any():
            kept.append(int(index))
    return np.array(kept, np.intp)
