"""How faces show themselves in Jupyter: on their image, where it is still at hand.

Only images for people are made here; `draw` draws onto arrays.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from hihlandmark.arrays import Image
from hihlandmark.crop import crop_matrix, cut_crop, resize_matrix, square_around
from hihlandmark.draw import draw_faces, encode_png, transform_face
from hihlandmark.errors import HihlandmarkError
from hihlandmark.face import Face
from hihlandmark.image import ColorOrder, ImageInput, load_image

FACE_SIDE = 384
"""Side in pixels of the image of one face."""
LONGEST_SIDE = 960
"""Longer side in pixels of the image of an image with its faces, at most."""
GROUND = 32
"""Gray value behind faces whose image is gone."""
_MARGIN = 1.3  # side of a close-up, in longer sides of the points' box


class ImageReference:
    """Where an image came from: enough to show it again, nothing that keeps it in memory.

    Of a path or URL the text is kept, of an array, tensor or PIL image a weak reference. Bytes and
    files are not remembered. A copy, or what comes out of a pickle, remembers paths and URLs only.
    """

    def __init__(self, image: ImageInput | None, color: ColorOrder = "rgb") -> None:
        self.path = os.fspath(image) if isinstance(image, str | os.PathLike) else None
        self.color = color
        self._object: Any = None
        if self.path is None:
            try:
                self._object = weakref.ref(image)
            except TypeError:  # bytes, None and many kinds of files
                self._object = None

    def load(self) -> Image | None:
        """The image (H, W, 3) RGB; None where it is gone, moved, or cannot be read any more."""
        image = self._object() if self._object else self.path
        try:
            return None if image is None else load_image(image, color=self.color)
        except HihlandmarkError:
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageReference, (self.path, self.color)


class Faces(list[Face]):
    """The faces of one image: a list that Jupyter shows as an image."""

    @classmethod
    def of(cls, faces: Iterable[Face], image: ImageInput, color: ColorOrder) -> Faces:
        """Faces that know the image they were found in."""
        reference = ImageReference(image, color)
        return cls(replace(face, image=reference) for face in faces)

    def _repr_png_(self) -> bytes | None:
        return faces_png(self) if self else None

    def _repr_html_(self) -> str | None:
        return None if self else "No face was found."


def face_png(face: Face) -> bytes:
    """An image of one face: `FACE_SIDE` pixels wide, on its image or on plain ground."""
    return encode_png(_close_up([face], _photo_of(face), FACE_SIDE))


def faces_png(faces: Sequence[Face]) -> bytes:
    """An image of the whole image with faces; without the image, of the square around them."""
    photo = _photo_of(faces[0])
    if photo is None:
        return encode_png(_close_up(faces, None, LONGEST_SIDE // 2))
    scale = min(1.0, LONGEST_SIDE / max(photo.shape[:2]))
    size = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
    small = np.asarray(PillowImage.fromarray(photo).resize(size, PillowImage.Resampling.BOX))
    to_small = resize_matrix((photo.shape[1], photo.shape[0]), size)
    return encode_png(draw_faces(small, [transform_face(face, to_small) for face in faces]))


def _photo_of(face: Face) -> Image | None:
    return face.image.load() if face.image else None


def _close_up(faces: Sequence[Face], photo: Image | None, size: int) -> Image:
    """The square (size, size, 3) that just holds the faces with some room, points drawn."""
    square = square_around(np.concatenate([face.points for face in faces]), _MARGIN)
    if photo is None:
        ground = np.full((size, size, 3), GROUND, np.uint8)
    else:
        ground = cut_crop(photo, square, size)
    to_square = crop_matrix(square, size)
    return draw_faces(ground, [transform_face(face, to_square) for face in faces])
