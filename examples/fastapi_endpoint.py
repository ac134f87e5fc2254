"""An HTTP endpoint: POST the bytes of an image, get its faces as JSON.

    pip install fastapi uvicorn
    uvicorn --app-dir examples fastapi_endpoint:app
    curl --data-binary @image.jpg "http://127.0.0.1:8000/landmarks?layout=98"

Status 400: not an image; 413: larger than `MAX_BYTES`; 422: unknown layout.
"""

from functools import cache
from threading import Lock
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from hihlandmark import Detector, ImageError, load_image

MAX_BYTES, MAX_PIXELS = 20 * 2**20, 50_000_000
app = FastAPI(title="Face landmarks")
detector_of = cache(Detector)
one_at_a_time = Lock()  # one image already uses all cores


def find(image: bytes, layout: int) -> list[dict[str, Any]]:
    """The faces of an image as dictionaries. Raises `ImageError`."""
    pixels = load_image(image, max_pixels=MAX_PIXELS)
    with one_at_a_time:
        return [face.to_dict() for face in detector_of(layout).predict(pixels)]


@app.post("/landmarks")
async def landmarks(request: Request, layout: Literal["98", "68", "29"] = "98") -> dict[str, Any]:
    """The faces of the image in the body, best first; an empty list if there are none."""
    image = bytearray()
    async for part in request.stream():
        image += part
        if len(image) > MAX_BYTES:
            raise HTTPException(413, f"the image is larger than {MAX_BYTES} bytes")
    try:
        return {"faces": await run_in_threadpool(find, bytes(image), int(layout))}
    except ImageError as error:
        raise HTTPException(400, str(error)) from error
