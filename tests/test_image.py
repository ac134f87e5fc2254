"""What `load_image` reads, how it converts it, and which inputs are errors."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from builders import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageCms

from hihlandmark import Detector
from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.face_detection import make_face_detector
from hihlandmark.image import (
    EXIF_ORIENTATION_TAG,
    UPRIGHT_TRANSPOSE,
    load_image,
    load_reduced,
    readable_formats,
    settled,
)


def gradient(height: int = 6, width: int = 9) -> NDArray[np.uint8]:
    """An image (H, W, 3) without any symmetry and with three different channels."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 25, y * 40, 255 - x * 20 - y * 3], axis=-1).astype(np.uint8)


PIXELS = gradient()
PNG = encoded(Image.fromarray(PIXELS))
small_images = arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3)))
# Not almost black, which would be reported instead of converted.
bright_images = small_images.filter(lambda original: original.max() > 2)


def test_one_pil_image_may_be_read_by_many_threads(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3)).astype(np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    for _ in range(3):
        with Image.open(path) as image, ThreadPoolExecutor(8) as pool:
            for found in pool.map(load_image, [image] * 16):
                np.testing.assert_array_equal(found, pixels)


def test_pil_images_of_an_iterator_may_be_closed_before_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(PNG)
    with Image.open(path) as image:
        kept = settled(image, load_reduced, 10**6)
    np.testing.assert_array_equal(kept.pixels, PIXELS)  # type: ignore[union-attr]


# --- sources ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(small_images)
def test_all_sources_give_the_same_pixels(original: NDArray[np.uint8]) -> None:
    pil = Image.fromarray(original)
    data = encoded(pil)
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), pil, original):
        np.testing.assert_array_equal(load_image(source), original)


@pytest.mark.parametrize(
    "name", ["plain.png", "two words.png", "人脸 ñ.png", "no-suffix", "100%.png"]
)
def test_paths_of_any_name_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PNG)
    (entry,) = os.scandir(tmp_path)
    for source in (path, str(path), entry):
        np.testing.assert_array_equal(load_image(source), PIXELS)


def test_result_is_contiguous_writable_uint8() -> None:
    flipped = PIXELS[:, ::-1]
    read_only = PIXELS.copy()
    read_only.flags.writeable = False
    for source in (PNG, flipped, read_only, np.broadcast_to(np.uint8(7), (4, 5, 3))):
        image = load_image(source)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert image.flags.writeable
    np.testing.assert_array_equal(load_image(flipped), flipped)
    # Prediction reads it where it is.
    assert load_reduced(read_only).pixels is read_only


def test_file_object_is_read_from_its_start_and_left_open() -> None:
    file = io.BytesIO(PNG)
    file.seek(0, io.SEEK_END)
    np.testing.assert_array_equal(load_image(file), PIXELS)
    assert not file.closed


def test_stream_that_cannot_seek_is_read_up_to_max_bytes() -> None:
    def pipe() -> Any:
        data = io.BytesIO(PNG)
        return SimpleNamespace(read=lambda size: data.read(min(size, 11)))

    np.testing.assert_array_equal(load_image(pipe()), PIXELS)
    with pytest.raises(ImageError, match="max_bytes"):
        load_image(pipe(), max_bytes=20)


# --- orientation --------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, format: str, tmp_path: Path) -> None:
    quarters = np.kron(np.array([[10, 90], [160, 240]], np.uint8), np.ones((16, 24), np.uint8))
    upright = np.repeat(quarters[..., None], 3, axis=-1)
    # Stored is what the orientation's transpose brings upright, so its inverse; 6 and 8 swap.
    stored_by = UPRIGHT_TRANSPOSE.get({6: 8, 8: 6}.get(orientation, orientation))
    stored = Image.fromarray(upright)
    stored = stored.transpose(stored_by) if stored_by is not None else stored
    exif = Image.Exif()
    exif[EXIF_ORIENTATION_TAG] = orientation
    data = encoded(stored, format, exif=exif)
    path = tmp_path / "image"
    path.write_bytes(data)
    for source in (data, path, io.BytesIO(data), Image.open(path)):
        image = load_image(source)
        assert image.shape == upright.shape
        np.testing.assert_allclose(image[4::8, 4::8].astype(int), upright[4::8, 4::8], atol=8)


def test_orientation_6_is_a_quarter_turn_clockwise() -> None:
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[-1, 0] = 255  # bottom left, which a clockwise turn takes to the top left
    exif = Image.Exif()
    exif[EXIF_ORIENTATION_TAG] = 6
    image = load_image(encoded(Image.fromarray(stored), exif=exif))
    assert image.shape == (6, 4, 3)
    assert image[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\xff\xff"])
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        image = load_image(encoded(Image.fromarray(PIXELS), "JPEG", exif=exif))
    assert image.shape == PIXELS.shape


# --- modes of encoded images --------------------------------------------------------------------

WIDE = np.arange(54, dtype=np.uint16).reshape(6, 9) * 1200
WIDE_AS_8_BIT = np.repeat(np.rint(WIDE / 257)[..., None], 3, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "I"])
def test_pil_mode_becomes_rgb(mode: str) -> None:
    flat = Image.new("RGB", (4, 3), (255, 255, 255))
    image = load_image(Image.new("I", (4, 3), 65535) if mode == "I" else flat.convert(mode))
    assert image.shape == (3, 4, 3)
    assert image.min() >= 253


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa"])
def test_transparent_modes_are_composited_over_white(mode: str) -> None:
    straight = Image.new("LA" if mode in ("LA", "La") else "RGBA", (2, 1))
    black = (0,) * (len(straight.getbands()) - 1)
    straight.putpixel((0, 0), (*black, 255))
    straight.putpixel((1, 0), (*black, 51))
    image = load_image(straight.convert(mode))
    np.testing.assert_array_equal(image, [[[0, 0, 0], [204, 204, 204]]])


def test_lab_and_cmyk_images_keep_their_colors() -> None:
    red = Image.new("RGB", (16, 16), (220, 40, 30))
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    cmyk = encoded(red.convert("CMYK"), "JPEG", quality=95)
    for original in (ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB"), cmyk):
        found = load_image(original)[8, 8].astype(int)
        np.testing.assert_allclose(found, (220, 40, 30), atol=6)


def test_transparent_palette_color_becomes_white() -> None:
    original = Image.new("P", (2, 1))
    original.putpalette([10, 20, 30, 200, 100, 50])
    original.putpixel((1, 0), 1)
    transparent = encoded(original, transparency=0)
    assert load_image(transparent).tolist() == [[[255, 255, 255], [200, 100, 50]]]


@pytest.mark.parametrize(
    "image",
    [
        *(encoded(Image.fromarray(WIDE), format) for format in ("PNG", "TIFF", "PPM")),
        Image.frombytes("I;16B", (9, 6), WIDE.astype(">u2").tobytes()),
    ],
)
def test_16_bit_images_keep_their_brightness(image: Any) -> None:
    np.testing.assert_array_equal(load_image(image), WIDE_AS_8_BIT)


def test_float_tiff_is_read_as_0_to_1_or_to_white() -> None:
    values = PIXELS[..., 0].astype(np.float32)
    expected = np.repeat(PIXELS[..., :1], 3, axis=-1)
    unit = encoded(Image.fromarray(values / 255), "TIFF")
    np.testing.assert_array_equal(load_image(unit), expected)
    full = encoded(Image.fromarray(values), "TIFF")
    np.testing.assert_array_equal(load_image(full, white=255), expected)
    with pytest.raises(ImageError, match="white=255"):
        load_image(full)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_is_read(format: str) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("white", "red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    image = load_image(data)
    assert image.shape == (6, 8, 3)
    assert image.min() == 255


# --- arrays and tensors -------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(bright_images)
def test_all_dtypes_give_the_same_pixels(original: NDArray[np.uint8]) -> None:
    for dtype in ("int16", "int32", "int64", "uint32", "uint64"):
        np.testing.assert_array_equal(load_image(original.astype(dtype)), original)
    for dtype in ("float16", "float32", "float64", ">f4"):
        np.testing.assert_array_equal(load_image((original / 255).astype(dtype)), original)
        np.testing.assert_array_equal(load_image(original.astype(dtype), white=255), original)
    np.testing.assert_array_equal(load_image(original.astype(np.uint16) * 257), original)
    np.testing.assert_array_equal(load_image(original.astype(np.uint16), white=255), original)


@settings(max_examples=30, deadline=None)
@given(small_images)
def test_color_order_and_channel_axis_are_undone(original: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(load_image(original[..., ::-1], color="bgr"), original)
    first = np.moveaxis(original, -1, 0)
    np.testing.assert_array_equal(load_image(first, channels="first"), original)
    np.testing.assert_array_equal(load_image(first[::-1], color="bgr", channels="first"), original)


def test_gray_and_alpha_arrays() -> None:
    gray = PIXELS[..., 0]
    expected = np.repeat(gray[..., None], 3, axis=-1)
    opaque = np.full_like(gray, 255)
    for array in (gray, gray[..., None], np.dstack([gray, opaque])):
        np.testing.assert_array_equal(load_image(array), expected)
    for array in (gray, gray[None]):
        np.testing.assert_array_equal(load_image(array, channels="first"), expected)
    bgra = np.dstack([PIXELS[..., ::-1], opaque])
    np.testing.assert_array_equal(load_image(bgra, color="bgr"), PIXELS)


def test_alpha_is_composited_over_white_unless_it_is_unset() -> None:
    half = np.array([[[0, 100, 200, 128], [0, 100, 200, 0]]], np.uint8)
    assert load_image(half).tolist() == [[[127, 177, 227], [255, 255, 255]]]
    assert load_image(half / 255).tolist() == [[[127, 177, 227], [255, 255, 255]]]
    unset = np.dstack([PIXELS, np.zeros_like(PIXELS[..., 0])])
    np.testing.assert_array_equal(load_image(unset), PIXELS)


@pytest.mark.parametrize(
    ("array", "white", "expected"),
    [
        (np.array([[True, False]]), None, [255, 0]),
        (np.array([[0, 2048, 4095]], np.uint16), 4095, [0, 128, 255]),  # a 12-bit camera
        (np.array([[-0.05, 0.5, 1.06]], np.float32), None, [0, 128, 255]),  # clipped overshoot
    ],
)
def test_white_level_by_dtype_or_as_given(array: Any, white: Any, expected: list[int]) -> None:
    assert load_image(array, white=white)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_tensor_with_channels_first(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1).to(dtype)
    if dtype.is_floating_point:
        tensor = (tensor / 255).requires_grad_()
    image = load_image(tensor, channels="first")
    # bfloat16 has 8 bits of mantissa
    tolerance = 1 if dtype == torch.bfloat16 else 0
    np.testing.assert_allclose(image.astype(int), PIXELS, atol=tolerance)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_almost_black_integers_are_logged(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    assert load_image(np.zeros((4, 4), dtype)).max() == 0
    assert caplog.records == []
    load_image(np.eye(4).astype(dtype))
    assert "almost black" in caplog.text


@pytest.mark.parametrize("bits", [10, 12])
def test_few_bits_in_16_bit_files_are_logged(
    bits: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.linspace(0, 2**bits - 1, 300).reshape(10, 10, 3).astype(np.uint16)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), values)
    gray = encoded(Image.fromarray(values[..., 0].copy()), "PNG")
    for source in (values, gray, path):
        caplog.clear()
        load_image(source)
        assert "almost black" in caplog.text
    cv2.imwrite(str(path), values << (16 - bits))
    caplog.clear()
    load_image(path)
    load_image(values, white=2**bits - 1)
    assert caplog.records == []


# --- other formats ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "package"),
    [
        *(("MPO", None), ("JPEG2000", None), ("TGA", None), ("PSD", None), ("QOI", None)),
        *(("AVIF", None), ("HEIF", "pillow_heif"), ("JXL", "pillow_jxl")),
    ],
)
def test_formats_of_cameras_and_programs_are_read(format: str, package: str | None) -> None:
    if package is not None:
        pytest.importorskip(package)
    assert (format == "MPO") or format in readable_formats()
    image = Image.fromarray(np.repeat(np.repeat(PIXELS, 16, axis=0), 16, axis=1))
    if format == "PSD":
        header = b"8BPS\0\1" + bytes(6) + b"\0\3" + struct.pack(">IIHH", *image.size[::-1], 8, 3)
        planes = np.moveaxis(np.array(image), -1, 0).tobytes()
        data = header + bytes(12) + b"\0\0" + planes
    else:
        options = {"save_all": True, "append_images": [image]} if format == "MPO" else {}
        data = encoded(image, format, **options)
    found = load_image(data).astype(int)
    assert np.abs(found - np.array(image)).mean() < 5


def test_missing_plug_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    readable_formats()
    monkeypatch.setattr("hihlandmark.image.readable_formats", lambda: ["JPEG", "PNG"])
    for name in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    for data, name in ((heic, r"\[heif\]"), (b"\xff\x0a" + bytes(30), "jxl")):
        with pytest.raises(ImageError, match=name):
            load_image(data)


# --- invalid input ----------------------------------------------------------------------------

F32 = np.float32
CLOSED = Image.open(io.BytesIO(PNG))
CLOSED.close()
with Image.open(io.BytesIO(PNG)) as LEFT:
    pass
with io.BytesIO(PNG) as _file:
    ORPHAN = Image.open(_file)


async def _read_later(size: int = -1) -> bytes:
    return PNG


INVALID: dict[str, tuple[Any, str]] = {
    "batch": (PIXELS[None], r"batch\[0\]"),
    "no rows": (np.zeros((0, 5, 3), np.uint8), "empty"),
    "five channels": (np.zeros((6, 6, 5), np.uint8), "5 channels"),
    "channels first": (np.moveaxis(PIXELS, -1, 0), "channels='first'"),
    "objects": (PIXELS.astype(object), "dtype"),
    "int8": (np.ones((4, 4, 3), np.int8), "dtype"),
    "NaN": (np.full((4, 4, 3), np.nan, F32), "NaN"),
    "infinite": (np.full((4, 4, 3), -np.inf, np.float16), "infinite"),
    "float in 0..255": (PIXELS.astype(F32), "white=255"),
    "float in 0..65535": (WIDE.astype(F32), "65535"),
    "negative integers": (PIXELS.astype(int) - 200, "negative"),
    "integers above 255": (WIDE.astype(np.int32), "white=65535"),
    "sparse tensor": (torch.eye(4).to_sparse(), "NumPy array"),
    "tensor on meta": (torch.empty(4, 4, 3, device="meta"), "Tensor"),
    "none": (None, "cv2.imread"),
    "list of arrays": ([PIXELS, PIXELS], "one image"),
    "no bytes": (b"", "empty"),
    "text": (b"<!DOCTYPE html><html></html>", "DOCTYPE"),
    "header only": (PNG[:8], "header"),
    "EPS, which runs a program": (encoded(Image.fromarray(PIXELS), "EPS"), "not an image"),
    "closed PIL image": (CLOSED, "is closed"),
    "PIL image after its with block": (LEFT, "is closed"),
    "PIL image of a closed file": (ORPHAN, "is closed"),
    "base64": (base64.b64encode(PNG * 9).decode(), "b64decode"),
    "base64 of two names": (base64.urlsafe_b64encode(PNG * 9).decode(), "b64decode"),
    "asynchronous file": (SimpleNamespace(read=_read_later), "await"),
    "truncated PNG": (PNG[:-30], "truncated"),
    "truncated JPEG": (encoded(Image.fromarray(PIXELS), "JPEG")[:-10], "truncated"),
    "truncated GIF": (encoded(Image.fromarray(PIXELS), "GIF")[:-60], "truncated|damaged"),
    "empty PIL image": (Image.new("RGB", (0, 4)), "empty"),
    "32-bit PIL image": (Image.new("I", (4, 4), 70000), "65535"),
    "text file object": (io.StringIO("image"), "binary"),
    "file scheme": ("file:///etc/hostname", "http"),
    "data URL": ("data:image/png;base64,AAAA", "bytes"),
    "URL with a bad host": ("http://[::1/a.jpg", "download"),
    "empty path": ("", "directory"),
    "null in the path": ("a\0.jpg", "null"),
    "path below a file": (f"{__file__}/a.jpg", "Not a directory"),
    "source code": (__file__, "not an image"),
    "missing file": ("ñ missing.jpg", r"ñ missing\.jpg"),
    "directory": (Path(__file__).parent, "directory"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("image", "keyword"), INVALID.values(), ids=INVALID.keys())
def test_invalid_input_is_an_image_error(image: Any, keyword: str) -> None:
    with pytest.raises(ImageError, match=f"(?s){keyword}"):
        load_image(image)


@pytest.mark.parametrize(
    ("image", "options", "keyword"),
    [
        (PIXELS, {"channels": "first"}, "channels='last'"),
        (PIXELS / 255, {"white": 255}, "white=1"),
        (WIDE, {"white": 4095}, "4095"),
        (PNG, {"max_pixels": 53}, "max_pixels"),
        (Image.fromarray(PIXELS), {"max_pixels": 53}, "max_pixels"),
    ],
)
def test_input_that_does_not_fit_the_options_is_an_image_error(
    image: Any, options: dict[str, Any], keyword: str
) -> None:
    with pytest.raises(ImageError, match=keyword):
        load_image(image, **options)


@pytest.mark.parametrize(
    "image",
    [
        "a" * 500_000,
        "no/such/folder/" * 30_000,
        base64.b64encode(bytes(400_000)).decode(),
        "data:image/png;base64," + "A" * 500_000,
        "file:///" + "a" * 500_000,
        "http://127.0.0.1:1/" + "a" * 500_000,
        "http://[" + "a" * 500_000,
        b"a" * 500_000,
    ],
    ids=lambda image: str(image[:20]),
)
def test_long_inputs_are_not_echoed(image: str | bytes) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(image, timeout=2)
    assert len(str(caught.value)) < 1000


ONE_IMAGE: list[Any] = ["a.jpg", Path("a.jpg"), PNG, PIXELS, PIXELS[..., 0]]
ONE_IMAGE += [torch.from_numpy(PIXELS), Image.fromarray(PIXELS), io.BytesIO(PNG)]


@pytest.mark.parametrize("image", ONE_IMAGE, ids=lambda image: type(image).__name__)
def test_one_image_in_place_of_many_is_an_error(image: Any, detector: Detector) -> None:
    with pytest.raises(ImageError, match="one image"):
        detector.predict_many(image)


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (np.moveaxis(PIXELS, -1, 0), {"channels": "first"}),
        (PIXELS.astype(np.float32), {"white": 255}),
        (WIDE // 16, {"white": 4095}),
        (np.moveaxis(PIXELS[..., ::-1], -1, 0) / 1, {"channels": "first", "white": 255}),
    ],
)
def test_predict_takes_what_its_errors_advise(
    image: Any, options: dict[str, Any], detector: Detector
) -> None:
    assert detector.predict(image, **options) == []
    assert list(detector.predict_many([image, image], **options)) == [[], []]


@pytest.mark.parametrize("image", [image for image, _ in INVALID.values()], ids=INVALID)
def test_errors_of_predict_name_its_own_arguments(image: Any, detector: Detector) -> None:
    limited = detector.with_options()
    known = {*signature(Detector).parameters, *signature(limited.predict).parameters}
    with pytest.raises(ImageError) as caught:
        limited.predict(image)
    assert set(re.findall(r"\b([a-z_]+)=", str(caught.value))) <= known


def test_options_of_another_kind_are_configuration_errors(detector: Detector) -> None:
    odd: list[Any] = [float("nan"), [], "1", -1, True]
    for value in odd:
        for name in ("refine", "batch_size"):
            with pytest.raises(ConfigurationError, match=name):
                detector.with_options(**{name: value})
        for name in ("min_face", "min_score", "detection_size"):
            with pytest.raises(ConfigurationError, match=name):
                make_face_detector(**{name: value}, device="cpu", runtime="torch")


def test_workers_of_another_kind_are_configuration_errors(detector: Detector) -> None:
    for value in (float("nan"), [], "2", 0, 1.5):
        with pytest.raises(ConfigurationError, match="workers"):
            detector.predict_many([PIXELS], workers=value)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200)
    | st.builds(
        lambda cut, byte: PNG[:cut] + byte + PNG[cut + 1 :],
        st.integers(0, len(PNG) - 1),
        st.binary(max_size=2),
    )
)
def test_damaged_bytes_give_an_image_or_an_image_error(data: bytes) -> None:
    try:
        image = load_image(data, max_pixels=10**6)
    except ImageError:
        return  # any other exception fails the test
    assert image.ndim == 3
    assert image.dtype == np.uint8


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("color", ["RGB", ["rgb"]]),
        ("channels", ["chw"]),
        ("white", [0, float("nan"), "255"]),
        ("max_pixels", [0, None]),
        ("timeout", [-1]),
        ("max_bytes", [0]),
    ],
)
def test_wrong_arguments_are_configuration_errors(option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=option):
            load_image(PIXELS, **{option: value})


# --- decompression bombs ------------------------------------------------------------------------


# A PNG without pixels whose header claims 100,000 x 100,000 of them.
BOMB = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000186a0000186a0080200000027309c9f"
    "0000000849444154789c030000000001480689d2"
)


@pytest.mark.filterwarnings("error")
def test_decompression_bomb_is_an_error_before_decoding() -> None:
    with pytest.raises(ImageError, match="max_pixels"):
        load_image(BOMB)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_limit_of_pillow_is_replaced_and_restored(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), format)
    for limit in (3000, 1000):  # Pillow warns above the limit, and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load_image(data).shape == (64, 64, 3)
            with pytest.raises(ImageError, match="max_pixels"):
                load_image(data, max_pixels=4095)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_limit_of_pillow_is_restored_by_many_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encoded(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), "TIFF")
    with ThreadPoolExecutor(8) as pool:
        shapes = set(pool.map(lambda _: load_image(data).shape, range(200)))
    assert shapes == {(64, 64, 3)}
    assert Image.MAX_IMAGE_PIXELS == 1000


# --- URLs ---------------------------------------------------------------------------------------


ANSWERS: dict[str, tuple[dict[str, Any], bytes]] = {
    "image": ({"Content-Length": len(PNG)}, PNG),
    "escaped/two%20w%C3%B6rds.png?q=%C3%B1": ({}, PNG),
    "page": ({}, b"<html>please log in</html>"),
    "nothing": ({}, b""),
    "cut": ({"Content-Length": len(PNG)}, PNG[:-30]),
    "claimslarge": ({"Content-Length": 10**12}, b""),
    "islarge": ({}, bytes(200_000)),
    "moved": ({"Location": "/image"}, b""),
    "loop": ({"Location": "/loop"}, b""),
    "tofile": ({"Location": Path(__file__).as_uri()}, b""),
    "toftp": ({"Location": "ftp://127.0.0.1/image.png"}, b""),
}


class Server(BaseHTTPRequestHandler):
    """Answers by the path: an image, or one of many failures."""

    def do_GET(self) -> None:
        name = self.path[1:]
        # The client gives up on some, as it should.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.headers["User-Agent"] != "hihlandmark":
                self.send_error(403)
            elif name.isdigit():
                self.send_error(int(name))
            elif name == "notHTTP":
                self.wfile.write(b"\0\1\2\r\n\r\n")
            else:
                headers, body = ANSWERS[name]
                self.send_response(302 if "Location" in headers else 200)
                for header, value in headers.items():
                    self.send_header(header, str(value))
                self.end_headers()
                self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,*.invalid")


@pytest.mark.parametrize("path", ["/image", "/moved", "/escaped/two wörds.png?q=ñ#top"])
def test_url_is_downloaded(host: str, path: str) -> None:
    np.testing.assert_array_equal(load_image(host + path), PIXELS)
    np.testing.assert_array_equal(load_image(host.replace("http", "HTTP") + path), PIXELS)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/404", "404"),
        ("/loop", "302"),
        ("/tofile", "file:"),
        ("/toftp", "ftp"),
        ("/page", "<html>"),
        ("/nothing", "empty"),
        ("/cut", "truncated"),
        ("/claimslarge", "max_bytes"),
        ("/islarge", "max_bytes"),
        ("/notHTTP", "cannot download"),
    ],
)
def test_bad_answer_of_a_server_is_reported_with_its_url(
    host: str, path: str, message: str
) -> None:
    with pytest.raises(ImageError, match=f"(?s){message}") as caught:
        load_image(host + path, max_bytes=100_000)
    assert host + path in str(caught.value)


def test_unknown_host_and_closed_port_are_reported(host: str) -> None:
    with pytest.raises(ImageError, match="no-such-host"):
        load_image("http://no-such-host.invalid/a.jpg", timeout=5)
    with pytest.raises(ImageError, match="refused"):
        load_image("http://127.0.0.1:1/a.jpg", timeout=5)


def test_arrays_are_read_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    np.testing.assert_array_equal(load_image(PIXELS), PIXELS)
