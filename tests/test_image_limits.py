"""Limits on decoding and downloading: small files that would take minutes or gigabytes."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import encoded
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import Detector, ImageError, load_image
from hihlandmark.cli import app
from hihlandmark.decoding_cost import jpeg_xl_header
from hihlandmark.errors import ConfigurationError
from hihlandmark.image import LARGE_PIXELS, MAX_MEMORY, _Memory, load_reduced
from hihlandmark.io import find_images


def run_limited(code: str, *arguments: object, seconds: float = 60) -> Any:
    """The JSON that a program prints in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# --- decoding ---------------------------------------------------------------------------------


def rle_bmp(side: int) -> bytes:
    """A gray image, run-length encoded: 29 kB for 49 megapixels."""
    palette = b"".join(bytes([gray, gray, gray, 0]) for gray in range(256))
    row = b"\xff\x07" * (side // 255) + bytes([side % 255, 7, 0, 0])
    body, start = row * side + b"\0\1", 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + palette + body


def qoi(side: int) -> bytes:
    runs = b"\xc0" + b"\xfd" * (side * side // 62) + b"\xc0" * (side * side % 62)
    return b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + runs + bytes(7) + b"\1"


def plain_ppm(side: int) -> bytes:
    return b"P3 %d %d 255\n" % (side, side) + b"9 " * (3 * side * side)


def deep_ppm(side: int) -> bytes:
    return b"P6 %d %d 1023\n" % (side, side) + b"\1\2" * (3 * side * side)


@pytest.mark.parametrize("make", [rle_bmp, qoi, plain_ppm, deep_ppm])
def test_formats_decoded_in_python_are_limited_to_4_megapixels(
    make: Callable[[int], bytes],
) -> None:
    assert load_image(make(50)).shape == (50, 50, 3)
    # The header decides, so the body need not be there.
    header = make(50)
    for size in ("<ii", ">ii"):
        header = header.replace(struct.pack(size, 50, 50), struct.pack(size, 2100, 2100))
    header = header.replace(b" 50 50 ", b" 2100 2100 ")
    with pytest.raises(ImageError, match="seconds"):
        load_image(header)
    with pytest.raises(ImageError, match="seconds"):
        load_image(Image.open(io.BytesIO(header)))


def with_scans(image: bytes, count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    last = image[image.rindex(b"\xff\xda") : -2]
    return image[:-2] + last * count + b"\xff\xd9"


def test_jpeg_files_are_limited_to_100_scans() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = encoded(Image.fromarray(noise), "JPEG", progressive=True)
    scans = image.count(b"\xff\xda")
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 200  # not a scan
    for allowed in (
        with_scans(image, 100 - scans),
        with_scans(image, 0) + b"\xff\xda" * 500,  # after the end, as a video in a motion photo
        encoded(Image.fromarray(noise), "JPEG", exif=exif, comment=b"\xff\xda" * 200),
        encoded(Image.fromarray(noise), "JPEG", restart_marker_blocks=1),
    ):
        assert load_image(allowed).shape == (64, 64, 3)
    for count in (101 - scans, 5000):
        many = with_scans(image, count)
        for source in (many, io.BytesIO(many), Image.open(io.BytesIO(many))):
            with pytest.raises(ImageError, match="scans"):
                load_image(source)


def test_segments_of_a_jpeg_are_read_in_blocks() -> None:
    class Counted(io.BytesIO):
        bytes_read = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.bytes_read += len(data)
            return data

    image = encoded(Image.new("RGB", (64, 64)), "JPEG")
    padded = image[:2] + b"\xff\xfe\x00\x02" * 50_000 + image[2:]
    file = Counted(padded)
    assert load_image(file).shape == (64, 64, 3)
    assert file.bytes_read < 20 * len(padded)


def jpeg2000(side: int, **options: Any) -> bytes:
    """A flat JPEG 2000; a large one is the header of a small one, which decides."""
    small = encoded(Image.new("RGB", (64, 64)), "JPEG2000", no_jp2=True, **options)
    if side == 64:
        return small
    tile = options.get("tile_size", (side, side))
    at = small.index(b"\xff\x4f\xff\x51") + 8
    size = struct.pack(">8I", side, side, 0, 0, *tile, 0, 0)
    return small[:at] + size + small[at + len(size) :]


def webp(side: int) -> bytes:
    small = encoded(Image.new("RGB", (64, 64)), "WEBP", lossless=True)
    at = small.index(b"VP8L") + 9  # 14 bits each
    flags = int.from_bytes(small[at : at + 4], "little") >> 28 << 28
    return small[:at] + struct.pack("<I", flags | side - 1 | side - 1 << 14) + small[at + 4 :]


@pytest.mark.parametrize(
    ("image", "keyword"),
    [
        (jpeg2000(13_000, num_resolutions=1), "seconds"),
        (jpeg2000(7000, num_resolutions=1) + bytes(30_000_000), "seconds"),
        (jpeg2000(5000, num_resolutions=1, codeblock_size=(4, 4)), "seconds"),
        (jpeg2000(9000, num_resolutions=1, precinct_size=(8, 8)), "seconds"),
        (jpeg2000(9000, num_resolutions=1, tile_size=(8, 8)), "seconds"),
        (webp(13_000), "seconds"),
    ],
    ids=["levels", "bytes", "blocks", "precincts", "tiles", "webp"],
)
def test_files_that_take_long_or_much_memory_are_refused(image: bytes, keyword: str) -> None:
    for load in (load_image, load_reduced):
        with pytest.raises(ImageError, match=keyword):
            load(image)
    with pytest.raises(ImageError, match="damaged"):  # all but the header is missing
        load_image(image[:200], max_pixels=10**12)


def test_files_that_take_much_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hihlandmark.image.MAX_MEMORY", 1e5)
    with pytest.raises(ImageError, match="memory"):
        load_image(encoded(Image.new("L", (100, 100)), "PNG"))


@pytest.mark.parametrize("size", [(64, 64), (300, 201), (9000, 20), (400, 300), (40, 9000)])
def test_size_of_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int]) -> None:
    pytest.importorskip("pillow_jxl")
    exif = Image.Exif()
    exif[0x010E] = "a" * 70_000
    for options in ({}, {"exif": exif.tobytes()}, {"use_container": True}):
        data = encoded(Image.new("RGB", size), "JXL", effort=1, **options)
        assert jpeg_xl_header(io.BytesIO(data)) == (*size, "JXL")
        with pytest.raises(ImageError, match="max_pixels=100"):
            load_image(data, max_pixels=100)
        assert load_image(data).shape[:2] == size[::-1]


def test_scans_of_a_large_jpeg_count() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = with_scans(encoded(Image.fromarray(noise), "JPEG", progressive=True), 50)
    at = image.index(b"\xff\xc2") + 5
    for side, keyword in ((14_000, "seconds"), (10_000, "damaged")):
        large = image[:at] + struct.pack(">HH", side, side) + image[at + 4 :]
        with pytest.raises(ImageError, match=keyword):
            load_image(large[: -len(large) // 20] if keyword == "damaged" else large)


LIST = """
import json, resource, sys
from concurrent.futures import ThreadPoolExecutor
from hihlandmark.errors import ImageError
from hihlandmark.image import load_reduced

def load(path):
    try:
        return load_reduced(path).pixels.shape
    except ImageError:
        return None

with ThreadPoolExecutor(8) as pool:
    shapes = list(pool.map(load, sys.argv[1:] * 2))
megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([shapes, megabytes]))
"""


@pytest.mark.slow
def test_eight_workers_on_hostile_files_take_at_most_4_gb(tmp_path: Path) -> None:
    flat = Image.new("RGB", (14_000, 14_000), (9, 8, 7))
    files = {
        "large.png": encoded(flat, "PNG"),
        "palette.png": encoded(Image.new("P", flat.size), "PNG"),
        "progressive.jpg": encoded(flat, "JPEG", progressive=True),
        "scans.jpg": with_scans(encoded(flat.resize((900, 900)), "JPEG", progressive=True), 2000),
        "runs.bmp": rle_bmp(7000),
        "runs.qoi": qoi(4000),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    del flat
    shapes, megabytes = run_limited(LIST, *(tmp_path / name for name in files), seconds=300)
    assert shapes == [[7000, 7000, 3]] * 3 + [None] * 3 + [[7000, 7000, 3]] * 3 + [None] * 3
    assert megabytes < 4000


def test_blocks_of_rows_give_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (23, 31, 4), np.uint8)
    images: list[Any] = [Image.fromarray(values[..., :3]), Image.fromarray(values)]
    images += [images[0].convert(mode) for mode in ("L", "P", "CMYK", "YCbCr", "LAB", "1")]
    images += [Image.fromarray(values[..., 0].astype(np.uint16) * 257), values / 255]
    images += [encoded(images[0].quantize(8), "GIF", transparency=0)]
    whole = [load_image(image) for image in images]
    monkeypatch.setattr("hihlandmark.image.BLOCK_PIXELS", 31 * 5)
    for image, expected in zip(images, whole, strict=True):
        np.testing.assert_array_equal(load_image(image), expected)


def test_image_that_is_clear_above_and_opaque_below_stays_white_above() -> None:
    values = np.zeros((4000, 3000, 4), np.uint8)
    values[-1] = 255, 0, 0, 255
    image = load_image(Image.fromarray(values))
    assert image[0].min() == 255
    assert image[-1, 0].tolist() == [255, 0, 0]


# --- reduced images ---------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_files_are_reduced_and_arrays_are_not(
    format: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.linspace(0, 200, 302, dtype=np.uint8)
    image = np.repeat(np.tile(x, (201, 1))[..., None], 3, axis=-1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(image), format, exif=exif)
    full = load_image(data)
    monkeypatch.setattr("hihlandmark.image.LARGE_PIXELS", 4000)
    small, factor, size = load_reduced(data)
    assert factor == 4
    assert size == (full.shape[1], full.shape[0])
    assert abs(small.shape[0] - size[1] / 4) < 1
    assert abs(small.shape[1] - size[0] / 4) < 1
    # The means of 4 x 4 pixels.
    means = full[:200, :200].reshape(50, 4, 50, 4, 3).mean(axis=(1, 3))
    assert np.abs(small[:50, :50] - means).max() < 3
    assert load_reduced(image).factor == 1
    np.testing.assert_array_equal(load_image(data), full)


@pytest.mark.parametrize("size", [(302, 201), (257, 131), (301, 203)])
@pytest.mark.parametrize("resolutions", [1, 2, 6])
def test_large_jpeg_2000_files_are_decoded_at_a_lower_resolution(
    size: tuple[int, int], resolutions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    image = np.stack([x * 0.8, y, (x + y) / 2], axis=-1).astype(np.uint8)
    data = encoded(Image.fromarray(image), "JPEG2000", num_resolutions=resolutions)
    monkeypatch.setattr("hihlandmark.image.LARGE_PIXELS", 4000)
    small, factor, original = load_reduced(data)
    assert factor == 4
    assert original == size
    width, height = size[0] // 4, size[1] // 4
    means = image[: height * 4, : width * 4].reshape(height, 4, width, 4, 3).mean(axis=(1, 3))
    inner = small[2 : height - 2, 2 : width - 2] - means[2:-2, 2:-2]
    assert np.abs(inner).max() < 4
    np.testing.assert_array_equal(load_image(data), image)


def test_jpeg_2000_files_with_much_data_are_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (64, 64), "red"), "JPEG2000")
    monkeypatch.setattr("hihlandmark.image.MAX_SECONDS", 64 * 64 * 0.1 / 1e6)
    assert load_reduced(data).factor == 2
    with pytest.raises(ImageError, match="seconds"):
        load_image(data)


def test_faces_of_a_reduced_image_are_in_pixels_of_the_original(
    astronaut: NDArray[np.uint8], detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = np.repeat(np.repeat(astronaut[:256, 100:356], 2, axis=0), 2, axis=1)
    data = encoded(Image.fromarray(large), "PNG")
    (face,) = detector.predict(data)
    monkeypatch.setattr("hihlandmark.image.LARGE_PIXELS", large.shape[0] * large.shape[1] // 4)
    (reduced,) = detector.predict(data)
    (many,) = next(iter(detector.predict_many([data])))
    (given,) = detector.predict(data, boxes=[face.box])
    for found in (reduced, many, given):
        assert np.abs(found.points - face.points).mean() < 0.01 * (face.box[2] - face.box[0])
        assert np.abs(found.box - face.box).max() < 0.05 * (face.box[2] - face.box[0])
        ratio = np.trace(found.covariance, axis1=1, axis2=2).mean()
        assert 0.5 < ratio / np.trace(face.covariance, axis1=1, axis2=2).mean() < 2
    assert not np.array_equal(reduced.points, face.points), "the image was not reduced"
    assert LARGE_PIXELS == 50_000_000


# --- options ----------------------------------------------------------------------------------


def test_limits_are_options_of_the_detector(
    detector: Detector, astronaut: NDArray[np.uint8]
) -> None:
    for name in ("max_pixels", "max_bytes"):
        for value in (0, float("nan"), "1", None, True):
            with pytest.raises(ConfigurationError, match=name):
                Detector(**{name: value})
    limited = detector.with_options(max_pixels=100)
    with pytest.raises(ImageError, match="max_pixels"):
        limited.predict(Image.fromarray(astronaut))
    assert limited.predict(astronaut)  # it is in memory already


def test_limits_are_options_of_the_commands(tmp_path: Path, astronaut: NDArray[np.uint8]) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(astronaut).save(path)
    for command in ("predict", "demo"):
        done = CliRunner().invoke(
            app, [command, str(path), "--out", str(tmp_path / command), "--max-pixels", "1000"]
        )
        assert done.exit_code != 0
        assert "max_pixels" in done.output + str(done.exception)


def test_members_of_archives_and_tables_obey_max_bytes(tmp_path: Path) -> None:
    import tarfile
    import zipfile

    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    small, large = encoded(Image.new("L", (4, 4)), "PNG"), bytes(50_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", large)
        archive.writestr("2.png", small)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name, content in (("1.png", large), ("2.png", small)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    table = pyarrow.table({"image": [large, small]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.zip", "a.tar.gz", "a.parquet"):
        first, second = find_images([str(tmp_path / name)], max_bytes=10_000)
        assert "max_bytes" in str(first.problem)
        assert second.load().shape == (4, 4, 3)


# --- downloads --------------------------------------------------------------------------------

ENDLESS = {
    "silence": (b"", b"", 0.02),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: /moved\r\n\r\n", bytes(65_536), 0.0),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"a", 0.02),
    "error": (b"HTTP/1.1 500 No\r\n\r\n", bytes(65_536), 0.0),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0", 0.02),
    "body": (b"HTTP/1.1 200 OK\r\n\r\n", bytes(65_536), 0.0),
}


@pytest.fixture
def endless() -> Iterator[Callable[[str], tuple[str, list[int]]]]:
    """Starts servers that never stop to answer; gives their URL and a list of bytes sent."""
    listeners = []

    def start(kind: str) -> tuple[str, list[int]]:
        listener, sent = socket.create_server(("127.0.0.1", 0)), [0]
        listeners.append(listener)

        def answer(client: socket.socket) -> None:
            first, again, pause = ENDLESS[kind]
            with suppress(OSError), client:
                client.recv(4096)
                client.sendall(first)
                while True:
                    sent[0] += client.send(again)
                    time.sleep(pause)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=answer, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/a.jpg", sent

    yield start
    for each in listeners:
        each.close()


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_answers_end_at_the_deadline(
    kind: str, endless: Callable[[str], tuple[str, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url, sent = endless(kind)
    start = time.monotonic()
    with pytest.raises(ImageError, match=re.escape(url)):
        load_image(url, timeout=0.5, max_bytes=10_000_000)
    assert time.monotonic() - start < 2
    time.sleep(0.3)
    running = [each.name for each in threading.enumerate() if "download" in each.name]
    assert running == []
    before = sent[0]
    time.sleep(0.2)
    assert sent[0] == before
    assert before < 100_000_000  # buffers of the system, for ten redirects at most


def test_tls_handshake_that_never_ends_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(ImageError, match="timeout"):
            load_image(f"https://127.0.0.1:{listener.getsockname()[1]}/a.jpg", timeout=0.3)
        client, _ = listener.accept()
        client.settimeout(5)
        while client.recv(4096):  # the handshake, then the end
            pass
        client.close()


def test_memory_is_free_again_after_any_reservations() -> None:
    memory = _Memory()
    sizes = (np.random.default_rng(0).random(200) * 1e8).tolist()
    with ExitStack() as stack:
        for size in sizes[:20]:
            stack.enter_context(memory.reserve(size))
    for size in sizes:
        with memory.reserve(size), memory.reserve(MAX_MEMORY - 2e8):
            pass
    assert memory._used == 0, "an image that takes all of it would wait for ever"
