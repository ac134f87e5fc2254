"""The wheel, installed with its dependencies into an empty environment outside of the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_code_types_and_verified_weights(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    configuration = "training/configurations/hih-wflw.toml"
    for name in ("py.typed", "mean_shapes.json", "packaged_weights/hih-small.json", configuration):
        assert f"hihlandmark/{name}" in names
    assert any(name.endswith("hih-small.safetensors") for name in names)
    assert not any(name.startswith(("tests/", "runs/")) for name in names)


def test_the_wheel_works_in_an_empty_environment(
    wheel: Path, tmp_path: Path, astronaut: NDArray[np.uint8]
) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([binaries / "python", "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    Image.fromarray(astronaut).save(tmp_path / "photo.png")
    # No path to the checkout and no network: what runs is the wheel alone.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    command = [binaries / "hihlandmark", "predict", "photo.png", "--out", "out", "--draw"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert len(json.loads((tmp_path / "out" / "photo.png.json").read_text())["faces"]) == 1
    assert (tmp_path / "out" / "photo.png.landmarks.png").is_file()
    subprocess.run([binaries / "hihlandmark", "doctor"], check=True, cwd=tmp_path, env=environment)
    train = [binaries / "hihlandmark", "train", "hih-small", "--data", ".", "--out", "run"]
    lacking = subprocess.run(
        train, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert lacking.returncode == 2
    assert "pip install 'hihlandmark[train]'" in lacking.stderr
