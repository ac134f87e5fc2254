"""`load_image`: any kind of image as an upright RGB uint8 array (H, W, 3).

Reading, decoding and checking live here, and every failure is an `ImageError`. Downloading is in
`download`.
"""

from __future__ import annotations

import io
import logging
import math
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, Union, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from hihlandmark.download import download, is_url, not_bytes, read_at_most
from hihlandmark.errors import ConfigurationError, ImageError

if TYPE_CHECKING:
    import torch

_Bytes: TypeAlias = bytes | bytearray | memoryview
ImageInput: TypeAlias = Union[
    str, os.PathLike[str], _Bytes, IO[bytes], Image.Image, NDArray[Any], "torch.Tensor"
]
"""What `load_image` reads: path, http(s) URL, bytes, binary file, PIL image, array, tensor."""

ColorOrder = Literal["rgb", "bgr"]
ChannelAxis = Literal["last", "first"]

# Not EPS and WMF, for which Pillow runs Ghostscript and GDI. HEIF and JXL need their plugins. TGA
# has no signature, so it is tried last.
_COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JXL")
IMAGE_FORMATS = (*_COMMON, "JPEG2000", "PPM", "QOI", "PSD", "TGA")

# The value of full brightness by dtype name. Wide integers are mostly 8-bit values that went
# through arithmetic; int8 is absent because it cannot hold them.
WHITE_OF_DTYPE = {
    "uint8": 255.0,
    "uint16": 65535.0,
    **dict.fromkeys(("int16", "int32", "int64", "uint32", "uint64"), 255.0),
    **dict.fromkeys(("bool", "float16", "float32", "float64"), 1.0),
}

# Modes that Pillow's own conversion to RGB would clip. 16-bit PNG and PPM files arrive as "I".
WHITE_OF_WIDE_MODE = dict.fromkeys(("I", "I;16", "I;16L", "I;16B", "I;16N"), 65535.0) | {"F": 1.0}

# EXIF 2.32, tag 0x0112: what brings an image stored with this orientation upright.
EXIF_ORIENTATION_TAG = 0x0112
UPRIGHT_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

FLOAT_OVERSHOOT = 0.1  # of floats resized with a bicubic or Lanczos kernel; clipped

_log = logging.getLogger(__name__)


def load_image(
    image: ImageInput,
    *,
    color: ColorOrder = "rgb",
    channels: ChannelAxis = "last",
    white: float | None = None,
    max_pixels: int = 200_000_000,
    timeout: float = 20.0,
    max_bytes: int = 64 * 2**20,
) -> NDArray[np.uint8]:
    """Read any kind of image as an upright RGB array.

    EXIF orientation is applied. Transparent images are composited over white; an alpha of 0
    everywhere is ignored as unset. Of an animation, the first frame is read (of a PIL image, the
    current one). Color profiles are not applied, except LAB to sRGB.

    Args:
        image: a path; an http or https URL (a str: do not pass untrusted strings); the bytes of an
            image file; a binary file object, read from its start where it can seek; a PIL image; a
            NumPy array (or an object with ``__array__``) or torch tensor of shape (H, W) or
            (H, W, 1) gray, (H, W, 2) gray and alpha, (H, W, 3) RGB or (H, W, 4) RGBA. A contiguous,
            writable RGB array of uint8 is returned as it is, without a copy.
        color: for arrays and tensors: "bgr" for the channel order of OpenCV, with alpha last.
        channels: for arrays and tensors: "first" for the shape (C, H, W).
        white: the value of full brightness of an array, tensor, 16-bit or float file; black is 0.
            None: 1 for bool and float, 65535 for uint16 and 16-bit files, 255 for other integers.
            Values outside 0..white are an error, but floats may exceed it by a tenth, which is
            clipped. An image almost black for its ``white`` is an error for floats with
            ``white`` > 1 (its range is probably 0..1), and logged as a warning otherwise.
        max_pixels: limit on files and PIL images, checked before decoding; replaces Pillow's.
        timeout: limit on a download in seconds, in total.
        max_bytes: limit on a download, and on a file object that cannot seek.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous and writable.

    Raises:
        ImageError: the image cannot be read.
        ConfigurationError: another argument is invalid.
    """
    for name, value, choices in (("color", color, ColorOrder), ("channels", channels, ChannelAxis)):
        if value not in get_args(choices):
            raise ConfigurationError(f"{name} must be one of {get_args(choices)}, not {value!r}")
    limits = {"max_pixels": max_pixels, "timeout": timeout, "max_bytes": max_bytes}
    for name, number in (limits if white is None else limits | {"white": white}).items():
        if not isinstance(number, (int, float, np.number)) or not 0 < number < math.inf:
            raise ConfigurationError(f"{name} must be a positive, finite number, not {number!r}")
    if _is_array(image):
        pixels = _as_array(image)
        source = f"array of shape {pixels.shape} and dtype {pixels.dtype}"
        pixels = _scale_to_uint8(_channels_last(pixels, channels, source), white, source)
        if color == "bgr" and pixels.shape[-1] > 2:
            pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]
        return _to_rgb(pixels)
    if isinstance(image, Image.Image):
        source = f"PIL image of mode {image.mode} and size {image.size}"
        return _to_rgb(_decode(image, source, white, max_pixels))
    with _opened(image, timeout, max_bytes) as (file, source):
        return _to_rgb(_decode(_identify(file, source), source, white, max_pixels))


# --- sources: a seekable binary file, and how to name it in an error --------------------------


@contextmanager
def _opened(image: object, timeout: float, max_bytes: int) -> Iterator[tuple[IO[bytes], str]]:
    """A seekable file with the encoded image, and a name for error messages."""
    if isinstance(image, str) and is_url(image):
        yield io.BytesIO(download(image, timeout, max_bytes)), f"URL {image!r}"
    elif isinstance(image, (str, os.PathLike)):
        with _open_path(image) as file:
            yield file, f"file {os.fspath(image)!r}"
    elif isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        yield io.BytesIO(data), f"image of {len(data)} bytes"
    elif hasattr(image, "read"):
        source = f"file object of type {type(image).__name__}"
        yield _seekable(image, source, max_bytes), source
    else:
        raise ImageError(
            f"image is of type {type(image).__name__}: pass one image as a path, URL, bytes, binary"
            " file, PIL image, array or tensor (cv2.imread returns None if it cannot read a file)"
        )


def _open_path(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file; other files could block or never end."""
    try:
        # fsdecode, because a DirEntry or a Path-like may hold bytes.
        place = Path(os.fsdecode(path))
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(0, "it is a directory; pass its files one by one")
        if not stat.S_ISREG(mode):
            raise OSError(0, "it is not a regular file; pass its bytes")
        return place.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"cannot open {os.fspath(path)!r}: {reason}") from error


def _seekable(file: Any, source: str, max_bytes: int) -> IO[bytes]:
    """The file at its start, or a copy of a file that cannot seek."""
    try:
        try:
            file.seek(0)
        except (AttributeError, OSError):
            return io.BytesIO(read_at_most(max_bytes, file.read, source))
        if not isinstance(file.read(0), bytes):
            raise not_bytes(source)
    except ImageError:
        raise
    except Exception as error:  # a user's object may raise anything
        raise ImageError(f"cannot read {source}: {error}; pass an open binary file") from error
    return file


# --- decoding with Pillow ---------------------------------------------------------------------


class _PillowLimit:
    """Lifts Pillow's global limit on pixels while any thread is inside ``with``.

    ``max_pixels`` replaces it. The rest of the program may rely on it, so it is restored.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: int | None = None

    def forbids(self, pixels: int) -> bool:
        with self._lock:
            limit = self._limit if self._inside else Image.MAX_IMAGE_PIXELS
        return limit is not None and pixels > limit

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                Image.MAX_IMAGE_PIXELS = self._limit


_pillow_limit = _PillowLimit()


def _identify(file: IO[bytes], source: str) -> Image.Image:
    """Read the header of an image file, without decoding its pixels."""
    start = b""
    try:
        start = file.read(12)
        if not start:
            raise ImageError(f"{source} is empty: it has 0 bytes")
        Image.init()
        with _pillow_limit:
            return Image.open(file, formats=[name for name in IMAGE_FORMATS if name in Image.OPEN])
    except ImageError:
        raise
    except Exception as error:  # damaged headers make Pillow raise errors of many kinds
        raise ImageError(
            f"{source} is not an image of a known format or has a damaged header: {start!r}..."
        ) from error


def _decode(
    image: Image.Image, source: str, white: float | None, max_pixels: int
) -> NDArray[np.uint8]:
    """Pixels (H, W, 1..4) of a PIL image, upright."""
    width, height = image.size
    if width * height == 0:
        raise ImageError(f"{source} is empty: it has {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{source} has {width} x {height} pixels, more than max_pixels={max_pixels}: "
            "pass a larger limit if you trust it"
        )
    try:
        with _pillow_limit if _pillow_limit.forbids(width * height) else nullcontext():
            image.load()
        pixels = np.array(_plain_mode(_upright(image)))
    except Exception as error:  # as in _identify; also MemoryError
        raise ImageError(
            f"{source} is truncated or damaged: {error or type(error).__name__}"
        ) from error
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if image.mode in WHITE_OF_WIDE_MODE:
        return _scale_to_uint8(pixels, white or WHITE_OF_WIDE_MODE[image.mode], source)
    return pixels


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation to a loaded image; Pillow does so itself for TIFF."""
    try:
        transpose = UPRIGHT_TRANSPOSE.get(image.getexif().get(EXIF_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata do not matter to the pixels
        return image
    return image if transpose is None else image.transpose(transpose)


def _plain_mode(image: Image.Image) -> Image.Image:
    """The image in mode RGB or RGBA; unchanged when its values are wider than 8 bits."""
    if image.mode in WHITE_OF_WIDE_MODE:
        return image
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None only with inPlace=True
        return converted
    if image.mode == "La":  # premultiplied; Pillow converts it to LA only
        image = image.convert("LA")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


# --- arrays -----------------------------------------------------------------------------------


def _is_array(image: object) -> bool:
    # PIL images have __array__ in some versions, and NumPy's str has it.
    return hasattr(image, "__array__") and not isinstance(image, (Image.Image, str, bytes))


def _as_array(image: Any) -> NDArray[Any]:
    """A NumPy array of an array-like or of a tensor on any device."""
    try:
        torch = sys.modules.get("torch")  # imported, if the image is a tensor
        if torch is not None and isinstance(image, torch.Tensor):
            image = image.float() if image.is_floating_point() else image  # NumPy has no bfloat16
            return image.numpy(force=True)
        return np.asarray(image)
    except Exception as error:  # sparse, quantized and meta tensors, each in its own way
        kind = type(image).__name__
        raise ImageError(f"image of type {kind} cannot become a NumPy array: {error}") from error


def _channels_last(pixels: NDArray[Any], channels: ChannelAxis, source: str) -> NDArray[Any]:
    """The array as (H, W, C) with C from 1 to 4."""
    if pixels.size == 0:
        raise ImageError(f"{source} is empty")
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.ndim != 3:
        advice = "; pass one image of a batch, such as batch[0]" if pixels.ndim == 4 else ""
        raise ImageError(f"{source} has {pixels.ndim} dimensions instead of 2 or 3{advice}")
    arranged = np.moveaxis(pixels, 0, -1) if channels == "first" else pixels
    if arranged.shape[-1] > 4:
        other, axis = ("last", -1) if channels == "first" else ("first", 0)
        advice = f"; pass channels={other!r}" if pixels.shape[axis] <= 4 else ""
        raise ImageError(f"{source} has {arranged.shape[-1]} channels instead of 1 to 4{advice}")
    return arranged


def _scale_to_uint8(pixels: NDArray[Any], white: float | None, source: str) -> NDArray[np.uint8]:
    """Values 0..white of any supported dtype as 0..255, rounded."""
    name = pixels.dtype.name
    if name not in WHITE_OF_DTYPE:
        raise ImageError(f"{source}: convert the dtype to one of {', '.join(WHITE_OF_DTYPE)}")
    white = white or WHITE_OF_DTYPE[name]
    _check_values(pixels, white, source)
    if name == "uint8" and white == 255:
        return pixels
    scaled = np.multiply(pixels, 255 / white, dtype=np.float32)
    return np.rint(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8)


def _check_values(pixels: NDArray[Any], white: float, source: str) -> None:
    """Raise for values that are not finite or not within 0..white; NaN shows in the minimum."""
    is_float = pixels.dtype.kind == "f"
    low, high = float(pixels.min()), float(pixels.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(f"{source} contains NaN or infinite values")
    overshoot = FLOAT_OVERSHOOT * white if is_float else 0
    if low < -overshoot:
        raise ImageError(f"{source} has negative values, down to {low:g}: undo its normalization")
    if high > white + overshoot:
        likely = next((each for each in (255, 65535) if high <= each), None)
        advice = f"divide by {likely} or pass white={likely}" if likely else "pass white=..."
        raise ImageError(f"{source} has values up to {high:g}, but white is {white:g}: {advice}")
    if 0 < high <= white / 255:
        message = f"{source} is almost black: its values end at {high:g}, but white is {white:g}"
        if is_float and white > 1:
            raise ImageError(f"{message}; if the range is 0..1, pass white=1")
        _log.warning("%s; if it should not be, pass its real white=...", message)


def _to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 1..4) gray, gray and alpha, RGB or RGBA as RGB over white, contiguous and writable."""
    if pixels.shape[-1] in (2, 4):
        pixels, alpha = pixels[..., :-1], pixels[..., -1:]
        # Screen capture APIs leave the fourth byte at 0; an invisible image is never meant.
        if alpha.any() and alpha.min() < 255:
            weight = alpha.astype(np.uint16)  # 255 * 255 + 127 still fits
            over_white = (pixels * weight + 255 * (255 - weight) + 127) // 255
            pixels = over_white.astype(np.uint8)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return np.require(pixels, np.uint8, ["C", "W"])
