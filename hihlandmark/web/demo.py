"""What the page asks for, answered without knowing of the page: images in, what to show out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from hihlandmark.draw import encode_png
from hihlandmark.errors import ConfigurationError, HihlandmarkError, WeightsError
from hihlandmark.image import load_image
from hihlandmark.web.photos import Photo, Photos
from hihlandmark.web.pictures import details_html, error_html, note_html, summary_html, whole_html
from hihlandmark.weights import list_weights

if TYPE_CHECKING:
    from hihlandmark.detector import Detector

LAYOUTS = {98: "WFLW", 68: "300-W", 29: "COFW"}
"""Numbers of points that the page offers, and the data sets that they are of."""


class Upload(NamedTuple):
    """A file as a page sent it."""

    name: str
    content: bytes


class View(NamedTuple):
    """What a page shows: three pieces of HTML, how many faces there are and which is shown."""

    summary: str
    whole: str = ""
    details: str = ""
    faces: int = 0
    shown: int = 0


class Demo:
    """Detectors, made once for each model and layout and used by one image at a time, and images.

    ``make_detector`` takes points of a layout and a model's name. ``max_pixels``: an image of more
    is refused before it is decoded. Raises `WeightsError` where no weights came with the package.
    """

    def __init__(
        self, make_detector: Callable[[int, str], Detector], photos: Photos, *, max_pixels: int
    ) -> None:
        self.models = [row.name for row in list_weights() if row.problem is None]
        if not self.models:
            raise WeightsError("No packaged weights are there to be shown: reinstall hihlandmark.")
        self.photos, self.max_pixels = photos, max_pixels
        self._make_detector = make_detector
        self._detectors: dict[tuple[int, str], Detector] = {}
        self._lock = threading.Lock()

    def detector(self, layout: int, model: str) -> Detector:
        """The detector of a layout and a model, made at its first use.

        Raises `ConfigurationError` for what the page does not offer.
        """
        if layout not in LAYOUTS or model not in self.models:
            raise ConfigurationError(
                f"the web demo has no {layout} points by {model!r}: choose one of "
                f"{', '.join(map(str, LAYOUTS))} and of {', '.join(self.models)}"
            )
        key = layout, model
        if key not in self._detectors:
            self._detectors[key] = self._make_detector(layout, model)
        return self._detectors[key]

    def take(
        self, session: str, upload: Upload, layout: int, model: str, drawn: Collection[str]
    ) -> View:
        """Finds the faces of a page's new image. An error becomes what the page shows."""
        self.photos.drop(session)
        try:
            photo = self._predict(upload, layout, model)
        except HihlandmarkError as error:
            return View(error_html(f"{upload.name}: {error}"))
        return self._view(self.photos.keep(session, photo), photo, 0, drawn)

    def take_again(
        self, session: str, layout: int, model: str, index: int, drawn: Collection[str]
    ) -> View | None:
        """Finds the landmarks of the page's image in another layout, or with another model.

        None for a page that has shown no image yet.
        """
        kept = self.photos.of_session(session)
        if kept is None:
            return None
        token, photo = kept
        if (photo.layout, photo.model["model"]) != (layout, model):
            try:
                photo = self._predict(Upload(photo.name, photo.content), layout, model)
            except HihlandmarkError as error:
                return View(error_html(f"{photo.name}: {error}"))
            self.photos.replace(token, photo)
        return self._view(token, photo, index, drawn)

    def show(self, session: str, index: int, drawn: Collection[str]) -> View | None:
        """The page's image drawn in another way, or another face of it; None as above."""
        kept = self.photos.of_session(session)
        return self._view(*kept, index, drawn) if kept else None

    def _predict(self, upload: Upload, layout: int, model: str) -> Photo:
        with self._lock:
            image = load_image(upload.content, max_pixels=self.max_pixels)
            detector = self.detector(layout, model)
            faces = tuple(detector.predict(image))
        height, width = image.shape[:2]
        weights = " ".join(detector.card.files.values())
        about = {"model": detector.card.name, "weights": weights}
        return Photo(upload.name, upload.content, (width, height), layout, faces, about)

    def _view(self, token: str, photo: Photo, index: int, drawn: Collection[str]) -> View:
        faces = len(photo.faces)
        index = min(max(index, 0), max(faces - 1, 0))
        return View(
            summary_html(photo),
            whole_html(token, photo, drawn),
            details_html(token, photo, index, drawn),
            faces,
            index,
        )


def gone_view(seconds: float) -> View:
    """For a page whose image has been forgotten, or that has had none."""
    return View(
        note_html(
            "There is no photo to show: please give one. Photos are forgotten "
            f"{seconds / 60:.0f} minutes after they were last looked at."
        )
    )


def has_example() -> bool:
    """Whether scikit-image is there, which brings the example."""
    return find_spec("skimage") is not None


def example() -> Upload:
    """The image of an astronaut that comes with scikit-image."""
    from skimage.data import astronaut

    return Upload("astronaut.png", encode_png(astronaut()))
