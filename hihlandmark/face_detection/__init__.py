"""Face detection: the protocol, the table of face detectors, and boxes given by the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from hihlandmark.errors import ConfigurationError
from hihlandmark.face_detection.any_rotation import AnyRotationFaceDetector
from hihlandmark.face_detection.auto_size import AutoSizeFaceDetector
from hihlandmark.face_detection.base import Detections, FaceDetector
from hihlandmark.face_detection.blazeface import BlazeFaceDetector
from hihlandmark.face_detection.boxes import (
    best_boxes,
    given_boxes,
    given_five_points,
    overlaps,
)
from hihlandmark.face_detection.centerface import CenterFaceDetector
from hihlandmark.face_detection.mtcnn import MTCNNFaceDetector
from hihlandmark.runtimes import PrecisionChoice
from hihlandmark.runtimes.devices import AnyDevice

__all__ = [
    "FACE_DETECTORS",
    "AnyRotationFaceDetector",
    "AutoSizeFaceDetector",
    "BlazeFaceDetector",
    "CenterFaceDetector",
    "Detections",
    "FaceDetector",
    "MTCNNFaceDetector",
    "best_boxes",
    "given_boxes",
    "given_five_points",
    "make_face_detector",
    "overlaps",
    "register_face_detector",
]

FACE_DETECTORS: dict[str, Callable[..., FaceDetector]] = {
    MTCNNFaceDetector.name: MTCNNFaceDetector,
    CenterFaceDetector.name: CenterFaceDetector,
    BlazeFaceDetector.name: BlazeFaceDetector,
}
"""All face detectors: name -> factory. Add one with `register_face_detector`."""


def register_face_detector(name: str, factory: Callable[..., FaceDetector]) -> None:
    """Make a face detector known to `make_face_detector` and `Detector`.

    Args:
        name: what users pass, and the key of its box map in the model cards.
        factory: called with ``device``, ``runtime``, ``precision``, and the other options that the
            user has set.
    """
    FACE_DETECTORS[name] = factory


def make_face_detector(
    detector: str | FaceDetector = MTCNNFaceDetector.name,
    *,
    device: str | AnyDevice = "auto",
    runtime: str = "auto",
    precision: PrecisionChoice = "auto",
    detection_size: int | Literal["auto"] | None = None,
    min_face: float | None = None,
    min_score: float | None = None,
) -> FaceDetector:
    """Make a face detector by its name.

    Args:
        detector: a name in `FACE_DETECTORS`, or an object, which is returned as it is.
        device: where its networks run.
        runtime: what runs its networks, see `Detector`.
        precision: of its networks, see `Detector`.
        detection_size: longest side in pixels of the image that is searched. None, here and for the
            other options: the default of the face detector. "auto", also for objects: the default,
            and once more, larger or with a border, where nothing is found.
        min_face: side in pixels of the smallest face wanted.
        min_score: the confidence threshold of its boxes, 0..1.

    Raises:
        ConfigurationError: the name is unknown, the object is not a `FaceDetector`, or an option is
            out of range or given together with an object.
    """
    is_auto = detection_size == "auto"
    size = None if is_auto else detection_size
    options = {"detection_size": size, "min_face": min_face, "min_score": min_score}
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(detector, str):
        if detector not in FACE_DETECTORS:
            choices = ", ".join(map(repr, FACE_DETECTORS))
            raise ConfigurationError(f"unknown face detector {detector!r}; choose one of {choices}")
        detector = FACE_DETECTORS[detector](
            device=device, runtime=runtime, precision=precision, **given
        )
    elif isinstance(detector, type) or not isinstance(detector, FaceDetector):
        raise ConfigurationError(f"{detector!r} is no face detector with a name and detect()")
    elif given:
        raise ConfigurationError(f"pass {', '.join(given)} to the class of the face detector")
    return AutoSizeFaceDetector(detector) if is_auto else detector
