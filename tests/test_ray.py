"""Ray: all images have their results, whatever becomes of the workers."""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hihlandmark import ConfigurationError, Detector
from hihlandmark.errors import ImageError
from hihlandmark.folder import Result, ResultFolder, find_images
from hihlandmark.ray import add_landmarks, predict_on_ray

make_quick = partial(Detector, 29, device="cpu", runtime="torch", refine=0, mirror=False)


@pytest.fixture
def photos(astronaut: NDArray[np.uint8], tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(60):
        Image.fromarray(astronaut[:240, 90 + number : 350 + number]).save(folder / f"{number}.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one core each."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import_anything = builtins.__import__

    def import_without_ray(name: str, *args: Any) -> Any:
        if name.split(".")[0] == "ray":
            raise ImportError(name)
        return import_anything(name, *args)

    monkeypatch.setattr(builtins, "__import__", import_without_ray)
    with pytest.raises(ConfigurationError, match=r"pip install 'hihlandmark\[ray\]'"):
        next(predict_on_ray(make_quick, []))


@pytest.mark.slow
def test_a_node_that_is_killed_costs_no_image(cluster: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    nodes = list(cluster.list_all_nodes())
    sources = list(find_images([str(photos)]))
    settings = {"layout": "29"}
    with ResultFolder(out, "parquet", settings, part_size=10) as folder:
        results = predict_on_ray(
            make_quick, folder.pending(sources), address=cluster.address, cores=1, job_size=4
        )
        for number, result in enumerate(results):
            assert isinstance(result, Result)
            folder.add(result)
            if number == 6:
                cluster.remove_node(nodes[1], allow_graceful=False)
    import pandas

    table = pandas.read_parquet(out)
    assert sorted(table["image"]) == sorted(str(path) for path in photos.iterdir())
    assert table["error"].notna().sum() == 1


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(cluster: Any, photos: Path) -> None:
    killed = []

    def make_detector() -> Detector:
        (photos.parent / f"worker-{os.getpid()}").touch()
        return make_quick()

    names = []
    results = predict_on_ray(
        make_detector, find_images([str(photos)]), address=cluster.address, cores=1, job_size=4
    )
    for number, result in enumerate(results):
        assert isinstance(result, Result)
        names.append(result.source.name)
        if number in (2, 20):
            alive = [int(path.name.split("-")[1]) for path in photos.parent.glob("worker-*")]
            victim = next(pid for pid in alive if pid not in killed)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
    assert sorted(names) == sorted(path.name for path in photos.iterdir())
    assert len(list(photos.parent.glob("worker-*"))) >= 3


@pytest.mark.slow
def test_an_image_that_kills_workers_is_a_row_with_its_error(cluster: Any, photos: Path) -> None:
    for path in sorted(photos.iterdir())[8:]:
        path.unlink()
    Image.new("RGB", (33, 33)).save(photos / "deadly.png")

    class Deadly(Detector):
        """Kills its process over the one photo of that size."""

        def search(self, read: Any) -> Any:
            found = super().search(read)
            if not isinstance(found, ImageError) and found[0].shape[0] == 33:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

    def make_detector() -> Detector:
        return Deadly(29, device="cpu", runtime="torch", refine=0, mirror=False)

    results = list(
        predict_on_ray(
            make_detector, find_images([str(photos)]), address=cluster.address, cores=1, job_size=3
        )
    )
    errors = {r.source.name: r.error for r in results if isinstance(r, Result) and r.error}
    assert len(results) == 9
    assert set(errors) == {"deadly.png"}
    assert "3 workers died over this image" in errors["deadly.png"]


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_job(cluster: Any, photos: Path) -> None:
    def make_detector() -> Detector:
        return Detector(weights="none.json")

    with pytest.raises(ConfigurationError, match=r"no worker can be started on Ray: .*none.json"):
        next(predict_on_ray(make_detector, find_images([str(photos)]), address=cluster.address))


@pytest.mark.slow
def test_ray_data_gets_a_row_a_face(cluster: Any, photos: Path, tmp_path: Path) -> None:
    import pandas
    import ray

    ray.init(address=cluster.address, log_to_driver=False)
    data = ray.data.read_binary_files(str(photos), include_paths=True)
    add_landmarks(data, make_quick, concurrency=1, cores=1).write_parquet(str(tmp_path / "out"))
    table = pandas.read_parquet(tmp_path / "out").set_index("path")
    assert len(table) == 61
    assert "bytes" not in table.columns
    assert table["error"].notna().sum() == 1
    alone = make_quick().predict(photos / "5.jpg")[0]
    row = table.loc[str(photos / "5.jpg")]
    np.testing.assert_allclose(np.stack(row["points"]), alone.points, atol=1e-3)


@pytest.mark.slow
def test_no_cluster_is_an_error() -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigurationError, match="ray start --head"):
        next(predict_on_ray(make_quick, [], address="auto"))
