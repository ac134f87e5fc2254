"""Crops of faces in a standard pose, as face recognition and generation want them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray
from hihlandmark.crop import crop_matrix, cut_crop, invert, similarities, transform_points
from hihlandmark.errors import ConfigurationError
from hihlandmark.face import Face
from hihlandmark.image import ImageInput, load_image

# Eyes, tip of the nose, corners of the mouth in a crop of 112 x 112, of InsightFace's ArcFace
# models (Deng et al., arXiv 1801.07698), which count as this package does.
_ARCFACE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
_ARCFACE_SIZE = 112


class AlignedFace(NamedTuple):
    """A crop (S, S, 3) uint8, and the similarity (2, 3) from pixels of the image to its own."""

    image: NDArray[np.uint8]
    matrix: FloatArray

    def points(self, face: Face) -> FloatArray:
        """The points (P, 2) of the face in the crop."""
        return transform_points(self.matrix, face.points.astype(np.float64))


def five_points(face: Face) -> FloatArray:
    """(5, 2): the middles of the eyes, the tip of the nose, the corners of the mouth.

    What lies left in an upright image comes first, as with most face detectors.
    """
    eyes = [face[part].mean(axis=0) for part in ("left_eye", "right_eye")]
    others = [face[name] for name in ("nose_tip", "left_mouth_corner", "right_mouth_corner")]
    return np.stack([*eyes, *others]).astype(np.float64)


def align(
    image: ImageInput, face: Face, size: int = _ARCFACE_SIZE, template: str = "arcface"
) -> AlignedFace:
    """The face of an image, moved, turned and scaled to a template, in a crop of ``size`` pixels.

    ``template``: "arcface", five points by least squares as ArcFace's models are fed (usually at
    112 pixels); "ffhq", the square of the FFHQ data set (Karras et al., arXiv 1812.04948, appendix
    A), turned with the line of the eyes, usually at 256 to 1024 pixels. Black beyond the image,
    without aliasing. Raises `ConfigurationError` for another template or a size below 1, and
    `ImageError` for what cannot be read.
    """
    if template not in TEMPLATES:
        raise ConfigurationError(
            f"there is no template {template!r}; there is {', '.join(TEMPLATES)}"
        )
    if size < 1:
        raise ConfigurationError(f"size must be 1 pixel or more, not {size}")
    square = TEMPLATES[template](five_points(face))
    pixels = np.asarray(cut_crop(load_image(image), square, size), np.uint8)
    return AlignedFace(pixels, crop_matrix(square, size))


def _arcface_square(points: FloatArray) -> FloatArray:
    to_image = invert(similarities(points[None], _ARCFACE)[0])
    middle = np.full((1, 2), (_ARCFACE_SIZE - 1) / 2)
    across = to_image[:, 0]  # where a step to the right in the crop leads
    return np.concatenate(
        [
            transform_points(to_image, middle)[0],
            [np.hypot(*across) * _ARCFACE_SIZE, np.arctan2(across[1], across[0])],
        ]
    )


def _ffhq_square(points: FloatArray) -> FloatArray:
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    eye_to_eye, eye_to_mouth = points[1] - points[0], mouth - eyes
    # Halfway between the line of the eyes and what is across from eyes to mouth.
    across = eye_to_eye + np.array([eye_to_mouth[1], -eye_to_mouth[0]])
    half = max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth))
    center = eyes + 0.1 * eye_to_mouth
    return np.array([*center, 2 * half, np.arctan2(across[1], across[0])])


TEMPLATES: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "arcface": _arcface_square,
    "ffhq": _ffhq_square,
}
"""Five points (5, 2) -> the crop square (cx, cy, side, angle), see `crop`."""
