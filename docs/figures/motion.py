"""Draws motion.webp: scikit-image's astronaut under pan, zoom and tilt, with 98 points a frame.

    python docs/figures/motion.py

Every frame is an image of its own: faces are detected and landmarks predicted without tracking or
smoothing.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage.data import astronaut

from hihlandmark import Detector, draw_faces
from hihlandmark.crop import cut_crop, resize_matrix
from hihlandmark.face import transform_face

FRAMES, SIDE = 48, 320
FACE = np.array([224.0, 125.0])  # its center in the image


def main() -> None:
    """Write the animation beside this file."""
    detector, image = Detector(98), astronaut()
    frames = []
    for phase in np.linspace(0, 2 * np.pi, FRAMES, endpoint=False):
        angle, side = np.deg2rad(28) * np.sin(phase + 0.6), 270 - 95 * np.cos(phase)
        center = FACE + np.array([40 * np.sin(phase), 18 * np.sin(2 * phase)])
        # The frame stays inside of the image.
        half = side / 2 * (np.abs(np.cos(angle)) + np.abs(np.sin(angle)))
        x, y = center.clip(half, len(image) - 1 - half)
        frame = cut_crop(image, np.array([x, y, side, angle]), SIDE)
        faces = detector.predict(frame)
        # Drawn at twice the size and reduced, which smooths the points.
        matrix = resize_matrix((SIDE, SIDE), (2 * SIDE, 2 * SIDE))
        large = cv2.resize(frame, (2 * SIDE, 2 * SIDE), interpolation=cv2.INTER_CUBIC)
        drawn = draw_faces(np.asarray(large), [transform_face(face, matrix) for face in faces])
        frames.append(Image.fromarray(drawn).resize((SIDE, SIDE), Image.Resampling.BOX))
    out = Path(__file__).with_name("motion.webp")
    options = {"duration": 80, "loop": 0, "quality": 70, "method": 6}
    frames[0].save(out, save_all=True, append_images=frames[1:], **options)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
