"""`Face` and `Faces`: landmarks, their exports, and how Jupyter shows them."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from hihlandmark.arrays import BoolArray, FloatArray, Image
from hihlandmark.crop import (
    crop_matrix,
    cut_crop,
    resize_matrix,
    square_around,
    tight_boxes,
    transform_points,
)
from hihlandmark.draw import draw_faces, encode_png, is_drawable
from hihlandmark.errors import ConfigurationError, HihlandmarkError, check_integer
from hihlandmark.image import ChannelAxis, ColorOrder, ImageInput, ReducedImage, load_image
from hihlandmark.layouts import Layout, get_conversion, get_layout
from hihlandmark.uncertainty import ErrorCorrelation, axes

# In Jupyter: the side in pixels of the image of one face, the longest side of an image with its
# faces, and the gray value behind faces whose image is gone.
CLOSE_UP_SIDE, LONGEST_SIDE, BACKGROUND = 384, 960, 32
VISIBLE = 0.5
"""Points of a lower visibility count as hidden."""
_MARGIN = 1.3  # side of a close-up, in longer sides of the points' box
_BOX = ("x0", "y0", "x1", "y1")


class ImageReference:
    """Where an image came from, to show it again without keeping it in memory.

    Holds the text of a path or URL, or a weak reference to an array, tensor or PIL image, which
    copies and pickles lose. Bytes and files are not remembered.
    """

    def __init__(
        self,
        image: ImageInput | None,
        color: ColorOrder = "rgb",
        channels: ChannelAxis = "last",
        white: float | None = None,
    ) -> None:
        self.path = os.fspath(image) if isinstance(image, str | os.PathLike) else None
        self.options: dict[str, Any] = {"color": color, "channels": channels, "white": white}
        self._object: Any = None
        if self.path is None:
            with suppress(TypeError):  # bytes, None and many kinds of files
                self._object = weakref.ref(image)

    def load(self) -> Image | None:
        """The image (H, W, 3) RGB; None when it is gone or can no longer be read."""
        image = self._object() if self._object else self.path
        try:
            return None if image is None else load_image(image, **self.options)
        except HihlandmarkError:
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageReference, (self.path, *self.options.values())


@dataclass(frozen=True, eq=False)
class Face:
    """The landmarks (keypoints) of one face, in pixels of the image as given (upright).

    The center of the top-left pixel is (0, 0). Points may lie outside of the image where the face
    does.

    Attributes:
        points: (P, 2) float32, x and y of each landmark.
        scores: (P,) float32 in 0..1, the confidence of each point: the calibrated probability that
            it lies within 5 % of the inter-ocular distance of where an annotator would put it.
        covariance: (P, 2, 2) float32, the uncertainty of each point in squared pixels.
        box: (4,) float32 xyxy, the bounding box from the face detector or the caller.
        box_score: the face detector's score in 0..1; 1 for boxes given by the caller.
        layout: names and regions of the points.
        approximate: (P,) bool, True for points that `to_layout` interpolated.
        track_id: the number of the face in a video (`video.track`); None elsewhere.
        image: where the image came from, to show the face in Jupyter; holds no pixels.
        correlation: how the errors of points vary together, from the model card; not written by
            `to_dict`. None: unknown, errors count as independent.
        filled: True for a face that `video.track_offline` placed in a frame where none was found.
        reliability: the probability (0..1) that the mean error of the points is below 8 % of the
            inter-ocular distance; low for what is no human face. NaN: the model card has no model
            of it.
        visibility: (P,) float32, the calibrated probability (0..1) that the point can be seen,
            rather than being covered or turned away. NaN: the weights do not predict it.
    """

    points: FloatArray
    scores: FloatArray
    covariance: FloatArray
    box: FloatArray
    box_score: float
    layout: Layout
    approximate: BoolArray = field(default_factory=lambda: np.zeros(0, bool))
    track_id: int | None = None
    image: ImageReference | None = field(default=None, repr=False)
    correlation: ErrorCorrelation | None = field(default=None, repr=False)
    filled: bool = False
    reliability: float = np.nan
    visibility: FloatArray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", get_layout(self.layout))
        count = self.layout.size
        shapes: dict[str, tuple[int, ...]] = {"points": (count, 2), "scores": (count,)}
        shapes |= {"covariance": (count, 2, 2), "box": (4,)}
        for name, shape in shapes.items():
            self._set_array(name, shape)
        self._set_array("approximate", (count,), np.bool_, absent=False)
        self._set_array("visibility", (count,), absent=np.nan)
        reliability = np.nan if self.reliability is None else self.reliability
        for name, value in (("box_score", self.box_score), ("reliability", reliability)):
            try:
                object.__setattr__(self, name, float(value))
            except (OverflowError, TypeError, ValueError) as error:
                raise ConfigurationError(f"{name} must be a number, not {value!r:.100}") from error
        if np.isnan(self.box_score):
            raise ConfigurationError("box_score is NaN: give 1 for boxes without a score")
        if not isinstance(self.filled, bool | np.bool_):
            raise ConfigurationError(f"filled must be True or False, not {self.filled!r:.100}")
        object.__setattr__(self, "filled", bool(self.filled))
        if self.track_id is not None:
            if not isinstance(self.track_id, Integral) or isinstance(self.track_id, bool):
                raise ConfigurationError(
                    f"track_id must be an integer or None, not {self.track_id!r:.100}"
                )
            object.__setattr__(self, "track_id", int(self.track_id))

    def _set_array(
        self, name: str, shape: tuple[int, ...], dtype: Any = np.float32, absent: Any = None
    ) -> None:
        """Replace a field by a read-only array; full of ``absent``, if given, where it is empty."""
        value = getattr(self, name)
        needed = f"{name} of a {self.layout.name} face needs shape {shape}"
        try:
            array: NDArray[Any] = np.array(value, dtype)
        except (OverflowError, TypeError, ValueError) as error:
            raise ConfigurationError(f"{needed} of numbers: {error}") from error
        if absent is not None and (value is None or not array.size):
            array = np.full(shape, absent, dtype)
        if array.shape != shape:
            raise ConfigurationError(f"{needed}, not {array.shape}")
        array.flags.writeable = False
        object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        x0, y0, x1, y1 = self.box
        return (
            f"Face({self.layout.name}, box=({x0:.0f}, {y0:.0f}, {x1:.0f}, {y1:.0f}), "
            f"box_score={self.box_score:.2f}, mean score={self.scores.mean():.2f})"
        )

    __iter__ = None  # `list(face)` would look for parts named 0, 1, ...

    def __getitem__(self, name: str) -> FloatArray:
        """One point (2,) by its name ("chin"), or the points (K, 2) of a part ("left_eye")."""
        if isinstance(name, str) and name in self.layout.point_names:
            return self.points[self.layout.point_names.index(name)]
        if isinstance(name, str) and name in self.layout.parts:
            return self.points[list(self.layout.parts[name])]
        parts = ", ".join(self.layout.parts)
        advice = "" if isinstance(name, str) else f"; face.points[{name}] has points by number"
        raise KeyError(
            f"{name!r} is no part or point of {self.layout.name}; parts: {parts}{advice}"
        )

    @property
    def hidden(self) -> BoolArray:
        """(P,) bool: points with a visibility below `VISIBLE`; none where it is unknown."""
        return np.asarray(self.visibility < VISIBLE)

    @property
    def interocular(self) -> float:
        """Distance of the outer eye corners in pixels, which normalizes errors (NME)."""
        return float(self.layout.interocular(self.points))

    def to_layout(self, layout: int | str | Layout) -> Face:
        """The same face in another layout, given by number of points, name or `Layout`.

        Interpolated points are marked in ``approximate``. Scores and covariances are combined with
        the weights of the conversion. What follows from a point that is NaN is NaN.

        Raises:
            ConfigurationError: there is no conversion to this layout.
        """
        target = get_layout(layout)
        if target is self.layout:
            return self
        table = get_conversion(self.layout, target)
        weights = table.matrix
        return replace(
            self,
            points=_weighted_sums(weights, self.points),
            scores=_weighted_sums(weights, self.scores).clip(0, 1),
            visibility=_weighted_sums(weights, self.visibility).clip(0, 1),
            # Errors of neighboring points are correlated, so averaging does not reduce variance.
            covariance=_weighted_sums(np.abs(weights), self.covariance),
            layout=target,
            approximate=~table.exact | (weights @ self.approximate > 0),
            correlation=self.correlation and _converted(self.correlation, self.layout, target),
        )

    def sample(self, count: int, seed: int | None = None) -> FloatArray:
        """Draw shapes (count, P, 2) that the true points may have, by the errors of this face.

        For the error of a value that `measures` lacks: its standard deviation over the shapes. The
        errors of points vary together as the model card states (`correlation`).

        Raises:
            ConfigurationError: ``count`` is negative or no integer.
        """
        check_integer(count=count, at_least=0)
        directions = axes(self.points[None], self.covariance[None], self.layout, self.correlation)[
            0
        ]
        drawn = np.random.default_rng(seed).standard_normal((count, len(directions)))
        return self.points + np.einsum("na,api->npi", drawn, directions)

    def _repr_png_(self) -> bytes:
        """For Jupyter: a close-up of the face, on its image where that is available."""
        return encode_png(draw_close_up([self], _image_of(self), CLOSE_UP_SIDE))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON. `from_dict` reads them."""
        return {
            "layout": self.layout.name,
            "box": _rounded(self.box),
            "box_score": round(self.box_score, 4),
            "points": _rounded(self.points),
            "scores": _rounded(self.scores, 4),
            "covariance": _rounded(self.covariance, 4),
            "approximate": np.flatnonzero(self.approximate).tolist(),
            **({} if self.track_id is None else {"track_id": self.track_id}),
            **({"filled": True} if self.filled else {}),
            **({} if np.isnan(self.reliability) else {"reliability": round(self.reliability, 4)}),
            **(
                {}
                if np.isnan(self.visibility).all()
                else {"visibility": _rounded(self.visibility, 4)}
            ),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Face:
        """The face that `to_dict` wrote. None stands for an unknown reliability or visibility.

        Raises:
            ConfigurationError: a field is missing or has an invalid value.
        """
        if not hasattr(values, "keys"):
            raise ConfigurationError(
                f"values is of type {type(values).__name__}: pass the dictionary of one face"
            )
        try:
            layout = get_layout(values["layout"])
            known, listed = range(layout.size), values["approximate"]
            if not isinstance(listed, Iterable) or not all(
                isinstance(point, Integral) and not isinstance(point, bool) and point in known
                for point in listed
            ):
                raise ConfigurationError(
                    f"approximate must list points of {layout.name}, 0 to {layout.size - 1}, not "
                    f"{listed!r:.100}"
                )
            return cls(
                **{name: values[name] for name in ("points", "scores", "covariance", "box")},
                box_score=values["box_score"],
                layout=layout,
                approximate=np.isin(known, list(listed)),
                track_id=values.get("track_id"),
                filled=values.get("filled", False),
                reliability=values.get("reliability", np.nan),
                visibility=values.get("visibility", ()),
            )
        except KeyError as error:
            raise ConfigurationError(f"the dictionary of a face has no {error}") from error

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    def to_pts(self) -> str:
        """The text of a 300-W .pts file, which counts the top-left pixel's center as (1, 1)."""
        lines = [f"{x:.3f} {y:.3f}" for x, y in self.points + 1]
        return "\n".join(["version: 1", f"n_points: {len(lines)}", "{", *lines, "}", ""])

    ROW_FIELDS: ClassVar = (
        "layout",
        "point",
        "name",
        "x",
        "y",
        "score",
        *_BOX,
        "box_score",
        "reliability",
        "visibility",
    )

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat row per point with the keys `ROW_FIELDS`, for CSV files and data frames."""
        box = dict(zip(_BOX, _rounded(self.box), strict=True))
        return [
            {
                "layout": self.layout.name,
                "point": index,
                "name": self.layout.point_names[index],
                "x": round(float(x), 3),
                "y": round(float(y), 3),
                "score": round(float(score), 4),
                **box,
                "box_score": round(self.box_score, 4),
                "reliability": None if np.isnan(self.reliability) else round(self.reliability, 4),
                "visibility": None if np.isnan(seen) else round(float(seen), 4),
            }
            for index, ((x, y), score, seen) in enumerate(
                zip(self.points, self.scores, self.visibility, strict=True)
            )
        ]


class Faces(list[Face]):
    """The faces of one image: a list that Jupyter shows as an image."""

    @classmethod
    def of(
        cls,
        faces: Iterable[Face],
        image: ImageInput,
        color: ColorOrder,
        channels: ChannelAxis = "last",
        white: float | None = None,
    ) -> Faces:
        """Faces with a reference to the image they were found in."""
        reference = ImageReference(image, color, channels, white)
        return cls(replace(face, image=reference) for face in faces)

    def _repr_png_(self) -> bytes | None:
        return _png_of_all(self) if self else None

    def _repr_html_(self) -> str | None:
        return None if self else "No face was found."


def draw_reduced(image: ReducedImage, faces: Sequence[Face], **drawn: Any) -> Image:
    """`draw_faces` on a reduced image, with faces in pixels of the original."""
    to_reduced = resize_matrix((image.factor, image.factor), (1, 1))
    return draw_faces(image.pixels, [transform_face(face, to_reduced) for face in faces], **drawn)


def transform_face(face: Face, matrix: FloatArray) -> Face:
    """A face after an affine transform (2, 3) of its image.

    The box holds the transformed corners of the old box.
    """
    corners = transform_points(matrix, face.box[[[0, 1], [2, 1], [0, 3], [2, 3]]])
    linear = matrix[:, :2]
    return replace(
        face,
        points=transform_points(matrix, face.points),
        covariance=linear @ face.covariance @ linear.T,
        box=tight_boxes(corners),
    )


@lru_cache(maxsize=32)
def _converted(correlation: ErrorCorrelation, source: Layout, target: Layout) -> ErrorCorrelation:
    """One object for all faces of a detector, as `measures` and memory need it."""
    return correlation.converted(get_conversion(source, target).matrix)


def _weighted_sums(weights: FloatArray, values: FloatArray) -> FloatArray:
    """Sums (Q, ...) of values (P, ...); NaN where one that has a weight (Q, P) is unknown."""
    known = np.isfinite(values)
    sums = np.tensordot(weights, np.where(known, values, 0), 1)
    is_unknown = np.tensordot(weights != 0, ~known, 1)
    return np.where(is_unknown, np.nan, sums)


def _rounded(array: FloatArray, digits: int = 3) -> list[Any]:
    """As lists of numbers; None, JSON's null, for what is not finite."""
    rounded, known = np.round(array.astype(np.float64), digits), np.isfinite(array)
    if known.all():
        return rounded.tolist()
    shown = rounded.astype(object)
    shown[~known] = None
    return shown.tolist()


def _image_of(face: Face) -> Image | None:
    return face.image.load() if face.image else None


def _png_of_all(faces: Sequence[Face]) -> bytes:
    """The whole image with its faces; a close-up of all faces when the image is gone."""
    image = _image_of(faces[0])
    if image is None:
        return encode_png(draw_close_up(faces, None, LONGEST_SIDE // 2))
    height, width = image.shape[:2]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = round(width * scale), round(height * scale)
    small = np.asarray(PillowImage.fromarray(image).resize(size, PillowImage.Resampling.BOX))
    to_small = resize_matrix((width, height), size)
    return encode_png(draw_faces(small, [transform_face(face, to_small) for face in faces]))


def draw_close_up(faces: Sequence[Face], image: Image | None, size: int) -> Image:
    """The square (size, size, 3) around faces with some margin, drawn; gray without an image."""
    points = np.concatenate([face.points for face in faces])
    known = points[is_drawable(points)]
    square = square_around(known if len(known) else np.zeros((1, 2)), _MARGIN)
    gray = np.full((size, size, 3), BACKGROUND, np.uint8)
    canvas = gray if image is None else cut_crop(image, square, size)
    to_square = crop_matrix(square, size)
    return draw_faces(canvas, [transform_face(face, to_square) for face in faces])
