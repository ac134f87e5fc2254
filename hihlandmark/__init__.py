"""Sub-pixel face landmarks with Heatmap-in-Heatmap networks.

>>> from hihlandmark import Detector
>>> faces = Detector().predict("image.jpg")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hihlandmark.errors import (
    ConfigurationError,
    DataError,
    ExportError,
    HihlandmarkError,
    ImageError,
    TrainingError,
    WeightsError,
)

if TYPE_CHECKING:
    from hihlandmark.detector import Detector
    from hihlandmark.draw import draw_faces
    from hihlandmark.face import Face
    from hihlandmark.image import load_image
    from hihlandmark.layouts import Layout
    from hihlandmark.video import track
    from hihlandmark.weights import list_models

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "DataError",
    "Detector",
    "ExportError",
    "Face",
    "HihlandmarkError",
    "ImageError",
    "Layout",
    "TrainingError",
    "WeightsError",
    "draw_faces",
    "list_models",
    "load_image",
    "track",
]

_HOMES = {
    "Detector": "hihlandmark.detector",
    "Face": "hihlandmark.face",
    "Layout": "hihlandmark.layouts",
    "draw_faces": "hihlandmark.draw",
    "list_models": "hihlandmark.weights",
    "load_image": "hihlandmark.image",
    "track": "hihlandmark.video",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, because torch takes seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hihlandmark' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
