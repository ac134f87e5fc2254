"""Faces and results for other packages: supervision, data frames, FiftyOne, Label Studio, CVAT.

What `Face` says of itself (JSON, .pts, rows) is in `face`; files of results are in `folder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from hihlandmark.errors import ConfigurationError
from hihlandmark.face import Face

if TYPE_CHECKING:
    import fiftyone
    import pandas
    import polars
    import supervision

    from hihlandmark.io import Result


def to_key_points(faces: Sequence[Face]) -> supervision.KeyPoints:
    """Faces of one layout as `supervision.KeyPoints`: xy (F, P, 2), confidence (F, P).

    Raises `ConfigurationError` when the faces are of several layouts or supervision is missing.
    """
    package = _require("supervision")
    if not faces:
        return package.KeyPoints.empty()
    if len({face.layout.name for face in faces}) > 1:
        raise ConfigurationError("key points of one call need one layout; use Face.to first")
    return package.KeyPoints(
        xy=np.stack([face.points for face in faces]),
        keypoint_confidence=np.stack([face.scores for face in faces]),
    )


def to_pandas(images: Iterable[Sequence[Face]]) -> pandas.DataFrame:
    """The faces of images, such as `Detector.predict_many` gives, as a row a point.

    Columns: ``image`` and ``face``, their numbers, and those of `Face.to_rows`. Of one image, give
    ``[faces]``.
    """
    rows = list(_rows(images))
    return _require("pandas").DataFrame(rows, columns=["image", "face", *Face.ROW_FIELDS])


def to_polars(images: Iterable[Sequence[Face]]) -> polars.DataFrame:
    """As `to_pandas`, for polars."""
    return _require("polars").DataFrame(
        list(_rows(images)), schema=["image", "face", *Face.ROW_FIELDS], orient="row"
    )


def to_fiftyone(faces: Iterable[Face], image_size: tuple[int, int]) -> fiftyone.Keypoints:
    """The faces of an image as a label of FiftyOne, with each point's score as its confidence.

    ``image_size``: width and height in pixels: FiftyOne counts in parts of them, from the image's
    corner.
    """
    package = _require("fiftyone")
    return package.Keypoints(
        keypoints=[
            package.Keypoint(
                label=face.layout.name,
                points=[tuple(point) for point in _parts(face, image_size)],
                confidence=face.scores.astype(float).tolist(),
            )
            for face in faces
        ]
    )


def to_label_studio(
    faces: Sequence[Face],
    image_size: tuple[int, int],
    image: str,
    *,
    from_name: str = "points",
    to_name: str = "image",
) -> dict[str, Any]:
    """A task of Label Studio with the faces as a prediction, to be corrected by hand.

    ``image``: the URL or path that Label Studio loads the image by, under ``image`` in its data.
    ``from_name`` and ``to_name`` are those of ``<KeyPointLabels>`` in the labeling configuration,
    whose labels are the names of the layout's points. Each point belongs to a rectangle of its
    face. A list of such tasks, as JSON, is what Label Studio imports.
    """
    width, height = image_size
    results: list[dict[str, Any]] = []
    for number, face in enumerate(faces):
        original = {"original_width": width, "original_height": height, "image_rotation": 0}
        names = {"from_name": from_name, "to_name": to_name, "type": "keypointlabels"}
        for index, (x, y) in enumerate(100 * _parts(face, image_size)):
            value = {
                "x": float(x),
                "y": float(y),
                "width": 0.3,  # of the dot that is drawn, in per cent of the image
                "keypointlabels": [face.layout.point_names[index]],
            }
            identity = {"id": f"face-{number}-{index}", "score": float(face.scores[index])}
            results.append(identity | names | original | {"value": value})
    score = float(np.mean([face.scores.mean() for face in faces])) if faces else 0.0
    prediction = {"model_version": "hihlandmark", "score": score, "result": results}
    return {"data": {"image": image}, "predictions": [prediction]}


def to_cvat(results: Iterable[Result]) -> str:
    """The text of CVAT's XML 1.1 "for images": a skeleton named "face" for every face.

    Its points are labeled with their names. Images are matched by name. Those that could not be
    read are left out.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for number, result in enumerate(results):
        if result.size is None:
            continue
        width, height = result.size
        image = ElementTree.SubElement(
            root,
            "image",
            {
                "id": str(number),
                "name": result.source.name,
                "width": str(width),
                "height": str(height),
            },
        )
        for face in result.faces:
            skeleton = ElementTree.SubElement(
                image, "skeleton", {"label": "face", "source": "auto", "z_order": "0"}
            )
            # From the image's corner, not from the center of its first pixel.
            for name, (x, y) in zip(face.layout.point_names, face.points + 0.5, strict=True):
                place = {"points": f"{x:.2f},{y:.2f}", "occluded": "0", "outside": "0"}
                ElementTree.SubElement(skeleton, "points", {"label": name, **place})
    ElementTree.indent(root)
    return ElementTree.tostring(root, "unicode", xml_declaration=True)


def _parts(face: Face, image_size: tuple[int, int]) -> Any:
    """The points (P, 2) in parts of the image's sides, from its corner."""
    return (face.points.astype(float) + 0.5) / np.array(image_size)


def _rows(images: Iterable[Sequence[Face]]) -> Iterable[dict[str, Any]]:
    for image, faces in enumerate(images):
        for number, face in enumerate(faces):
            for row in face.to_rows():
                yield {"image": image, "face": number} | row


def _require(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigurationError(f"{package} is not installed: pip install {package}") from error
