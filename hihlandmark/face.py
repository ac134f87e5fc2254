"""`Face`: the landmarks of one face, and its exports. Nothing here computes landmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray
from hihlandmark.errors import ConfigurationError
from hihlandmark.layouts import Layout, get_conversion, get_layout

if TYPE_CHECKING:
    import supervision

    from hihlandmark.notebook import ImageReference


@dataclass(frozen=True, eq=False)
class Face:
    """The landmarks of one face, in pixels of the image as given (upright).

    The center of the top-left pixel is (0, 0). Points may lie outside of the image where the face
    does.

    Attributes:
        points: (P, 2) float32, x and y of each landmark.
        scores: (P,) float32 in 0..1, the calibrated probability that a point lies within 5 % of the
            inter-ocular distance of where an annotator would put it.
        covariance: (P, 2, 2) float32, the uncertainty of each point in squared pixels.
        box: (4,) float32 xyxy, the box that the face was found by.
        box_score: the face detector's score in 0..1; 1 for boxes given by the caller.
        layout: which point is which.
        approximate: (P,) bool, True for points that `to` interpolated from another layout.
        track_id: the number that a face keeps through a video (`video.track`); None elsewhere.
        image: where the image came from, to show the face in Jupyter; holds no pixels.
    """

    points: FloatArray
    scores: FloatArray
    covariance: FloatArray
    box: FloatArray
    box_score: float
    layout: Layout
    approximate: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    track_id: int | None = None
    image: ImageReference | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        count = self.layout.size
        shapes = {
            "points": (count, 2),
            "scores": (count,),
            "covariance": (count, 2, 2),
            "box": (4,),
        }
        for name, shape in shapes.items():
            array = np.array(getattr(self, name), np.float32)
            if array.shape != shape:
                raise ConfigurationError(
                    f"{name} of a {self.layout.name} face needs shape {shape}, not {array.shape}"
                )
            self._freeze(name, array)
        approximate = self.approximate if len(self.approximate) else np.zeros(count, bool)
        self._freeze("approximate", np.array(approximate, bool))
        object.__setattr__(self, "box_score", float(self.box_score))

    def _freeze(self, name: str, array: NDArray[Any]) -> None:
        array.flags.writeable = False
        object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        x0, y0, x1, y1 = self.box
        return (
            f"Face({self.layout.name}, box=({x0:.0f}, {y0:.0f}, {x1:.0f}, {y1:.0f}), "
            f"box_score={self.box_score:.2f}, mean score={self.scores.mean():.2f})"
        )

    def __getitem__(self, name: str) -> FloatArray:
        """The points (K, 2) of a part ("left_eye"), or the one point (2,) of a point's name."""
        if name in self.layout.parts:
            return self.points[list(self.layout.parts[name])]
        if name in self.layout.point_names:
            return self.points[self.layout.point_names.index(name)]
        raise KeyError(
            f"{name!r} is neither a part nor a point of {self.layout.name}; "
            f"parts: {', '.join(self.layout.parts)}"
        )

    @property
    def interocular(self) -> float:
        """Distance of the outer eye corners in pixels, the unit of the papers' errors."""
        left, right = self.points[list(self.layout.ocular_pair)]
        return float(np.linalg.norm(left - right))

    def to_layout(self, layout: int | str | Layout) -> Face:
        """The same face in another layout, by the explicit table of `layouts`.

        Interpolated points are marked in ``approximate``; scores and covariances are carried over
        with the table's weights. Raises `ConfigurationError` when there is no such table.
        """
        target = get_layout(layout)
        if target is self.layout:
            return self
        table = get_conversion(self.layout, target)
        weights = table.matrix
        return Face(
            points=weights @ self.points,
            scores=weights @ self.scores,
            # Points err together more than apart, so that averaging must not look like certainty.
            covariance=np.einsum("qp,pij->qij", weights, self.covariance),
            box=self.box,
            box_score=self.box_score,
            layout=target,
            approximate=~table.exact | (weights @ self.approximate > 0),
            track_id=self.track_id,
            image=self.image,
        )

    def _repr_png_(self) -> bytes:
        """For Jupyter: the face, on its image where that is still at hand."""
        from hihlandmark.notebook import face_png

        return face_png(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON; see `from_dict` for the way back."""
        return {
            "layout": self.layout.name,
            "box": _rounded(self.box),
            "box_score": round(self.box_score, 4),
            "points": _rounded(self.points),
            "scores": _rounded(self.scores, 4),
            "covariance": _rounded(self.covariance, 4),
            "approximate": np.flatnonzero(self.approximate).tolist(),
            **({} if self.track_id is None else {"track_id": self.track_id}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Face:
        """The face that `to_dict` wrote. Raises `ConfigurationError` when a field is missing."""
        try:
            layout = get_layout(values["layout"])
            approximate = np.zeros(layout.size, bool)
            approximate[values["approximate"]] = True
            return cls(
                points=values["points"],
                scores=values["scores"],
                covariance=values["covariance"],
                box=values["box"],
                box_score=values["box_score"],
                layout=layout,
                approximate=approximate,
                track_id=values.get("track_id"),
            )
        except KeyError as error:
            raise ConfigurationError(
                f"a face without {error}: pass a dictionary as Face.to_dict writes it"
            ) from error

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    def to_pts(self) -> str:
        """The text of a 300-W .pts file, whose origin is (1, 1) at the top-left pixel's center."""
        lines = [f"{x:.3f} {y:.3f}" for x, y in self.points + 1]
        return "\n".join(["version: 1", f"n_points: {len(lines)}", "{", *lines, "}", ""])

    def to_supervision(self) -> supervision.KeyPoints:
        """The points and scores as key points of one object; of many faces, see `to_key_points`."""
        from hihlandmark.io.connectors import to_key_points

        return to_key_points([self])

    ROW_FIELDS: ClassVar[tuple[str, ...]] = (
        *("layout", "point", "name", "x", "y", "score"),
        *("x0", "y0", "x1", "y1", "box_score"),
    )

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat row a point with the keys `ROW_FIELDS`, for CSV files and data frames."""
        box = dict(zip(("x0", "y0", "x1", "y1"), _rounded(self.box), strict=True))
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
            }
            for index, ((x, y), score) in enumerate(zip(self.points, self.scores, strict=True))
        ]


def _rounded(array: FloatArray, digits: int = 3) -> list[Any]:
    return np.round(array.astype(np.float64), digits).tolist()
