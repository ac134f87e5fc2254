"""The faces of all images of a folder, found on the machines of a Ray cluster, as Parquet files.

    python examples/ray_folder.py IMAGES landmarks

IMAGES and landmarks are folders that all machines see under the same path, or URLs such as
``s3://bucket/images``. The cluster is the one at ``RAY_ADDRESS``, or one started on this machine.
An image that cannot be read is a row with its ``error``. A run that fails is started again from
the beginning, into a new folder: docs/folders.md lists the failures that end a run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import ray
import ray.data

from hihlandmark import Detector
from hihlandmark.integrations.ray_data import add_landmarks
from hihlandmark.io import IMAGE_SUFFIXES


def main(
    images: str,
    out: str,
    make_detector: Callable[[], Detector] = Detector,
    batch_size: int = 32,
) -> None:
    """Write a row per face, and a row per image without a face or with an error.

    Raises:
        ValueError: ``out`` exists.
    """
    suffixes = [suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES]
    data = ray.data.read_binary_files(images, include_paths=True, file_extensions=suffixes)
    found = add_landmarks(data, make_detector, batch_size=batch_size)
    # A second run into the same folder would add every row once more.
    found.write_parquet(out, mode=ray.data.SaveMode.ERROR)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
