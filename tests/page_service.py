"""A small service behind the page: the page's JSON contract, with colours as classes and brightness as evidence."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import JSONResponse
from matplotlib.colors import CSS4_COLORS, to_rgb
from PIL import Image, ImageOps

from serve import page

LABELS = list(CSS4_COLORS)
COLOURS = np.array([to_rgb(name) for name in LABELS])
METHODS = [
    {"name": "brightness", "discriminative": False, "slow": False, "source": "How light each part is"},
    {"name": "likeness", "discriminative": True, "slow": False, "source": "How like the class's colour each part is"},
    {"name": "contrast", "discriminative": True, "slow": False, "source": "Likeness about its mean: for and against"},
    {"name": "darkness", "discriminative": False, "slow": True, "source": "How dark each part is"},
]
GRID = 7
BODY_BYTES = 2 * 2**20


class Refused(Exception):
    """An answer in the contract's error form."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def build() -> FastAPI:
    """`app.state.key` asks for a key, `delay_s` delays explanations; `explained` and `received` say what came."""
    app = FastAPI()
    app.state.body_bytes, app.state.key, app.state.delay_s, app.state.explained = BODY_BYTES, None, 0.0, 0
    app.include_router(page.router)

    @app.exception_handler(Refused)
    def refuse(request: Request, error: Refused) -> JSONResponse:
        said = {"code": error.code, "message": str(error), "request_id": "r-1"}
        return JSONResponse({"error": said}, status_code=error.status)

    @app.get("/v1/models")
    def models(request: Request) -> dict[str, Any]:
        authorise(request)
        return {"models": [model("colours"), model("colours-large")]}

    @app.get("/v1/models/{name}/labels")
    def labels(name: str) -> dict[str, Any]:
        return {"labels": LABELS}

    @app.post("/explain")
    def explain(
        request: Request, image: UploadFile, model: str, method: str, target: str = "predicted", top_k: int = 5
    ) -> dict[str, Any]:
        authorise(request)
        time.sleep(app.state.delay_s)
        app.state.explained += 1
        app.state.received = image.file.read()
        return explained(app.state.received, model, method, target, top_k)

    return app


def authorise(request: Request) -> None:
    key = request.app.state.key
    if key and request.headers.get("authorization") != f"Bearer {key}":
        raise Refused(401, "unauthorised", "this service asks for an API key")


def model(name: str) -> dict[str, Any]:
    facts = {"classes": len(LABELS), "input": [GRID, GRID, 3], "layer": "pixels", "runtime": "numpy", "ready": True}
    return {"name": name, "methods": METHODS, "default_method": "likeness", "graph_digest": "0123456789ab", **facts}


def explained(data: bytes, model: str, method: str, target: str, top_k: int) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    except OSError as error:
        raise Refused(400, "not_an_image", "the file is not an image") from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    crop = (left, top, left + side, top + side)
    cells = np.asarray(image.crop(crop).resize((GRID, GRID), Image.Resampling.BOX)) / 255
    scores = np.exp(-12 * np.linalg.norm(COLOURS - cells.mean((0, 1)), axis=1))
    scores /= scores.sum()
    order = np.argsort(-scores)
    index = int(order[{"predicted": 0, "runner-up": 1}[target]]) if not target.isdigit() else int(target)
    heatmap = evidence(cells, method, index)
    took = 1000 * (time.perf_counter() - start)
    return {
        "request_id": "r-1", "model": model, "method": method, "layer": "pixels", "graph_digest": "0123456789ab",
        "prediction": entry(order[0], scores), "top": [entry(i, scores) for i in order[:top_k]],
        "target": entry(index, scores), "cached": False,
        "heatmap": {"shape": [GRID, GRID], "data": heatmap.tolist(), "min": heatmap.min(), "max": heatmap.max()},
        "image": {"width": image.width, "height": image.height, "crop": crop},
        "statistics": {"mass_centre": 0.5, "centroid_x": 0.5, "centroid_y": 0.5, "gini": 0.2, "box": [0, 0, 1, 1]},
        "sentence": f"{method.capitalize()} for {LABELS[index]} is greatest {place(heatmap)}.",
        "timing_ms": {"decode": took / 2, "queue": 0.0, "graph": took / 2, "render": 0.1, "total": took},
    }  # fmt: skip


def evidence(cells: np.ndarray[Any, Any], method: str, index: int) -> np.ndarray[Any, Any]:
    light = cells.mean(2)
    likeness = 1 / (0.2 + np.linalg.norm(cells - COLOURS[index], axis=2))
    maps = {"brightness": light, "darkness": 1 - light, "likeness": likeness, "contrast": likeness - likeness.mean()}
    if method not in maps:
        raise Refused(404, "unknown_method", f"no method {method!r}")
    return maps[method]


def entry(index: Any, scores: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"class": int(index), "label": LABELS[int(index)], "score": float(scores[index])}


def place(heatmap: np.ndarray[Any, Any]) -> str:
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    return f"at the {['top', 'middle', 'bottom'][row * 3 // GRID]} {['left', 'centre', 'right'][column * 3 // GRID]}"


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Runs an application on a free port of loopback; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
