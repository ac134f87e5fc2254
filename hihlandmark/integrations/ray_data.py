"""Landmarks as a step of a Ray Data pipeline, on the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hihlandmark.errors import ConfigurationError, ImageError, abbreviate, missing_extra
from hihlandmark.io.formats import face_columns, face_row
from hihlandmark.io.sources import require_pyarrow

if TYPE_CHECKING:
    import pyarrow
    import ray.data

    from hihlandmark.detector import Detector


def add_landmarks(
    dataset: ray.data.Dataset,
    make_detector: Callable[[], Detector],
    *,
    column: str = "bytes",
    batch_size: int = 32,
    compute: ray.data.ActorPoolStrategy | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_restarts: int = 10,
) -> ray.data.Dataset:
    """Add a step to a Ray Data pipeline that turns rows with an image into a row per face.

    A worker that dies, alone or with its machine, is restarted, and its images are predicted again.
    The step is lazy: it runs when the dataset is consumed.

    >>> images = ray.data.read_binary_files("images", include_paths=True)
    >>> add_landmarks(images, Detector).write_parquet("landmarks")

    Args:
        dataset: Rows with an image in ``column``: the bytes of an image file, or an array
            (H, W, 3) RGB uint8.
        make_detector: Makes the detector of a worker, such as ``partial(Detector, 68)``. It is
            pickled and called on the worker.
        column: Name of the image column. It is dropped; all other columns are kept.
        batch_size: Images per call of the detector.
        compute: Number of workers; None: Ray Data adds workers while the cluster has room.
        num_cpus: CPU cores per worker. Ray Data needs a free core beside them to read and write.
        num_gpus: GPUs per worker.
        max_restarts: How often one worker is restarted before the run ends with an error; -1: no
            limit, so that an image that kills every worker is tried forever.

    Returns:
        A dataset with the other columns, ``error`` (null where the image was read), ``face`` (its
        number from 0, null where there is none) and the columns of `face_columns`. An image
        without a face, or with an error, is one row.

    Raises:
        ConfigurationError: Ray is not installed.
    """
    with missing_extra("ray"):
        import ray.data  # noqa: F401
    return dataset.map_batches(
        AddLandmarks,
        fn_constructor_args=(make_detector, column),
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=compute,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_restarts=max_restarts,
        # Unlimited: while Ray has not noticed that a machine died, every call to it is a retry.
        max_task_retries=-1,
    )


class AddLandmarks:
    """What a worker does with a batch: a table of images in, a table of faces out.

    Args:
        make_detector: Makes the detector.
        column: Name of the image column.
    """

    def __init__(self, make_detector: Callable[[], Detector], column: str = "bytes") -> None:
        self._detector, self._column = make_detector(), column

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """Return a row per face of the images in a table, as `add_landmarks` describes."""
        pyarrow = require_pyarrow()
        columns = [("error", pyarrow.string()), ("face", pyarrow.int32()), *face_columns()]
        kept = batch.drop_columns([self._column])
        if twice := {name for name, _ in columns} & set(kept.column_names):
            raise ConfigurationError(
                f"the table has columns that the faces have as well: {abbreviate(twice)}; rename "
                "or drop them"
            )
        rows: list[dict[str, Any]] = []
        origins: list[int] = []
        images = batch.column(self._column).to_pylist()
        for origin, found in enumerate(self._detector.predict_many(images, on_error="yield")):
            if isinstance(found, ImageError):
                of_image = [{"error": str(found)}]
            else:
                of_image = [{"face": n} | face_row(face) for n, face in enumerate(found)] or [{}]
            rows += of_image
            origins += [origin] * len(of_image)
        table = pyarrow.Table.from_pylist(rows, pyarrow.schema(columns))
        kept = kept.take(pyarrow.array(origins, pyarrow.int64()))
        for name in kept.column_names:
            table = table.append_column(name, kept.column(name))
        return table
