"""Wheel and sdist, installed into an empty environment outside of the checkout."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import hihlandmark

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.wheel


class Distributions(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Both, the wheel built from the sdist, as they would be uploaded."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Distributions(wheel, sdist)


@pytest.fixture(scope="module")
def wheel(distributions: Distributions) -> Path:
    return distributions.wheel


def test_the_index_would_take_both(distributions: Distributions) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    for path in distributions:
        assert f"-{hihlandmark.__version__}" in path.name
        assert path.stat().st_size < 60e6, "what is left of the index's 100 MB for more weights"


def test_the_sdist_holds_what_a_checkout_has(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    missing = {name for name in tracked.splitlines() if not name.startswith(".ci/")} - names
    assert not missing
    assert {"Makefile", "README.md", "CITATION.cff", "weights/hih-small.json"} < names


def test_the_wheel_holds_code_types_and_verified_weights(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    configuration = "training/configurations/hih-wflw.toml"
    for name in (
        "py.typed",
        "layouts/mean_shapes.json",
        "packaged_weights/hih-small.json",
        configuration,
    ):
        assert f"hihlandmark/{name}" in names
    assert any(name.endswith("hih-small.safetensors") for name in names)
    assert not any(name.startswith(("tests/", "runs/")) for name in names)


@pytest.fixture
def binaries(tmp_path: Path) -> Iterator[Path]:
    """The programs of an empty environment, which goes again at once: it grows to 5.5 GB."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    yield tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    shutil.rmtree(tmp_path / "venv")


def test_both_work_in_an_empty_environment(
    distributions: Distributions, binaries: Path, tmp_path: Path, astronaut: NDArray[np.uint8]
) -> None:
    install = [binaries / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, distributions.wheel], check=True)
    Image.fromarray(astronaut).save(tmp_path / "image.png")
    # No path to the checkout and no network: what runs is the wheel alone.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    command = [binaries / "hihlandmark", "predict", "image.png", "--out", "out", "--draw"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert len(json.loads((tmp_path / "out" / "image.png.json").read_text())["faces"]) == 1
    assert (tmp_path / "out" / "image.png.landmarks.png").is_file()
    subprocess.run([binaries / "hihlandmark", "doctor"], check=True, cwd=tmp_path, env=environment)
    train = [binaries / "hihlandmark", "train", "hih-small", "--data", ".", "--out", "run"]
    lacking = subprocess.run(
        train, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert lacking.returncode == 2
    assert "pip install 'hihlandmark[train]'" in lacking.stderr
    subprocess.run([binaries / "pip", "uninstall", "--yes", "--quiet", "hihlandmark"], check=True)
    subprocess.run([*install, "--no-deps", distributions.sdist], check=True)
    command[4] = "from-sdist"
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "from-sdist" / "image.png.landmarks.png").is_file()
