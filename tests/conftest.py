"""Fixtures that several test files share: a real photo, and detectors with the packaged weights.

All errors of the package that are made while tests run are noted, for `test_errors.py`.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from error_places import PACKAGE
from miniature import write_data
from numpy.typing import NDArray
from skimage.data import astronaut as skimage_astronaut

from hihlandmark import Detector
from hihlandmark.errors import HihlandmarkError
from hihlandmark.training.datasets.reading import BadSample

# Converting every network of every test would take minutes; test_runtimes.py does it.
os.environ["HIHLANDMARK_RUNTIME"] = "torch"

ERRORS_MADE: dict[tuple[str, int], set[str]] = defaultdict(set)
"""File in the package and line -> messages of the errors made there, in this process."""


def _note_errors(kind: type[Exception]) -> None:
    make = kind.__init__

    def noting(self: Exception, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        caller = sys._getframe(1)
        file = Path(caller.f_code.co_filename)
        if arguments and file.is_relative_to(PACKAGE):
            place = file.relative_to(PACKAGE).as_posix(), caller.f_lineno
            ERRORS_MADE[place].add(str(arguments[0]))

    kind.__init__ = noting  # type: ignore[method-assign]


for _kind in (HihlandmarkError, BadSample, typer.BadParameter):
    _note_errors(_kind)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that all errors were raised comes last."""
    items.sort(key=lambda item: item.name == "test_every_error_was_raised")


@pytest.fixture(scope="session")
def errors_made(request: pytest.FixtureRequest) -> dict[tuple[str, int], set[str]]:
    """The errors of a whole session; skips where only some of the tests were asked for."""
    config, asked = request.config, request.config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    options = ("keyword", "ignore", "ignore_glob", "deselect", "lf")
    left_out = [name for name in options if getattr(asked, name, None)]
    if not whole or left_out or asked.markexpr not in ("", "not slow and not wheel"):
        pytest.skip("only some of the tests ran, so that errors of the others were not raised")
    return ERRORS_MADE


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


@pytest.fixture(scope="session")
def astronaut() -> NDArray[np.uint8]:
    """The photo (512, 512, 3) of one face, some 90 pixels wide."""
    image = skimage_astronaut()
    image.flags.writeable = False
    return image


@pytest.fixture(scope="session")
def detector_of() -> Callable[[int], Detector]:
    """Points of a layout -> the detector with the packaged weights, made once."""
    return cache(lambda layout: Detector(layout, device="cpu"))


@pytest.fixture(scope="session")
def detector(detector_of: Callable[[int], Detector]) -> Detector:
    """The detector of 68 points at its quickest: one crop a face, no mirror image."""
    quick = copy(detector_of(68))
    quick.refine, quick.mirror = 0, False
    return quick
