"""`make fuzz`: damaged files of every kind must be read or give an error of this package.

Not a test module: it runs for FUZZ_SECONDS (300) with new random inputs each time, prints how many
of each kind were tried, and fails with a minimal example.
"""

from __future__ import annotations

import faulthandler
import io
import itertools
import json
import os
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from builders import encoded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from hihlandmark.datasets import read_faces
from hihlandmark.errors import HihlandmarkError, ImageError, WeightsError
from hihlandmark.image import load_image, readable_formats
from hihlandmark.io import find_images
from hihlandmark.weights.find import find_weights, packaged_cards

HANG = 60  # seconds that one input may take
tried: Counter[str] = Counter()


def encode(format: str, **options: Any) -> bytes:
    x = np.arange(40 * 30 * 3).reshape(40, 30, 3) % 251
    return encoded(x.astype(np.uint8), format, **options)


def encoded_images() -> list[bytes]:
    images = [encode("JPEG", progressive=True), encode("PNG", optimize=True)]
    for format in readable_formats():
        with suppress(OSError, ValueError, KeyError):  # formats that Pillow does not write
            images.append(encode(format))
    return images


def damaged(files: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the files with bytes replaced, removed or repeated at up to five places."""
    place = st.floats(0, 1)
    change = st.tuples(place, st.integers(0, 40), st.binary(max_size=12), st.integers(1, 3))

    def apply(file: bytes, changes: list[tuple[float, int, bytes, int]]) -> bytes:
        for at, length, new, times in changes:
            start = int(at * len(file))
            file = file[:start] + new * times + file[start + length :]
        return file

    return st.builds(apply, st.sampled_from(files), st.lists(change, max_size=5))


def count(kind: str) -> None:
    tried[kind] += 1
    faulthandler.dump_traceback_later(HANG, exit=True)


@given(damaged(encoded_images()) | st.binary(max_size=300))
def images(data: bytes) -> None:
    count("images")
    with suppress(ImageError):
        found = load_image(data, max_pixels=10**6)
        assert found.dtype == np.uint8
        assert found.shape[2] == 3


dtypes = st_numpy.scalar_dtypes() | st.just(np.dtype(object))
shapes = st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


@given(
    st_numpy.arrays(dtypes, shapes),
    st.sampled_from(["rgb", "bgr"]),
    st.sampled_from(["first", "last"]),
    st.none() | st.floats(1e-3, 1e6),
)
def arrays(array: Any, color: Any, channels: Any, white: float | None) -> None:
    count("arrays")
    with suppress(ImageError):
        found = load_image(array, color=color, channels=channels, white=white)
        assert found.dtype == np.uint8
        assert found.shape[2] == 3


def packed(suffix: str) -> list[bytes]:
    """Archives or tables with two images."""
    members = {"a.png": encode("PNG"), "b/c.jpg": encode("JPEG")}
    made = []
    for mode in {".zip": (0, 8, 12, 14), ".tar": ("w", "w:gz", "w:xz", "w:bz2")}.get(suffix, (0,)):
        buffer = io.BytesIO()
        if suffix == ".zip":
            with zipfile.ZipFile(buffer, "w", int(mode)) as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        elif suffix == ".tar":
            with tarfile.open(fileobj=buffer, mode=str(mode)) as tar:  # type: ignore[call-overload]
                for name, content in members.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        else:
            pyarrow.parquet.write_table(pyarrow.table({"image": list(members.values())}), buffer)
        made.append(buffer.getvalue())
    return made


def read_all(path: Path) -> None:
    # A damaged list may name URLs and endless globs, which are not what is tried here.
    for source in itertools.islice(find_images([str(path)], max_bytes=10**6), 20):
        with suppress(ImageError):
            source.load(max_pixels=10**6)


def archive_test(suffix: str) -> Callable[[], None]:
    @given(damaged(packed(suffix)))
    def archives(data: bytes) -> None:
        count(f"archives {suffix}")
        path = folder / f"archive{suffix}"
        path.write_bytes(data)
        read_all(path)

    return archives


@given(damaged([b"a.jpg\n\xef\xbb\xbfb.png\n@list.txt\nc/*.jpg\n", "ñ.jpg\r\n\0\n".encode()]))
def lists(data: bytes) -> None:
    count("lists")
    path = folder / "list.txt"
    path.write_bytes(data.replace(b"://", b""))
    for source in itertools.islice(find_images([f"@{path}"]), 20):
        with suppress(ImageError):
            source.load()


odd = st.sampled_from(
    [None, -1, 0, 1e308, float("nan"), float("inf"), "", "x" * 5000, [], {}, True]
)
json_values = st.recursive(odd | st.integers() | st.text(max_size=9), st.lists, max_leaves=5)


def change_json(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    """Replace a value somewhere in a JSON object by an odd one."""
    while True:
        keys = list(value if isinstance(value, dict) else range(len(value)))
        key = draw(st.sampled_from(keys))
        if isinstance(value[key], (dict, list)) and value[key] and draw(st.booleans()):
            value = value[key]
        else:
            value[key] = draw(json_values)
            return


@given(st.data())
def cards(data: st.DataObject) -> None:
    count("cards")
    card = json.loads(data.draw(st.sampled_from(sorted(packaged_cards().values()))).read_text())
    change_json(card, data.draw)
    path = folder / "card.json"
    text = json.dumps(card).encode()
    path.write_bytes(data.draw(damaged([text])) if data.draw(st.booleans()) else text)
    (folder / "card.safetensors").write_bytes(b"")
    with suppress(WeightsError):
        find_weights(path)


POINTS = [[float(x), float(x) / 2] for x in range(29)]
LABEL = {
    "image": "a.png",
    "points": POINTS,
    "split": "train",
    "rect": [0, 0, 9, 9],
    "visible": None,
}


@given(st.data())
def labels(data: st.DataObject) -> None:
    count("labels")
    place = folder / "labels"
    place.mkdir(exist_ok=True)
    (place / "a.png").write_bytes(encode("PNG"))
    lines = []
    for number in range(3):
        label = json.loads(json.dumps(LABEL | {"points": POINTS, "image": "a.png"}))
        if number:
            change_json(label, data.draw)
        lines.append(json.dumps(label))
    text = "\n".join(lines).encode()
    text = data.draw(damaged([text])) if data.draw(st.booleans()) else text
    (place / "annotations.jsonl").write_bytes(text)
    with suppress(HihlandmarkError):
        for face in read_faces(place, "train"):
            face.load_image()


def main() -> None:
    seconds = float(os.environ.get("FUZZ_SECONDS", "300"))
    end = time.monotonic() + seconds
    archives = [archive_test(suffix) for suffix in (".zip", ".tar", ".parquet")]
    kinds = [images, arrays, *archives, lists, cards, labels]
    if chosen := sys.argv[1:]:
        kinds = [kind for kind in kinds if kind.__name__ in chosen]
    every = settings(
        max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    warnings.simplefilter("ignore")
    for kind in itertools.cycle([every(kind) for kind in kinds]):
        if time.monotonic() > end:
            break
        kind()
    faulthandler.cancel_dump_traceback_later()
    for name, number in sorted(tried.items()):
        print(f"{name}: {number}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        main()
