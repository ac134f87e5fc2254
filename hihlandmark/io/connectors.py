"""Faces and results for other packages: supervision, data frames, FiftyOne, Label Studio, CVAT.

JSON, .pts and rows of a `Face` are in `face`; files of results are in `formats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from hihlandmark.errors import ConfigurationError, ImageError, missing_extra
from hihlandmark.face import Face

if TYPE_CHECKING:
    import fiftyone
    import pandas
    import polars
    import supervision

    from hihlandmark.io import Result

HIDDEN = "hidden"
"""Text of the meta information of a hidden point in Label Studio."""


def to_supervision(faces: Sequence[Face]) -> supervision.KeyPoints:
    """F faces of one layout, as keypoints with xy (F, P, 2) and keypoint_confidence (F, P).

    Raises:
        ConfigurationError: the faces have several layouts, or supervision is not installed.
    """
    with missing_extra("video"):
        import supervision
    _refuse_error(faces)
    if not faces:
        return supervision.KeyPoints.empty()
    if len({face.layout.name for face in faces}) > 1:
        raise ConfigurationError("the faces have several layouts: call Face.to_layout first")
    return supervision.KeyPoints(
        xy=np.stack([face.points for face in faces]),
        keypoint_confidence=np.stack([face.scores for face in faces]),
    )


_COLUMNS = ["image", "face", *Face.ROW_FIELDS]


def to_pandas(images: Iterable[Sequence[Face]]) -> pandas.DataFrame:
    """The faces of images as a data frame with a row per point; needs pandas.

    Args:
        images: the faces of each image, such as `Detector.predict_many` yields; ``[faces]`` for one
            image.

    Returns:
        The columns ``image`` and ``face``, their numbers from 0, and those of `Face.to_rows`.
    """
    return _require("pandas").DataFrame(list(_rows(images)), columns=_COLUMNS)


def to_polars(images: Iterable[Sequence[Face]]) -> polars.DataFrame:
    """Like `to_pandas`, for polars."""
    return _require("polars").DataFrame(
        list(_rows(images)), schema=_COLUMNS, orient="row", infer_schema_length=None
    )


def to_fiftyone(faces: Iterable[Face], image_size: tuple[int, int]) -> fiftyone.Keypoints:
    """The faces of an image as a label of FiftyOne, with scores as confidences.

    Points are in 0..1, relative to ``image_size``, the width and height of the image in pixels.
    """
    _refuse_error(faces)
    package = _require("fiftyone")
    keypoints = [
        package.Keypoint(
            label=face.layout.name,
            points=[tuple(point) for point in _relative(face, image_size)],
            confidence=face.scores.astype(float).tolist(),
        )
        for face in faces
    ]
    return package.Keypoints(keypoints=keypoints)


def to_label_studio(
    faces: Sequence[Face],
    image_size: tuple[int, int],
    image: str,
    *,
    from_name: str = "points",
    to_name: str = "image",
    boxes_name: str = "boxes",
) -> dict[str, Any]:
    """A task of Label Studio with the faces as a prediction, to be corrected by hand.

    Each face is a rectangle labeled "face", and its points are grouped under it (``parentID``).
    Points that are `Face.hidden` have "hidden" as the text of their meta information; those without
    coordinates are left out, and so are faces without a box.
    Label Studio imports a JSON file with a list of such tasks.

    Args:
        faces: the faces of one image.
        image_size: width and height of the image in pixels.
        image: URL or path from which Label Studio loads the image.
        from_name: ``name`` of ``<KeyPointLabels>`` in the labeling configuration, whose labels are
            the names of the layout's points.
        to_name: ``toName`` of ``<KeyPointLabels>`` and of ``<RectangleLabels>``.
        boxes_name: ``name`` of ``<RectangleLabels>``, with the label "face".
    """
    _refuse_error(faces)
    width, height = image_size
    common = {"to_name": to_name, "original_width": width, "original_height": height}
    common |= {"image_rotation": 0}
    results: list[dict[str, Any]] = []
    faces = [face for face in faces if np.isfinite(face.box).all()]
    for number, face in enumerate(faces):
        identity = f"face-{number}"
        corners = face.box.astype(float).reshape(2, 2) + 0.5
        low, high = (100 * corners / image_size).clip(0, 100).tolist()
        box = {"x": low[0], "y": low[1], "width": high[0] - low[0], "height": high[1] - low[1]}
        results.append(
            {"id": identity, "from_name": boxes_name, "type": "rectanglelabels", **common}
            | {"value": {**box, "rotation": 0, "rectanglelabels": ["face"]}}
            | {"score": face.box_score}
        )
        for index, (x, y) in enumerate((100 * _relative(face, image_size)).tolist()):
            if not np.isfinite(x + y):
                continue
            label = [face.layout.point_names[index]]
            # The width is that of the drawn dot, in percent of the image.
            value = {"x": x, "y": y, "width": 0.3, "keypointlabels": label}
            results.append(
                {"id": f"{identity}-{index}", "parentID": identity, "from_name": from_name}
                | {"type": "keypointlabels", **common}
                | {"value": value, "score": float(np.nan_to_num(face.scores[index]))}
                | ({"meta": {"text": [HIDDEN]}} if face.hidden[index] else {})
            )
    scores = [score for face in faces for score in face.scores if np.isfinite(score)]
    score = float(np.mean(scores)) if scores else 0.0
    prediction = {"model_version": "hihlandmark", "score": score, "result": results}
    return {"data": {"image": image}, "predictions": [prediction]}


def to_cvat(results: Iterable[Result]) -> str:
    """The XML of results in the format "CVAT for images 1.1", with a skeleton "face" per face.

    Images are matched by ``Source.name``; those that could not be read are left out. The points of
    a skeleton are labeled with the names of the layout's points; `Face.hidden` ones are occluded,
    and those without coordinates are left out, and so are faces without any.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for number, result in enumerate(results):
        if result.size is None:
            continue
        width, height = map(str, result.size)
        attributes = {"id": str(number), "name": result.source.name}
        image = ElementTree.SubElement(root, "image", attributes, width=width, height=height)
        for face in result.faces:
            if not np.isfinite(face.points).any():
                continue
            about = {"label": "face", "source": "auto", "z_order": "0"}
            skeleton = ElementTree.SubElement(image, "skeleton", about)
            # CVAT counts from the corner of the image, not from the center of its first pixel.
            rows = zip(face.layout.point_names, face.points + 0.5, face.hidden, strict=True)
            for name, (x, y), is_hidden in rows:
                if not np.isfinite(x + y):
                    continue
                place = {"points": f"{x:.2f},{y:.2f}", "occluded": f"{is_hidden:d}", "outside": "0"}
                ElementTree.SubElement(skeleton, "points", {"label": name, **place})
    ElementTree.indent(root)
    return ElementTree.tostring(root, "unicode", xml_declaration=True)


def _relative(face: Face, image_size: tuple[int, int]) -> Any:
    """The points (P, 2) in 0..1, relative to the image size, from the corner of the image."""
    return (face.points.astype(float) + 0.5) / np.array(image_size)


def _rows(images: Iterable[Sequence[Face]]) -> Iterable[dict[str, Any]]:
    for image, faces in enumerate(images):
        _refuse_error(faces, image)
        for number, face in enumerate(faces):
            for row in face.to_rows():
                yield {"image": image, "face": number} | row


def _refuse_error(faces: object, image: int | None = None) -> None:
    """Raise `ConfigurationError` for the error of an image, or one face instead of a list."""
    if isinstance(faces, Face):
        raise ConfigurationError("these are the faces of one image: pass [faces]")
    if isinstance(faces, ImageError):
        what = "these are no faces" if image is None else f"image {image} has no faces"
        raise ConfigurationError(f"{what} but an error ({faces}): pass [] in its place")


def _require(package: str) -> Any:
    """A package that no extra installs."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{package} is not installed: pip install {package}") from error
