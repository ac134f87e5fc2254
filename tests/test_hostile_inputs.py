"""Whatever a user may hold, `predict` answers: faces, or an error that says what is wrong."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hihlandmark import Detector, Face, ImageError
from hihlandmark.io import Result, find_images, predict_sources

Photo = NDArray[np.uint8]
Make = Callable[[Photo, Path], Any]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo_file(photo: Photo, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path)
    return path


def turned(photo: Photo, _: Path) -> bytes:
    """Stored on its side, with the EXIF tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(np.rot90(photo)), "JPEG", exif=exif)


def animated(photo: Photo, _: Path) -> bytes:
    frames = [Image.fromarray(photo), Image.new("RGB", (512, 512))]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def bomb(_: Photo, __: Path) -> bytes:
    """A PNG header of 60,000 x 60,000 pixels with nothing behind it."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def sixteen_bit(photo: Photo, _: Path) -> Image.Image:
    return Image.fromarray(photo.mean(axis=2).astype(np.uint16) * 257)


# What still shows the astronaut: exactly one face must be found.
FACES: dict[str, Make] = {
    "array": lambda p, _: p,
    "read-only view": lambda p, _: p[::1],
    "mirrored view": lambda p, _: p[:, ::-1],
    "gray": lambda p, _: p.mean(axis=2).astype(np.uint8),
    "gray with an axis": lambda p, _: p.mean(axis=2, keepdims=True).astype(np.uint8),
    "gray and alpha": lambda p, _: np.dstack([p.mean(axis=2), np.full((512, 512), 255)]).astype(
        np.uint8
    ),
    "RGBA": lambda p, _: np.dstack([p, np.full((512, 512), 255, np.uint8)]),
    "uint16": lambda p, _: p.astype(np.uint16) * 257,
    "float in 0..1": lambda p, _: p / 255,
    "float32 in 0..1": lambda p, _: (p / 255).astype(np.float32),
    "torch tensor": lambda p, _: torch.tensor(p),
    "PIL": lambda p, _: Image.fromarray(p),
    "PIL CMYK": lambda p, _: Image.fromarray(p).convert("CMYK"),
    "PIL palette": lambda p, _: Image.fromarray(p).quantize(64),
    "PIL 16 bit": sixteen_bit,
    "CMYK JPEG": lambda p, _: encoded(Image.fromarray(p).convert("CMYK"), "JPEG"),
    "turned by EXIF": turned,
    "animated GIF": animated,
    "file object": lambda p, _: io.BytesIO(encoded(Image.fromarray(p), "PNG")),
    "path": lambda p, folder: photo_file(p, folder / "a.png"),
    "path as text": lambda p, folder: str(photo_file(p, folder / "a.png")),
    "path with spaces and umlauts": lambda p, f: photo_file(p, f / "Ünï cödé 写真" / "a b.png"),
    "no suffix": lambda p, folder: photo_file(p, folder / "a.png").rename(folder / "photo"),
}

# What holds no face that can be found: an empty list.
EMPTY: dict[str, Make] = {
    "1 x 1": lambda p, _: np.zeros((1, 1, 3), np.uint8),
    "1 x 500": lambda p, _: np.zeros((1, 500, 3), np.uint8),
    "19 x 19": lambda p, _: p[60:79, 200:219],
    "20,000 x 10": lambda p, _: np.zeros((10, 20_000, 3), np.uint8),
    "10 x 20,000": lambda p, _: np.full((20_000, 10, 3), 128, np.uint8),
    "all black": lambda p, _: np.zeros((400, 300, 3), np.uint8),
    "all white": lambda p, _: np.full((400, 300, 3), 255, np.uint8),
    "black floats": lambda p, _: np.zeros((64, 64, 3)),
}

# What is no image: an `ImageError` with this in its message.
ERRORS: dict[str, tuple[Make, str]] = {
    "missing file": (lambda p, f: f / "nowhere.jpg", "nowhere.jpg"),
    "a folder": (lambda p, f: f, "folder|directory"),
    "empty file": (lambda p, f: _written(f / "e.png", b""), "e.png"),
    "text named png": (lambda p, f: _written(f / "t.png", b"hello"), "t.png"),
    "truncated JPEG": (lambda p, _: encoded(Image.fromarray(p), "JPEG")[:9000], "truncated|broken"),
    "truncated PNG": (lambda p, _: encoded(Image.fromarray(p), "PNG")[:9000], "truncated|broken"),
    "no bytes": (lambda p, _: b"", "empty|no bytes"),
    "noise as bytes": (lambda p, _: bytes(range(256)) * 9, "bytes"),
    "decompression bomb": (bomb, "pixels"),
    "None": (lambda p, _: None, "None"),
    "a number": (lambda p, _: 7, "int"),
    "a list": (lambda p, _: [[1, 2], [3, 4]], "list"),
    "empty array": (lambda p, _: np.zeros((0, 0, 3), np.uint8), "0"),
    "four dimensions": (lambda p, _: np.zeros((1, 8, 8, 3), np.uint8), "1, 8, 8, 3"),
    "one dimension": (lambda p, _: np.zeros(8, np.uint8), "8"),
    "five channels": (lambda p, _: np.zeros((8, 8, 5), np.uint8), "8, 8, 5"),
    "channels first": (lambda p, _: np.zeros((3, 64, 64), np.uint8), "first"),
    "NaN": (lambda p, _: np.full((64, 64, 3), np.nan), "NaN|finite"),
    "infinity": (lambda p, _: np.full((64, 64, 3), np.inf), "inf|finite"),
    "float in 0..255": (lambda p, _: p.astype(float), "255"),
    "negative floats": (lambda p, _: np.full((64, 64, 3), -3.0), "-3|negative|0"),
    "objects": (lambda p, _: np.full((8, 8, 3), None), "object"),
    "complex": (lambda p, _: np.zeros((8, 8, 3), complex), "complex"),
    "texts": (lambda p, _: np.full((8, 8, 3), "x"), "U"),
    "URL of a file": (lambda p, _: "file:///etc/hostname", "file|http"),
    "URL that nobody answers": (lambda p, _: "http://127.0.0.1:9/a.png", "127.0.0.1"),
    "NUL in the path": (lambda p, _: "a\0b.png", "path|null|NUL"),
}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", FACES)
def test_a_face_is_found_in_every_form_of_the_photo(
    name: str, astronaut: Photo, tmp_path: Path, detector_of: Callable[[int], Detector]
) -> None:
    faces = detector_of(29).predict(FACES[name](astronaut, tmp_path))
    assert [type(face) for face in faces] == [Face]
    assert np.isfinite(faces[0].points).all()


@pytest.mark.parametrize("name", EMPTY)
def test_no_face_is_an_empty_list(
    name: str, astronaut: Photo, tmp_path: Path, detector_of: Callable[[int], Detector]
) -> None:
    assert detector_of(29).predict(EMPTY[name](astronaut, tmp_path)) == []


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_no_image_is_an_error_that_says_so(
    name: str, astronaut: Photo, tmp_path: Path, detector_of: Callable[[int], Detector]
) -> None:
    make, message = ERRORS[name]
    with pytest.raises(ImageError, match=f"(?i){message}"):
        detector_of(29).predict(make(astronaut, tmp_path))


def test_a_file_without_permission_is_an_error(
    astronaut: Photo, tmp_path: Path, detector_of: Callable[[int], Detector]
) -> None:
    path = photo_file(astronaut, tmp_path / "secret.png")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ImageError, match="secret"):
        detector_of(29).predict(path)


def test_a_thousand_faces_are_all_answered(astronaut: Photo) -> None:
    """A collage of 40 x 25 faces, with boxes given: every box gets its face, in order."""
    tile = np.array(Image.fromarray(astronaut[40:200, 150:310]).resize((40, 40)))
    collage = np.tile(tile, (25, 40, 1))
    corners = np.stack(np.meshgrid(np.arange(40), np.arange(25)), axis=-1).reshape(-1, 2) * 40
    boxes = np.concatenate([corners + 8, corners + np.array([30, 34])], axis=1)
    faces = Detector(29, device="cpu", refine=0, flip_test=False).predict(collage, boxes=boxes)
    assert len(faces) == 1000
    centers = np.array([face.points.mean(axis=0) for face in faces])
    assert np.abs(centers - corners - 20).max() < 15


def test_a_folder_of_what_are_no_images_names_every_one(
    tmp_path: Path, detector_of: Callable[[int], Detector]
) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"not an image")
    results = list(predict_sources(detector_of(29), find_images([str(tmp_path)])))
    answered = [result for result in results if isinstance(result, Result)]
    assert [result.source.name for result in answered] == [f"{n}.jpg" for n in range(5)]
    assert all(result.error and not result.faces for result in answered)
