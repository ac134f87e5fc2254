"""Draws the figure of docs/concepts/scores.md: scores and covariances of a face.

python docs/figures/scores.py

Writes ``scores.png`` and ``near.png`` beside this file and prints the mean scores that the page
quotes. Needs matplotlib and scikit-image.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Circle, Ellipse
from numpy.typing import NDArray
from paper import BLUE, astronaut_image, detector, face, paled, portrait, save, transform

from hihlandmark import Face
from hihlandmark.draw import HIGH, LOW
from hihlandmark.evaluation.report import new_figure
from hihlandmark.weights.card import NEAR

SIDE = 520
HALF = 1.3863
"""Median of the chi-squared distribution with two degrees of freedom: 2 ln 2."""
COLORS = LinearSegmentedColormap.from_list("scores", [LOW / 255, HIGH / 255])


def covered() -> tuple[NDArray[np.uint8], Face]:
    """The image with a gray rectangle over mouth and chin, and the face found in it."""
    image = astronaut_image().copy()
    points = face().points
    top = int(face()["nose_base_middle"][1]) + 4
    left, right = int(points[:, 0].min()) - 20, int(points[:, 0].max()) + 20
    image[top : int(points[:, 1].max()) + 20, left:right] = (120, 124, 130)
    (found,) = detector().predict(image)
    return image, found


def ellipse(axis: Any, point: Any, covariance: Any, color: Any) -> None:
    """Draw the ellipse that contains half of the true points."""
    variances, directions = np.linalg.eigh(covariance)
    sides = 2 * np.sqrt(variances * HALF)
    angle = np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))
    axis.add_patch(
        Ellipse(point, sides[1], sides[0], angle=angle, fill=False, edgecolor=color, linewidth=1.4)
    )


def draw_scores() -> Any:
    """Points colored by score: the face as it is, and with its mouth covered."""
    figure = new_figure(10, 4.9)
    axes = figure.subplots(1, 2)
    covered_image, hidden = covered()
    _, matrix = portrait(SIDE, margin=1.35)
    shown = None
    for axis, image, found, title in (
        (axes[0], astronaut_image(), face(), "the face as it is"),
        (axes[1], covered_image, hidden, "mouth and chin covered"),
    ):
        axis.imshow(cv2.warpAffine(image, matrix, (SIDE, SIDE)))
        shown = axis.scatter(
            *transform(found.points, matrix).T,
            c=found.scores,
            cmap=COLORS,
            vmin=0,
            vmax=1,
            s=16,
            edgecolors="black",
            linewidths=0.3,
        )
        axis.set_title(title, fontsize=11)
        axis.axis("off")
        for part in ("left_eye", "outer_lips", "jaw"):
            indices = list(found.layout.parts[part])
            print(f"{title}: mean score of {part} {found.scores[indices].mean():.2f}")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="score")
    return figure


def draw_near() -> Any:
    """An eye with the distance that scores refer to, and the ellipses of the covariances."""
    image, matrix = portrait(900, margin=1.2)
    found = face()
    scale = matrix[0, 0]
    points = transform(found.points, matrix)
    figure = new_figure(8.6, 5)
    axis = figure.subplots()
    axis.imshow(paled(image, 0.35))
    names = ("left_eye", "left_eyebrow")
    indices = [i for part in names for i in found.layout.parts[part]]
    for index in indices:
        color = COLORS(float(found.scores[index]))
        axis.plot(*points[index], "o", color=color, markersize=6, markeredgecolor="black")
        ellipse(axis, points[index], found.covariance[index] * scale**2, "black")
        axis.add_patch(
            Circle(
                points[index],
                NEAR * found.interocular * scale,
                fill=False,
                edgecolor=BLUE,
                linewidth=0.8,
                linestyle=":",
            )
        )
        axis.annotate(
            f"{found.scores[index]:.2f}",
            points[index],
            (7, -11),
            textcoords="offset points",
            fontsize=8,
        )
    low, high = points[indices].min(axis=0), points[indices].max(axis=0)
    axis.set_xlim(low[0] - 45, high[0] + 45)
    axis.set_ylim(high[1] + 40, low[1] - 40)
    axis.axis("off")
    axis.plot([], [], ":", color=BLUE, label="within 5 % of the inter-ocular distance")
    axis.plot([], [], "-", color="black", label="half of the true points, by the covariance")
    axis.legend(loc="upper right", fontsize=9)
    return figure


def main() -> None:
    """Draw both."""
    save(draw_scores(), "scores.png")
    save(draw_near(), "near.png")


if __name__ == "__main__":
    main()
