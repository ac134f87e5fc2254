"""Crops of faces in a standard pose, for face recognition and generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import crop_matrix, cut_crop, invert, similarities, transform_points
from hihlandmark.errors import ConfigurationError, check_integer
from hihlandmark.face import Face
from hihlandmark.image import ChannelAxis, ColorOrder, ImageInput, load_image
from hihlandmark.layouts import FIVE

# Eyes, tip of the nose, corners of the mouth in a crop of 112 x 112, of InsightFace's ArcFace
# models (Deng et al., arXiv 1801.07698), in the pixel coordinates of this package.
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
    """A crop (S, S, 3) uint8 RGB, and the similarity (2, 3) from image to crop pixels."""

    image: Image
    matrix: FloatArray

    def points(self, face: Face) -> FloatArray:
        """The points (P, 2) of the face in the crop."""
        return transform_points(self.matrix, face.points.astype(np.float64))


def five_points(face: Face) -> FloatArray:
    """(5, 2): left and right eye's center, tip of the nose, left and right corner of the mouth.

    Raises:
        ConfigurationError: the layout of the face lacks one of them.
    """
    if face.layout is FIVE:
        return face.points.astype(np.float64)
    try:
        eyes = [face[part].mean(axis=0) for part in ("left_eye", "right_eye")]
        others = [face[name] for name in ("nose_tip", "left_mouth_corner", "right_mouth_corner")]
    except KeyError as error:
        raise ConfigurationError(f"a face cannot be aligned by its points: {error}") from error
    return np.stack([*eyes, *others]).astype(np.float64)


def align(
    image: ImageInput,
    face: Face,
    size: int = _ARCFACE_SIZE,
    template: str = "arcface",
    *,
    color: ColorOrder = "rgb",
    channels: ChannelAxis = "last",
    white: float | None = None,
) -> AlignedFace:
    """Align a face to a template.

    Args:
        image: anything that `load_image` reads.
        face: a face in this image.
        size: side of the crop in pixels; usually 112 for "arcface", 256 to 1024 for "ffhq".
        template: "arcface", five points by least squares as for ArcFace's models; "ffhq", the
            square of the FFHQ data set (Karras et al., arXiv 1812.04948, appendix A), rotated with
            the line of the eyes. The crop is black outside of the image.
        color: the channel order of an array; the crop is RGB in any case.
        channels: "first" for arrays of shape (C, H, W).
        white: the value of full brightness, see `load_image`.

    Raises:
        ConfigurationError: the template is unknown, the size is no integer of 1 or more, or the
            layout of the face lacks an eye, the tip of the nose or a corner of the mouth.
        ImageError: the image cannot be read.
    """
    if template not in TEMPLATES:
        raise ConfigurationError(f"unknown template {template!r}; choose {', '.join(TEMPLATES)}")
    check_integer(size=size)
    square = TEMPLATES[template](five_points(face))
    pixels = load_image(image, color=color, channels=channels, white=white)
    return AlignedFace(cut_crop(pixels, square, size), crop_matrix(square, size))


def _arcface_square(points: FloatArray) -> FloatArray:
    to_image = invert(similarities(points[None], _ARCFACE)[0])
    (center,) = transform_points(to_image, np.full((1, 2), (_ARCFACE_SIZE - 1) / 2))
    x, y = to_image[:, 0]  # the x axis of the crop, in the image
    return np.array([*center, np.hypot(x, y) * _ARCFACE_SIZE, np.arctan2(y, x)])


def _ffhq_square(points: FloatArray) -> FloatArray:
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    eye_to_eye, eye_to_mouth = points[1] - points[0], mouth - eyes
    # The mean of the line of the eyes and the normal of the line from eyes to mouth.
    x_axis = eye_to_eye + np.array([eye_to_mouth[1], -eye_to_mouth[0]])
    half = max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth))
    center = eyes + 0.1 * eye_to_mouth
    return np.array([*center, 2 * half, np.arctan2(x_axis[1], x_axis[0])])


TEMPLATES: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "arcface": _arcface_square,
    "ffhq": _ffhq_square,
}
"""Five points (5, 2) -> the crop square (cx, cy, side, angle), see `crop`."""
