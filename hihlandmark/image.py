"""`load_image`: any kind of image as an upright RGB uint8 array (H, W, 3).

Reading, decoding and checking live here, and every failure is an `ImageError`. Downloading is in
`download`.
"""

from __future__ import annotations

import inspect
import io
import logging
import math
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Union, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from hihlandmark.decoding_cost import (
    MAX_SCANS,
    DecodingCost,
    Header,
    decoding_cost,
    jpeg_xl_header,
    reduce_jpeg2000,
)
from hihlandmark.download import download, is_url, not_bytes, read_at_most, shorten
from hihlandmark.errors import ConfigurationError, ImageError, check_positive
from hihlandmark.threads import after_fork

if TYPE_CHECKING:
    import torch

_Bytes: TypeAlias = bytes | bytearray | memoryview
ImageInput: TypeAlias = Union[
    str, os.PathLike[str], _Bytes, IO[bytes], Image.Image, NDArray[Any], "torch.Tensor"
]
"""What `load_image` reads: path, http(s) URL, bytes, binary file, PIL image, array, tensor."""

ColorOrder = Literal["rgb", "bgr"]
ChannelAxis = Literal["last", "first"]

# Not EPS and WMF, for which Pillow runs Ghostscript and GDI. JPEG includes MPO. HEIF and JXL need
# their plug-ins. TGA has no signature, so it is tried last.
_COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JXL")
IMAGE_FORMATS = (*_COMMON, "JPEG2000", "PPM", "QOI", "PSD", "TGA")

# Limits on files that are small or valid and take minutes or gigabytes to decode.
MAX_PIXELS = 200_000_000  # there are cameras with that many
MAX_BYTES = 64 * 2**20
URL_TIMEOUT = 20.0  # seconds
MAX_SECONDS = 8.0  # that decoding may take by `decoding_cost`; with more max_pixels, as many more
MAX_MEMORY = 2.6e9  # bytes that decoding may take, of one image and of all at once
LARGE_PIXELS = 50_000_000  # larger images are reduced for prediction
BLOCK_PIXELS = 8_000_000  # pixels that are converted at once

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

# The first characters of a text that is too long for a path and holds nothing else.
BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]{256}")

FLOAT_OVERSHOOT = 0.1  # of floats resized with a bicubic or Lanczos kernel; clipped

_log = logging.getLogger(__name__)


def load_image(
    image: ImageInput,
    *,
    color: ColorOrder = "rgb",
    channels: ChannelAxis = "last",
    white: float | None = None,
    max_pixels: int = MAX_PIXELS,
    timeout: float = URL_TIMEOUT,
    max_bytes: int = MAX_BYTES,
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
            ``white`` > 1 (its range is probably 0..1), and logged as a warning otherwise; so are
            12 or fewer bits in 16.
        max_pixels: limit on files and PIL images, checked before decoding; replaces Pillow's.
            Formats that take long or much memory have lower limits (4 megapixels where Pillow
            decodes in Python: QOI, compressed BMP, PPM of text or of unusual depth; see
            SECURITY.md), which grow with ``max_pixels`` above its default. JPEG files are limited
            to 100 scans.
        timeout: limit on a download in seconds, in total.
        max_bytes: limit on a download, and on a file object that cannot seek.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous and writable.

    Raises:
        ImageError: the image cannot be read.
        ConfigurationError: another argument is invalid.
    """
    loaded = _load(image, color, channels, white, max_pixels, timeout, max_bytes, math.inf)
    return np.require(loaded.pixels, requirements="W")


class ReducedImage(NamedTuple):
    """An image, and by which factor k it is smaller than what it was read from: 1, 2, 4 or 8.

    A pixel covers k x k pixels of the original, and the center of pixel x is (x + 0.5) k - 0.5
    (up to half a pixel off in a reduced JPEG 2000, whose low-pass filter is centered at even
    pixels; up to k - 1 pixels of the original in a JPEG that is stored turned or mirrored, where
    its sides are no multiples of k).

    Attributes:
        pixels: (H, W, 3) uint8 RGB, C-contiguous; those of a read-only array are read-only.
        factor: k.
        size: width and height of the original, upright.
    """

    pixels: NDArray[np.uint8]
    factor: int
    size: tuple[int, int]


def load_reduced(
    image: ImageInput,
    *,
    color: ColorOrder = "rgb",
    channels: ChannelAxis = "last",
    white: float | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> ReducedImage:
    """As `load_image`, but files and PIL images of more than 50 megapixels are reduced."""
    return _load(image, color, channels, white, max_pixels, URL_TIMEOUT, max_bytes, LARGE_PIXELS)


def _load(
    image: ImageInput,
    color: ColorOrder,
    channels: ChannelAxis,
    white: float | None,
    max_pixels: int,
    timeout: float,
    max_bytes: int,
    reduce_above: float,
) -> ReducedImage:
    for name, value, choices in (("color", color, ColorOrder), ("channels", channels, ChannelAxis)):
        if value not in get_args(choices):
            raise ConfigurationError(f"{name} must be one of {get_args(choices)}, not {value!r}")
    limits = {"max_pixels": max_pixels, "timeout": timeout, "max_bytes": max_bytes}
    check_positive(**(limits if white is None else limits | {"white": white}))
    if _is_array(image):
        pixels = _as_array(image)
        source = f"array of shape {pixels.shape} and dtype {pixels.dtype}"
        pixels = _scale_to_uint8(_channels_last(pixels, channels, source), white, source)
        if color == "bgr" and pixels.shape[-1] > 2:
            pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]
        rgb = _to_rgb(pixels)
        return ReducedImage(rgb, 1, (rgb.shape[1], rgb.shape[0]))
    if isinstance(image, Image.Image):
        source = f"PIL image of mode {image.mode} and size {image.size}"
        with _pillow_locks[id(image) // 16 % len(_pillow_locks)]:
            return _decode(image, source, white, max_pixels, reduce_above)
    with _opened(image, timeout, max_bytes) as (file, source):
        return _decode(
            _identify(file, source, max_pixels), source, white, max_pixels, reduce_above, file
        )


def settled(
    image: ImageInput, load: Callable[[ImageInput], ReducedImage], max_bytes: int
) -> ImageInput | ReducedImage:
    """An image of an iterator that stays what it is while the iterator goes on, in any thread.

    Files are read, as members of an archive share one position, large ones into pixels. An array,
    which may be filled again, is copied; PIL images are loaded, as frames of an animation are one
    object, and others may be closed before the next one.

    Args:
        image: the last one of the iterator.
        load: reads it.
        max_bytes: limit on files that cannot seek, and on those that are not loaded.

    Raises:
        ImageError: it cannot be read.
    """
    if _is_array(image):
        loaded = load(image)
        return loaded._replace(pixels=loaded.pixels.copy())
    if isinstance(image, Image.Image):
        return load(image)
    if hasattr(image, "read") and not inspect.iscoroutinefunction(image.read):
        with _opened(image, 0, max_bytes) as (file, source):
            if file is not image:  # a copy already
                return file
            try:
                return io.BytesIO(read_at_most(max_bytes, file.read, source))
            except ImageError:  # too large
                return load(file)
            except Exception as error:  # as in _seekable
                raise ImageError(f"cannot read {source}: {error}") from error
    return image


def refuse_one_image(images: object) -> None:
    """Raise `ImageError` if ``images``, which should be many, are one image."""
    if isinstance(images, Mapping) or hasattr(images, "columns"):  # a table of pandas or Polars
        raise ImageError(
            f"images is of type {type(images).__name__}: pass a list of its values or a column"
        )
    is_one = isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))
    is_one = is_one or (_is_array(images) and getattr(images, "ndim", 0) in (2, 3))
    if is_one or hasattr(images, "read"):
        raise ImageError(
            f"images is one image of type {type(images).__name__}: pass a list, such as [image]"
        )


# --- sources: a seekable binary file, and how to name it in an error --------------------------


@contextmanager
def _opened(image: object, timeout: float, max_bytes: int) -> Iterator[tuple[IO[bytes], str]]:
    """A seekable file with the encoded image, and a name for error messages."""
    if isinstance(image, str) and is_url(image):
        yield io.BytesIO(download(image, timeout, max_bytes)), f"URL {shorten(image)}"
    elif isinstance(image, (str, os.PathLike)):
        with _open_path(image) as file:
            yield file, f"file {shorten(os.fsdecode(image))}"
    elif isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        yield io.BytesIO(data), f"image of {len(data)} bytes"
    elif inspect.iscoroutinefunction(getattr(image, "read", None)):
        raise ImageError(
            f"{type(image).__name__} is read asynchronously: pass its bytes, await image.read()"
        )
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
        name = os.fsdecode(path)
        if not name:
            raise ValueError("the path is empty: pass that of a file, no directory, or an array")
        place = Path(name)
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(0, "it is a directory; pass its files one by one")
        if not stat.S_ISREG(mode):
            raise OSError(0, "it is not a regular file; pass its bytes")
        return place.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if BASE64.match(name):
            reason = "it is not a file; if it is an image in base64, pass base64.b64decode(text)"
        raise ImageError(f"cannot open {shorten(name)}: {reason}") from error


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

    def after_fork(self) -> None:
        """Restore the limit; threads inside do not exist in this process."""
        if self._inside:
            Image.MAX_IMAGE_PIXELS = self._limit
        self._lock, self._inside = threading.Lock(), 0

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


class _Memory:
    """Lets images be decoded at the same time while they take `MAX_MEMORY` together."""

    def __init__(self) -> None:
        self._turn = threading.Lock()  # held while waiting: large images are not overtaken
        self._change = threading.Condition()
        self._used = 0  # bytes, exact: sums of floats would drift, and never be 0 again

    @contextmanager
    def reserve(self, size: float) -> Iterator[None]:
        size = math.ceil(min(size, MAX_MEMORY))
        with self._turn, self._change:
            self._change.wait_for(lambda: self._used + size <= MAX_MEMORY)
            self._used += size
        try:
            yield
        finally:
            with self._change:
                self._used -= size
                self._change.notify()


_pillow_limit = _PillowLimit()
_memory = _Memory()
_pillow_locks = [threading.Lock() for _ in range(64)]
"""For PIL images of a user, by their ids: one image may be read by one thread at a time."""


@after_fork
def _after_fork() -> None:
    global _memory
    _pillow_limit.after_fork()
    _memory = _Memory()
    _pillow_locks[:] = [threading.Lock() for _ in _pillow_locks]


def _identify(file: IO[bytes], source: str, max_pixels: int) -> Image.Image:
    """Read the header of an image file, without decoding its pixels."""
    start = b""
    try:
        start = file.read(12)
        if not start:
            raise ImageError(f"{source} is empty: it has 0 bytes")
        if header := jpeg_xl_header(file):
            _check_cost(header, decoding_cost(header, file), source, max_pixels)
        with _pillow_limit:
            return Image.open(file, formats=readable_formats())
    except ImageError:
        raise
    except Exception as error:  # damaged headers make Pillow raise errors of many kinds
        for is_signature, name, advice in PLUG_IN_FORMATS:
            if is_signature(start) and name not in Image.OPEN:
                raise ImageError(f"{source} has the format {name}: {advice}") from error
        raise ImageError(
            f"{source} is not an image of a known format or has a damaged header: {start!r}..."
        ) from error


PLUG_IN_FORMATS: tuple[tuple[Callable[[bytes], object], str, str], ...] = (
    (
        re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL).match,
        "HEIF",
        "pip install 'hihlandmark[heif]'",
    ),
    (
        re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ").match,
        "JXL",
        "pip install pillow-jxl-plugin",
    ),
    (
        re.compile(
            rb"....ftyp(iso|mp4|M4V|avc1|qt|dash|3gp)|\x1a\x45\xdf\xa3|RIFF....AVI ", re.DOTALL
        ).match,
        "of a video",
        "use hihlandmark video, or hihlandmark.track",
    ),
)
"""How files start that Pillow does not read by itself, the name of the format, and advice."""


@cache
def readable_formats() -> list[str]:
    """Those of `IMAGE_FORMATS` that Pillow and its installed plug-ins read."""
    Image.init()
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        import_module("pillow_jxl")  # registers itself
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def _decode(
    image: Image.Image,
    source: str,
    white: float | None,
    max_pixels: int,
    reduce_above: float,
    file: IO[bytes] | None = None,
) -> ReducedImage:
    """Pixels of a PIL image, upright.

    ``file``: where the image was identified; None for a user's PIL image.
    """
    width, height = image.size
    if width * height == 0:
        raise ImageError(f"{source} is empty: it has {width} x {height} pixels")
    factor = next((k for k in (1, 2, 4) if width * height <= reduce_above * k * k), 8)
    with _image_errors(image, source, file):
        cost = _cost(image, file, factor)
        if image.format == "JPEG2000" and math.isfinite(reduce_above):
            while factor < 8 and _excess(cost, max_pixels):
                factor *= 2
                cost = _cost(image, file, factor)
    _check_cost(image, cost, source, max_pixels)
    with _memory.reserve(cost.memory):
        decoded_factor = _reduce_while_decoding(image, file, factor) if file is not None else 1
        pixels = _pixels(image, source, white, file)
        is_turned = decoded_factor > 1 and _orientation(image) >= 5
        del image  # which takes as much memory as the pixels
        pixels = _to_rgb(pixels)
        size = pixels.shape[1], pixels.shape[0]
        if decoded_factor > 1:
            size = (height, width) if is_turned else (width, height)
        if factor > decoded_factor:
            pixels = _reduce(pixels, factor // decoded_factor)
        return ReducedImage(pixels, factor, size)


@contextmanager
def _image_errors(image: Image.Image, source: str, file: IO[bytes] | None) -> Iterator[None]:
    """Raise `ImageError` for what Pillow raises when it reads the image."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # as in _identify; also MemoryError
        opened = getattr(image, "fp", None)
        if file is None and (opened is None or opened.closed):
            message = f"{source} is closed: pass it before it or its file is closed"
        else:
            message = f"{source} is truncated or damaged: {error or type(error).__name__}"
        raise ImageError(message) from error


def _cost(image: Image.Image, file: IO[bytes] | None, factor: int) -> DecodingCost:
    """The cost of decoding a file, or of a PIL image, which may be decoded already."""
    if file is not None:
        return decoding_cost(image, file, factor)
    opened = getattr(image, "fp", None)
    return decoding_cost(image, None if opened is None or opened.closed else opened)


def _check_cost(
    image: Image.Image | Header, cost: DecodingCost, source: str, max_pixels: int
) -> None:
    """Raise `ImageError` for an image that is too large, or takes too long or much memory."""
    size = f"{image.width} x {image.height} pixels"
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{source} has {size}, more than max_pixels={max_pixels}: "
            "raise the limit if you trust it"
        )
    if excess := _excess(cost, max_pixels):
        raise ImageError(
            f"{source} is a {image.format} image of {size} that {excess}: save it as PNG or JPEG, "
            f"or raise max_pixels above {max(max_pixels, MAX_PIXELS)} if you trust it"
        )


def _excess(cost: DecodingCost, max_pixels: int) -> str:
    """What about the cost is beyond the limits, or an empty string."""
    scale = max(max_pixels / MAX_PIXELS, 1)
    if cost.scans > MAX_SCANS:
        return f"has more than {MAX_SCANS} scans"
    if cost.seconds > MAX_SECONDS * scale:
        return f"would take {cost.seconds:.0f} seconds of CPU time to decode"
    if cost.memory > MAX_MEMORY * scale:
        return f"would take {cost.memory / 1e9:.1f} GB of memory to decode"
    return ""


def _reduce_while_decoding(image: Image.Image, file: IO[bytes], factor: int) -> int:
    """Let an image be decoded at a lower resolution where its format allows."""
    if image.format == "JPEG2000":
        return reduce_jpeg2000(image, file, factor)
    width, height = image.size
    if factor > 1:
        image.draft(image.mode, (width // factor, height // factor))  # reduces JPEG only
    return factor if image.size != (width, height) else 1


def _pixels(
    image: Image.Image, source: str, white: float | None, file: IO[bytes] | None
) -> NDArray[np.uint8]:
    """Decode a PIL image into upright pixels (H, W, 1..4)."""
    has_16_bits = ";16" in str(getattr(image, "tile", ""))  # the mode on file
    with _image_errors(image, source, file):
        is_large = _pillow_limit.forbids(image.width * image.height)
        with _pillow_limit if is_large else nullcontext():
            image.load()
            upright = _upright(image)
            size = upright.height, upright.width
            pixels = _map_rows(lambda *rows: np.array(_plain_mode(_rows(upright, *rows))), *size)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if image.mode in WHITE_OF_WIDE_MODE:
        return _scale_to_uint8(pixels, white or WHITE_OF_WIDE_MODE[image.mode], source)
    if has_16_bits and 0 < pixels.max() < 16:  # Pillow keeps the upper 8 bits of colors
        _log.warning(
            "%s is almost black: its values use at most 12 of 16 bits; if it should not be, read it"
            " with cv2.IMREAD_UNCHANGED and pass the array with its real white",
            source,
        )
    return pixels


def _map_rows(convert: Callable[[int, int], NDArray[Any]], height: int, width: int) -> NDArray[Any]:
    """Join what ``convert(top, bottom)`` returns for blocks of rows, so that copies are small."""
    step = max(BLOCK_PIXELS // width, 1)
    if height <= step:
        return convert(0, height)
    first = convert(0, step)
    joined = np.empty((height, *first.shape[1:]), first.dtype)
    joined[:step] = first
    for top in range(step, height, step):
        joined[top : top + step] = convert(top, min(top + step, height))
    return joined


def _rows(image: Image.Image, top: int, bottom: int) -> Image.Image:
    is_whole = bottom - top == image.height
    return image if is_whole else image.crop((0, top, image.width, bottom))


def _reduce(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means of squares of pixels; an incomplete row or column at the end is left out."""
    height, width = (max(side // factor, 1) for side in pixels.shape[:2])
    whole = pixels[: height * factor, : width * factor]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation to a loaded image; Pillow does so itself for TIFF."""
    transpose = UPRIGHT_TRANSPOSE.get(_orientation(image))
    return image if transpose is None else image.transpose(transpose)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata do not matter to the pixels
        return 1
    return orientation if orientation in UPRIGHT_TRANSPOSE else 1


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
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


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
    is_as_wanted = name == "uint8" and white == 255
    # Of such images only almost black ones are worth a word; a few pixels tell most of the others.
    if not (is_as_wanted and pixels[::64, ::64].max() > 1):
        _check_values(pixels, white, source)
    if is_as_wanted:
        return pixels

    def scale(top: int, bottom: int) -> NDArray[np.uint8]:
        scaled = np.multiply(pixels[top:bottom], 255 / white, dtype=np.float32)
        return np.rint(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8)

    return _map_rows(scale, *pixels.shape[:2])


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
    if 0 < high <= white / (16 if white > 255 else 255):  # 16: 12 bits in 16
        message = f"{source} is almost black: its values end at {high:g}, but white is {white:g}"
        if is_float and white > 1 and high <= white / 255:
            raise ImageError(f"{message}; if the range is 0..1, pass white=1")
        _log.warning("%s; if it should not be, pass its real white=...", message)


def _to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 1..4) gray, gray and alpha, RGB or RGBA as RGB over white, contiguous."""
    if pixels.shape[-1] in (2, 4):
        pixels, alpha = pixels[..., :-1], pixels[..., -1:]
        # Screen capture APIs leave the fourth byte at 0; an invisible image is never meant.
        if alpha.any() and alpha.min() < 255:
            pixels = _map_rows(
                lambda *rows: _over_white(pixels[slice(*rows)], alpha[slice(*rows)]),
                *pixels.shape[:2],
            )
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return np.ascontiguousarray(pixels, np.uint8)


def _over_white(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    plain = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    image = Image.fromarray(np.ascontiguousarray(plain))
    white = Image.new(image.mode, image.size, "white")
    white.paste(image, mask=Image.fromarray(np.ascontiguousarray(alpha[..., 0])))
    return np.array(white).reshape(pixels.shape)
