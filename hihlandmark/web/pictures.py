"""What the page shows and hands out of an image: images, the JSON record, the HTML around them.

Free functions of a `Photo`. Nothing here knows of Gradio or of requests.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from html import escape
from pathlib import PurePath
from urllib.parse import quote

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from hihlandmark.crop import crop_matrix, cut_crop, resize_matrix, square_around
from hihlandmark.draw import BOX, HIGH, LOW, draw_faces, encode_png, transform_face
from hihlandmark.face import Face
from hihlandmark.io import Result, Source
from hihlandmark.io.formats import write_jsonl
from hihlandmark.measures import head_pose
from hihlandmark.web.photos import Photo

Image = NDArray[np.uint8]

DRAWN = {"contours": "Contours", "numbers": "Numbers", "boxes": "Boxes"}
"""What can be drawn beside the points, and what the page calls it."""
DRAWN_AT_FIRST = ("contours", "boxes")

LONGEST_SIDE = 1280
"""Longer side in pixels of the image of the whole image."""
MOST_ENLARGED = 2.0
"""A small image is enlarged by no more."""
FACE_SIDE = 900
"""Side in pixels of the image of one face, and, in longer sides of the points' box, of what it
shows:"""
FACE_MARGIN = 1.5
NUMBERS_FROM = 300
"""Side in pixels of a drawn face from which the numbers of its points can be told apart."""
JPEG_QUALITY = 90

NO_FACE_ADVICE = (
    "Try a larger or sharper photo: a face must be at least 20 pixels wide, stand upright to "
    "within about 30 degrees, and show both eyes."
)


# --- images ---------------------------------------------------------------------------------


def whole_jpeg(photo: Photo, drawn: Collection[str]) -> bytes:
    """The whole image at screen size with its faces drawn, as JPEG."""
    image = photo.load()
    size = screen_size(photo)
    how = cv2.INTER_AREA if size < photo.size else cv2.INTER_CUBIC
    resized = np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)
    matrix = resize_matrix(photo.size, size)
    return _jpeg(_draw(resized, [transform_face(face, matrix) for face in photo.faces], drawn))


def screen_size(photo: Photo) -> tuple[int, int]:
    """Width and height in pixels of `whole_jpeg`."""
    scale = min(LONGEST_SIDE / max(photo.size), MOST_ENLARGED)
    width, height = (max(round(side * scale), 1) for side in photo.size)
    return width, height


def face_jpeg(photo: Photo, index: int, drawn: Collection[str]) -> bytes:
    """One face, large, with some of what is around it, as JPEG of `FACE_SIDE` pixels."""
    face = photo.faces[index]
    square = square_around(face.points, FACE_MARGIN)
    crop = cut_crop(photo.load(), square, FACE_SIDE)
    face = transform_face(face, crop_matrix(square, FACE_SIDE))
    return _jpeg(_draw(crop, [face], set(drawn) - {"boxes"}))


def whole_png(photo: Photo, drawn: Collection[str]) -> bytes:
    """The whole image in its own pixels with its faces drawn, as PNG."""
    return encode_png(_draw(photo.load(), photo.faces, drawn))


def _draw(image: Image, faces: Sequence[Face], drawn: Collection[str]) -> Image:
    """Faces as asked for. Boxes of several get the numbers by which the page calls them."""
    options = {name: name in drawn for name in DRAWN}
    large = [face for face in faces if np.ptp(face.points, axis=0).max() >= NUMBERS_FROM]
    small = [face for face in faces if face not in large]
    image = draw_faces(image, small, **options | {"numbers": False})
    image = draw_faces(image, large, **options)
    if "boxes" in drawn and len(faces) > 1:
        scale = max(image.shape) / LONGEST_SIDE
        for number, face in enumerate(faces, 1):
            _write_number(image, number, face.box[:2], scale)
    return image


def _write_number(image: Image, number: int, corner: NDArray[np.float32], scale: float) -> None:
    """Writes into the image, dark around light, above the corner (2,) of a box."""
    height, width = image.shape[:2]
    size = 0.9 * scale
    x, y = np.clip(corner - (0, 6 * scale), (0, 24 * scale), (width, height)).astype(int).tolist()
    for color, thickness in (((0, 0, 0), 5 * scale), (BOX, 2 * scale)):
        cv2.putText(
            image, str(number), (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, color,
            max(round(thickness), 1), cv2.LINE_AA,
        )  # fmt: skip


def _jpeg(picture: Image) -> bytes:
    buffer = io.BytesIO()
    # Without sub-sampling of colors, which blurs small red and green points.
    PillowImage.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def json_record(photo: Photo) -> bytes:
    """What `hihlandmark predict` writes of an image: its size, its faces, model and SHA-256."""
    result = Result(Source(photo.name, photo.name), photo.faces, size=photo.size, model=photo.model)
    return write_jsonl([result])


def file_stem(photo: Photo) -> str:
    """What downloads of an image are called, before their suffix."""
    return PurePath(photo.name).stem or "photo"


# --- HTML -------------------------------------------------------------------------------------


def summary_html(photo: Photo) -> str:
    """What was found, in a sentence; advice where that is nothing."""
    width, height = photo.size
    start = f"<strong>{escape(photo.name)}</strong>, {width} × {height} pixels: "
    if not photo.faces:
        return note_html(f"{start}no face found. {NO_FACE_ADVICE}")
    count = len(photo.faces)
    points = photo.faces[0].layout.size
    faces = f"{count} faces, {points} points each" if count > 1 else f"1 face, {points} points"
    return note_html(f"{start}{faces}.")


def note_html(html: str) -> str:
    """A line that screen readers say when it appears."""
    return f'<p class="note" role="status">{html}</p>'


def error_html(message: str) -> str:
    """A message of an error, of which no character is taken for HTML."""
    return f'<p class="note error" role="alert">{escape(message)}</p>'


def whole_html(token: str, photo: Photo, drawn: Collection[str]) -> str:
    """The image, a link to it alone, the legend, and links to the downloads."""
    stem, query = file_stem(photo), _query(photo, drawn)
    source = f"photos/{token}/whole.jpg{query}"
    width, height = screen_size(photo)
    count = len(photo.faces)
    alt = f"{photo.name} with the landmarks of {count} face{'s' * (count != 1)} drawn"
    links = [("landmarks.json", "", "Download JSON"), ("landmarks.png", query, "Download PNG")]
    downloads = "".join(
        f'<a href="photos/{token}/{name}{options}" download="{escape(stem)}.{name}">{label}</a>'
        for name, options, label in links
    )
    legend = _legend() if photo.faces else ""
    return (
        f'<a class="picture" href="{source}" target="_blank"><img class="whole" src="{source}"'
        f' width="{width}" height="{height}" alt="{escape(alt)}"></a>'
        f'{legend}<p class="downloads">{downloads}</p>'
    )


def details_html(token: str, photo: Photo, index: int, drawn: Collection[str]) -> str:
    """One face, large, and a row of figures for each."""
    if not photo.faces:
        return ""
    number = f" {index + 1}" if len(photo.faces) > 1 else ""
    source = f"photos/{token}/face-{index + 1}.jpg{_query(photo, drawn)}"
    alt = f"Face{number}, large, with {photo.faces[index].layout.size} points drawn"
    rows = "".join(_row(photo, face, n, n == index) for n, face in enumerate(photo.faces))
    headings = ("Face", "Mean score", "Least sure point", "Yaw", "Pitch", "Roll")
    heads = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    return (
        f'<a class="picture" href="{source}" target="_blank"><img class="face" src="{source}"'
        f' width="{FACE_SIDE}" height="{FACE_SIDE}" alt="{alt}"></a>'
        '<div class="scrolled" role="region" aria-label="Figures" tabindex="0"><table>'
        "<caption>Head pose: yaw above 0° is turned to the right of the picture, pitch above 0° "
        "looks up, roll above 0° is tilted clockwise. Expect errors of some 5°, in pitch of "
        "15°.</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(photo: Photo, face: Face, index: int, is_shown: bool) -> str:
    least = int(np.argmin(face.scores))
    name = face.layout.point_names[least].replace("_", " ")
    cells = [
        f"{face.scores.mean():.2f}",
        f"{escape(name)} (number {least}): {face.scores[least]:.2f}",
        *(f"{angle:.0f}°".replace("-", "−") for angle in head_pose(face, photo.size)),
    ]
    shown = ' aria-current="true"' if is_shown and len(photo.faces) > 1 else ""
    data = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{shown}><th scope="row">{index + 1}</th>{data}</tr>'


def _legend() -> str:
    low, high = (f"rgb({', '.join(map(str, color.tolist()))})" for color in (LOW, HIGH))
    return (
        f'<p class="legend"><span>0</span><span class="scale" aria-hidden="true"'
        f' style="background: linear-gradient(to right, {low}, {high})"></span><span>1</span>'
        "<span>Score of a point, from red to green: the probability that it lies within 5 % of "
        "the distance between the eyes' outer corners.</span></p>"
    )


def _query(photo: Photo, drawn: Collection[str]) -> str:
    """The part of an address that says what to draw, for `drawn_of_query`.

    And of which results, since a browser shows one image for one address.
    """
    names = ",".join(name for name in DRAWN if name in drawn)
    return f"?drawn={quote(names)}&amp;of={photo.layout}-{quote(photo.model['model'])}"


def drawn_of_query(text: str) -> set[str]:
    """What to draw, of "contours,boxes"; other words count for nothing."""
    return set(text.split(",")) & DRAWN.keys()
