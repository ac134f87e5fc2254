"""Why a face is found or not: the candidates of a face detector, and what drops each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.draw import draw_faces, encode_png
from hihlandmark.face import Face
from hihlandmark.face_detection import Detections, FaceDetector, overlaps
from hihlandmark.face_detection.auto_size import search_again, with_search_options
from hihlandmark.tables import Table

LOOSEST = {"min_face": 1, "min_score": 0.1}
"""Options of the search for candidates."""
_SAME = 0.4
"""Overlap (IoU) from which on two boxes are of the same face."""
_FOUND, _DROPPED = (0, 200, 0), (230, 60, 40)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A box that may hold a face.

    Attributes:
        face: the box with its score, and the points found in it.
        reason: why `predict` drops it; "" for a face that it returns.
    """

    face: Face
    reason: str

    @property
    def is_found(self) -> bool:
        """Whether `predict` returns it."""
        return not self.reason


@dataclass(frozen=True, eq=False)
class Explanation:
    """The candidates of an image; Jupyter shows them drawn.

    Attributes:
        image: (H, W, 3) uint8 RGB, as it was searched.
        candidates: the faces that are found, then the others, each with the best score first.
    """

    image: Image
    candidates: Sequence[Candidate]

    def table(self) -> Table:
        """A row per candidate: number, box, scores, and why it is dropped."""
        rows = []
        for number, (face, reason) in enumerate(
            (each.face, each.reason) for each in self.candidates
        ):
            box = " ".join(f"{side:.0f}" for side in face.box)
            scores = (face.box_score, float(face.scores.mean()), face.reliability)
            rows.append((number, box, *(f"{score:.2f}" for score in scores), reason or "found"))
        headers = ("", "box", "box score", "mean score", "reliability", "result")
        return Table("", headers, rows)

    def draw(self) -> Image:
        """The image with the boxes, numbered as in the table: green if found, else red."""
        found = [each.face for each in self.candidates if each.is_found]
        canvas = draw_faces(self.image, found)
        width = max(1, round(max(canvas.shape[:2]) / 400))
        for number, each in enumerate(self.candidates):
            color = _FOUND if each.is_found else _DROPPED
            x0, y0, x1, y1 = (int(side) for side in np.clip(np.round(each.face.box), -1e5, 1e5))
            cv2.rectangle(canvas, (x0, y0), (x1, y1), color, width, cv2.LINE_AA)
            place = max(x0, 0) + 2, max(y0, 0) + 12 * width + 2
            cv2.putText(
                canvas, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, 0.45 * width, color, width
            )
        return canvas

    def _repr_png_(self) -> bytes:
        return encode_png(self.draw())


def dropped_candidates(
    face_detector: FaceDetector, image: Image, found: Detections
) -> tuple[Detections, list[str]]:
    """What a search with the loosest options finds beside ``found``, and why it is dropped.

    A face detector without the attributes ``min_face``, ``min_score`` and ``detection_size`` has
    only candidates that it finds in the second search of ``detection_size="auto"``.

    Args:
        face_detector: of upright faces, with the options in use.
        image: (H, W, 3) uint8 RGB.
        found: what it finds with these.
    """
    (loose,) = with_search_options(face_detector, **LOOSEST).detect([image])
    how, again = search_again(face_detector, image)
    min_face = getattr(face_detector, "min_face", 0)
    min_score = getattr(face_detector, "min_score", 0)
    boxes, scores, reasons = list(found.boxes), [], []
    matched: set[int] = set()
    for candidates, is_loose in ((loose, True), (again, False)):
        for box, score in zip(candidates.boxes, candidates.scores, strict=True):
            shares = overlaps(np.array(boxes).reshape(-1, 4), box)
            nearest = int(np.argmax(shares)) if len(shares) else -1
            is_near = nearest >= 0 and shares[nearest] > _SAME
            if is_near and (nearest not in matched or not is_loose):
                matched.add(nearest)  # the same face
                continue
            side = float((box[2:] - box[:2]).max())
            if not is_loose:
                reason = f"found only with {how}"
            elif side < min_face:
                reason = f"too small: {side:.0f} pixels, min_face is {min_face:g}"
            elif score < min_score:
                reason = f"score: {score:.2f}, min_box_score is {min_score:g}"
            elif is_near:
                reason = "overlap: with a better box"
            else:
                reason = "search: found only with looser options"
            matched.add(len(boxes))
            boxes.append(box)
            scores.append(score)
            reasons.append(reason)
    return Detections(np.array(boxes[len(found) :]).reshape(-1, 4), np.array(scores)), reasons
