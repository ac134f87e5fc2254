"""The commands of the pages, run from an installed wheel; the code of the ONNX page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pages import DOCS, ROOT, blocks_of
from PIL import Image

from hihlandmark import Detector

# The pages in the order of a newcomer; they share one folder.
PAGES = (
    ROOT / "README.md",
    DOCS / "quick-start.md",
    DOCS / "folders.md",
    DOCS / "own-data.md",
    DOCS / "fine-tuning.md",
)
# Why a command is not run here. Everything else is.
NOT_RUN = {
    r"^(uv )?pip install": "the environment of the test has the packages",
    r"demo --web": "a server; test_demo.py runs it",
    r"s3://|ray_folder": "needs a cloud store or a cluster; test_ray_data.py runs it",
    r"data import": "needs the export of an annotation tool; the tests of `data import` run it",
    r"\.\.\.|[A-Z]{3,}(?![a-z])": "a pattern with places to fill in, not a command",
}


def commands_of(page: Path) -> list[str]:
    """The lines of the sh blocks of a page, without comments."""
    lines = [
        line for block in blocks_of(page, "sh") for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line.split("  #")[0].strip() for line in lines if line.split("#")[0].strip()]


def reason(command: str) -> str | None:
    """Why a command is not run; None: it is run."""
    plain = re.sub(r"\"[^\"]*\"|'[^']*'", "", command)
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, plain)), None)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment with the wheel and the extras of the pages, and without the checkout.

    It borrows the dependencies of this interpreter: test_wheel.py installs them anew.
    """
    folder = tmp_path_factory.mktemp("environment")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    binaries = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install = [binaries / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([binaries / "python", "-c", query], capture_output=True, text=True)
    own = Path(found.stdout.strip())
    # After the own packages, and without the links of editable installs.
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    values = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    values |= {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1", "HOME": str(folder)}
    values |= {"HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "2"}
    yield values | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    shutil.rmtree(folder / "venv")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, astronaut: NDArray[np.uint8]) -> Path:
    """A folder with what the pages speak of: an image, a folder of images and a clip."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "images").mkdir()
    for number in range(8):  # more than one for each split of the script of own-data.md
        shifted = astronaut[: 440 + number, 20 + 3 * number :]
        Image.fromarray(shifted).save(folder / f"face-{number}.jpg", quality=95)
    Image.fromarray(astronaut).save(folder / "image.jpg", quality=95)
    shutil.copy(folder / "image.jpg", folder / "images")
    (folder / "failed.txt").write_text("images/image.jpg\n")
    write_clip(folder / "clip.mp4", astronaut, frames=3)
    return folder


def write_clip(path: Path, image: NDArray[np.uint8], frames: int) -> None:
    av: Any = pytest.importorskip("av")
    pytest.importorskip("trackers")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_reasons_leave_few_commands_out() -> None:
    run = [c for page in PAGES for c in commands_of(page) if reason(c) is None]
    assert len(run) >= 15, run


@pytest.mark.slow
@pytest.mark.wheel
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_run_from_the_wheel(
    environment: dict[str, str], workplace: Path, page: Path, tmp_path: Path
) -> None:
    """Training runs for two steps; each command starts without the folder that it writes."""
    folder = tmp_path / "work"
    shutil.copytree(workplace, folder)
    show = ["python", "-c", "import hihlandmark; print(hihlandmark.__file__)"]
    shown = run(environment, folder, *show)
    assert "environment" in shown, "the wheel is what runs"
    write_data(environment, folder)
    whole = (folder / "my-faces" / "annotations.jsonl").read_text()
    for command in commands_of(page):
        if reason(command) is not None:
            continue
        own_layout = "--layout my-layout.toml" in command
        lines = eight_points(whole) if own_layout else whole
        (folder / "my-faces" / "annotations.jsonl").write_text(lines)
        for out in re.findall(r"--out (\S+)", command):
            shutil.rmtree(folder / out, ignore_errors=True)
        steps = " --steps 2" if " finetune " in command else ""
        run(environment, folder, "sh", "-c", command + steps)


def run(environment: dict[str, str], folder: Path, *command: str) -> str:
    """What a command prints; an assertion names one that fails."""
    options: dict[str, Any] = {"env": environment, "cwd": folder}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, (
        f"{' '.join(command)}:\n{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    )
    return done.stdout


def write_data(environment: dict[str, str], folder: Path) -> None:
    """Annotated faces by the script of own-data.md; configurations with few steps."""
    (script, *_) = blocks_of(DOCS / "own-data.md", "python")
    run(environment, folder, "python", "-c", script)
    lines = (folder / "my-faces" / "annotations.jsonl").read_text().splitlines()
    assert {json.loads(line)["split"] for line in lines} == {"train", "val"}
    for page, name in (("own-data", "mine.toml"), ("fine-tuning", "fine.toml")):
        (block,) = blocks_of(DOCS / f"{page}.md", "toml")
        block = re.sub(r"^(steps|warmup_steps|batch_size) = \d+", r"\1 = 2", block, flags=re.M)
        (folder / name).write_text(block)
    (layout,) = blocks_of(DOCS / "fine-tuning.md", "ini")
    (folder / "my-layout.toml").write_text(layout)


def eight_points(lines: str) -> str:
    """Annotations of 68 points as those of my-layout.toml."""
    rows = [json.loads(line) for line in lines.splitlines()]
    for row in rows:
        row["points"] = [row["points"][index] for index in (17, 19, 21, 36, 26, 24, 22, 45)]
    return "".join(json.dumps(row) + "\n" for row in rows)


# ----------------------------------------------------------------------------------------- ONNX

BOX = (180, 61, 267, 172)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, astronaut: NDArray[np.uint8]) -> Path:
    """A folder with the exported file and image.jpg; the program of the page runs in it."""
    pytest.importorskip("onnxruntime")
    from typer.testing import CliRunner

    from hihlandmark.cli import app

    folder = tmp_path_factory.mktemp("onnx")
    Image.fromarray(astronaut).save(folder / "image.jpg", quality=95)
    arguments = ["export", "--to", "onnx", "--layout", "98", "--out", str(folder / "exported")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def expected(exported: Path) -> NDArray[np.float32]:
    detector = Detector(
        98, refine=0, flip_test=False, shape_prior=False, device="cpu", precision="fp32"
    )
    (face,) = detector.predict(exported / "image.jpg", boxes=[BOX], box_kind="mtcnn")
    return face.points


@pytest.mark.slow
def test_the_python_of_the_onnx_page_finds_the_points_of_the_detector(
    exported: Path, expected: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported)
    (block,) = blocks_of(DOCS / "onnx.md", "python")
    names: dict[str, object] = {}
    exec(compile(block, "docs/onnx.md", "exec"), names)
    assert np.abs(np.asarray(names["points"]) - expected).max() < 0.1
    outputs = json.loads((exported / "exported" / "hih-small-98.json").read_text())["outputs"]
    assert outputs == ["points", "covariance", "mass", "visibility", "integer_offset"]


def node_modules() -> Path | None:
    """The folder with onnxruntime-web, which HIHLANDMARK_NODE_MODULES names."""
    folder = os.environ.get("HIHLANDMARK_NODE_MODULES")
    return Path(folder) if folder and shutil.which("node") else None


@pytest.mark.slow
@pytest.mark.skipif(
    node_modules() is None,
    reason="needs node, and `npm install onnxruntime-web` in HIHLANDMARK_NODE_MODULES/..",
)
def test_the_javascript_of_the_onnx_page_finds_the_points_of_the_detector(
    exported: Path, expected: NDArray[np.float32]
) -> None:
    modules = node_modules()
    assert modules is not None
    blocks = blocks_of(DOCS / "onnx.md", "js")
    folder = exported / "node"
    folder.mkdir()
    (folder / "node_modules").symlink_to(modules.resolve())
    (folder / "landmarks.mjs").write_text(blocks[0])
    (folder / "main.mjs").write_text(
        """
        import * as ort from "onnxruntime-web";
        import { readFileSync } from "node:fs";
        import { landmarks } from "./landmarks.mjs";
        const [model, pixels, width, height, box] = process.argv.slice(2);
        const session = await ort.InferenceSession.create(readFileSync(model));
        const { boxes } = JSON.parse(readFileSync(model.replace(".onnx", ".json"), "utf8"));
        const points = await landmarks(
          session, boxes.mtcnn, readFileSync(pixels), +width, +height, JSON.parse(box));
        console.log(JSON.stringify(points));
        """
    )
    image = np.asarray(Image.open(exported / "image.jpg").convert("RGBA"))
    image.tofile(folder / "pixels")
    height, width = image.shape[:2]
    model = exported / "exported" / "hih-small-98.onnx"
    command = ["node", folder / "main.mjs", model, folder / "pixels", width, height, [*BOX]]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    points = np.reshape(json.loads(done.stdout.splitlines()[-1]), (-1, 2))
    assert np.abs(points - expected).max() < 0.1
