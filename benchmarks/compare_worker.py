"""One system that `compare.py` measures, in a Python environment of its own.

    python benchmarks/compare_worker.py SYSTEM [LAYOUT]

Reads requests from stdin and answers on stdout, as pickles of built-in types. It needs NumPy and
the package of its system, and imports nothing else. The methods of a system:

- `faces`: an image (H, W, 3) uint8 RGB -> points (F, P, 2) of its faces, search included;
- `crop`: points (1, P, 2) of the face that the call before found in the same image, without a
  search, from one run of the network;
- `frame`: points (F, P, 2) of the next frame of a video;
- `search`: boxes (F, 4) xyxy of an image, by the system's search 0 or 1.

The center of the top-left pixel is (0, 0).
"""
# ruff: noqa: D102 (the methods are described above)

from __future__ import annotations

import os
import pickle
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np


class Hihlandmark:
    """This package with its defaults."""

    def __init__(self, layout: str = "68") -> None:
        from hihlandmark import Detector

        self.detector = Detector(int(layout))
        self.one_crop = self.detector.with_options(refine=0, flip_test=False)
        self.tracker: Any = None
        self.frames = 0

    def faces(self, image: Any) -> Any:
        self.last = [face.points for face in self.detector.predict(image)]
        return self.last

    def crop(self, image: Any) -> Any:
        points = self.last[0]
        box = [*points.min(axis=0), *points.max(axis=0)]
        found = self.one_crop.predict(image, boxes=[box], box_kind="landmarks")
        return [face.points for face in found]

    def frame(self, image: Any) -> Any:
        from hihlandmark.video import FaceTracker, Frame

        self.tracker = self.tracker or FaceTracker(self.detector)
        self.frames += 1
        found = self.tracker.update(Frame(image, self.frames, self.frames / 25))
        return [face.points for face in found]

    def search(self, image: Any, which: str) -> Any:
        return self.detector.find_faces(image).boxes


class MediaPipe:
    """The attention mesh and both BlazeFace detectors of MediaPipe's "solutions"."""

    def __init__(self) -> None:
        from mediapipe.python.solutions import (  # type: ignore[import-not-found]
            face_detection,
            face_mesh,
        )

        self.detection = face_detection.FaceDetection
        self.still = face_mesh.FaceMesh(
            static_image_mode=True, refine_landmarks=True, max_num_faces=10
        )
        self.video = face_mesh.FaceMesh(refine_landmarks=True)
        self.detectors: dict[str, Any] = {}

    def faces(self, image: Any) -> Any:
        return self._points(self.still, image)

    def crop(self, image: Any) -> Any:
        return self._points(self.video, image)

    frame = crop

    def search(self, image: Any, which: str) -> Any:
        if which not in self.detectors:
            self.detectors[which] = self.detection(model_selection=int(which))
        found = self.detectors[which].process(image).detections or []
        boxes = [each.location_data.relative_bounding_box for each in found]
        corners = [(b.xmin, b.ymin, b.xmin + b.width, b.ymin + b.height) for b in boxes]
        height, width = image.shape[:2]
        return [np.multiply(each, (width, height, width, height)) - 0.5 for each in corners]

    def _points(self, mesh: Any, image: Any) -> Any:
        height, width = image.shape[:2]
        found = mesh.process(image).multi_face_landmarks or []
        return [[(p.x * width - 0.5, p.y * height - 0.5) for p in f.landmark] for f in found]


class Dlib:
    """The HOG detector and the 68-point regression trees of dlib."""

    def __init__(self) -> None:
        import dlib  # type: ignore[import-not-found]

        spec = find_spec("face_recognition_models")
        assert spec is not None
        assert spec.origin is not None
        model = Path(spec.origin).parent / "models" / "shape_predictor_68_face_landmarks.dat"
        self.detector = dlib.get_frontal_face_detector()
        self.predictor = dlib.shape_predictor(str(model))
        self.boxes: Any = []

    def faces(self, image: Any) -> Any:
        self.boxes = self.detector(image, 0)
        return [self._points(image, box) for box in self.boxes]

    def crop(self, image: Any) -> Any:
        return [self._points(image, self.boxes[0])]

    frame = faces

    def search(self, image: Any, which: str) -> Any:
        found = self.detector(image, int(which))
        return [(b.left(), b.top(), b.right(), b.bottom()) for b in found]

    def _points(self, image: Any, box: Any) -> Any:
        return [(point.x, point.y) for point in self.predictor(image, box).parts()]


SYSTEMS = {"hihlandmark": Hihlandmark, "mediapipe": MediaPipe, "dlib": Dlib}


def memory() -> dict[str, float]:
    """Resident memory of this process in MB, now and at most.

    Not by `resource`: there a new process starts with the memory of the one that made it.
    """
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"resident MB": "VmRSS", "peak MB": "VmHWM"}
    return {name: int(rows[row].split()[0]) / 1024 for name, row in names.items()}


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    system = SYSTEMS[sys.argv[1]](*sys.argv[2:])
    while True:
        try:
            method, size, pixels, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        image = np.frombuffer(pixels, np.uint8).reshape(*size, 3)
        wall, cpu = time.perf_counter(), time.process_time()
        found = getattr(system, method)(image, *arguments)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        points = np.asarray(found, np.float64)
        answer = {
            "shape": points.shape,
            "points": points.tobytes(),
            "CPU-ms": 1000 * cpu,
            "wall ms": 1000 * wall,
            "CPU-s": time.process_time(),
        }
        pickle.dump(answer | memory(), answers)
        answers.flush()


if __name__ == "__main__":
    main()
