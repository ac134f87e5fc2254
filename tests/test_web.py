from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import Detector, Face
from hihlandmark.cli import app
from hihlandmark.draw import BOX, encode_png, moved
from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.layouts import WFLW98
from hihlandmark.web import Limits, open_demo, serve
from hihlandmark.web.demo import Demo, Upload
from hihlandmark.web.page import take_upload
from hihlandmark.web.photos import Photo, Photos
from hihlandmark.web.pictures import (
    DRAWN,
    NUMBERS_FROM,
    details_html,
    error_html,
    face_jpeg,
    json_record,
    screen_size,
    summary_html,
    whole_html,
    whole_jpeg,
    whole_png,
)
from hihlandmark.web.server import OpenDemo, remove_older

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KIB = 2**10
LIMITS = Limits(upload_bytes=2 * 2**20, pixels=2_000_000, queue=4)


def make_quick(layout: int, model: str) -> Detector:
    return Detector(layout, model, device="cpu", refine=0, flip_test=False)


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo(make_quick, Photos(seconds=600, most=3), max_pixels=LIMITS.pixels)


@pytest.fixture(scope="session")
def png(astronaut: NDArray[np.uint8]) -> bytes:
    return encode_png(astronaut)


@pytest.fixture(scope="session")
def pair(astronaut: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two faces (512, 1024, 3): the astronaut and her mirror image."""
    return np.concatenate([astronaut, astronaut[:, ::-1]], axis=1)


def face_at(x: float, y: float, side: float) -> Face:
    """Points spread over a square, with scores from 0.5 up; the eleventh is the least sure."""
    rng = np.random.default_rng(0)
    points = np.array([x, y]) + side * rng.uniform(size=(98, 2))
    points[:2] = [x, y], [x + side, y + side]
    scores = np.linspace(0.5, 1, 98)
    scores[10] = 0.1
    box = np.array([x, y, x + side, y + side])
    return Face(points, scores, np.zeros((98, 2, 2)), box, 0.9, WFLW98)


def photo_of(image: NDArray[np.uint8], *faces: Face, name: str = "a photo.png") -> Photo:
    model = {"model": "some-model", "weights": "c0ffee"}
    return Photo(name, encode_png(image), (image.shape[1], image.shape[0]), 98, faces, model)


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


# --- images in memory -------------------------------------------------------------------------


@pytest.fixture
def photo() -> Photo:
    return photo_of(np.zeros((8, 8, 3), np.uint8))


def test_a_page_has_one_photo_and_each_photo_a_token_of_its_own(photo: Photo) -> None:
    photos = Photos(seconds=60, most=9)
    first, second = photos.keep("page", photo), photos.keep("page", photo)
    other = photos.keep("another page", photo)
    assert photos.get(first) is None
    assert photos.of_session("page") == (second, photo)
    assert len({first, second, other}) == 3
    assert min(map(len, (first, second, other))) >= 20, "too short to be guessed"
    photos.drop("page")
    assert photos.of_session("page") is None
    assert photos.of_session("another page") == (other, photo)


def test_other_results_of_a_photo_stay_under_its_token(photo: Photo) -> None:
    photos = Photos(seconds=60, most=9)
    token, other = photos.keep("page", photo), replace(photo, layout=29)
    photos.replace(token, other)
    assert photos.of_session("page") == (token, other)
    photos.drop("page")
    photos.replace(token, photo)
    assert photos.get(token) is None


def test_photos_that_nobody_asks_for_are_forgotten(photo: Photo) -> None:
    now = [0.0]
    photos = Photos(seconds=60, most=9, clock=lambda: now[0])
    used, unused = photos.keep("one", photo), photos.keep("two", photo)
    now[0] = 50
    assert photos.get(used) is photo
    now[0] = 70
    photos.expire()
    assert len(photos) == 1
    assert (photos.get(used), photos.get(unused)) == (photo, None)


def test_the_oldest_photo_goes_when_there_are_too_many(photo: Photo) -> None:
    photos = Photos(seconds=60, most=2)
    tokens = [photos.keep(str(page), photo) for page in range(3)]
    assert [photos.get(token) is not None for token in tokens] == [False, True, True]


# --- images and HTML ------------------------------------------------------------------------


def test_a_moved_face_lies_where_its_picture_lies() -> None:
    face = face_at(10, 20, 40)
    half = moved(face, np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]]))
    assert np.allclose(half.points, (face.points + 0.5) / 2 - 0.5, atol=1e-4)
    assert np.allclose(half.box, (face.box + 0.5) / 2 - 0.5)
    turned = moved(face, np.array([[0, -1, 100.0], [1, 0, 0]]))
    assert np.allclose(turned.box, [100 - 60, 10, 100 - 20, 50])


def test_pictures_have_the_size_that_is_said_and_the_face_at_its_place() -> None:
    small, large = np.zeros((100, 200, 3), np.uint8), np.zeros((1000, 4000, 3), np.uint8)
    for image, size in ((small, (400, 200)), (large, (1280, 320))):
        height, width = image.shape[:2]
        face = face_at(width * 0.6, height * 0.3, height * 0.5)
        photo = photo_of(image, face)
        assert screen_size(photo) == size
        whole = pixels(whole_jpeg(photo, {"boxes"}))
        assert whole.shape == (size[1], size[0], 3)
        rows, columns = np.nonzero(whole.max(axis=2) > 120)
        extent = [columns.min() / size[0], rows.min() / size[1], columns.max() / size[0]]
        assert np.allclose(extent, [0.6, 0.3, 0.6 + 0.5 * height / width], atol=0.02)
        assert pixels(whole_png(photo, {"boxes"})).shape == image.shape


def test_the_large_picture_shows_the_face_that_is_asked_for() -> None:
    image = np.zeros((300, 600, 3), np.uint8)
    image[:, 300:] = (0, 0, 200)
    photo = photo_of(image, face_at(100, 100, 60), face_at(400, 100, 60))
    left, right = (pixels(face_jpeg(photo, index, set())) for index in (0, 1))
    assert left.shape == (900, 900, 3)
    assert left[20:60, 20:60].max() < 20
    assert right[20:60, 20:60, 2].min() > 150


def test_numbers_are_drawn_only_where_they_can_be_read() -> None:
    image = np.zeros((1000, 1000, 3), np.uint8)
    for side, is_drawn in ((NUMBERS_FROM - 20, False), (NUMBERS_FROM + 20, True)):
        photo = photo_of(image, face_at(100, 100, side))
        with_numbers, without = (whole_png(photo, drawn) for drawn in ({"numbers"}, set()))
        assert (with_numbers != without) == is_drawn


def test_boxes_of_several_faces_have_the_numbers_of_the_page() -> None:
    image = np.zeros((200, 600, 3), np.uint8)
    face, other = face_at(50, 80, 60), face_at(400, 80, 60)
    alone, both = (
        pixels(whole_png(photo_of(image, *f), {"boxes"})) for f in ([face], [face, other])
    )
    above = np.s_[60:78, 40:80]
    assert alone[above].max() == 0
    assert np.allclose(both[above].max(axis=(0, 1)), BOX, atol=30)
    assert both[60:78, 400:430].max() > 100


def test_the_record_is_that_of_predict(astronaut: NDArray[np.uint8]) -> None:
    record = json.loads(json_record(photo_of(astronaut, face_at(180, 60, 90))))
    assert (record["width"], record["height"]) == (512, 512)
    assert (record["image"], record["model"], record["weights"]) == (
        "a photo.png",
        "some-model",
        "c0ffee",
    )
    assert Face.from_dict(record["faces"][0]).layout is WFLW98


def test_names_and_messages_are_never_html() -> None:
    name = '<img src=x onerror=alert(1)>".png'
    photo = photo_of(np.zeros((20, 20, 3), np.uint8), face_at(2, 2, 10), name=name)
    pieces = [summary_html(photo), whole_html("token", photo, DRAWN), error_html(name)]
    pieces.append(details_html("token", photo, 0, DRAWN))
    for piece in pieces:
        assert "<img src=x" not in piece
        assert not re.search(r'"[^"<>]*"\.png', piece)


def test_figures_name_the_least_sure_point_and_the_face_that_is_shown() -> None:
    photo = photo_of(np.zeros((200, 400, 3), np.uint8), face_at(20, 20, 90), face_at(220, 20, 90))
    html = details_html("token", photo, 1, set())
    assert html.count(f"{WFLW98.point_names[10].replace('_', ' ')} (number 10): 0.10") == 2
    rows = re.findall(r"<tr.*?</tr>", html)
    assert ["aria-current" in row for row in rows] == [False, False, True]
    assert "face-2.jpg" in html


# --- what the page asks for -------------------------------------------------------------------


def test_photos_are_turned_upright_and_found_in(demo: Demo, astronaut: NDArray[np.uint8]) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # stored on its side, to be turned clockwise
    Image.fromarray(np.rot90(astronaut[:400])).save(file, "JPEG", exif=exif)
    view = demo.take("exif", Upload("phone.jpg", file.getvalue()), 68, "hih-small", [])
    assert "<strong>phone.jpg</strong>, 512 × 400 pixels: 1 face, 68 points" in view.summary
    kept = demo.photos.of_session("exif")
    assert kept is not None
    assert kept[1].load().shape == (400, 512, 3)
    assert abs(kept[1].faces[0].points[:, 0].mean() - 225) < 15


def test_errors_are_shown_and_nothing_is_kept_of_them(demo: Demo, png: bytes) -> None:
    demo.take("errors", Upload("face.png", png), 68, "hih-small", [])
    wide = io.BytesIO()
    Image.new("1", (20_000, 1_000)).save(wide, "PNG")
    for name, content, message in (
        ("broken.jpg", b"\xff\xd8\xff<b>no", "is not an image in a known format"),
        ("half.png", png[: len(png) // 2], "truncated or damaged"),
        ("wide.png", wide.getvalue(), "20000 x 1000 pixels are more than 2000000"),
        ("nothing.png", b"", "is empty"),
    ):
        view = demo.take("errors", Upload(name, content), 68, "hih-small", [])
        assert 'role="alert"' in view.summary
        assert name in view.summary
        assert message in view.summary
        assert "<b>" not in view.summary
        assert (view.whole, view.details, view.faces) == ("", "", 0)
        assert demo.photos.of_session("errors") is None


def test_a_photo_without_a_face_gets_advice(demo: Demo) -> None:
    empty = Upload("wall.png", encode_png(np.full((90, 120, 3), 128, np.uint8)))
    view = demo.take("empty", empty, 68, "hih-small", [])
    assert "no face found. Try a larger or sharper photo" in view.summary
    assert "wall.png" in view.whole
    assert (view.details, view.faces) == ("", 0)


def test_layout_and_model_change_without_a_new_upload(demo: Demo, pair: NDArray[np.uint8]) -> None:
    demo.take("pair", Upload("pair.png", encode_png(pair)), 68, "hih-small", [])
    first = demo.photos.of_session("pair")
    view = demo.take_again("pair", 29, "awing-small", 1, ["boxes"])
    assert view is not None
    assert first is not None
    assert "2 faces, 29 points each" in view.summary
    assert (view.faces, view.shown) == (2, 1)
    kept = demo.photos.of_session("pair")
    assert kept is not None
    assert kept[0] == first[0], "the page may still show pictures of the other layout"
    assert f"photos/{kept[0]}/face-2.jpg" in view.details
    assert kept[1].model["model"] == "awing-small"
    assert len(kept[1].model["weights"]) == 64
    other = demo.show("pair", 7, [])
    assert other is not None
    assert other.shown == 1, "there are but two"
    assert demo.take_again("nobody", 68, "hih-small", 0, []) is None
    assert demo.show("nobody", 0, []) is None


def test_each_detector_is_made_once(demo: Demo, png: bytes) -> None:
    made: list[tuple[int, str]] = []

    def make(layout: int, model: str) -> Detector:
        made.append((layout, model))
        return demo.detector(layout, model)

    counting = Demo(make, Photos(seconds=600, most=3), max_pixels=LIMITS.pixels)
    for page in ("one", "two"):
        counting.take(page, Upload("face.png", png), 68, "hih-small", [])
        counting.take_again(page, 29, "hih-small", 0, [])
    assert made == [(68, "hih-small"), (29, "hih-small")]


@pytest.mark.parametrize(("layout", "model"), [(5, "hih-small"), (68, "owner/name"), (68, "/x")])
def test_only_what_the_page_offers_is_loaded(
    demo: Demo, png: bytes, layout: int, model: str
) -> None:
    with pytest.raises(ConfigurationError, match="choose one of 98, 68, 29 and of adnet-small"):
        demo.detector(layout, model)
    demo.take("choice", Upload("face.png", png), 68, "hih-small", [])
    view = demo.take_again("choice", layout, model, 0, [])
    assert view is not None
    assert 'role="alert"' in view.summary


def test_a_package_without_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hihlandmark.web.demo.list_weights", list)
    with pytest.raises(WeightsError, match="reinstall hihlandmark"):
        Demo(make_quick, Photos(seconds=1, most=1), max_pixels=1)


def test_an_upload_is_taken_from_its_folder_and_from_nowhere_else(tmp_path: Path) -> None:
    folder, secret = tmp_path / "uploads", tmp_path / "secret.txt"
    (folder / "hash").mkdir(parents=True)
    secret.write_bytes(b"secret")
    file = folder / "hash" / "a.png"
    file.write_bytes(b"pixels")
    assert take_upload({"path": str(file), "orig_name": "b.png"}, folder) == ("b.png", b"pixels")
    assert list(folder.iterdir()) == []
    for path in (str(secret), f"{folder}/../secret.txt", str(folder / "gone.png"), "", None):
        assert take_upload({"path": path}, folder).content == b""
    assert secret.read_bytes() == b"secret"


def test_what_broken_uploads_left_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "hash" / "old", tmp_path / "new"
    old.parent.mkdir()
    for path in (old, new):
        path.write_bytes(b"part")
    os.utime(old, (time.time() - 100,) * 2)
    remove_older(tmp_path, seconds=50)
    assert (old.exists(), new.exists()) == (False, True)


# --- starting ---------------------------------------------------------------------------------


def test_gradio_is_imported_only_when_it_is_needed() -> None:
    code = (
        "import sys, hihlandmark, hihlandmark.cli, hihlandmark.web.page; "
        "sys.exit('gradio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with (
        pytest.raises(ConfigurationError, match=r"pip install 'hihlandmark\[demo\]'"),
        open_demo(make_quick, port=0),
    ):
        pass


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 is in use"),
            open_demo(make_quick, port=port),
        ):
            pass


def test_an_address_of_another_machine_is_refused() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"cannot listen on port 0 of 192\.0\.2\.1"),
        open_demo(make_quick, host="192.0.2.1", port=0),
    ):
        pass


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_the_public_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, is_loopback: bool
) -> None:
    """What `serve` announces, of a server that ends at once."""
    ended = OpenDemo("http://address", tmp_path, None, lambda: None, lambda: None)  # type: ignore[arg-type]
    monkeypatch.setattr("hihlandmark.web.server.open_demo", lambda *_, **__: nullcontext(ended))
    before = signal.getsignal(signal.SIGTERM)
    said: list[str] = []
    try:
        serve(make_quick, host=host, announce=said.append)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said[0] == "The web demo is at http://address (Ctrl-C ends it)."
    assert len(said) == (1 if is_loopback else 2)


def test_web_takes_no_photo_from_the_command_line() -> None:
    for arguments in (["photo.jpg"], ["--out", "elsewhere"]):
        result = CliRunner().invoke(app, ["demo", "--web", *arguments])
        assert result.exit_code == 2
        assert "takes its photos from the page" in result.stderr


def test_the_command_says_where_it_listens_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hihlandmark", "demo", "--web", "--port", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--device", "cpu"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"at (http://127\.0\.0\.1:\d+) \(Ctrl-C", line)
            assert found, line
            with request.urlopen(found[1], timeout=30) as response:
                assert b"Face landmarks" in response.read()
            assert list(tmp_path.glob("hihlandmark-*"))
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert not list(tmp_path.glob("hihlandmark-*"))


# --- over HTTP --------------------------------------------------------------------------------


def variables() -> dict[str, str]:
    """Those of the environment, but for what pytest and PyTorch set by themselves."""
    others = ("PYTEST_", "TORCHINDUCTOR_")
    return {name: value for name, value in os.environ.items() if not name.startswith(others)}


@pytest.fixture(scope="module")
def opened() -> Iterator[OpenDemo]:
    """A server in a thread, which fails if it connects to another machine."""
    pytest.importorskip("gradio")
    connect, elsewhere = socket.socket.connect, []

    def noting(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            elsewhere.append(address)
        connect(self, address)

    before = variables()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noting)
        with open_demo(make_quick, layout=68, port=0, limits=LIMITS) as opened:
            thread = threading.Thread(target=opened.run)
            thread.start()
            yield opened
            opened.close()
            thread.join(timeout=30)
            assert not thread.is_alive()
        assert not opened.folder.exists()
    assert variables() == before
    assert elsewhere == []


def answer(url: str, **options: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    try:
        with request.urlopen(request.Request(url, **options), timeout=30) as response:
            return response.status, dict(response.headers), response.read()
    except HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_browsers_are_told_to_fetch_nothing_from_elsewhere(opened: OpenDemo) -> None:
    status, headers, page = answer(opened.address)
    assert (status, b"Face landmarks" in page) == (200, True)
    assert "default-src 'self'" in headers["content-security-policy"]
    assert not re.search(rb'(src|href)="(https?:)?//', page)


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/vibe-code", "/gradio_api/call/take", "/gradio_api/openapi.json", "/docs"),
        *("/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/file=http://127.0.0.1/a"),
        *("/monitoring", "/gradio_api/runs", "/photos", "/login"),
    ],
)
def test_what_the_page_does_not_need_is_not_there(opened: OpenDemo, path: str) -> None:
    status, _, body = answer(opened.address + path)
    assert (status, body) == (404, b"The web demo has no such page.\n")


def test_files_of_the_machine_are_not_handed_out(opened: OpenDemo) -> None:
    for path in (__file__, str(opened.folder / ".." / Path(__file__).name)):
        assert answer(f"{opened.address}/gradio_api/file={path}")[0] in (403, 404)


def test_large_requests_are_refused_before_they_are_read(opened: OpenDemo) -> None:
    upload, event = (f"{opened.address}/gradio_api/{path}" for path in ("upload", "queue/join"))
    for url, size in ((upload, LIMITS.upload_bytes + 65 * KIB), (event, 65 * KIB)):
        # Announced, but not sent: the answer must not wait for it.
        headers = {"Content-Length": str(size), "Content-Type": "text/plain"}
        status, _, body = answer(url, data=b"", headers=headers, method="POST")
        assert status == 413
        assert b"larger than" in body
    connection = HTTPConnection(urlsplit(event).netloc, timeout=30)
    connection.putrequest("POST", urlsplit(event).path)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()


def ask(address: str, session: str, file: dict[str, Any]) -> tuple[int, bytes]:
    """Asks for the landmarks of a file, as the page does; status and body."""
    body = {
        "data": [file, 68, "hih-small", []],
        "fn_index": 0,
        "session_hash": session,
        "event_data": None,
    }
    headers = {"Content-Type": "application/json"}
    url = f"{address}/gradio_api/queue/join"
    return answer(url, data=json.dumps(body).encode(), headers=headers)[::2]


def event(address: str, file: dict[str, Any]) -> tuple[int, bytes]:
    """What comes of asking for the landmarks of a file."""
    session = f"test{time.monotonic_ns()}"
    status, content = ask(address, session, file)
    if status != 200:
        return status, content
    url = f"{address}/gradio_api/queue/"
    with request.urlopen(f"{url}data?session_hash={session}", timeout=30) as lines:
        for line in lines:
            if b"process_completed" in line:
                return status, line
    raise AssertionError("no answer")


@pytest.mark.parametrize("meta", [{"meta": {"_type": "gradio.FileData"}}, {}])
def test_only_uploads_are_read(
    opened: OpenDemo, tmp_path: Path, png: bytes, meta: dict[str, Any]
) -> None:
    secret = tmp_path / "face.png"
    secret.write_bytes(png)
    for path in (
        str(secret),
        os.path.join(opened.folder, os.path.relpath(secret, opened.folder)),
        "http://a.b/c",
    ):
        refused = event(opened.address, {"path": path, **meta})
        assert refused == (400, b"Only what was uploaded is read: give the photo itself.\n")
    assert secret.exists()
    upload = opened.folder / "hash" / "face.png"
    upload.parent.mkdir()
    upload.write_bytes(png)
    file = {"path": str(upload), "meta": {"_type": "gradio.FileData"}}
    status, line = event(opened.address, file)
    assert (status, b"1 face, 68 points" in line) == (200, True)
    assert not upload.exists()


def test_no_more_photos_wait_than_may(opened: OpenDemo) -> None:
    file = {"path": str(opened.folder / "gone.png"), "meta": {"_type": "gradio.FileData"}}
    with opened.demo._lock:  # the network is at work
        answers = [ask(opened.address, f"wait{n}", file) for n in range(LIMITS.queue + 3)]
    statuses = [status for status, _ in answers]
    assert statuses[: LIMITS.queue] == [200] * LIMITS.queue
    assert statuses[-1] == 503
    assert b"Queue is full" in answers[-1][1]


def test_a_photo_that_is_gone_has_no_picture(opened: OpenDemo, photo: Photo) -> None:
    gone = "This photo is no longer kept. Please give it to the page once more.\n"
    assert answer(f"{opened.address}/photos/guess/whole.jpg")[::2] == (404, gone.encode())
    token = opened.demo.photos.keep("http", replace(photo, name="é <b>.png"))
    url = f"{opened.address}/photos/{token}/"
    for name in ("face-1.jpg", "face-0.jpg", "other.jpg"):
        assert answer(url + name)[0] == 404
    status, headers, body = answer(f"{url}landmarks.json")
    assert (status, json.loads(body)["faces"]) == (200, [])
    assert headers["content-disposition"] == (
        "attachment; filename*=UTF-8''%C3%A9%20%3Cb%3E.landmarks.json"
    )
    assert headers["cache-control"] == "no-store"
    opened.demo.photos.drop("http")
    assert answer(f"{url}whole.jpg")[0] == 404


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
def open_page(browser: Browser, opened: OpenDemo) -> Iterator[Callable[..., Page]]:
    """Opens the page at a width in pixels; checks that nothing came from elsewhere, and nothing
    failed in the page."""
    pages, addresses, errors = [], [], []

    def open_one(width: int = 1280) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 844},
            permissions=["camera", "clipboard-read", "clipboard-write"],
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda sent: addresses.append(sent.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(opened.address)
        page.get_by_text("No photo yet.").wait_for()
        pages.append(page)
        return page

    yield open_one
    for page in pages:
        page.context.close()
    local = (f"{opened.address}/", "data:", "blob:http://127.0.0.1")
    assert [url for url in addresses if not url.startswith(local)] == []
    assert len(addresses) > 10
    assert errors == []


def give(page: Page, name: str, content: bytes) -> None:
    kind = "image/jpeg" if name.endswith("jpg") else "image/png"
    file = {"name": name, "mimeType": kind, "buffer": content}
    page.set_input_files("#photo input[type=file]", file)  # type: ignore[arg-type]


def wait_for(page: Page, text: str) -> None:
    page.locator("#summary", has_text=text).wait_for()


def picture(page: Page, kind: str) -> dict[str, Any]:
    """What the browser has shown of an image: its address, alternative text and pixels."""
    image = page.locator(f"img.{kind}")
    image.evaluate("image => image.decode()")
    shown: dict[str, Any] = image.evaluate(
        "image => ({source: image.src, alt: image.alt, width: image.naturalWidth})"
    )
    return shown


def download(page: Page, label: str) -> tuple[str, bytes]:
    with page.expect_download() as coming:
        page.get_by_role("link", name=label).click()
    return coming.value.suggested_filename, Path(coming.value.path()).read_bytes()


def uploads(opened: OpenDemo) -> list[Path]:
    return [path for path in opened.folder.rglob("*") if path.is_file()]


@in_browser
@pytest.mark.browser
def test_upload_change_of_layout_and_downloads(
    open_page: Callable[..., Page], opened: OpenDemo, png: bytes, astronaut: NDArray[np.uint8]
) -> None:
    page = open_page()
    give(page, "my photo.png", png)
    wait_for(page, "my photo.png, 512 × 512 pixels: 1 face, 68 points.")
    assert uploads(opened) == []
    whole, face = picture(page, "whole"), picture(page, "face")
    assert (whole["width"], face["width"]) == (1024, 900)
    assert whole["alt"] == "my photo.png with the landmarks of 1 face drawn"
    assert not page.get_by_role("radiogroup").is_visible(), "one face needs no choice"

    page.get_by_label("Points").click()
    page.get_by_role("option", name="98 (WFLW)").click()
    wait_for(page, "1 face, 98 points.")
    page.get_by_label("Numbers").check()
    page.locator("img.face[src*=numbers]").wait_for()
    assert picture(page, "face")["source"] != face["source"]

    name, content = download(page, "Download JSON")
    record = json.loads(content)
    assert name == "my photo.landmarks.json"
    assert (record["width"], record["height"], record["model"]) == (512, 512, "hih-small")
    assert re.fullmatch("[0-9a-f]{64}", record["weights"])
    assert [Face.from_dict(face).layout.size for face in record["faces"]] == [98]
    name, content = download(page, "Download PNG")
    assert name == "my photo.landmarks.png"
    drawn = pixels(content)
    assert drawn.shape == astronaut.shape
    assert 500 < np.any(drawn != astronaut, axis=2).sum() < 20_000
    assert uploads(opened) == []


@in_browser
@pytest.mark.browser
def test_errors_are_told_on_the_page(
    open_page: Callable[..., Page], opened: OpenDemo, png: bytes
) -> None:
    page = open_page()
    give(page, "broken.jpg", b"\xff\xd8\xff<b>no photo</b>")
    wait_for(page, "broken.jpg: image of 18 bytes is not an image in a known format")
    assert page.get_by_role("alert").is_visible()
    wide = io.BytesIO()
    Image.new("1", (20_000, 1_000)).save(wide, "PNG")
    give(page, "wide.png", wide.getvalue())
    wait_for(page, "20000 x 1000 pixels are more than 2000000")
    give(page, "wall.png", encode_png(np.full((90, 120, 3), 128, np.uint8)))
    wait_for(page, "wall.png, 120 × 90 pixels: no face found. Try a larger or sharper photo")
    assert uploads(opened) == []
    give(page, "large.png", os.urandom(LIMITS.upload_bytes + KIB))
    page.get_by_text("exceed the maximum allowed size").wait_for()
    give(page, "face.png", png)
    wait_for(page, "1 face")


@in_browser
@pytest.mark.browser
def test_one_of_several_faces_is_looked_at(
    open_page: Callable[..., Page], pair: NDArray[np.uint8]
) -> None:
    page = open_page()
    give(page, "pair.jpg", encode_png(pair))
    wait_for(page, "2 faces, 68 points each")
    page.locator("#face").get_by_label("2").check()
    page.locator("img.face[src*=face-2]").wait_for()
    assert picture(page, "face")["alt"] == "Face 2, large, with 68 points drawn"
    rows = page.locator("#details tbody tr")
    assert rows.count() == 2
    assert rows.nth(1).get_attribute("aria-current") == "true"


@in_browser
@pytest.mark.browser
def test_a_phone_needs_no_scrolling_to_the_side(open_page: Callable[..., Page], png: bytes) -> None:
    page = open_page(width=390)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 390
    page.get_by_role("button", name="Try the astronaut").click()
    wait_for(page, "astronaut.png, 512 × 512 pixels: 1 face")
    picture(page, "whole")
    assert page.evaluate(width) == 390
    page.wait_for_function("document.querySelector('#summary').getBoundingClientRect().top < 400")


@in_browser
@pytest.mark.browser
def test_pasting_and_the_camera_give_photos(
    open_page: Callable[..., Page], opened: OpenDemo, png: bytes
) -> None:
    page = open_page()
    page.evaluate(
        """async text => {
          const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
          const picture = new Blob([bytes], {type: "image/png"});
          await navigator.clipboard.write([new ClipboardItem({"image/png": picture})]);
        }""",
        b64encode(png).decode(),
    )
    result = page.locator("#summary", has_text="512 × 512 pixels: 1 face")
    no_result = pytest.importorskip("playwright.sync_api").TimeoutError
    # On a busy machine Gradio now and then takes the click and does nothing.
    for patience in (15_000, 15_000, 60_000):
        page.get_by_label("Paste from clipboard").click()
        with suppress(no_result):
            result.wait_for(timeout=patience)
            break
    assert result.is_visible()
    page.reload()
    page.get_by_text("No photo yet.").wait_for()
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_label("capture photo").click()
    wait_for(page, "1 face")
    kept = next(iter(opened.demo.photos._kept.values()))  # the last page's
    assert uploads(opened) == []
    assert kept.photo.faces


@in_browser
@pytest.mark.browser
def test_a_photo_is_forgotten_when_its_page_is_closed(
    open_page: Callable[..., Page], opened: OpenDemo, png: bytes
) -> None:
    page = open_page()
    before = len(opened.demo.photos)
    give(page, "face.png", png)
    wait_for(page, "1 face")
    address = picture(page, "whole")["source"]
    assert answer(address)[0] == 200
    page.close()
    for _ in range(100):
        if answer(address)[0] == 404:
            break
        time.sleep(0.1)
    assert len(opened.demo.photos) <= before
    assert answer(address)[0] == 404
