"""Forked and spawned processes, pickling, and PyTorch's state as callers set it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from builders import CPU, some_crops, tiny_model

from hihlandmark import Detector, runtimes
from hihlandmark.arrays import Image
from hihlandmark.runtimes import CropLandmarks, make_runtime
from hihlandmark.torch_state import default_torch_state
from hihlandmark.weights import load_model

RUNTIMES = ("torch", "openvino", "onnxruntime")
BOX = {"boxes": [[180, 61, 267, 172]], "box_kind": "mtcnn"}

FORKS = """
import multiprocessing, os, sys
import numpy as np
from skimage.data import astronaut
from hihlandmark import Detector

OPTIONS = {"runtime": sys.argv[1], "device": "cpu", "precision": "fp32", "refine": 0}
detector = Detector(68, **OPTIONS)
image = astronaut()

def inherited(_):
    return detector.predict(image)

def own(_):
    return Detector(68, **OPTIONS).predict(image)

(expected,) = detector.predict(image)
for predict in (inherited, own):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for (face,) in pool.map(predict, range(2)):
            # One thread sums in another order, which moves crops by up to 1/32 pixel.
            assert np.abs(face.points - expected.points).max() < 0.5
del detector  # its threads wait for other work
child = os.fork()
if child == 0:
    (face,) = own(0)
    sys.exit(0)  # with all destructors, as gunicorn's workers end
_, status = os.waitpid(child, 0)
print("done", status)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_forked_children_predict_with_inherited_and_own_detectors(
    runtime: str, threads: str
) -> None:
    pytest.importorskip(runtime)
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    finished = subprocess.run(
        [sys.executable, "-c", FORKS, runtime],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert finished.stdout == "done 0\n", finished.stderr[-2000:]


FORK_WITHOUT_FILES = """
import os, shutil, sys
from pathlib import Path
from builders import CPU, some_crops, tiny_model
from hihlandmark import ConfigurationError, runtimes

name, folder = sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None
runtimes._cache_folder = lambda package: folder
model, crops = tiny_model("hih"), some_crops(2)
runtime = runtimes.make_runtime(name, lambda: model.network, "COFW29", model.card, CPU)
expected = runtime(crops).points
if folder:
    shutil.rmtree(folder)
child = os.fork()
if child == 0:
    try:
        found = abs(runtime(crops).points - expected).max() < 1e-3
    except ConfigurationError as error:
        found = "opened again" in str(error)
        assert folder
    os._exit(0 if found else 1)
_, status = os.waitpid(child, 0)
print("done", status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("cache", ["none", "removed"])
@pytest.mark.parametrize("runtime", RUNTIMES[1:])
def test_a_forked_child_predicts_without_a_cache_or_reports_that_it_is_gone(
    runtime: str, cache: str, tmp_path: Path
) -> None:
    pytest.importorskip(runtime)
    arguments = [runtime]
    if cache == "removed":
        (tmp_path / "kept").mkdir()
        arguments += [str(tmp_path / "kept")]
    folders = [str(Path(__file__).parent), *sys.path]
    finished = subprocess.run(
        [sys.executable, "-c", FORK_WITHOUT_FILES, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )
    assert finished.stdout == "done 0\n", finished.stderr[-2000:]


def _predict(detector: Detector, image: Image) -> np.ndarray:
    return detector.predict(image, **BOX)[0].points


@pytest.mark.slow
def test_a_detector_can_be_sent_to_a_spawned_process(astronaut: Image) -> None:
    detector = Detector(68, device="cpu", runtime="torch", precision="fp32", refine=0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(_predict, (detector, np.array(astronaut))).get(timeout=60)
    np.testing.assert_allclose(found, _predict(detector, astronaut), atol=1e-3)


FORK_WITH_GPU = """
import os, sys
import torch
from hihlandmark import ConfigurationError, Detector

torch.zeros(1, device="cuda")
child = os.fork()
if child == 0:
    Detector(68, device="cpu", runtime="torch")
    try:
        Detector(68, device="cuda")
    except ConfigurationError as error:
        os._exit(0 if "spawn" in str(error) else 1)
    os._exit(2)
_, status = os.waitpid(child, 0)
print("done", status)
"""


@pytest.mark.gpu
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_gpu_in_a_forked_process_is_an_error() -> None:
    command = [sys.executable, "-c", FORK_WITH_GPU]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.stdout == "done 0\n", finished.stderr[-2000:]


# The caller's state of PyTorch


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
        assert torch.get_default_device() == torch.device(name)
    finally:
        torch.set_default_device(None)


@contextmanager
def opencv_threads(count: int) -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
        assert cv2.getNumThreads() == count
    finally:
        cv2.setNumThreads(before)


@contextmanager
def everything() -> Iterator[None]:
    with (
        torch.autocast("cpu"),
        default_dtype(torch.float64),
        default_device("meta"),
        torch.inference_mode(),
        opencv_threads(1),
    ):
        yield
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()


STATES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: default_device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "opencv": lambda: opencv_threads(1),
    "everything": everything,
}


def make() -> Detector:
    return Detector(68, device="cpu", precision="fp32", refine=0, decoder="argmax")


@pytest.fixture(scope="module")
def made_before(one_thread: None) -> Detector:
    return make()


@pytest.mark.parametrize("state", STATES)
def test_the_callers_state_changes_no_points(
    state: str, astronaut: Image, made_before: Detector
) -> None:
    detector = made_before
    expected = detector.predict(astronaut)[0]
    with STATES[state]():
        gradients = torch.is_grad_enabled()
        made = make()
        found = [made.predict(astronaut)[0], detector.predict(astronaut)[0]]
        assert torch.is_grad_enabled() == gradients
    found.append(made.predict(astronaut)[0])
    for face in found:
        np.testing.assert_array_equal(face.points, expected.points)
        np.testing.assert_array_equal(face.covariance, expected.covariance)
        assert face.points.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["hih", "awing"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_callers_state_changes_no_conversion(
    runtime: str,
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
) -> None:
    pytest.importorskip(runtime)
    model = tiny_model(architecture)
    crops = some_crops(2)
    found: list[CropLandmarks] = []
    for state in (nullcontext, everything):
        folder = tmp_path / state.__name__
        folder.mkdir()
        monkeypatch.setattr(runtimes, "_cache_folder", lambda package, f=folder: f)
        with state():
            made = make_runtime(runtime, lambda: model.network, "COFW29", model.card, CPU)
            found += [made(crops)]
        found += [made(crops)]
    for other in found[1:]:
        assert other.visibility is None
        for one, expected in zip(other[:3], found[0][:3], strict=True):
            np.testing.assert_array_equal(one, expected)
            assert one.dtype == np.float32


def test_a_network_loaded_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode(), torch.no_grad():
        network = load_model("hih-small").network
    parameters = list(network.parameters())
    assert all(each.requires_grad and not each.is_inference() for each in parameters)
    assert {each.dtype for each in parameters} == {torch.float32}


def test_overlapping_uses_restore_the_default_type() -> None:
    with default_dtype(torch.float64):
        first, second = default_torch_state(), default_torch_state()
        first.__enter__()
        with second:
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float32
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float64


def test_importing_training_leaves_opencvs_threads_as_they_are() -> None:
    code = "import cv2; cv2.setNumThreads(3); import hihlandmark.training.trainer; "
    code += "assert cv2.getNumThreads() == 3"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_points_in_openvino_do_not_depend_on_the_locale_of_the_program(tmp_path: Path) -> None:
    if not shutil.which("localedef"):
        pytest.skip("there is no localedef to make a locale with")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")],
        capture_output=True,
        check=False,
    )
    if made.returncode or not (tmp_path / "de_DE.UTF-8").is_dir():
        pytest.skip("the sources of locales are not installed")
    script = """if True:
        import locale, sys
        from skimage.data import astronaut
        from hihlandmark import Detector
        locale.setlocale(locale.LC_NUMERIC, sys.argv[1])
        (face,) = Detector(runtime="openvino", precision="fp32").predict(astronaut())
        assert locale.setlocale(locale.LC_NUMERIC) == sys.argv[1]
        print(face.points.round(1).ravel().tolist())"""

    def points(name: str, cache: str) -> str:
        variables = {"HF_ASSETS_CACHE": str(tmp_path / cache), "LOCPATH": str(tmp_path)}
        command = [sys.executable, "-c", script, name]
        return subprocess.check_output(command, env={**os.environ, **variables}, text=True)

    expected = points("C", "other")
    for name in ("de_DE.UTF-8", "de_DE.UTF-8", "C"):
        assert points(name, "cache") == expected
