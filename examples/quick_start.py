"""The landmarks of an image in three layouts, drawn side by side.

    python examples/quick_start.py [IMAGE] [OUTPUT]

Without an image of your own, scikit-image's astronaut is used.
"""

import sys

import numpy as np
from PIL import Image
from skimage.data import astronaut

from hihlandmark import Detector, draw_faces, load_image


def main(path: str | None = None, output: str = "landmarks.png") -> None:
    """Find the faces of an image in each layout and draw them."""
    image = load_image(path if path else astronaut())
    drawings = []
    for layout in (98, 68, 29):
        faces = Detector(layout).predict(image)
        drawings.append(draw_faces(image, faces))
        for face in faces:
            lowest = int(face.scores.argmin())
            print(
                f"{layout} points, mean score {face.scores.mean():.2f}; lowest: "
                f"{face.layout.point_names[lowest]} ({face.scores[lowest]:.2f})"
            )
    Image.fromarray(np.concatenate(drawings, axis=1)).save(output)
    print(f"wrote {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])
