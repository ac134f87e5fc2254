"""Many machines, by Ray: a pool of detectors that outlives its workers, and a step for Ray Data."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.folder.formats import Result, face_columns, face_row
from hihlandmark.folder.prediction import predict_sources
from hihlandmark.folder.sources import Source, require_pyarrow

if TYPE_CHECKING:
    import pyarrow
    import ray.data

    from hihlandmark.detector import Detector

logger = logging.getLogger(__name__)

MakeDetector = Callable[[], "Detector"]

_CORES = 2
_MOST_ATTEMPTS = 3
_SAY_AFTER = 60.0
"""Seconds without a worker, after which that is said."""


@dataclass
class _Job:
    """Images for one worker, and how often one died over them."""

    sources: list[Source]
    attempts: int = 0


class _Worker:
    """A detector in a process of its own, on some machine."""

    def __init__(self, make_detector: MakeDetector) -> None:
        self._detector = make_detector()

    def ready(self) -> None:
        """Answers once the detector is there."""

    def predict(self, sources: Sequence[Source]) -> list[Result]:
        """The results of some images."""
        found = predict_sources(self._detector, sources, workers=1)
        return [result for result in found if isinstance(result, Result)]


def predict_on_ray(
    make_detector: MakeDetector,
    sources: Iterable[Source | ImageError],
    *,
    address: str | None = None,
    workers: int | None = None,
    cores: int | None = None,
    job_size: int = 16,
) -> Iterator[Result | ImageError]:
    """As `folder.predict_sources`, by workers of a Ray cluster, in the order in which they end.

    A worker that dies, by itself or with its machine, is replaced as soon as there is room for
    another, and its images are given to others. An image over which workers die three times gets a
    result with that error. Sources are taken as workers ask for them, so that neither their number
    nor the cluster's size costs memory here; the machines must see the files by the same paths.

    Args:
        make_detector: makes a worker's detector, such as ``partial(Detector, 68)``.
        sources: what `folder.find_images` gives.
        address: of a running cluster, "auto" for the one on this machine; None starts one here.
        workers: how many detectors; None: one a GPU, or as many as have ``cores`` each.
        cores: for one worker; None: two, or fewer where ``workers`` would not all have two.
        job_size: images that are handed over at once.

    Raises:
        ConfigurationError: Ray is missing, or there is no cluster at the address.
    """
    ray = _start(address)
    pool = _Pool(ray, make_detector, workers, cores)
    errors: deque[ImageError] = deque()
    remaining = _jobs(sources, job_size, errors)
    again: deque[_Job] = deque()
    all_given = False
    try:
        while True:
            for worker in pool.take_idle():
                job = again.popleft() if again else next(remaining, None)
                all_given |= job is None
                pool.give(worker, job)
                while errors:
                    yield errors.popleft()
            if all_given and not again and not pool.has_jobs:
                return
            answer = pool.wait()
            if answer is None:
                continue
            job, results = answer
            if results is not None:
                yield from results
                continue
            job.attempts += 1
            if len(job.sources) > 1:  # each alone, to find the one that a worker cannot bear
                again.extend(_Job([source], job.attempts) for source in job.sources)
            elif job.attempts < _MOST_ATTEMPTS:
                again.append(job)
            else:
                error = f"{job.sources[0].path}: {job.attempts} workers died over this image"
                yield Result(job.sources[0], error=error)
    finally:
        pool.close()


def _jobs(
    sources: Iterable[Source | ImageError], size: int, errors: deque[ImageError]
) -> Iterator[_Job]:
    """Sources by ``size``; what stands for no image goes to ``errors``."""
    found = iter(sources)
    while items := list(islice(found, size)):
        errors.extend(item for item in items if isinstance(item, ImageError))
        if images := [item for item in items if isinstance(item, Source)]:
            yield _Job(images)


class _Pool:
    """Workers that come and go: idle, waited for, or busy with a job."""

    def __init__(
        self, ray: Any, make_detector: MakeDetector, workers: int | None, cores: int | None
    ) -> None:
        self._ray = ray
        has = ray.cluster_resources()
        gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 1))
        largest = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
        cores = cores or max(1, min(_CORES, largest, cpus // (workers or gpus or 1)))
        count = workers or gpus or max(1, cpus // cores)
        options = {"num_cpus": cores, "num_gpus": 1 if gpus else 0}
        self._kind = ray.remote(**options)(_Worker)
        self._make_detector = ray.put(make_detector)
        self._idle: list[Any] = []
        self._asked: dict[Any, tuple[Any, _Job | None]] = {}
        """By answers that are waited for: the worker, and its job unless it is only starting."""
        self._failed_starts = 0
        logger.info("Ray: %d workers of %s", count, options)
        for _ in range(count):
            self._hire()

    @property
    def has_jobs(self) -> bool:
        """Whether any job is under way."""
        return any(job is not None for _, job in self._asked.values())

    def take_idle(self) -> list[Any]:
        """The workers that have nothing to do."""
        idle, self._idle = self._idle, []
        return idle

    def give(self, worker: Any, job: _Job | None) -> None:
        """Starts a job; without one the worker stays for those that may come back."""
        if job is None:
            self._idle.append(worker)
        else:
            self._asked[worker.predict.remote(job.sources)] = worker, job

    def wait(self) -> tuple[_Job, list[Result] | None] | None:
        """The next job that ended with its results, None instead of these if its worker died.

        None where no job ended: a worker is ready, or nothing happened for a minute. Raises
        `ConfigurationError` when workers cannot even be started.
        """
        ended, _ = self._ray.wait(list(self._asked), timeout=_SAY_AFTER)
        if not ended:
            logger.warning("Ray: nothing heard of %d workers for a minute", len(self._asked))
            return None
        worker, job = self._asked.pop(ended[0])
        try:
            results = self._ray.get(ended[0])
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError) as error:
            logger.warning("Ray: a worker died: %s", str(error).partition("\n")[0])
            self._failed_starts += job is None
            if self._failed_starts >= _MOST_ATTEMPTS:
                cause = str(error).strip().splitlines()[-1]
                raise ConfigurationError(
                    f"no worker can be started on Ray: {cause}; see that all machines have "
                    "hihlandmark and the weights"
                ) from error
            self._hire()
            return None if job is None else (job, None)
        self._failed_starts = 0
        self._idle.append(worker)
        return None if job is None else (job, results)

    def _hire(self) -> None:
        worker = self._kind.remote(self._make_detector)
        self._asked[worker.ready.remote()] = worker, None

    def close(self) -> None:
        """Lets all workers go."""
        for worker in [*self._idle, *(worker for worker, _ in self._asked.values())]:
            self._ray.kill(worker)


def add_landmarks(
    dataset: ray.data.Dataset,
    make_detector: MakeDetector,
    *,
    column: str = "bytes",
    batch_size: int = 32,
    concurrency: int | tuple[int, int] | None = None,
    cores: int = _CORES,
    gpus: float = 0,
) -> ray.data.Dataset:
    """A step for Ray Data: rows with an image -> a row a face, which `write_parquet` can take.

    >>> found = add_landmarks(ray.data.read_binary_files("photos", include_paths=True), Detector)
    >>> found.write_parquet("landmarks")

    Args:
        dataset: rows with ``column``: the bytes of an image file, or an array (H, W, 3) RGB.
        make_detector: makes a worker's detector, such as ``partial(Detector, 68)``.
        column: the image's. It is left out of what comes out; all other columns stay.
        batch_size: images at once.
        concurrency: workers, or the least and the most of them; None: a worker for ``cores``.
        cores: for one worker.
        gpus: for one worker; with 1 every worker has one of its own.

    Returns:
        The other columns, ``error`` (null where the image could be read), ``face``, its number
        (null where there is none) and the columns of `folder`'s tables.
    """
    ray = _import()
    if concurrency is None:
        has = ray.cluster_resources() if ray.is_initialized() else {"CPU": cores}
        most = has.get("GPU", 0) / gpus if gpus else has.get("CPU", 1) / cores
        concurrency = max(1, int(most))
    return dataset.map_batches(
        _AddLandmarks,
        fn_constructor_args=(make_detector, column),
        batch_format="numpy",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(
            **(
                {"size": concurrency}
                if isinstance(concurrency, int)
                else dict(zip(("min_size", "max_size"), concurrency, strict=True))
            )
        ),
        num_cpus=cores,
        num_gpus=gpus,
    )


class _AddLandmarks:
    """What a worker of Ray Data does with a batch."""

    def __init__(self, make_detector: MakeDetector, column: str) -> None:
        self._detector, self._column = make_detector(), column

    def __call__(self, batch: dict[str, Any]) -> pyarrow.Table:
        pyarrow = require_pyarrow()
        rows: list[dict[str, Any]] = []
        origins: list[int] = []
        images = batch.pop(self._column)
        for origin, found in enumerate(self._detector.predict_many(images, on_error="yield")):
            if isinstance(found, ImageError):
                of_image = [{"error": str(found)}]
            else:
                of_image = [{"face": n} | face_row(face) for n, face in enumerate(found)] or [{}]
            rows += of_image
            origins += [origin] * len(of_image)
        columns = [("error", pyarrow.string()), ("face", pyarrow.int32()), *face_columns()]
        table = pyarrow.Table.from_pylist(rows, pyarrow.schema(columns))
        for name, values in batch.items():
            table = table.append_column(name, pyarrow.array(np.asarray(values)[origins]))
        return table


def _import() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigurationError("Ray is not installed: pip install 'hihlandmark[ray]'") from error
    return ray


def _start(address: str | None) -> Any:
    """Ray, connected to a cluster or started here; what is connected already stays so."""
    ray = _import()
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"there is no Ray cluster at {address!r} ({error}): start one with `ray start "
                "--head`, or leave out --address to start one here"
            ) from error
    return ray
