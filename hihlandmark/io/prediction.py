"""Sources -> results: reading and searching in threads, crops of many images in one batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from hihlandmark.errors import ImageError
from hihlandmark.io.formats import Result
from hihlandmark.io.sources import Source
from hihlandmark.threads import default_workers, map_ahead

if TYPE_CHECKING:
    from hihlandmark.detector import Detector, Found


def predict_sources(
    detector: Detector, sources: Iterable[Source | ImageError], workers: int | None = None
) -> Iterator[Result | ImageError]:
    """The result of each source, in order; an error that stands for no image is handed on.

    Memory does not grow with their number. ``workers``: as of `Detector.predict_many`.
    """
    model = {"model": detector.card.name, "weights": " ".join(detector.card.files.values())}
    waiting: deque[Result | ImageError] = deque()

    def search(source: Source | ImageError) -> tuple[Source | ImageError, Found | ImageError]:
        return source, source if isinstance(source, ImageError) else detector.search(source.load)

    def found() -> Iterator[Found | ImageError]:
        for source, item in map_ahead(search, sources, workers or default_workers()):
            if isinstance(source, ImageError):
                waiting.append(source)
            elif isinstance(item, ImageError):
                waiting.append(Result(source, error=str(item), model=model))
            else:
                height, width = item[0].shape[:2]
                waiting.append(Result(source, size=(width, height), model=model))
            yield item

    box_map = detector.box_map(detector.face_detector.name)
    for faces in detector.find_landmarks(found(), box_map):
        result = waiting.popleft()
        if isinstance(faces, list) and isinstance(result, Result):
            result = replace(result, faces=faces)
        yield result
