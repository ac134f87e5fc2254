from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib import request
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from hihlandmark import Detector, Face, load_image
from hihlandmark.cli import app
from hihlandmark.demo import (
    Demo,
    Prediction,
    draw_image,
    enlarge_face,
    find_clicked_face,
    open_demo,
)
from hihlandmark.draw import BOX, encode_png
from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.layouts import WFLW98
from hihlandmark.measures import HeadPose, Measurement

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUEUE = 4
detectors_may_start = threading.Event()
detectors_may_start.set()


def make_detector(layout: int, model: str) -> Detector:
    assert detectors_may_start.wait(60)
    return Detector(layout, model, device="cpu", refine=0, flip_test=False)


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo(make_detector, tmp_path, max_pixels=2_000_000)


@pytest.fixture(scope="session")
def png(astronaut: NDArray[np.uint8]) -> bytes:
    return encode_png(astronaut)


@pytest.fixture(scope="session")
def pair(astronaut: NDArray[np.uint8]) -> bytes:
    """A PNG of two faces: the astronaut and her mirror image."""
    return encode_png(np.concatenate([astronaut, astronaut[:, ::-1]], axis=1))


def face_at(x: float, y: float, side: float) -> Face:
    """Points spread over a square; the eleventh has the lowest score."""
    points = np.array([x, y]) + side * np.random.default_rng(0).uniform(size=(98, 2))
    points[:2] = [x, y], [x + side, y + side]
    scores = np.linspace(0.5, 1, 98)
    scores[10] = 0.1
    box = np.array([x, y, x + side, y + side])
    return Face(points, scores, np.zeros((98, 2, 2)), box, 0.9, WFLW98)


# --- drawing and predicting -------------------------------------------------------------------


def test_boxes_of_several_faces_are_numbered() -> None:
    image, face = np.zeros((200, 600, 3), np.uint8), face_at(50, 80, 60)
    alone, both = (
        draw_image(image, faces, {"boxes"}) for faces in ([face], [face, face_at(400, 80, 60)])
    )
    above = np.s_[60:79, 40:80]
    assert alone[above].max() == 0
    assert np.allclose(both[above].max(axis=(0, 1)), BOX, atol=40)


def test_point_numbers_are_drawn_only_where_they_can_be_read() -> None:
    image = np.zeros((500, 500, 3), np.uint8)
    for side, is_drawn in ((280, False), (320, True)):
        faces = [face_at(100, 100, side)]
        same = np.array_equal(draw_image(image, faces, {"numbers"}), draw_image(image, faces, ()))
        assert same != is_drawn


def test_an_enlarged_face_shows_that_face() -> None:
    image = np.zeros((300, 600, 3), np.uint8)
    image[:, 300:] = (0, 0, 200)
    left, right = (enlarge_face(image, face_at(x, 100, 60), ()) for x in (100, 400))
    assert left[20:60, 20:60].max() < 20
    assert right[20:60, 20:60, 2].min() > 150


def test_a_face_is_chosen_by_a_point_of_the_screen() -> None:
    small, large = face_at(100, 100, 40), face_at(80, 60, 220)
    shown = Prediction(Path("a.png"), (640, 480), (large, small), {})
    assert find_clicked_face(shown, 2 * 120, 2 * 120) == 1, (
        "the smaller of two; drawn at twice the size"
    )
    assert find_clicked_face(shown, 2 * 250, 2 * 250) == 0
    assert find_clicked_face(shown, 2 * 400, 2 * 120) is None


def test_angles_are_whole_numbers_without_a_negative_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = [Measurement(value, 1.0) for value in (-0.4, 12.6, -7.0)]
    pose = HeadPose(*angles, np.eye(3))
    monkeypatch.setattr("hihlandmark.demo.head_pose", lambda *_: pose)
    shown = Prediction(Path("a.png"), (640, 480), (face_at(80, 60, 220),), {})
    assert shown.table()[0][2:5] == ["0°", "13°", "-7°"]


def test_record_is_that_of_predict_and_names_are_escaped() -> None:
    name = '<img src=x onerror=alert(1)>".png'
    shown = Prediction(Path(name), (512, 400), (face_at(180, 60, 90),), {"model": "some-model"})
    record = json.loads(shown.record())
    assert (record["image"], record["width"], record["model"]) == (name, 512, "some-model")
    assert Face.from_dict(record["faces"][0]).layout is WFLW98
    assert "<img" not in shown.summary()
    row = shown.table()[0]
    assert row[:2] == ["1", "0.75"]
    assert row[-1] == f"0.10: {WFLW98.point_names[10].replace('_', ' ')} (number 10)"


def test_images_are_turned_upright(
    demo: Demo, tmp_path: Path, astronaut: NDArray[np.uint8]
) -> None:
    path, exif = tmp_path / "phone.jpg", Image.Exif()
    exif[0x0112] = 6  # stored on its side, to be turned clockwise
    Image.fromarray(np.rot90(astronaut[:400])).save(path, "JPEG", exif=exif)
    shown = demo.predict({"path": str(path)}, 68, "hih-small")
    assert "phone.jpg, 512 × 400 pixels: 1 face of 68 points" in shown.summary()
    assert abs(shown.faces[0].points[:, 0].mean() - 225) < 15


def test_only_uploads_are_read_and_only_offered_models_are_loaded(
    demo: Demo, tmp_path: Path, png: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "face.png"
    secret.write_bytes(png)
    (tmp_path / "link.png").symlink_to(secret)
    upward = f"{tmp_path}/../{secret.relative_to(tmp_path.parent)}"
    for path in (str(secret), upward, str(tmp_path / "link.png"), str(tmp_path), "", None):
        with pytest.raises(ImageError, match="upload"):
            demo.predict({"path": path}, 68, "hih-small")
    (tmp_path / "face.png").write_bytes(png)
    for layout, model in ((5, "hih-small"), (68, "owner/name"), (68, "/x"), ({}, [])):
        with pytest.raises(ConfigurationError, match="choose"):
            demo.predict({"path": str(tmp_path / "face.png")}, layout, model)


# --- starting ---------------------------------------------------------------------------------


def test_gradio_is_imported_only_when_needed() -> None:
    code = "import sys, hihlandmark.cli, hihlandmark.demo; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_extra_and_a_used_port_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=f"port {port}"),
            open_demo(make_detector, port=port),
        ):
            pass
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigurationError, match=r"hihlandmark\[demo\]"), open_demo(make_detector):
        pass


def test_web_takes_no_image_from_the_command_line() -> None:
    for arguments in (["image.jpg"], ["--out", "elsewhere"]):
        assert CliRunner().invoke(app, ["demo", "--web", *arguments]).exit_code == 2


@pytest.mark.slow
def test_the_command_prints_its_address_and_removes_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    command = [
        sys.executable,
        "-m",
        "hihlandmark",
        "demo",
        "--web",
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line
            assert b"Face landmarks" in fetch(found[0], "/")[1]
            assert list(tmp_path.glob("hihlandmark-*"))
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert not list(tmp_path.glob("hihlandmark-*"))


# --- over HTTP --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server that fails if it connects to another machine or changes the environment."""
    pytest.importorskip("gradio")
    connect, elsewhere = socket.socket.connect, []

    def record(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            elsewhere.append(address)
        connect(self, address)

    def variables() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if "GRADIO" in name}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", record)
        patch.setenv("GRADIO_ALLOWED_PATHS", "/")
        before = variables()
        limits: Any = {"max_megabytes": 2, "max_megapixels": 2, "queue": QUEUE}
        with open_demo(make_detector, layout=68, port=0, **limits) as opened:
            yield opened
        assert variables() == before
    assert elsewhere == []


def fetch(
    address: str, target: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    """Status and body; the target is sent as it is, without normalization."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=60)
    headers = {"Content-Type": "application/json"} | headers
    connection.request("GET" if body is None else "POST", target, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def join(address: str, function: int, data: str, session: str) -> tuple[int, bytes]:
    """Queue a call of a function of the page; ``data`` is JSON text."""
    body = f'{{"data": {data}, "fn_index": {function}, "session_hash": "{session}"}}'
    return fetch(address, "/gradio_api/queue/join", body.encode())


def call(address: str, function: int, data: str) -> bytes:
    """All that the server answers to a call, with the files that the answer names."""
    session = secrets.token_hex(8)
    status, answer = join(address, function, data, session)
    if status == 200:
        url = f"{address}/gradio_api/queue/data?session_hash={session}"
        with request.urlopen(url, timeout=60) as lines:
            for line in lines:
                answer += line
                if b"process_completed" in line:
                    break
    for target in re.findall(rb'/gradio_api/file=[^"\\]+', answer):
        answer += fetch(address, quote(target.decode(), safe="/=%"))[1]
    return answer


def upload(address: str, content: bytes, name: str = "face.png") -> tuple[int, bytes]:
    head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--edge--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    return fetch(address, "/gradio_api/upload", body, **kind)


def functions(address: str) -> list[dict[str, Any]]:
    dependencies = json.loads(fetch(address, "/config")[1])["dependencies"]
    return [each for each in dependencies if each["backend_fn"]]


@pytest.fixture
def secret(tmp_path: Path, astronaut: NDArray[np.uint8]) -> tuple[Path, bytes]:
    """An image that is not an upload, and the bytes in it that must never be answered."""
    token, info = secrets.token_hex(16), PngInfo()
    info.add_text("secret", token)
    Image.fromarray(astronaut).save(tmp_path / "secret.png", pnginfo=info)
    return tmp_path / "secret.png", token.encode()


def payloads(path: str) -> Iterator[str]:
    """JSON texts that name a file in the ways that a browser could."""
    marked = {"path": path, "meta": {"_type": "gradio.FileData"}}
    link = f"/gradio_api/file={path}"
    yield from (
        json.dumps(payload)
        for payload in (
            marked,
            {"path": path},
            {"path": path, "meta": {"_type": "gradio.FileData "}},
            {"path": path, "meta": {}},
            marked | {"url": link, "is_stream": True},
            marked | {"orig_name": path, "url": f"data:image/png;path={path}"},
            {"path": "decoy.png", "image": marked, "value": marked, "decoy": [marked]},
            {"meta": {"_type": "gradio.FileData"}, "decoy": {"path": path}, "path": link},
            {"value": {"path": path}, "__type__": "update"},
            [[{"a": [{"b": {"c": [marked]}}]}]],
            {"path": {"path": path, "meta": {"_type": "gradio.FileData"}}},
            marked | {"path": quote(path, safe="")},
            marked | {"path": f"file://{path}"},
            path,
        )
    )
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in path)
    yield f'{{"p\\u0061th": "{escaped}", "meta": {{"_type": "gradio.FileData"}}}}'
    yield f'{{"path": "{escaped}"}}'


@pytest.mark.slow
def test_no_call_returns_another_file(address: str, secret: tuple[Path, bytes], png: bytes) -> None:
    path, token = secret
    (uploaded,) = json.loads(upload(address, png)[1])
    folder = Path(uploaded).parents[1]
    assert folder.name.startswith("hihlandmark-")
    marks: Any = ({}, {"meta": {"_type": "gradio.FileData"}})
    around = [f"{folder}/{os.path.relpath(path, folder)}", f"{folder}/a/../../{path.name}"]
    tried = [*payloads(str(path)), *(json.dumps({"path": p} | m) for p in around for m in marks)]
    good = [{"path": uploaded, "meta": marks[1]["meta"]}, 68, "hih-small", []]
    for function in functions(address):
        values = [json.dumps(value) for value in good[: len(function["inputs"])]] or ["null"]
        for payload in tried:
            for place in range(len(values)):
                data = [payload if place == n else each for n, each in enumerate(values)]
                answer = call(address, function["id"], f"[{', '.join(data)}]")
                assert token not in answer
                if len(values) == 4 and place == 0:
                    assert b"face of" not in answer, "the secret image was read"
    copies = [each for each in folder.rglob("*") if each.is_file() and token in each.read_bytes()]
    assert copies == []
    answer = call(address, 0, json.dumps(good))
    assert b"1 face of 68 points" in answer
    assert token not in answer


@pytest.mark.slow
def test_no_event_and_no_api_endpoint_returns_another_file(
    address: str, secret: tuple[Path, bytes], png: bytes
) -> None:
    path, token = secret
    (uploaded,) = json.loads(upload(address, png)[1])
    marked = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    good = [{"path": uploaded, "meta": marked["meta"]}, 68, "hih-small", []]
    for function in functions(address):
        values = [*good, None][: len(function["inputs"])]
        for payload in payloads(str(path)):
            data = f'{json.dumps(values)}, "event_data": {payload}'
            assert token not in call(address, function["id"], data)
        for name in (str(function["id"]), function["api_name"] or "predict"):
            for place in ("call", "run", "api", "call/v2"):
                body = json.dumps({"data": [marked] * len(values), "value": marked})
                target = f"/gradio_api/{place}/{name}"
                answer = fetch(address, target, body.encode())[1]
                if b"event_id" in answer:
                    answer += fetch(address, f"{target}/{json.loads(answer)['event_id']}")[1]
                    for file in re.findall(rb'/gradio_api/file=[^"\\]+', answer):
                        answer += fetch(address, quote(file.decode(), safe="/=%"))[1]
                assert token not in answer
                assert b"face of" not in answer, "the secret image was read"
    folder = Path(uploaded).parents[1]
    copies = [each for each in folder.rglob("*") if each.is_file() and token in each.read_bytes()]
    assert copies == []


def test_no_address_returns_another_file(
    address: str, secret: tuple[Path, bytes], png: bytes
) -> None:
    path, token = secret
    (uploaded,) = json.loads(upload(address, png)[1])
    folder = Path(uploaded).parents[1]
    up = os.path.relpath(path, folder)
    names = [str(path), f"{folder}/{up}", f"{uploaded}/../../{up}", f"file://{path}", f"//{path}"]
    names += [quote(name, safe="") for name in names]
    names += [quote(name, safe="") for name in names]
    names += [str(path).replace("/", way) for way in ("%c0%af", "%EF%BC%8F", "%5c", "\\u002f")]
    names += [f"{folder}/{up}".replace("..", way) for way in ("%2e%2e", "%252e%252e", "..%00")]
    places = ("file=", "file/", "proxy=file://", "custom_component/0/client/component/")
    targets = [f"/gradio_api/{place}{name}" for place in places for name in names]
    ways = ("../" * 12, "..%2f" * 12, "%2e%2e/" * 12)
    targets += [
        f"/{place}/{way}{str(path)[1:]}"
        for place in ("static", "assets", "svelte", "pwa_icon")
        for way in ways
    ]
    for target in targets:
        assert token not in fetch(address, target)[1], target
    assert fetch(address, f"/gradio_api/file={quote(uploaded)}")[1] == png


def test_local_servers_are_not_fetched(address: str) -> None:
    hits: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost", "[::1]", "2130706433", "127.1"):
            url = f"http://{host}:{server.server_port}/a.png"
            payload = {"path": url, "meta": {"_type": "gradio.FileData"}}
            call(address, 0, json.dumps([payload, 68, "hih-small", []]))
            for place in ("file=", "proxy="):
                fetch(address, f"/gradio_api/{place}{url}")
        server.shutdown()
    assert hits == []


def test_other_host_names_are_refused(address: str) -> None:
    port = urlsplit(address).port
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert fetch(address, "/config", Host=host)[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "", "192.0.2.1"):
        for target in ("/", "/config", "/gradio_api/queue/join"):
            assert fetch(address, target, Host=host)[0] == 400


def test_functions_are_no_api_and_pages_of_gradio_are_off(address: str) -> None:
    assert len(functions(address)) == 10
    info = json.loads(fetch(address, "/gradio_api/info")[1])
    assert info == {"named_endpoints": {}, "unnamed_endpoints": {}}
    for name in ("predict", "redraw", "write_png", "choose_face"):
        for place in ("run", "api"):
            assert fetch(address, f"/gradio_api/{place}/{name}", b'{"data": []}')[0] == 404
    for target in (
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/runs",
        "/gradio_api/vibe-code",
    ):
        assert fetch(address, target)[0] in (403, 404)


def test_large_files_and_long_queues_are_refused(address: str, png: bytes) -> None:
    assert upload(address, bytes(2 * 2**20 + 1))[0] == 413
    (uploaded,) = json.loads(upload(address, png)[1])
    payload = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    detectors_may_start.clear()
    try:
        data = json.dumps([payload, 29, "awing-small", []])
        answers = [join(address, 0, data, secrets.token_hex(8)) for _ in range(QUEUE + 4)]
    finally:
        detectors_may_start.set()
    assert answers[0][0] == 200
    assert answers[-1][0] == 503
    assert b"full" in answers[-1][1]


def test_old_files_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    monkeypatch.setattr("hihlandmark.demo.DELETE_CACHE", (1, 1))
    with open_demo(make_detector, layout=68, port=0) as address:
        (uploaded,) = json.loads(upload(address, b"bytes")[1])
        for _ in range(100):
            if not Path(uploaded).exists():
                break
            time.sleep(0.1)
        assert not Path(uploaded).exists()


# --- in a browser -----------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, png: bytes) -> Iterator[Browser]:
    """Chromium, whose camera shows the astronaut."""
    api = pytest.importorskip("playwright.sync_api")
    camera = tmp_path_factory.mktemp("camera") / "astronaut.mjpeg"
    Image.open(io.BytesIO(png)).save(camera, "JPEG", quality=95)
    fake = ("use-fake-ui-for-media-stream", "use-fake-device-for-media-stream")
    options = [f"--{name}" for name in (*fake, f"use-file-for-fake-video-capture={camera}")]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *options]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens the page; checks that nothing came from elsewhere and no script failed."""
    contexts, requests, errors = [], [], []

    def open_one(width: int = 1280) -> Page:
        allowed = ["camera", "clipboard-read", "clipboard-write"]
        viewport: Any = {"width": width, "height": 844}
        context = browser.new_context(viewport=viewport, permissions=allowed)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda sent: requests.append(sent.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        wait_for(page, "No image yet.")
        return page

    yield open_one
    for context in contexts:
        context.close()
    local = (f"{address}/", "data:", "blob:http://127.0.0.1")
    assert [url for url in requests if not url.startswith(local)] == []
    assert errors == []


def give(page: Page, name: str, content: bytes) -> None:
    file: Any = {"name": name, "mimeType": "image/png", "buffer": content}
    if page.get_by_label("Remove Image").count():
        page.get_by_label("Remove Image").first.click()
        wait_for(page, "No image yet.")
    page.set_input_files("#upload input[type=file]", file)


def wait_for(page: Page, text: str) -> None:
    page.locator("#summary", has_text=text).wait_for()


def download(page: Page, label: str) -> tuple[str, bytes]:
    with page.expect_download() as coming:
        page.get_by_role("button", name=label).or_(page.get_by_role("link", name=label)).click()
    return coming.value.suggested_filename, Path(coming.value.path()).read_bytes()


@in_browser
@pytest.mark.browser
def test_upload_change_of_layout_and_downloads(
    open_page: Callable[..., Page], png: bytes, astronaut: NDArray[np.uint8]
) -> None:
    page, other = open_page(), open_page()
    give(page, "my image.png", png)
    wait_for(page, "my image.png, 512 × 512 pixels: 1 face of 68 points.")
    page.get_by_label("98 (WFLW)").check()
    wait_for(page, "1 face of 98 points.")
    before = page.locator("#crops img").first.get_attribute("src")
    page.get_by_label("Numbers").check()
    page.wait_for_function(
        "before => document.querySelector('#crops img').src != before", arg=before
    )
    name, content = download(page, "Download JSON")
    record = json.loads(content)
    assert (name, record["image"]) == ("my image.landmarks.json", "my image.png")
    assert (record["width"], record["height"], record["model"]) == (512, 512, "hih-small")
    assert re.fullmatch("[0-9a-f]{64}", record["weights"])
    assert [Face.from_dict(face).layout.size for face in record["faces"]] == [98]
    name, content = download(page, "Download PNG")
    drawn = np.array(Image.open(io.BytesIO(content)))
    assert (name, drawn.shape) == ("my image.landmarks.png", astronaut.shape)
    assert 500 < np.any(drawn != astronaut, axis=2).sum() < 20_000
    page.get_by_label("Remove Image").click()
    wait_for(page, "No image yet.")
    assert page.locator("#whole img, #faces table").count() == 0
    other.get_by_label("29 (COFW)").check()
    wait_for(other, "No image yet.")


@in_browser
@pytest.mark.browser
def test_several_faces_and_errors(open_page: Callable[..., Page], pair: bytes) -> None:
    page = open_page()
    give(page, f"{'a_long_name' * 15}.png", pair)
    wait_for(page, "2 faces of 68 points.")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    table = page.locator("#faces table").bounding_box()
    assert table is not None
    assert table["x"] + table["width"] <= 390
    page.set_viewport_size({"width": 1280, "height": 844})
    page.locator("#crops", has_text="Face 1").wait_for()
    shown = page.locator("#whole img")
    page.wait_for_function("document.querySelector('#whole img').clientWidth > 400")
    size = shown.bounding_box()
    assert size is not None
    height, width = load_image(pair).shape[:2]
    scale = size["width"] / width
    above = (size["height"] - scale * height) / 2  # the image is centered in its frame
    for number, face in reversed([*enumerate(Detector(68).predict(pair), 1)]):
        x, y = (scale * (face.box[:2] + face.box[2:]) / 2).tolist()
        shown.click(position={"x": x, "y": above + y})
        page.locator("#crops .preview", has_text=f"Face {number}").wait_for()
    give(page, "pair.png", pair)
    wait_for(page, "pair.png, ")
    page.get_by_role("button", name="Face 2").or_(page.get_by_label("Thumbnail 2")).first.click()
    page.locator("#crops", has_text="Face 2").wait_for()
    wide = io.BytesIO()
    Image.new("1", (20_000, 1_000)).save(wide, "PNG")
    give(page, "broken.png", b"\xff\xd8\xff<b>no image</b>")
    wait_for(page, "broken.png: image of 18 bytes is not an image")
    give(page, "wide.png", wide.getvalue())
    wait_for(page, "20000 x 1000 pixels, more than max_pixels=2000000")
    assert page.locator("#whole img").count() == 0
    give(page, "wall.png", encode_png(np.full((90, 120, 3), 128, np.uint8)))
    wait_for(page, "wall.png, 120 × 90 pixels: no face found. Try")


@in_browser
@pytest.mark.browser
def test_example_paste_and_camera(open_page: Callable[..., Page], png: bytes) -> None:
    page = open_page(width=390)
    for name, size in {"Astronaut": 512, "Tilted": 400, "Small": 160, "Cropped": 400}.items():
        page.get_by_role("button", name=name).click()
        wait_for(page, f"{name.lower()}.png, {size} × {size} pixels: 1 face")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    page = open_page()
    page.evaluate(
        """async text => {
          const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
          const image = new Blob([bytes], {type: "image/png"});
          await navigator.clipboard.write([new ClipboardItem({"image/png": image})]);
        }""",
        b64encode(png).decode(),
    )
    no_result = pytest.importorskip("playwright.sync_api").TimeoutError
    result = page.locator("#summary", has_text="512 × 512 pixels: 1 face")
    for timeout in (15_000, 15_000, 60_000):  # Gradio now and then ignores the click
        page.get_by_label("Paste from clipboard").click()
        with suppress(no_result):
            result.wait_for(timeout=timeout)
            break
    assert result.is_visible()
    page = open_page()
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_label("capture photo").click()
    wait_for(page, "1 face")
