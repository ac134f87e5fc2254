"""What decoding an image file takes, estimated from its header before anything is decoded.

Limits are applied in `image`. Figures are CPU seconds of one core of 2.9 GHz and peak memory of
`load_image`, for flat images, noise and files made to be slow, with Pillow 12.3.
"""

from __future__ import annotations

import io
import math
import re
from contextlib import suppress
from typing import IO, Any, NamedTuple

from PIL import Image

MAX_SCANS = 100  # of a JPEG; libtiff has the same limit

# Of JPEG (ITU-T T.81, table B.1), except those without a segment: restarts, and 00 after data ff.
JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")


_BLOCK = 2**16
"""Bytes of a file that are read at once."""


class DecodingCost(NamedTuple):
    """What decoding takes.

    Attributes:
        seconds: of one core.
        memory: peak, in bytes.
        scans: of a JPEG, at most ``MAX_SCANS + 1``; 0 for other formats.
    """

    seconds: float
    memory: float
    scans: int = 0


class _Rate(NamedTuple):
    per_megapixel: float  # seconds
    per_megabyte: float  # seconds, of the file: what noise takes in addition to a flat image
    memory: float  # bytes per pixel


RATES = {
    "JPEG": _Rate(0.02, 0.02, 13),
    "WEBP": _Rate(0.05, 0.03, 16),
    "AVIF": _Rate(0.04, 0.08, 18),
    "HEIF": _Rate(0.04, 0.08, 12),
    "JXL": _Rate(0.04, 0.1, 20),
    "JPEG2000": _Rate(0.2, 0.08, 24),
}
OTHER_RATE = _Rate(0.04, 0, 12)
PYTHON_RATE = _Rate(2, 0, 12)  # formats that Pillow decodes in Python
SECONDS_PER_SCAN = 0.0007  # per megapixel of a JPEG
# As how many pixels a part of a JPEG 2000 counts.
BLOCK_PIXELS, PRECINCT_PIXELS, TILE_PIXELS = 20, 80, 200  # per code block, precinct, tile's level


class Header(NamedTuple):
    """What `decoding_cost` uses of an image."""

    width: int
    height: int
    format: str


def decoding_cost(
    image: Image.Image | Header, file: IO[bytes] | None, factor: int = 1
) -> DecodingCost:
    """Estimate what it takes to decode an image that Pillow has identified.

    Args:
        image: not decoded yet.
        file: where it was identified; its position is kept. None if it is decoded already.
        factor: by which `reduce_jpeg2000` is to reduce the image: 1, 2, 4 or 8.
    """
    megapixels = image.width * image.height / 1e6
    if file is None:
        return DecodingCost(0, OTHER_RATE.memory * megapixels * 1e6)
    position = file.tell()
    file.seek(0, io.SEEK_END)
    megabytes, scans, reduced = file.tell() / 1e6, 0, 1
    rate = RATES.get(image.format or "", OTHER_RATE)
    for codec, _, offset, *_ in getattr(image, "tile", ()):
        if codec in Image.DECODERS:
            rate = PYTHON_RATE
        elif codec == "jpeg":
            scans = _count_scans(file, offset)
    if image.format == "JPEG2000":
        structure = _Jpeg2000.read(file)
        reduced = min(factor, 1 << structure.levels)
        megapixels *= structure.weight / reduced**2
    file.seek(position)
    seconds = rate.per_megapixel * megapixels + rate.per_megabyte * megabytes / reduced
    seconds += SECONDS_PER_SCAN * scans * megapixels
    return DecodingCost(seconds, rate.memory * megapixels * 1e6, scans)


def jpeg_xl_header(file: IO[bytes]) -> Header | None:
    """Size of a JPEG XL (ISO/IEC 18181-1 and -2), which its plug-in decodes when it is opened.

    Returns:
        None if the file is none. The position of the file is kept.
    """
    position = file.tell()
    file.seek(0)
    start = file.read(12)
    if start == b"\0\0\0\x0cJXL \r\n\x87\n":
        while len(box := file.read(16)) == 16:
            size, kind = int.from_bytes(box[:4], "big"), box[4:8]
            if kind in (b"jxlc", b"jxlp"):
                skipped = 8 * (size == 1) + 4 * (kind == b"jxlp")
                file.seek(skipped - 8, io.SEEK_CUR)
                start = file.read(12)
                break
            if size == 1:
                size = int.from_bytes(box[8:], "big")
            if size < 8:
                break
            file.seek(size - 16, io.SEEK_CUR)
    file.seek(position)
    if start[:2] != b"\xff\x0a":
        return None
    bits = int.from_bytes(start[2:], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    is_small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if is_small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratio = take(3)
    width = int(height * (0, 1, 1.2, 4 / 3, 1.5, 16 / 9, 1.25, 2)[ratio]) if ratio else side()
    return Header(width, height, "JXL")


def reduce_jpeg2000(image: Any, file: IO[bytes], factor: int) -> int:
    """Let a JPEG 2000 be decoded without its highest resolutions.

    Returns:
        by which factor: at most ``factor``, and less where the file has not enough resolutions.
    """
    position = file.tell()
    levels = min(_Jpeg2000.read(file).levels, int(math.log2(factor)))
    file.seek(position)
    if levels:
        image.reduce = levels
        # OpenJPEG rounds sizes up and Pillow to the nearest; of multiples they make the same.
        image._size = tuple(-(-side >> levels) << levels for side in image.size)
    return 1 << levels


def _count_scans(file: IO[bytes], start: int) -> int:
    """Scans of a JPEG, at most ``MAX_SCANS + 1``; their data hold no marker but restarts."""
    position = start + 2  # after the start of the image
    scans = 0
    while True:
        file.seek(position)
        data = file.read(_BLOCK)
        at = 0
        while found := JPEG_MARKER.search(data, at):
            length = data[found.end() : found.end() + 2]  # of the segment
            if found[0] == b"\xff\xd9" or scans > MAX_SCANS:  # end of the image
                return scans
            if len(length) < 2:
                break
            scans += found[0] == b"\xff\xda"
            at = found.end() + int.from_bytes(length, "big")
        if len(data) < _BLOCK:
            return scans
        # A marker may begin with the last byte; a segment may end after it.
        position += found.start() if found else max(at, len(data) - 1)


class _Jpeg2000(NamedTuple):
    """The structure of a JPEG 2000 by its main header (ITU-T T.800, annex A)."""

    levels: int = 0  # by which its resolution can be halved
    weight: float = 1.0  # cost of a pixel with its share of tiles, precincts and code blocks

    @classmethod
    def read(cls, file: IO[bytes]) -> _Jpeg2000:
        file.seek(0)
        head = file.read(_BLOCK)
        start = head.find(b"\xff\x4f\xff\x51")  # the first two markers of a code stream
        if start < 0:
            return cls()
        with suppress(IndexError):  # damaged, which decoding will report
            size = head[start + 4 :]
            tile = math.prod(int.from_bytes(size[at : at + 4], "big") for at in (20, 24))
            components = int.from_bytes(size[36:38], "big")
            position = start + 2
            while head[position + 1] not in (0x52, 0x90):  # COD, start of the first tile
                position += 2 + int.from_bytes(head[position + 2 : position + 4], "big")
            style = head[position + 4 :]
            if head[position + 1] == 0x52:
                levels = style[5]
                tiles = TILE_PIXELS * (levels + 1) / max(tile, 1)
                return cls(levels, 1 + tiles + components * _parts_per_pixel(style))
        return cls()


def _parts_per_pixel(style: bytes) -> float:
    """Cost of the precincts and code blocks of a component, per pixel.

    ``style``: a COD segment from its Scod on.
    """
    levels, block = style[5], (style[6] + 2, style[7] + 2)  # exponents of 2
    cost = 0.0
    for level in range(levels + 1):  # from the lowest resolution
        precinct = (15, 15)
        if style[0] & 1:
            precinct = style[10 + level] & 15, style[10 + level] >> 4
        band = [max(each - (level > 0), 0) for each in precinct]
        area = 2.0 ** sum(min(pair) for pair in zip(block, band, strict=True))
        share = 4.0 ** (level - levels)  # of the pixels
        cost += share * (BLOCK_PIXELS / area + PRECINCT_PIXELS / 2.0 ** sum(precinct))
    return cost
