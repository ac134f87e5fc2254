"""Checks of data before training: counts of a split, and contact sheets of faces and points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image, IndexArray, Progress
from hihlandmark.crop import CANONICAL_CROP, BoxMap, known_points, tight_boxes
from hihlandmark.datasets import packed
from hihlandmark.datasets.augmentation import NO_AUGMENTATION, Augmentation, generator
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.draw import SUB_PIXEL_BITS
from hihlandmark.errors import ConfigurationError, ImageError

LEFT, MIDDLE, RIGHT = (90, 190, 255), (255, 255, 255), (255, 150, 230)
"""RGB of the points that lie left, in the middle and right in the upright image. On a mirrored face
whose points were not exchanged they are on the wrong side."""
HIDDEN = (255, 60, 40)
"""RGB of points that are annotated as hidden, or lie outside of the image (drawn at its edge)."""
BACKGROUND, CAPTION = (24, 24, 24), (230, 230, 230)
CAPTION_HEIGHT = 16  # in pixels, below each tile


@dataclass(frozen=True)
class SplitContent:
    """Counts of one split; ``outside`` and ``unreadable`` are None when no image was read.

    ``points`` counts those of each face. Those of all faces that are not annotated, annotated as
    hidden, or outside of their image are ``unknown``, ``hidden`` and ``outside``. ``unreadable``
    and ``skipped`` have a message for every image or sample that cannot be used.
    """

    layout: str
    points: int
    faces: int
    subsets: Mapping[str, int]
    unknown: int
    hidden: int
    outside: int | None
    unreadable: Sequence[str] | None
    skipped: Sequence[str]


def split_layouts(folder: Path, format_name: str, split: str) -> list[str | None]:
    """The layouts of a split, of which only packed sets can have several; None: the only one."""
    if format_name != "packed":
        return [None]
    sets = packed.describe(folder)["sets"]
    return list(dict.fromkeys(each["layout"] for each in sets if each["split"] == split))


def inspect_split(
    faces: AnnotatedFaces, read_images: bool = True, progress: Progress | None = None
) -> SplitContent:
    """Count the contents of a split; ``read_images`` also reads every image of it."""
    outside, unreadable = 0, []
    for number, face in enumerate(faces if read_images else ()):
        try:
            height, width = face.load_image().shape[:2]
        except ImageError as error:
            unreadable.append(f"{face.name}: {error}")
        else:
            beyond = (face.points < -0.5) | (face.points >= np.array([width, height]) - 0.5)
            outside += int(beyond.any(axis=1).sum())
        if progress is not None:
            progress(number + 1, len(faces))
    subsets = Counter(subset for face in faces for subset in face.subsets)
    return SplitContent(
        layout=faces.layout,
        points=len(faces.mirror),
        faces=len(faces),
        subsets=dict(sorted(subsets.items())),
        unknown=sum(int(np.isnan(face.points).any(axis=1).sum()) for face in faces),
        hidden=sum(int((~face.visible).sum()) for face in faces if face.visible is not None),
        outside=outside if read_images else None,
        unreadable=unreadable if read_images else None,
        skipped=faces.skipped,
    )


def find_unreadable(faces: AnnotatedFaces, indices: Iterable[int]) -> Iterator[tuple[int, str]]:
    """The indices of faces whose image cannot be read, each with a message."""
    for index in indices:
        try:
            faces[index].load_image()
        except ImageError as error:
            yield index, f"{faces[index].name}: {error}"


class Tile(NamedTuple):
    """An image (H, W, 3) with points (P, 2) in its pixels, NaN where unknown."""

    image: Image
    points: FloatArray
    caption: str = ""
    colors: IndexArray | None = None
    """(P, 3) RGB; None: `MIDDLE` for all."""


def contact_sheet(tiles: Iterable[Tile], columns: int, tile_size: int = 256) -> Image:
    """Draw tiles row by row, each image fitted into a square of ``tile_size`` pixels.

    Returns (H, W, 3) uint8 RGB. Raises `ConfigurationError` without tiles or for too small sizes.
    """
    if columns < 1 or tile_size < 16:
        raise ConfigurationError("a contact sheet needs 1 column and tiles of 16 pixels or more")
    drawn = [_draw_tile(tile, tile_size) for tile in tiles]
    if not drawn:
        raise ConfigurationError("a contact sheet needs at least one image")
    columns = min(columns, len(drawn))
    rows = -(-len(drawn) // columns)
    height, width = drawn[0].shape[:2]
    sheet = np.full((rows * height, columns * width, 3), BACKGROUND, np.uint8)
    for number, tile in enumerate(drawn):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = tile
    return sheet


def before_and_after(
    faces: AnnotatedFaces,
    indices: Sequence[int],
    augmentation: Augmentation | None,
    *,
    box_maps: Mapping[str, BoxMap] = CANONICAL_CROP,
    crop_size: int = 256,
    variants: int = 5,
) -> Image:
    """A contact sheet with one row per face: the stored image, its crop, augmented crops.

    Args:
        faces: of a split.
        indices: which of the faces.
        augmentation: None leaves the augmented crops out.
        box_maps: from each kind of box to its crop.
        crop_size: side of the crops and tiles in pixels.
        variants: augmented crops per face.

    Raises:
        ImageError: an image cannot be read.
    """
    columns = [("crop", NO_AUGMENTATION)]
    if augmentation is not None:
        columns += [(f"epoch {epoch}", augmentation) for epoch in range(variants)]
    to_square = box_maps.get(f"landmarks:{faces.layout}", BoxMap((0.0, 0.0), 1.4))
    images = [faces[index].load_image() for index in indices]
    sides, tiles = _side_colors(faces), []
    for row, (index, image) in enumerate(zip(indices, images, strict=True)):
        face = faces[index]
        visible = np.ones(len(sides), bool) if face.visible is None else face.visible
        colors = np.where(visible[:, None], sides, HIDDEN)
        tiles.append(Tile(image, face.points, face.name, colors))
        square = to_square.squares(tight_boxes(known_points(face.points)))[0]
        square[2] = max(square[2], 1.0)  # of a face with one known point
        for column, (caption, changes) in enumerate(columns):
            rng = generator(0, index, column)
            crop, points, flipped, _ = changes.crop(
                image, face.points, faces.mirror, square, crop_size, rng, images[row - 1]
            )
            colors = np.where(visible[faces.mirror if flipped else ...][:, None], sides, HIDDEN)
            tiles.append(Tile(crop, points, f"{caption} (flipped)" if flipped else caption, colors))
    return contact_sheet(tiles, columns=1 + len(columns), tile_size=crop_size)


def _side_colors(faces: AnnotatedFaces) -> IndexArray:
    """The colors (P, 3) of points by the side of the image on which they lie in most faces."""
    x = np.array([face.points[:, 0] for face in faces])
    with np.errstate(invalid="ignore"):
        left = (x < x[:, faces.mirror]).mean(axis=0) > (x > x[:, faces.mirror]).mean(axis=0)
    colors = np.where(left[:, None], LEFT, RIGHT)
    colors[faces.mirror == np.arange(len(faces.mirror))] = MIDDLE
    return colors


def _draw_tile(tile: Tile, size: int) -> Image:
    """The image fitted into a square of ``size``, its points, and the caption below."""
    height, width = tile.image.shape[:2]
    scale = size / max(height, width)
    extent = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrinking = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(tile.image, extent, interpolation=shrinking)
    _draw_points(image, (tile.points + 0.5) * scale - 0.5, tile.colors)
    canvas = np.full((size + CAPTION_HEIGHT, size, 3), BACKGROUND, np.uint8)
    left, top = (size - extent[0]) // 2, (size - extent[1]) // 2
    canvas[top : top + extent[1], left : left + extent[0]] = image
    fits = max(1, size // 7)  # characters of about seven pixels
    caption = tile.caption if len(tile.caption) <= fits else "..." + tile.caption[3 - fits :]
    place = (3, size + CAPTION_HEIGHT - 5)
    cv2.putText(
        canvas, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, CAPTION, lineType=cv2.LINE_AA
    )
    return canvas


def _draw_points(image: Image, points: FloatArray, colors: IndexArray | None) -> None:
    """Fill a disc at each known point (P, 2) of an image; those outside at its edge."""
    edge = np.array(image.shape[1::-1]) - 1
    outside = ((points < -0.5) | (points >= edge + 0.5)).any(axis=1, keepdims=True)
    colors = np.tile(MIDDLE, (len(points), 1)) if colors is None else colors
    colors = np.where(outside, HIDDEN, colors)
    radius = round(max(1.0, max(image.shape) / 170) * 2**SUB_PIXEL_BITS)
    for (x, y), color in zip(points.clip(0, edge), colors, strict=True):
        if not np.isnan(x + y):
            place = (round(x * 2**SUB_PIXEL_BITS), round(y * 2**SUB_PIXEL_BITS))
            cv2.circle(image, place, radius, color.tolist(), -1, cv2.LINE_AA, SUB_PIXEL_BITS)
