"""What a new process imports to predict: no PyTorch where conversions are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from hihlandmark.arrays import Image
from hihlandmark.runtimes import devices, torch_devices

PREDICT = """
import sys, logging
import numpy as np
logging.basicConfig(level=logging.INFO)
from hihlandmark import Detector
detector = Detector(29, runtime=sys.argv[1])
(face,) = detector.predict(np.load(sys.argv[2]))
print("torch" in sys.modules, detector.runtime.precision, face.points.round(1).tolist())
"""
NO_GPU = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="PyTorch knows of GPUs"
)


@NO_GPU
@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_prediction_with_kept_conversions_imports_no_torch(
    runtime: str, astronaut: Image, tmp_path: Path
) -> None:
    pytest.importorskip(runtime)
    np.save(tmp_path / "image.npy", astronaut)
    environment = {**os.environ, "HF_ASSETS_CACHE": str(tmp_path / "assets")}

    def predict() -> list[str]:
        finished = run_code(PREDICT, environment, runtime, tmp_path / "image.npy")
        assert "device: cpu" in finished.stderr
        assert "precision: " in finished.stderr
        return finished.stdout.split(maxsplit=1)

    converting, warm = predict(), predict()
    assert (converting[0], warm[0]) == ("True", "False")
    assert converting[1] == warm[1], "precision or points differ"


DEFAULTS = """
import sys
import numpy as np
from hihlandmark import Detector
(face,) = Detector().predict(np.load(sys.argv[1]))
print("torch" in sys.modules)
"""
COMMAND = """
import sys
from hihlandmark.cli import app
try:
    app(["predict", sys.argv[1]])
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


@NO_GPU
@pytest.mark.slow
def test_defaults_and_the_predict_command_import_no_torch(astronaut: Image, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    np.save(tmp_path / "image.npy", astronaut)
    PIL.Image.fromarray(astronaut).save(tmp_path / "image.png")
    environment = {**os.environ, "HF_ASSETS_CACHE": str(tmp_path / "assets")}
    del environment["HIHLANDMARK_RUNTIME"]
    found = [run_code(DEFAULTS, environment, tmp_path / "image.npy").stdout for _ in range(2)]
    assert found == ["True\n", "False\n"]
    command = run_code(COMMAND, environment, tmp_path / "image.png")
    assert command.stdout
    assert command.stderr.splitlines()[-1] == "False"


def run_code(
    code: str, environment: dict[str, str], *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, which must succeed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished


WITHOUT_TORCH = """
import sys
from hihlandmark.runtimes import devices
print(devices.resolve_device("cpu"), devices.has_native_bf16(devices.CPU), "torch" in sys.modules,
      devices.default_threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs PyTorch elsewhere")
def test_the_processor_is_known_without_torch() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    output = subprocess.check_output(
        [sys.executable, "-c", WITHOUT_TORCH], text=True, timeout=60, env=environment
    )
    native = torch_devices.has_native_bf16(torch.device("cpu"))
    assert output.split() == ["cpu", str(native), "False", "3"]


def test_a_gpu_driver_is_reason_to_ask_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_DEVICE_FILES", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    assert devices._is_without_gpu()
    (tmp_path / "nvidia0").touch()
    assert not devices._is_without_gpu()


def test_devices_are_named_as_in_torch() -> None:
    for name in ("cpu", "cuda", "cuda:1"):
        kind, _, index = name.partition(":")
        device = devices.Device(kind, int(index) if index else None)
        assert torch.device(str(device)) == torch.device(name)
    assert devices.resolve_device(torch.device("cpu")) == devices.CPU
