"""Runtimes and exports give the points of the plain network, whatever runs it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from hihlandmark import ConfigurationError
from hihlandmark.cli import app
from hihlandmark.errors import ExportError
from hihlandmark.models.base import Heatmaps
from hihlandmark.models.registry import build_model, configuration_of
from hihlandmark.runtimes import choose_runtime, converted, export, make_runtime
from hihlandmark.runtimes.formats import write_openvino
from hihlandmark.runtimes.graph import CropGraph, PixelGraph, folded
from hihlandmark.runtimes.pytorch import TorchRuntime
from hihlandmark.weights import LoadedModel, save_weights
from hihlandmark.weights.card import IMAGENET_MEAN, IMAGENET_STD, Decoding, ModelCard

CPU = torch.device("cpu")
SIZE = 64
DECODINGS: dict[str, Decoding] = {
    "hih": {"decoder": "local_soft_argmax", "bin_center": 0.5, "activation": "softmax"},
    "adnet": {"decoder": "mean", "bin_center": 0.5, "activation": "linear"},
    "awing": {"decoder": "quarter_shift", "bin_center": 0.5, "activation": "linear"},
}
ARCHITECTURES = sorted(DECODINGS)


def tiny_model(architecture: str) -> LoadedModel:
    """A narrow network with random weights and lively batch norms, and its card."""
    torch.manual_seed(5)
    configuration = configuration_of(f"{architecture}-small", ["COFW29"])
    configuration |= {"features": 16, "depth": 2, "input_size": SIZE}
    if architecture == "hih":
        configuration |= {"decimal_features": 8, "decimal_bins": 4}
    network = build_model(architecture, configuration)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    card = ModelCard(
        name=f"{architecture}-tiny",
        architecture=architecture,
        configuration=configuration,
        normalization={"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        crop={"pixel_origin": 0.5, "boxes": {"mtcnn": {"shift": [0, 0], "scale": 1.0}}},
        decoding=DECODINGS[architecture],
        training_data=[],
        license="test",
        files={f"{architecture}-tiny.safetensors": "0" * 64},
    )
    return LoadedModel(network.eval(), card, {})


def some_crops(count: int) -> NDArray[np.uint8]:
    return export.drawn_faces("COFW29", SIZE, count)


def plain(model: LoadedModel, crops: NDArray[np.uint8]) -> Heatmaps:
    """What the network itself says, eagerly."""
    graph = CropGraph(model.network, "COFW29", model.card.normalization)
    with torch.inference_mode():
        integer, *decimal = graph(torch.from_numpy(crops))
    return Heatmaps(integer, decimal[0] if decimal else None)


def assert_close(found: Heatmaps, expected: Heatmaps, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.integer, expected.integer, rtol=0, atol=tolerance)
    assert (found.decimal is None) == (expected.decimal is None)
    if found.decimal is not None and expected.decimal is not None:
        torch.testing.assert_close(found.decimal, expected.decimal, rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folded_batch_norms_change_nothing_and_are_gone(architecture: str) -> None:
    model = tiny_model(architecture)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    network = folded(model.network)
    crops = some_crops(2)
    found = plain(LoadedModel(network, model.card, {}), crops)
    assert_close(found, plain(model, crops))

    def norms(network: torch.nn.Module) -> int:
        return sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())

    assert norms(network) < norms(model.network)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name]), "the network itself must stay as it was"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["torch", "openvino", "onnxruntime"])
def test_every_runtime_gives_the_heatmaps_of_the_network_for_any_batch(
    name: str, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    monkeypatch.setattr(converted, "_cache_folder", lambda package: tmp_path)
    model = tiny_model(architecture)
    runtime = make_runtime(name, model.network, "COFW29", model.card, CPU)
    assert runtime.name == name
    for count in (1, 3, 5):
        crops = some_crops(count)
        assert_close(runtime(crops), plain(model, crops))


def test_bf16_stays_near_the_heatmaps_of_fp32() -> None:
    model = tiny_model("hih")
    crops = some_crops(2)
    runtime = make_runtime("torch", model.network, "COFW29", model.card, CPU, "bf16")
    found, expected = runtime(crops), plain(model, crops)
    assert found.integer.dtype == torch.float32
    spread = expected.integer.std().item()
    difference = (found.integer - expected.integer).abs().max().item()
    assert 0 < difference < 0.2 * spread


def test_converted_networks_are_kept_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(converted, "_cache_folder", lambda package: tmp_path)
    written: list[Path] = []
    openvino = converted.CONVERTERS["openvino"]

    def write(graph: PixelGraph, path: Path) -> None:
        written.append(path)
        openvino.write(graph, path)

    monkeypatch.setitem(converted.CONVERTERS, "openvino", openvino._replace(write=write))
    model = tiny_model("hih")
    other = replace(model.card, files={"hih-tiny.safetensors": "1" * 64})
    for card in (model.card, model.card, other):
        make_runtime("openvino", model.network, "COFW29", card, CPU)
    assert len(written) == 2, "one for each set of weights"
    assert len(list(tmp_path.glob("*.xml"))) == len(list(tmp_path.glob("*.bin"))) == 2


def test_a_batch_that_does_not_fit_into_memory_is_halved_until_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model("awing")
    runtime = TorchRuntime(model.network, "COFW29", model.card.normalization, CPU)
    graph, seen = runtime.graph, []

    def short_of_memory(crops: torch.Tensor) -> Any:
        seen.append(len(crops))
        if len(crops) > 2:
            raise torch.OutOfMemoryError("no memory")
        return graph(crops)

    runtime.graph = short_of_memory  # type: ignore[assignment]
    crops = some_crops(7)
    with caplog.at_level(logging.WARNING):
        assert_close(runtime(crops), plain(model, crops))
        assert seen == [7, 4, 2, 2, 2, 1]
        runtime(crops)
    assert seen[6:] == [2, 2, 2, 1], "batches stay as small as they had to become"
    assert "going on with 2" in caplog.text


def test_memory_that_does_not_hold_one_crop_is_an_error() -> None:
    model = tiny_model("awing")
    runtime = TorchRuntime(model.network, "COFW29", model.card.normalization, CPU)

    def without_memory(crops: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError("no memory")

    runtime.graph = without_memory  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError):
        runtime(some_crops(3))


def test_auto_takes_the_fastest_that_is_installed_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("HIHLANDMARK_RUNTIME", raising=False)
    for installed, expected in (
        ({"openvino", "onnxruntime"}, "openvino"),
        ({"onnxruntime"}, "onnxruntime"),
        (set(), "torch"),
    ):
        monkeypatch.setattr("hihlandmark.runtimes.find_spec", lambda name, i=installed: name in i)
        with caplog.at_level(logging.INFO):
            assert choose_runtime("auto", CPU) == expected
        assert f"runtime: {expected}" in caplog.text
        assert choose_runtime("auto", torch.device("cuda")) == "torch"
    monkeypatch.setenv("HIHLANDMARK_RUNTIME", "torch")
    monkeypatch.setattr("hihlandmark.runtimes.find_spec", lambda name: True)
    assert choose_runtime("auto", CPU) == "torch", "the environment says what auto is"
    assert choose_runtime("openvino", CPU) == "openvino", "but an argument is an argument"


def test_runtimes_that_cannot_be_had_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"no runtime 'tensorrt'.*auto, torch, openvino"):
        choose_runtime("tensorrt", CPU)
    with pytest.raises(ConfigurationError, match=r"openvino' runs on a CPU, not on cuda.*torch"):
        choose_runtime("openvino", torch.device("cuda"))
    model = tiny_model("awing")
    with pytest.raises(ConfigurationError, match=r"fp32' or 'bf16', not 'fp8'"):
        make_runtime("torch", model.network, "COFW29", model.card, CPU, "fp8")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"ONNX Runtime computes in fp32"):
        make_runtime("onnxruntime", model.network, "COFW29", model.card, CPU, "bf16")
    monkeypatch.setattr("hihlandmark.runtimes.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'hihlandmark\[onnx\]'"):
        choose_runtime("onnxruntime", CPU)


# Exports


@pytest.mark.parametrize("to", sorted(export.TARGETS))
@pytest.mark.parametrize("decoded", [False, True])
def test_exported_files_give_the_points_of_the_network(
    to: str, decoded: bool, tmp_path: Path
) -> None:
    model = tiny_model("hih")
    path, parity = export.export(model, "COFW29", to, tmp_path, decoded=decoded)
    assert parity.points == 16 * 29
    assert parity.largest < 1e-2
    facts = json.loads(path.with_suffix(".json").read_text())
    names = ["points", "mass", "covariance"] if decoded else ["integer", "decimal"]
    assert facts["outputs"] == names
    assert facts["card"]["name"] == "hih-tiny"
    crops = some_crops(3)
    outputs = export.TARGETS[to].run(path)(crops)
    assert [len(each) for each in outputs] == [3] * len(names)
    if not decoded:
        np.testing.assert_allclose(outputs[0], plain(model, crops).integer, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["adnet", "awing"])
def test_networks_without_a_decimal_head_are_exported_with_their_decoder(
    architecture: str, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    model = tiny_model(architecture)
    path, parity = export.export(model, "COFW29", "openvino", tmp_path, decoded=True)
    assert path.name == f"{architecture}-tiny-29-decoded.xml"
    assert parity.usual < 1e-2


def test_an_export_with_other_points_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("hih")
    target = export.TARGETS["torchscript"]

    def write_another(graph: PixelGraph, path: Path) -> None:
        for parameter in graph.module.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        target.write(graph, path)

    monkeypatch.setattr(export, "TARGETS", {"torchscript": replace(target, write=write_another)})
    with pytest.raises(ExportError, match=r"does not give the points of PyTorch.*Nothing was writ"):
        export.export(model, "COFW29", "torchscript", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    model = tiny_model("hih")
    with pytest.raises(ConfigurationError, match=r"'tflite'; there is onnx, openvino, torchscript"):
        export.export(model, "COFW29", "tflite", tmp_path)
    with pytest.raises(ConfigurationError, match=r"no head for WFLW98, only for COFW29"):
        export.export(model, "WFLW98", "onnx", tmp_path)


def test_export_command_writes_the_file_and_states_the_difference(tmp_path: Path) -> None:
    model = tiny_model("awing")
    card = save_weights(tmp_path / "weights", model.card, model.network.state_dict())
    arguments = ["--to", "torchscript", "--layout", "29", "--weights", str(card)]
    result = CliRunner().invoke(app, ["export", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "awing-tiny-29.torchscript" in result.output
    assert "crop pixels" in result.output
    assert (tmp_path / "out" / "awing-tiny-29.torchscript").exists()


def test_compiled_batches_are_filled_up_and_cut_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def compile_nothing(module: torch.nn.Module, **options: Any) -> Any:
        assert options["dynamic"] is False
        return lambda batch: (shapes.append(tuple(batch.shape)), module(batch))[1]

    monkeypatch.setattr(torch, "compile", compile_nothing)
    model = tiny_model("hih")
    plain = make_runtime("torch", model.network, "COFW29", model.card, CPU)
    compiled = make_runtime("auto", model.network, "COFW29", model.card, CPU, compiled=True)
    for count in (1, 2, 3, 5, 8):
        crops = export.drawn_faces("COFW29", SIZE, count)
        torch.testing.assert_close(compiled(crops).integer, plain(crops).integer)
    assert [shape[0] for shape in shapes] == [1, 2, 4, 8, 8]
    with pytest.raises(ConfigurationError, match="compile is for runtime 'torch'"):
        make_runtime("openvino", model.network, "COFW29", model.card, CPU, compiled=True)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_heatmaps() -> None:
    model = tiny_model("hih")
    crops = export.drawn_faces("COFW29", SIZE, 3)
    plain = make_runtime("torch", model.network, "COFW29", model.card, CPU)(crops)
    compiled = make_runtime("torch", model.network, "COFW29", model.card, CPU, compiled=True)(crops)
    torch.testing.assert_close(compiled.integer, plain.integer, atol=1e-3, rtol=1e-3)


def exported(model: LoadedModel, folder: Path, **options: Any) -> Path:
    return export.export(model, "COFW29", "torchscript", folder, **options)[0]


def test_an_exported_file_is_a_runtime(tmp_path: Path) -> None:
    model = tiny_model("hih")
    path = exported(model, tmp_path)
    runtime = make_runtime(str(path), model.network, "COFW29", model.card, CPU)
    assert runtime.name == "torch"
    crops = export.drawn_faces("COFW29", SIZE, 3)
    expected = make_runtime("torch", model.network, "COFW29", model.card, CPU)(crops)
    torch.testing.assert_close(runtime(crops).integer, expected.integer, atol=1e-3, rtol=1e-3)


def test_an_exported_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = tiny_model("hih")
    path = exported(model, tmp_path)
    other = replace(model.card, files={"hih-tiny.safetensors": "1" * 64})
    decoded = exported(model, tmp_path, decoded=True)
    lonely = tmp_path / "lonely.onnx"
    lonely.write_bytes(b"")
    for file, card, layout, problem in (
        (path, other, "COFW29", "other weights than hih-tiny"),
        (path, model.card, "WFLW98", "points of COFW29, not of WFLW98"),
        (decoded, model.card, "COFW29", "without --decode"),
        (lonely, model.card, "COFW29", r"the \.json that `hihlandmark export` writes"),
        (tmp_path / "gone.onnx", model.card, "COFW29", "neither a runtime nor an exported file"),
        (tmp_path / "model.pt", model.card, "COFW29", "neither a runtime nor an exported file"),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            make_runtime(str(file), model.network, layout, card, CPU)


def test_int8_rounds_the_network_and_says_how_far_points_move(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import onnx

    model = tiny_model("hih")
    crops = export.drawn_faces("COFW29", SIZE, 12)
    path, parity = export.export(model, "COFW29", "onnx", tmp_path, calibration=crops)
    assert path.name == "hih-tiny-29-int8.onnx"
    assert 0 < parity.largest < SIZE
    assert parity.points == 6 * 29, "those of the faces that gave no ranges"
    nodes = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= nodes
    assert {each.suffix for each in tmp_path.iterdir()} <= {".onnx", ".json", ".data"}
    runtime = make_runtime(str(path), model.network, "COFW29", model.card, CPU)
    assert runtime(crops[:2]).integer.shape == (2, 29, SIZE // 4, SIZE // 4)


def test_int8_is_for_onnx(tmp_path: Path) -> None:
    crops = export.drawn_faces("COFW29", SIZE, 4)
    with pytest.raises(ConfigurationError, match="INT8 is for ONNX"):
        exported(tiny_model("hih"), tmp_path, calibration=crops)


def tiny_openvino_file(folder: Path) -> Path:
    model, path = tiny_model("hih"), folder / "tiny.xml"
    graph = CropGraph(model.network, "COFW29", model.card.normalization)
    write_openvino(graph.on_pixels(SIZE), path)
    return path


def test_a_signal_is_handled_after_another_thread_let_openvino_go(tmp_path: Path) -> None:
    path = tiny_openvino_file(tmp_path)
    script = """
import gc, os, signal, sys, threading
from pathlib import Path
from hihlandmark.runtimes.formats import run_openvino

runs = [run_openvino(Path(sys.argv[1]))]
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
thread = threading.Thread(target=lambda: (runs.clear(), gc.collect()))
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
"""
    finished = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True)
    assert (finished.returncode, finished.stdout) == (0, b"handled\n")


def test_threads_may_come_first_together(tmp_path: Path) -> None:
    path = tiny_openvino_file(tmp_path)
    script = """
import sys, threading
import numpy as np
from pathlib import Path
from hihlandmark.runtimes.formats import run_openvino

run = run_openvino(Path(sys.argv[1]))
together = threading.Barrier(8)

def first() -> None:
    together.wait()
    run(np.zeros((1, 64, 64, 3), np.uint8))

threads = [threading.Thread(target=first) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    for _ in range(3):  # a lock that was never given back showed itself once in six times
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)
