"""What `load_image` reads, how it converts it, and which inputs are errors."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageCms

from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.image import EXIF_ORIENTATION_TAG, UPRIGHT_TRANSPOSE, load_image


def gradient(height: int = 6, width: int = 9) -> NDArray[np.uint8]:
    """An image (H, W, 3) without any symmetry and with three different channels."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 25, y * 40, 255 - x * 20 - y * 3], axis=-1).astype(np.uint8)


def encode(original: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    original.save(buffer, format, **options)
    return buffer.getvalue()


PIXELS = gradient()
PNG = encode(Image.fromarray(PIXELS))
small_images = arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3)))
# Not almost black, which would be reported instead of converted.
bright_images = small_images.filter(lambda original: original.max() > 2)


# --- sources ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(small_images)
def test_all_sources_give_the_same_pixels(original: NDArray[np.uint8]) -> None:
    data = encode(Image.fromarray(original))
    for source in (
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        Image.fromarray(original),
    ):
        np.testing.assert_array_equal(load_image(source), original)
    np.testing.assert_array_equal(load_image(original), original)


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


def test_file_object_is_read_from_its_start_and_left_open() -> None:
    file = io.BytesIO(PNG)
    file.seek(0, io.SEEK_END)
    np.testing.assert_array_equal(load_image(file), PIXELS)
    assert not file.closed


class Pipe:
    """A stream that cannot seek and gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self.left = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.left.read(min(size, 11))


def test_stream_that_cannot_seek_is_read_up_to_max_bytes() -> None:
    stream: Any = Pipe(PNG)
    np.testing.assert_array_equal(load_image(stream), PIXELS)
    stream = Pipe(PNG)
    with pytest.raises(ImageError, match="max_bytes"):
        load_image(stream, max_bytes=20)


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
    data = encode(stored, format, exif=exif)
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
    image = load_image(encode(Image.fromarray(stored), exif=exif))
    assert image.shape == (6, 4, 3)
    assert image[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\xff\xff"])
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        image = load_image(encode(Image.fromarray(PIXELS), "JPEG", exif=exif))
    assert image.shape == PIXELS.shape


# --- modes of encoded images --------------------------------------------------------------------

GRAY = Image.fromarray(PIXELS).convert("L")
WIDE = np.arange(54, dtype=np.uint16).reshape(6, 9) * 1200
WIDE_AS_8_BIT = np.repeat(np.rint(WIDE / 257)[..., None], 3, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "I", "PA"])
def test_pil_mode_becomes_rgb(mode: str) -> None:
    flat = Image.new("RGB", (4, 3), (255, 255, 255))
    original = {
        "I": lambda: Image.new("I", (4, 3), 65535),
        "PA": lambda: flat.convert("P").convert("PA"),
    }.get(mode, lambda: flat.convert(mode))()
    assert original.mode == mode
    image = load_image(original)
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
    cmyk = encode(red.convert("CMYK"), "JPEG", quality=95)
    for original in (ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB"), cmyk):
        found = load_image(original)[8, 8].astype(int)
        np.testing.assert_allclose(found, (220, 40, 30), atol=6)


def test_transparent_palette_color_becomes_white() -> None:
    original = Image.new("P", (2, 1))
    original.putpalette([10, 20, 30, 200, 100, 50])
    original.putpixel((1, 0), 1)
    assert load_image(encode(original)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    transparent = encode(original, transparency=0)
    assert load_image(transparent).tolist() == [[[255, 255, 255], [200, 100, 50]]]


@pytest.mark.parametrize(
    "image",
    [
        *(encode(Image.fromarray(WIDE), format) for format in ("PNG", "TIFF", "PPM")),
        Image.frombytes("I;16B", (9, 6), WIDE.astype(">u2").tobytes()),
    ],
)
def test_16_bit_images_keep_their_brightness(image: Any) -> None:
    np.testing.assert_array_equal(load_image(image), WIDE_AS_8_BIT)


def test_float_tiff_is_read_as_0_to_1_or_to_white() -> None:
    values = PIXELS[..., 0].astype(np.float32)
    expected = np.repeat(PIXELS[..., :1], 3, axis=-1)
    unit = encode(Image.fromarray(values / 255), "TIFF")
    np.testing.assert_array_equal(load_image(unit), expected)
    full = encode(Image.fromarray(values), "TIFF")
    np.testing.assert_array_equal(load_image(full, white=255), expected)
    with pytest.raises(ImageError, match="white=255"):
        load_image(full)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_is_read(format: str) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("white", "red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
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
    np.testing.assert_array_equal(load_image(gray[None], channels="first"), expected)
    np.testing.assert_array_equal(load_image(gray, channels="first"), expected)
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


def test_black_images_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    for array in (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3))):
        assert load_image(array).max() == 0
    assert load_image(np.zeros((4, 4, 3)), white=255).max() == 0
    assert caplog.records == []


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_almost_black_integers_are_logged(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_image(np.eye(4).astype(dtype))
    assert "almost black" in caplog.text


# --- invalid input ----------------------------------------------------------------------------

F32 = np.float32
INVALID_ARRAYS: dict[str, tuple[Any, str]] = {
    "scalar": (np.array(3.0), "0 dimensions"),
    "batch": (PIXELS[None], r"batch\[0\]"),
    "no rows": (np.zeros((0, 5, 3), np.uint8), "empty"),
    "five channels": (np.zeros((6, 6, 5), np.uint8), "5 channels"),
    "channels first": (np.moveaxis(PIXELS, -1, 0), "channels='first'"),
    "objects": (PIXELS.astype(object), "dtype"),
    "complex": (PIXELS.astype(complex), "dtype"),
    "int8": (np.ones((4, 4, 3), np.int8), "dtype"),
    "records": (np.zeros((4, 4), [("a", "u1")]), "dtype"),
    "NaN": (np.full((4, 4, 3), np.nan, F32), "NaN"),
    "infinite": (np.full((4, 4, 3), -np.inf, np.float16), "infinite"),
    "float in 0..255": (PIXELS.astype(F32), "white=255"),
    "float in 0..65535": (WIDE.astype(F32), "65535"),
    "negative integers": (PIXELS.astype(int) - 200, "negative"),
    "integers above 255": (WIDE.astype(np.int32), "white=65535"),
    "float tensor in 0..255": (torch.from_numpy(PIXELS).float(), "255"),
    "sparse tensor": (torch.eye(4).to_sparse(), "NumPy array"),
    "tensor on meta": (torch.empty(4, 4, 3, device="meta"), "Tensor"),
}
INVALID_FILES: dict[str, tuple[Any, str]] = {
    "none": (None, "cv2.imread"),
    "number": (7, "int"),
    "list of arrays": ([PIXELS, PIXELS], "one image"),
    "no bytes": (b"", "empty"),
    "text": (b"<!DOCTYPE html><html></html>", "DOCTYPE"),
    "header only": (PNG[:8], "header"),
    "EPS, which runs a program": (encode(Image.fromarray(PIXELS), "EPS"), "not an image"),
    "truncated PNG": (PNG[:-30], "truncated"),
    "truncated JPEG": (encode(Image.fromarray(PIXELS), "JPEG")[:-10], "truncated"),
    "truncated WebP": (encode(Image.fromarray(PIXELS), "WEBP")[:-20], "damaged"),
    "truncated GIF": (encode(Image.fromarray(PIXELS), "GIF")[:-60], "truncated|damaged"),
    "empty PIL image": (Image.new("RGB", (0, 4)), "empty"),
    "32-bit PIL image": (Image.new("I", (4, 4), 70000), "65535"),
    "empty file object": (io.BytesIO(), "empty"),
    "text file object": (io.StringIO("image"), "binary"),
    "file scheme": ("file:///etc/hostname", "http"),
    "data URL": ("data:image/png;base64,AAAA", "bytes"),
    "URL with a bad host": ("http://[::1/a.jpg", "download"),
    "empty path": ("", "directory"),
    "null in the path": ("a\0.jpg", "null"),
    "overlong path": ("a" * 5000, "too long"),
    "path below a file": (f"{__file__}/a.jpg", "Not a directory"),
    "source code": (__file__, "not an image"),
    "missing file": ("ñ missing.jpg", r"ñ missing\.jpg"),
    "directory": (Path(__file__).parent, "directory"),
}
INVALID = INVALID_ARRAYS | INVALID_FILES


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
        (GRAY, {"max_pixels": 53}, "max_pixels"),
    ],
)
def test_input_that_does_not_fit_the_options_is_an_image_error(
    image: Any, options: dict[str, Any], keyword: str
) -> None:
    with pytest.raises(ImageError, match=keyword):
        load_image(image, **options)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_special_and_unreadable_files_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="regular"):
        load_image(tmp_path / "pipe")
    path = tmp_path / "secret.png"
    path.write_bytes(PNG)
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser reads everything
        error = PermissionError(13, "Permission denied")
        monkeypatch.setattr(Path, "open", Mock(side_effect=error))
    with pytest.raises(ImageError, match="Permission denied"):
        load_image(path)


def test_closed_files_and_images_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    for closed in (io.BytesIO(PNG), Image.open(tmp_path / "a.png")):
        closed.close()
        with pytest.raises(ImageError, match=r"closed|decoded"):
            load_image(closed)


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
    "options",
    [
        {"color": "RGB"},
        {"color": ["rgb"]},
        {"channels": "chw"},
        {"white": 0},
        {"white": float("nan")},
        {"white": "255"},
        {"max_pixels": None},
        {"max_pixels": 0},
        {"timeout": -1},
        {"max_bytes": 0},
    ],
    ids=str,
)
def test_wrong_arguments_are_configuration_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        load_image(PIXELS, **options)


# --- decompression bombs ------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.filterwarnings("error")
def test_decompression_bomb_is_an_error_before_decoding() -> None:
    with pytest.raises(ImageError, match="max_pixels"):
        load_image(bomb(100_000, 100_000))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_limit_of_pillow_is_replaced_and_restored(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), format)
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
    data = encode(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), "TIFF")
    with ThreadPoolExecutor(8) as pool:
        shapes = set(pool.map(lambda _: load_image(data).shape, range(200)))
    assert shapes == {(64, 64, 3)}
    assert Image.MAX_IMAGE_PIXELS == 1000


# --- URLs ---------------------------------------------------------------------------------------


BODIES = {"image": PNG, "page": b"<html>please log in</html>", "nothing": b""}
REDIRECTS = {
    "moved": "/image",
    "loop": "/loop",
    "tofile": Path(__file__).as_uri(),
    "toftp": "ftp://127.0.0.1/image.png",
}


class Server(BaseHTTPRequestHandler):
    """Answers by the first part of the path: an image, or one of many failures."""

    def do_GET(self) -> None:
        name = self.path.split("/")[1].split("?")[0]
        # The client gives up on some, as it should.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if name in BODIES:
                self.reply(BODIES[name])
            elif name in REDIRECTS:
                self.start(302, Location=REDIRECTS[name])
            elif name.isdigit():
                self.send_error(int(name))
            else:
                getattr(self, f"answer_{name}")()

    def start(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def reply(self, body: bytes, length: int | None = None) -> None:
        self.start(Content_Length=str(len(body) if length is None else length))
        self.wfile.write(body)

    def answer_escaped(self) -> None:
        is_escaped = self.path == "/escaped/two%20w%C3%B6rds.png?q=%C3%B1"
        self.reply(PNG if is_escaped else b"")

    def answer_agent(self) -> None:
        self.reply(PNG if self.headers["User-Agent"] == "hihlandmark" else b"")

    def answer_cut(self) -> None:
        self.reply(PNG[:-30], length=len(PNG))

    def answer_claimslarge(self) -> None:
        self.reply(b"", length=10**12)

    def answer_islarge(self) -> None:
        self.start()
        self.wfile.write(bytes(200_000))

    def answer_silence(self) -> None:
        time.sleep(1)

    def answer_drip(self) -> None:
        self.start()
        self.answer_dripheader()

    def answer_dripheader(self) -> None:
        for _ in range(20):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def answer_notHTTP(self) -> None:
        self.wfile.write(b"\0\1\2\r\n\r\n")

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


@pytest.mark.parametrize("path", ["/image", "/moved", "/agent", "/escaped/two wörds.png?q=ñ#top"])
def test_url_is_downloaded(host: str, path: str) -> None:
    np.testing.assert_array_equal(load_image(host + path), PIXELS)
    np.testing.assert_array_equal(load_image(host.replace("http", "HTTP") + path), PIXELS)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/404", "404"),
        ("/500", "500"),
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


@pytest.mark.parametrize("path", ["/silence", "/drip", "/dripheader"])
def test_timeout_bounds_the_whole_download(host: str, path: str) -> None:
    start = time.monotonic()
    with pytest.raises(ImageError, match="timeout"):
        load_image(host + path, timeout=0.2)
    assert time.monotonic() - start < 0.8


def test_unknown_host_and_closed_port_are_reported(host: str) -> None:
    with pytest.raises(ImageError, match="no-such-host"):
        load_image("http://no-such-host.invalid/a.jpg", timeout=5)
    with pytest.raises(ImageError, match="refused"):
        load_image("http://127.0.0.1:1/a.jpg", timeout=5)


def test_arrays_are_read_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    np.testing.assert_array_equal(load_image(PIXELS), PIXELS)
