"""Recall and CPU time of face detectors on images with all faces labeled: a table, JSON.

    python benchmarks/face_search.py --data DIR --json OUT

DIR holds ``scenes/boxes.jsonl`` (see `read_boxes`) and ``scenes/images``. Recall is measured on the
images of boxes.jsonl, at IoU 0.4; boxes and times on all images of the folder. Times are CPU time
of one thread; every image is searched at each setting before the next, so that other load on the
machine changes all alike. Settings whose package is not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from hihlandmark import load_image
from hihlandmark.errors import ConfigurationError
from hihlandmark.evaluation.detection import MIN_SIDES, is_found, read_boxes
from hihlandmark.face_detection import FaceDetector, make_face_detector
from hihlandmark.tables import Table

SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mtcnn", {}),
    ("mtcnn", {"precision": "bf16"}),
    ("mtcnn", {"precision": "fp32"}),
    ("mtcnn", {"detection_size": 1280}),
    ("centerface", {}),
    ("centerface", {"precision": "fp32"}),
    ("centerface", {"detection_size": 1280}),
    ("blazeface", {"detection_size": 320}),
    ("blazeface", {}),
    ("blazeface", {"precision": "fp32"}),
)


def search(
    scenes: Path, detectors: list[FaceDetector], precisions: list[str]
) -> list[dict[str, Any]]:
    """One row for each detector."""
    labeled = {each.path.name: each for each in read_boxes(scenes)}
    paths = sorted((scenes / "images").iterdir())
    milliseconds = np.zeros((len(detectors), len(paths)))
    counts = np.zeros(len(detectors))
    found = np.zeros((len(detectors), len(MIN_SIDES)), int)
    faces = np.zeros(len(MIN_SIDES), int)
    for i, path in enumerate(paths):
        image, labels = load_image(path), labeled.get(path.name)
        if labels is not None:
            shorter = (labels.boxes[:, 2:] - labels.boxes[:, :2]).min(axis=1)
            counted = ~labels.ignored & (shorter >= np.array(MIN_SIDES)[:, None])
            faces += counted.sum(axis=1)
        for k, detector in enumerate(detectors):
            start = time.process_time()
            boxes = detector.detect([image])[0].boxes
            milliseconds[k, i] = (time.process_time() - start) * 1000
            counts[k] += len(boxes)
            if labels is not None:
                found[k] += (counted & is_found(labels.boxes, boxes)).sum(axis=1)
    return [
        {
            "detector": detector.name,
            "precision": precisions[k],
            "detection_size": getattr(detector, "detection_size", None),
            "faces": dict(zip(MIN_SIDES, faces.tolist(), strict=True)),
            "found": dict(zip(MIN_SIDES, found[k].tolist(), strict=True)),
            "boxes_per_image": counts[k] / len(paths),
            "cpu_ms_median": float(np.median(milliseconds[k])),
            "cpu_ms_90": float(np.percentile(milliseconds[k], 90)),
        }
        for k, detector in enumerate(detectors)
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    recalls = [f"recall >= {side} px" for side in MIN_SIDES]
    return Table(
        "",
        ["detector", "precision", "size", *recalls, "boxes", "CPU-ms, median", "90 %"],
        [
            [
                row["detector"],
                row["precision"],
                row["detection_size"],
                *(f"{row['found'][s]}/{row['faces'][s]}" for s in MIN_SIDES),
                f"{row['boxes_per_image']:.2f}",
                f"{row['cpu_ms_median']:.1f}",
                f"{row['cpu_ms_90']:.1f}",
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
    detectors, precisions = [], []
    for name, options in SETTINGS:
        try:
            detectors.append(make_face_detector(name, device="cpu", **options))
            precisions.append(options.get("precision", "auto"))
        except ConfigurationError as error:
            print(f"left out: {error}")
    rows = search(arguments.data / "scenes", detectors, precisions)
    arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
