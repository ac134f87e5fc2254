"""The landmarks of an image in three layouts, drawn side by side.

    python examples/quick_start.py [PHOTO] [PICTURE]

Without an image of your own, scikit-image's astronaut is used.
"""

import sys

import numpy as np
from PIL import Image
from skimage.data import astronaut

from hihlandmark import Detector, draw_faces, load_image


def main(photo: str | None = None, picture: str = "landmarks.png") -> None:
    """Finds the faces of an image once, and their points in each layout."""
    image = load_image(photo if photo else astronaut())
    drawings = []
    for layout in (98, 68, 29):
        faces = Detector(layout).predict(image)
        drawings.append(draw_faces(image, faces))
        for face in faces:
            least = int(face.scores.argmin())
            print(
                f"{layout} points, mean score {face.scores.mean():.2f}; least sure of "
                f"{face.layout.point_names[least]} ({face.scores[least]:.2f})"
            )
    Image.fromarray(np.concatenate(drawings, axis=1)).save(picture)
    print(f"picture: {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
