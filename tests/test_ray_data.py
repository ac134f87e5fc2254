"""Ray Data: every image has its rows, once, when workers and machines die."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import encoded
from numpy.typing import NDArray
from PIL import Image

from hihlandmark import ConfigurationError, Detector
from hihlandmark.integrations.ray_data import AddLandmarks, add_landmarks

pyarrow = pytest.importorskip("pyarrow")

EXAMPLE = Path(__file__).parent.parent / "examples" / "ray_folder.py"

# In fp32: in bf16 the points depend on the number of threads, by some hundredths of a pixel.
QUICK: dict[str, Any] = {"device": "cpu", "runtime": "torch", "precision": "fp32"}
QUICK |= {"refine": 0, "flip_test": False}
make_quick = partial(Detector, 29, **QUICK)


# ------------------------------------------------------------------------------------ without Ray


@pytest.fixture(scope="module")
def step() -> AddLandmarks:
    return AddLandmarks(make_quick, "bytes")


def test_every_image_has_rows_and_other_columns_stay(
    step: AddLandmarks, astronaut: NDArray[np.uint8]
) -> None:
    face = astronaut[:240, 100:380]
    images = [encoded(np.concatenate([face, face], axis=1)), b"no image", encoded(0 * face)]
    ids = pyarrow.array([7, None, 9], pyarrow.int64())
    table = step(pyarrow.table({"bytes": pyarrow.array(images, pyarrow.binary()), "id": ids}))
    assert table.schema.field("id").type == pyarrow.int64()
    assert "bytes" not in table.column_names
    rows = table.to_pylist()
    assert [(row["id"], row["face"], bool(row["error"])) for row in rows] == [
        (7, 0, False),
        (7, 1, False),
        (None, None, True),
        (9, None, False),
    ]
    assert np.shape(rows[0]["points"]) == (29, 2)
    assert rows[2]["points"] is None


def test_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match="ray"):
        add_landmarks(None, make_quick)


# ------------------------------------------------------------------------------------ on a cluster


@pytest.fixture
def images(astronaut: NDArray[np.uint8], tmp_path: Path) -> Path:
    """60 images of one face and one that cannot be read."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(60):
        Image.fromarray(astronaut[:240, 90 + number : 350 + number]).save(folder / f"{number}.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes that work, and a head without cores that no test kills."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        nodes.add_node(num_cpus=2)
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def noting_detector(folder: Path) -> Callable[[], Detector]:
    """Makes detectors that leave a file ``node-process-time`` in a folder for each batch."""

    class NotingDetector(Detector):  # local, so that Ray sends it by value
        def predict_many(self, images: Any, **options: Any) -> Any:
            import ray

            node = ray.get_runtime_context().get_node_id()
            (folder / f"{node}-{os.getpid()}-{time.monotonic_ns()}").touch()
            return super().predict_many(images, **options)

    return partial(NotingDetector, 29, **QUICK)


def run_example(images: Path, out: Path, make_detector: Callable[[], Detector]) -> Any:
    """The table that `examples/ray_folder.py` writes."""
    import pandas

    spec = importlib.util.spec_from_file_location("ray_folder", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(str(images), str(out), make_detector, batch_size=4)
    return pandas.read_parquet(out)


@contextmanager
def example_in_progress(images: Path, folder: Path) -> Iterator[tuple[str, int, Future[Any]]]:
    """Node and process of a worker in the third batch, and the table that the run will write."""
    noted = folder / "noted"
    noted.mkdir()
    with ThreadPoolExecutor(1) as executor:
        table = executor.submit(run_example, images, folder / "out", noting_detector(noted))
        while len(batches := [path.name for path in noted.iterdir()]) < 3:
            assert not table.done()
            time.sleep(0.02)
        newest = max(batches, key=lambda name: int(name.split("-")[2]))
        node, process, _ = newest.split("-")
        yield node, int(process), table


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "node"])
def test_kill_neither_loses_nor_doubles_rows(
    cluster: Any, images: Path, tmp_path: Path, victim: str
) -> None:
    with example_in_progress(images, tmp_path) as (node, process, future):
        if victim == "worker":
            os.kill(process, signal.SIGKILL)
        else:
            (killed,) = (each for each in cluster.worker_nodes if each.node_id == node)
            cluster.remove_node(killed, allow_graceful=False)
        assert not future.done()
        table = future.result()
    assert sorted(table["path"]) == sorted(str(path) for path in images.iterdir())
    failed = table[table["error"].notna()]
    assert [Path(path).name for path in failed["path"]] == ["broken.jpg"]
    row = table.set_index("path").loc[str(images / "5.jpg")]
    (alone,) = make_quick().predict(images / "5.jpg")
    np.testing.assert_allclose(np.stack(row["points"]), alone.points, atol=1e-3)


@pytest.mark.slow
def test_image_that_kills_every_worker_ends_the_run(cluster: Any, images: Path) -> None:
    import ray

    class Deadly(Detector):
        def predict_many(self, images: Any, **options: Any) -> Any:
            if b"no image" in images:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().predict_many(images, **options)

    make_deadly = partial(Deadly, 29, **QUICK)
    data = ray.data.read_binary_files(str(images))
    with pytest.raises(ray.exceptions.RayError, match="actor"):
        add_landmarks(data, make_deadly, max_restarts=2).take_all()


@pytest.mark.slow
def test_second_run_into_a_folder_is_refused(cluster: Any, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists"):
        run_example(images, tmp_path, make_quick)
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.slow
def test_column_of_arrays_is_predicted(cluster: Any, images: Path) -> None:
    import ray

    data = ray.data.read_images(str(images / "5.jpg"), include_paths=True)
    (row,) = add_landmarks(data, make_quick, column="image").take_all()
    (alone,) = make_quick().predict(images / "5.jpg")
    np.testing.assert_allclose(np.stack(row["points"]), alone.points, atol=1e-3)
    assert row["path"] == str(images / "5.jpg")


def test_a_batch_without_rows_has_the_columns(step: AddLandmarks) -> None:
    table = step(pyarrow.table({"bytes": pyarrow.array([], pyarrow.binary())}))
    assert table.num_rows == 0
    assert "points" in table.column_names


def test_columns_that_the_faces_have_as_well_are_refused(step: AddLandmarks) -> None:
    table = pyarrow.table({"bytes": [b""], "box": [[1, 2]], "error": ["earlier"], "id": [1]})
    with pytest.raises(ConfigurationError, match="box, error"):
        step(table)
