"""Face landmarks of a webcam, live in the browser.

    python examples/webcam.py [camera:0 | VIDEO | rtsp://...] [PORT]

Then open http://127.0.0.1:8000. Only this computer can open the page, and no image is stored.
Frames are sent as a stream of JPEGs, because ``opencv-python-headless`` opens no windows. Needs
``pip install "hihlandmark[video]" && pip install --no-deps trackers``. Stop it with Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from queue import Empty, Queue
from threading import Event, Thread

import cv2

from hihlandmark import Detector, HihlandmarkError, draw_faces
from hihlandmark.video import Frame, read_frames, track


def newest(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The newest frame of a camera each time, without those that arrived in between.

    A thread reads the frames; otherwise the delay would grow when the camera is faster than the
    network. Raises what reading raises.
    """
    waiting: Queue[Frame | Exception | None] = Queue(maxsize=1)
    stopped = Event()

    def read() -> None:
        last = None
        try:
            for frame in frames:
                if stopped.is_set():
                    return
                with suppress(Empty):
                    waiting.get_nowait()  # drop the old frame
                waiting.put(frame)
        except Exception as error:
            last = error
        waiting.put(last)

    Thread(target=read, daemon=True).start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stopped.set()


def jpegs(source: str, detector: Detector) -> Iterator[bytes]:
    """The frames of a camera or a video with landmarks drawn, as JPEG."""
    frames = read_frames(source)
    is_live = source.startswith(("camera:", "rtsp:"))
    for frame, faces in track(newest(frames) if is_live else frames, detector):
        drawn = draw_faces(frame.image, faces, boxes=True)
        yield cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1].tobytes()


def make_server(source: str, detector: Detector, port: int = 8000) -> ThreadingHTTPServer:
    """A server for this computer only, whose page is the stream; port 0 selects a free port."""

    class Stream(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/":
                return self.send_error(404)
            stream = jpegs(source, detector)
            try:
                first = next(stream)
            except HihlandmarkError as error:
                return self.send_error(503, "No video", str(error))
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(ConnectionError):  # the browser was closed
                for jpeg in chain([first], stream):
                    self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
                    self.wfile.write(b"Content-Length: %d\r\n\r\n" % len(jpeg))
                    self.wfile.write(jpeg + b"\r\n")

    return ThreadingHTTPServer(("127.0.0.1", port), Stream)


def main(source: str = "camera:0", port: str = "8000") -> None:
    """Serve until Ctrl-C."""
    with make_server(source, Detector(), int(port)) as server:
        print(f"open http://127.0.0.1:{server.server_port}")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
