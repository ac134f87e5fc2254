import importlib.util
import io
import json
import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import nbformat
import numpy as np
import pytest
from builders import encoded
from PIL import Image

from hihlandmark import Detector, Face
from hihlandmark.video import AnnotatedVideo, read_frames

EXAMPLES = Path(__file__).parent.parent / "examples"
SCHEMA = EXAMPLES.parent / "docs" / "reference" / "result-1.schema.json"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

Pixels = np.ndarray[Any, Any]


def load_script(name: str) -> ModuleType:
    """The example as a module, without running its `main`."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_detector(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> Detector:
    """What the scripts get for their `Detector()`: the quick one of 68 points."""
    monkeypatch.setattr("hihlandmark.detector.Detector", lambda *_: detector)
    return detector


def test_quick_start_draws_three_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "source.png", tmp_path / "landmarks.png"
    from skimage.data import astronaut

    Image.fromarray(astronaut()).save(source)
    monkeypatch.setattr(sys, "argv", ["quick_start.py", str(source), str(target)])
    runpy.run_path(str(EXAMPLES / "quick_start.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(f"{layout} points" in printed for layout in (98, 68, 29))
    with Image.open(target) as drawn:
        assert drawn.size == (3 * 512, 512)


# ---------------------------------------------------------------------------------- batch_folder


def test_batch_folder_writes_a_line_an_image_and_goes_on_after_a_broken_one(
    tmp_path: Path,
    astronaut: Pixels,
    one_detector: Detector,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = tmp_path / "images"
    (images / "deeper").mkdir(parents=True)
    Image.fromarray(astronaut[:240, 100:380]).save(images / "b.jpg")
    Image.fromarray(astronaut[300:, :200]).save(images / "deeper" / "empty.png")
    (images / "a.jpg").write_bytes(b"no source")
    (images / "notes.txt").write_text("not looked at")

    load_script("batch_folder").main(str(images), str(tmp_path / "out.jsonl"))

    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["a.jpg", "b.jpg", "empty.png"]
    assert "a.jpg" in lines[0]["error"]
    (face,) = lines[1]["faces"]
    (expected,) = one_detector.predict(images / "b.jpg")
    np.testing.assert_allclose(Face.from_dict(face).points, expected.points, atol=0.01)
    assert lines[2]["faces"] == []
    assert "images: 3, faces: 1, unreadable: 1" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------- webcam


@pytest.fixture
def clip(tmp_path: Path, astronaut: Pixels) -> Path:
    path = tmp_path / "clip.mp4"
    with AnnotatedVideo(path) as video:
        for i in range(6):
            part = astronaut[:240, 60 + 4 * i : 340 + 4 * i]
            video.add(np.ascontiguousarray(part), i / 25)
    return path


def test_webcam_streams_images_with_faces_to_a_browser(clip: Path, detector: Detector) -> None:
    with serving(load_script("webcam"), str(clip), detector) as connection:
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers.get_content_type() == "multipart/x-mixed-replace"
        body = answer.read()
    parts = body.split(b"--frame\r\n")[1:]
    assert len(parts) == 6
    head, _, target = parts[0].partition(b"\r\n\r\n")
    assert f"Content-Length: {len(target) - 2}".encode() in head
    with Image.open(io.BytesIO(target)) as drawn:
        pixels = np.asarray(drawn).astype(int)
    frame = next(read_frames(clip)).image
    changed = np.abs(pixels - frame).max(axis=2) > 60
    (face,) = detector.predict(frame)
    (top, left), (bottom, right) = (
        np.argwhere(changed).min(axis=0),
        np.argwhere(changed).max(axis=0),
    )
    assert changed.sum() > 200
    assert top > face.points[:, 1].min() - 40
    assert left > face.points[:, 0].min() - 10
    assert bottom < face.points[:, 1].max() + 10
    assert right < face.points[:, 0].max() + 10


def test_webcam_says_why_there_is_no_video(tmp_path: Path, detector: Detector) -> None:
    with serving(load_script("webcam"), str(tmp_path / "none.mp4"), detector) as connection:
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 503
        assert b"none.mp4" in answer.read()
        connection.request("GET", "/favicon.ico")
        assert connection.getresponse().status == 404


@contextmanager
def serving(script: ModuleType, source: str, detector: Detector) -> Iterator[HTTPConnection]:
    """A connection to the script's server, which stops afterwards."""
    with script.make_server(source, detector, port=0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        with closing(HTTPConnection("127.0.0.1", server.server_port, timeout=60)) as connection:
            yield connection
        server.shutdown()
        thread.join()


# ------------------------------------------------------------------------------ fastapi_endpoint


@pytest.fixture
def endpoint(one_detector: Detector) -> ModuleType:
    return load_script("fastapi_endpoint")


@pytest.fixture
def client(endpoint: ModuleType) -> Any:
    from fastapi.testclient import TestClient

    return TestClient(endpoint.app)


def form(content: bytes) -> dict[str, Any]:
    return {"files": {"image": ("a.png", content, "image/png")}}


def test_endpoint_answers_with_the_faces(
    client: Any, astronaut: Pixels, one_detector: Detector
) -> None:
    source = astronaut[:240, 100:380]
    answer = client.post("/landmarks?layout=68", **form(encoded(source)))
    assert answer.status_code == 200
    (face,) = answer.json()["faces"]
    (expected,) = one_detector.predict(source)
    assert face == json.loads(json.dumps(expected.to_dict()))
    nobody = client.post("/landmarks", **form(encoded(astronaut[300:, :200])))
    assert nobody.json() == {"faces": []}


def test_endpoint_describes_its_response(client: Any) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    described = set(schemas["FoundFace"]["properties"])
    published = json.loads(SCHEMA.read_text())["$defs"]["face"]["properties"]
    assert described == set(published) - {"track_id", "filled"}, "those two are of videos"


def test_endpoint_says_what_is_wrong_with_a_request(
    client: Any, endpoint: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = client.post("/landmarks", **form(b"not a source"))
    assert broken.status_code == 400
    assert "image" in broken.json()["detail"]
    assert client.post("/landmarks", **form(b"")).status_code == 400
    assert client.post("/landmarks", content=b"no form").status_code == 422
    assert client.post("/landmarks", content=iter([b"no length"])).status_code == 411
    monkeypatch.setattr(endpoint, "MAX_BYTES", 1000)
    large = client.post("/landmarks", **form(bytes(1001)))
    assert large.status_code == 413
    assert "1000 bytes" in large.json()["detail"]
    monkeypatch.setattr(endpoint, "MAX_BYTES", 10**6)
    monkeypatch.setattr(endpoint, "MAX_PIXELS", 100 * 100)
    many_pixels = client.post("/landmarks", **form(encoded(np.zeros((101, 100, 3), np.uint8))))
    assert many_pixels.status_code == 400
    assert "pixels" in many_pixels.json()["detail"]
    assert client.post("/landmarks?layout=5", **form(b"")).status_code == 422


# ------------------------------------------------------------------------------------- notebooks


def readable(notebook: Any) -> Iterator[str]:
    """All of a notebook but its images and videos."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", ()):
            yield output.get("text", "")
            for kind, content in output.get("data", {}).items():
                if kind.startswith("text/"):
                    yield re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", content)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_run_from_top_to_bottom_and_says_nothing_of_the_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    shown = [set(output.get("data", {})) for output in outputs]
    assert any(kinds & {"image/png", "image/jpeg"} for kinds in shown)
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    words = "".join(readable(notebook))
    for place in ("/tmp", "/home", "/root", "/work", "/Users", "site-packages", "ipykernel"):
        assert place not in words, place
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
