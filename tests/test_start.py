"""What a new process imports to predict: no PyTorch where conversions are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
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
    command = [sys.executable, "-c", PREDICT, runtime, str(tmp_path / "image.npy")]

    def predict() -> list[str]:
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=240, env=environment
        )
        assert finished.returncode == 0, finished.stderr[-2000:]
        assert "device: cpu" in finished.stderr
        assert "precision: " in finished.stderr
        return finished.stdout.split(maxsplit=1)

    converting, warm = predict(), predict()
    assert (converting[0], warm[0]) == ("True", "False")
    assert converting[1] == warm[1], "precision or points differ"


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
