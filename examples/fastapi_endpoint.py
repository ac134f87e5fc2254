"""An HTTP endpoint: POST an image as multipart form data, get its faces as JSON.

    pip install fastapi uvicorn python-multipart
    uvicorn --app-dir examples fastapi_endpoint:app
    curl --form image=@image.jpg "http://127.0.0.1:8000/landmarks?layout=98"

The page http://127.0.0.1:8000/docs describes it and uploads images. Status 400: not an image; 411:
the length of the body is missing; 413: it is larger than `MAX_BYTES`; 422: unknown layout, or no
image in the form.
"""

from collections.abc import Awaitable, Callable
from functools import cache
from threading import Lock
from typing import Annotated, Literal

from fastapi import FastAPI, File, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from hihlandmark import Detector, ImageError, load_image

MAX_BYTES, MAX_PIXELS = 20 * 2**20, 50_000_000
app = FastAPI(title="Face landmarks")
detector_of = cache(Detector)
one_at_a_time = Lock()  # one image already uses all cores


class FoundFace(BaseModel):
    """The fields of `Face.to_dict`, in pixels of the upright image."""

    layout: str = Field(examples=["WFLW98"])
    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1")
    box_score: float
    points: list[tuple[float, float]] = Field(description="x, y; the top-left pixel is at 0, 0")
    scores: list[float] = Field(description="calibrated, 0 to 1, one per point")
    covariance: list[tuple[tuple[float, float], tuple[float, float]]]
    approximate: list[int] = Field(description="indices of points that were interpolated")
    reliability: float | None = None
    visibility: list[float] | None = None


class Faces(BaseModel):
    """The faces of an image, best first; an empty list if there are none."""

    faces: list[FoundFace]


@app.middleware("http")
async def limit_body(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Refuse large bodies before they are read."""
    length = request.headers.get("content-length")
    if length is None and request.method == "POST":
        return JSONResponse({"detail": "Content-Length is missing"}, 411)
    if int(length or 0) > MAX_BYTES:
        return JSONResponse({"detail": f"the body is larger than {MAX_BYTES} bytes"}, 413)
    return await call_next(request)


@app.post("/landmarks", response_model_exclude_none=True)
def landmarks(  # without async: it runs in a thread
    image: Annotated[bytes, File()], layout: Literal["98", "68", "29"] = "98"
) -> Faces:
    """Find the faces of an uploaded image."""
    try:
        pixels = load_image(image, max_pixels=MAX_PIXELS)
    except ImageError as error:
        raise HTTPException(400, str(error)) from error
    with one_at_a_time:
        found = detector_of(int(layout)).predict(pixels)
    return Faces(faces=[FoundFace(**face.to_dict()) for face in found])
