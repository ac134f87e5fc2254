"""Draws the figures of docs/concepts/crops.md: bounding boxes and crops of a face.

python docs/figures/crops.py

Writes ``crops.png`` and ``turned.png`` beside this file. Needs matplotlib and scikit-image.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from paper import BLUE, GREEN, ORANGE, astronaut_image, detector, save, transform

from hihlandmark.crop import (
    crop_angles,
    crop_matrix,
    cut_crop,
    invert,
    tight_boxes,
    transform_points,
)
from hihlandmark.evaluation.report import new_figure

SIZE = detector().landmarker.crop_size
DEGREES = 38

Square = NDArray[np.floating]


def corners(square: Square) -> NDArray[np.floating]:
    """The corners (5, 2) of a crop square in the image, the first one twice."""
    edge = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * SIZE - 0.5
    return transform_points(invert(crop_matrix(square, SIZE)), edge)


def outline(axis: Any, square: Square, color: str, label: str, style: str = "-") -> None:
    """Draw a crop square into the image."""
    x, y = corners(square).T
    axis.plot(x, y, style, color=color, linewidth=2, label=label)


def box(axis: Any, xyxy: NDArray[Any], color: str, label: str) -> None:
    """Draw a box into the image."""
    x0, y0, x1, y1 = xyxy
    axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], "--", color=color, label=label)


def show(axis: Any, image: NDArray[np.uint8], title: str) -> None:
    """Show an image without axes."""
    axis.imshow(image)
    axis.set_title(title, fontsize=10)
    axis.axis("off")


def stages(image: NDArray[np.uint8]) -> tuple[NDArray[Any], Square, Square, Any, Any]:
    """MTCNN's box, the squares of the first and second crop, and the points found in each."""
    finder = detector()
    found = finder.face_detector.detect([image])[0]
    first = finder.box_map("mtcnn").squares(found.boxes[:1])
    points = points_of(image, first[0])
    angles = crop_angles(points[None], finder.layout.mean_shape)
    second = finder.box_map("landmarks").squares_around(points[None], angles)
    return found.boxes[0], first[0], second[0], points, points_of(image, second[0])


def points_of(image: NDArray[np.uint8], square: Square) -> NDArray[np.floating]:
    """The points found in the crop of a square, in image pixels."""
    crop = np.asarray(cut_crop(image, square, SIZE))
    points = detector().predict_crops(crop[None]).points[0]
    return transform_points(invert(crop_matrix(square, SIZE)), points)


def draw(
    image: NDArray[np.uint8], window: tuple[int, int, int, int], name: str, legend: str
) -> None:
    """The image with boxes and squares, the first crop and the second one."""
    mtcnn, first, second, points, better = stages(image)
    figure = new_figure(11, 4.1)
    whole, one, two = figure.subplots(1, 3, width_ratios=(1.12, 1, 1))
    show(whole, image, "in the image")
    box(whole, mtcnn, "#c2185b", "MTCNN's box")
    outline(whole, first, BLUE, "first crop")
    box(whole, tight_boxes(points), GREEN, "box tight around the points")
    outline(whole, second, ORANGE, "second crop")
    left, top, right, bottom = window
    whole.set_xlim(left, right)
    whole.set_ylim(bottom, top)
    whole.legend(loc=legend, fontsize=8, framealpha=0.85)
    for axis, square, found, color, title in (
        (one, first, points, BLUE, "first crop: the card's map from MTCNN's box"),
        (two, second, better, ORANGE, "second crop: around the points of the first"),
    ):
        show(axis, np.asarray(cut_crop(image, square, SIZE)), title)
        x, y = transform(found, crop_matrix(square, SIZE)).T
        axis.plot(x, y, ".", color="white", markersize=4, markeredgecolor=color)
    save(figure, name)


def rotated(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image rotated about the face."""
    matrix = cv2.getRotationMatrix2D((224, 118), -DEGREES, 1)
    return np.asarray(cv2.warpAffine(image, matrix, (512, 512)), np.uint8)


def main() -> None:
    """Draw both."""
    draw(astronaut_image(), (110, 10, 340, 240), "crops.png", "lower left")
    draw(rotated(astronaut_image()), (100, 0, 350, 250), "turned.png", "lower right")


if __name__ == "__main__":
    main()
