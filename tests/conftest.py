"""Fixtures that several test files share: a real image, and detectors with the packaged weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import write_data
from hub_server import Hub, local_hub
from numpy.typing import NDArray
from skimage.data import astronaut as skimage_astronaut

from hihlandmark import Detector
from hihlandmark.layouts import LAYOUTS

# Converting every network of every test would take minutes; test_runtimes.py does it.
os.environ["HIHLANDMARK_RUNTIME"] = "torch"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of CUDA without a device; mark tests that run the packaged networks."""
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if {"detector", "detector_of"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("network")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes that tests start: sums in another order would give other weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature data sets, a copy for each file of tests."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with local_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture(scope="session")
def astronaut() -> NDArray[np.uint8]:
    """The image (512, 512, 3) of one face, some 90 pixels wide."""
    image = skimage_astronaut()
    image.flags.writeable = False
    return image


@pytest.fixture(scope="session")
def detector_of() -> Callable[[int], Detector]:
    """Points of a layout -> the detector with the packaged weights, made once."""
    return cache(lambda layout: Detector(layout, device="cpu", precision="fp32"))


@pytest.fixture(scope="session")
def detector(detector_of: Callable[[int], Detector]) -> Detector:
    """The detector of 68 points at its quickest: one crop a face, no mirror image."""
    return detector_of(68).with_options(refine=0, flip_test=False)


@pytest.fixture
def own_layouts() -> Iterator[None]:
    """Layouts that a test registers are forgotten after it."""
    before = dict(LAYOUTS)
    yield
    LAYOUTS.clear()
    LAYOUTS.update(before)
