"""Finding faces in images: the protocol, the table of detectors, and boxes given by the caller."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hihlandmark.errors import ConfigurationError
from hihlandmark.face_detection.any_rotation import AnyRotationFaceDetector
from hihlandmark.face_detection.base import Detections, FaceDetector
from hihlandmark.face_detection.boxes import given_boxes
from hihlandmark.face_detection.centerface import CenterFaceDetector
from hihlandmark.face_detection.mtcnn import MTCNNFaceDetector

__all__ = [
    "FACE_DETECTORS",
    "AnyRotationFaceDetector",
    "CenterFaceDetector",
    "Detections",
    "FaceDetector",
    "MTCNNFaceDetector",
    "given_boxes",
    "make_face_detector",
]

FACE_DETECTORS: dict[str, Callable[..., FaceDetector]] = {
    MTCNNFaceDetector.name: MTCNNFaceDetector,
    CenterFaceDetector.name: CenterFaceDetector,
}
"""Name -> factory, called with ``device`` and ``runtime``, and with those of ``detection_size``,
``min_face`` and ``min_score`` that the user has set. A program may add rows of its own:
docs/extending/face-detector.md."""


def make_face_detector(
    detector: str | FaceDetector = MTCNNFaceDetector.name,
    *,
    device: str | torch.device = "auto",
    runtime: str = "auto",
    detection_size: int | None = None,
    min_face: float | None = None,
    min_score: float | None = None,
) -> FaceDetector:
    """The face detector of a name in `FACE_DETECTORS`, or the object itself when it is one.

    The options are those of the detector's class; None keeps its default. An object was set up by
    its maker: it keeps its device, and options beside it are an error.
    Raises `ConfigurationError` for an unknown name (listing the choices), an object that is no
    `FaceDetector`, or wrong options.
    """
    options = {"detection_size": detection_size, "min_face": min_face, "min_score": min_score}
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(detector, str):
        if detector not in FACE_DETECTORS:
            raise ConfigurationError(
                f"there is no face detector {detector!r}; choose one of "
                f"{', '.join(map(repr, FACE_DETECTORS))}, or give an object with name and detect()"
            )
        return FACE_DETECTORS[detector](device=device, runtime=runtime, **given)
    if isinstance(detector, type) or not isinstance(detector, FaceDetector):
        raise ConfigurationError(
            f"{detector!r} is no face detector: it needs an attribute name and a method detect()"
        )
    if given:
        raise ConfigurationError(
            f"{', '.join(given)} cannot be set beside a face detector object: set it up with them"
        )
    return detector
