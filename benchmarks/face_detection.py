"""Time and recall of the face detectors, by the size at which an image is searched: a table, JSON.

    python benchmarks/face_detection.py --data DIR --json OUT

DIR holds ``scenes/annotations.jsonl`` (``image``, and ``box`` tight around the landmarks of the one
annotated face) and ``scenes/images``; images without an annotation are also searched.

- "annotated": the part of the annotated faces that are found: the center of a detected box lies in
  the landmarks' box and the two overlap by IoU >= 0.3 (MTCNN's box also holds the forehead, so that
  a perfect one does not reach 1).
- "crowds": on the images without annotation, the part of the faces found at the first setting
  (facenet-pytorch's own search, on the full image) that are found again with IoU >= 0.5; and the
  same of those with a longer side of 40 pixels or more.
- "time": median over the images of an image's time as a ratio to the first setting. It is the CPU
  time of one thread, which other load on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray
from torchvision.ops import box_iou

from hihlandmark import load_image
from hihlandmark.face_detection import Detections, make_face_detector
from hihlandmark.face_detection.base import downscale, upscale_detections
from hihlandmark.tables import Table

LARGE_FACE = 40


class Setting(NamedTuple):
    """How an image is searched; see `make_face_detector`."""

    detector: str
    detection_size: int
    min_face: int


SETTINGS = (
    Setting("facenet-pytorch", 1280, 20),
    Setting("facenet-pytorch", 800, 20),
    Setting("mtcnn", 1280, 20),
    Setting("mtcnn", 1024, 20),
    Setting("mtcnn", 800, 20),
    Setting("mtcnn", 800, 40),
    Setting("mtcnn", 640, 20),
    Setting("mtcnn", 480, 20),
    Setting("centerface", 800, 20),
    Setting("centerface", 640, 20),
    Setting("centerface", 480, 20),
    Setting("centerface", 320, 20),
)


class FacenetPyTorch:
    """MTCNN as the package comes, but for the size searched: what ours is measured against."""

    name = "facenet-pytorch"

    def __init__(self, detection_size: int, min_face: int) -> None:
        self.detection_size, self.min_face = detection_size, min_face
        self.mtcnn = MTCNN(keep_all=True, thresholds=[0.6, 0.7, 0.9])

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """See `FaceDetector`."""
        return [self._detect(image) for image in images]

    def _detect(self, image: NDArray[np.uint8]) -> Detections:
        small, factors = downscale(image, self.detection_size)
        boxes, scores, points = self.mtcnn.detect(small, landmarks=True)
        if boxes is None:
            return Detections.none()
        boxes, scores, points = (np.asarray(each, np.float64) for each in (boxes, scores, points))
        return upscale_detections(boxes, scores, points, factors, image, self.min_face)


class Search(NamedTuple):
    """What one setting found in one image, boxes (F, 4), and the CPU time that it took."""

    boxes: NDArray[np.floating]
    seconds: float


def pairwise_iou(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.floating]:
    """Intersection over union of boxes (A, 4) and (B, 4) xyxy -> (A, B)."""
    boxes = (torch.as_tensor(np.asarray(each, np.float64)) for each in (first, second))
    return box_iou(*boxes).numpy()


def found_again(reference: NDArray[np.floating], boxes: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which of the reference boxes (F, 4) a box overlaps by IoU >= 0.5: (F,)."""
    return np.any(pairwise_iou(reference, boxes) >= 0.5, axis=1)


def annotated_face_found(face: NDArray[np.floating], boxes: NDArray[np.floating]) -> bool:
    """Whether one of (F, 4) boxes has its center in the landmarks' box (4,) and IoU >= 0.3."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centers >= face[:2]) & (centers <= face[2:])).all(axis=1)
    return bool((inside & (pairwise_iou(face[None], boxes)[0] >= 0.3)).any())


def search(scenes: Path) -> dict[str, list[Search]]:
    """Image (its path in the folder) -> one `Search` for each of `SETTINGS`."""
    detectors = [
        FacenetPyTorch(setting.detection_size, setting.min_face)
        if setting.detector == FacenetPyTorch.name
        else make_face_detector(device="cpu", **setting._asdict())
        for setting in SETTINGS
    ]
    results = {}
    for path in sorted((scenes / "images").iterdir()):
        image = load_image(path)
        searches = []
        for detector in detectors:
            start = time.process_time()
            boxes = detector.detect([image])[0].boxes
            searches.append(Search(boxes, time.process_time() - start))
        results[path.relative_to(scenes).as_posix()] = searches
    return results


def evaluate(
    searches: dict[str, list[Search]], annotated: dict[str, NDArray[np.floating]]
) -> list[dict[str, Any]]:
    """One row of results for each of `SETTINGS`; ``annotated``: image -> landmarks' box (4,)."""
    crowds = [searched for name, searched in searches.items() if name not in annotated]
    reference = np.concatenate([searched[0].boxes for searched in crowds])
    large = (reference[:, 2:] - reference[:, :2]).max(axis=1) >= LARGE_FACE
    seconds = np.array([[s.seconds for s in searched] for searched in searches.values()])
    rows = []
    for i, setting in enumerate(SETTINGS):
        again = np.concatenate([found_again(s[0].boxes, s[i].boxes) for s in crowds])
        hits = [
            annotated_face_found(box, searches[name][i].boxes) for name, box in annotated.items()
        ]
        row = {
            "milliseconds": np.median(seconds[:, i]) * 1000,
            "time_ratio": np.median(seconds[:, i] / seconds[:, 0]),
            "recall_annotated": np.mean(hits),
            "recall_crowds": again.mean(),
            "recall_crowds_large": again[large].mean(),
            "boxes_per_image": np.mean([len(s[i].boxes) for s in searches.values()]),
        }
        rows.append(setting._asdict() | {name: float(value) for name, value in row.items()})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    large = f"crowds >= {LARGE_FACE} px"
    return Table(
        "",
        ["detector", "size", "min_face", "time", "ms", "annotated", "crowds", large, "boxes"],
        [
            [
                row["detector"],
                row["detection_size"],
                row["min_face"],
                f"{row['time_ratio']:.2f}",
                f"{row['milliseconds']:.0f}",
                f"{row['recall_annotated']:.1%}",
                f"{row['recall_crowds']:.1%}",
                f"{row['recall_crowds_large']:.1%}",
                f"{row['boxes_per_image']:.1f}",
            ]
            for row in rows
        ],
    ).markdown()


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds scenes/")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    scenes = arguments.data / "scenes"
    with (scenes / "annotations.jsonl").open(encoding="utf-8") as lines:
        annotated = {a["image"]: np.array(a["box"]) for a in map(json.loads, lines)}
    rows = evaluate(search(scenes), annotated)
    arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
