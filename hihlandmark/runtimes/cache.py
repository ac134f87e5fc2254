"""Networks converted at first use, and kept in the Hugging Face cache for the next time."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from hihlandmark.runtimes.base import FileFormat
from hihlandmark.runtimes.graph import PixelGraph

logger = logging.getLogger(__name__)


def converted_file(file: FileFormat, make_graph: Callable[[], PixelGraph], key: str) -> Path:
    """The file of a converted graph, written unless an earlier conversion is kept.

    Args:
        file: the format.
        make_graph: makes the graph; called only where it has to be converted.
        key: distinguishes this graph from others.
    """
    # Another release of the converter may write other files.
    versions = [version(name) for name in ("hihlandmark", "torch", file.package)]
    digest = hashlib.sha256(" ".join([key, *versions]).encode()).hexdigest()[:16]
    folder = _cache_folder(file.package)
    path = folder / f"{digest}{file.suffix}"
    if path.exists():
        return path
    logger.info("converting the network for %s, once: %s", file.package, path)
    # Under another name until it is complete: another process may look for it, or kill this one.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file.write(make_graph(), Path(temporary) / path.name)
        # OpenVINO's weights lie beside the .xml, which must not be found before them.
        parts = Path(temporary).iterdir()
        for part in sorted(parts, key=lambda each: each.suffix == file.suffix):
            part.replace(folder / part.name)
    return path


def _cache_folder(package: str) -> Path:
    """Where converted networks are kept; a temporary folder where the cache is not writable."""
    from huggingface_hub import cached_assets_path

    try:
        folder = cached_assets_path("hihlandmark", namespace="converted", subfolder=package)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        logger.warning("converted networks cannot be kept: %s", error)
        return Path(tempfile.mkdtemp(prefix="hihlandmark-"))


@contextlib.contextmanager
def without_tracer_warnings() -> Iterator[None]:
    """Silence warnings about shapes that become constants: only the number of crops varies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
