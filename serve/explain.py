"""`POST /explain`: one image, one answer, for people and curl."""

import inspect
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from pipeline.report.overlay import OPACITY
from schemas.answers import Explained
from serve import render
from serve.answers import payload
from serve.forms import BINARY, json_response
from serve.problems import RefusedError
from serve.requests import arrived, identity, service_of, uploaded

router = APIRouter()
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": BINARY["schema"]},
                }
            },
            "image/jpeg": BINARY,
            "image/png": BINARY,
        },
    }
}
TYPES = {"png": "image/png", "npy": "application/x-npy", "arrow": "application/vnd.apache.arrow.stream"}


@router.post(
    "/explain",
    openapi_extra=BODY,
    responses={200: {"model": Explained, "content": dict.fromkeys(TYPES.values(), BINARY)}},
    summary="Predict and explain one image",
)
async def explain(
    request: Request,
    model: Annotated[str | None, Query(description="One of /v1/models; by default the first.")] = None,
    method: Annotated[str | None, Query(description="One of the model's methods; by default its first.")] = None,
    target: Annotated[
        str, Query(description="predicted, runner-up, top:K, a class index or a class name.", max_length=200)
    ] = "predicted",
    top_k: Annotated[int, Query(ge=1, le=1000, description="Classes to list.")] = 5,
    format: Annotated[Literal["json", "png", "npy", "arrow"], Query(description="Of the answer.")] = "json",  # noqa: A002
    resolution: Annotated[
        Literal["layer", "image"], Query(description="Of the map: the method's own, or the network input's.")
    ] = "layer",
    colormap: Annotated[str, Query(description="Of matplotlib, for png.", max_length=50)] = "jet",
    opacity: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False, description="For png.")] = OPACITY,
    signed: Annotated[bool, Query(description="For png: also show what speaks against the class.")] = True,
    sample_id: Annotated[
        str | None, Query(description="Seeds methods that draw random numbers, as in a job.", max_length=1000)
    ] = None,
) -> Response:
    """Prediction, heatmap, its numbers, and a sentence that says where the evidence is."""
    _check_options(request)
    service = service_of(request)
    asked = service.question(model, method, target, sample_id=sample_id, pixels=format == "png")
    render.check_colormap(colormap)
    [found] = await service.ask(asked, [await uploaded(request)], arrived=arrived(request))
    rendering = time.perf_counter()
    if format == "json":
        content = payload(found, top_k=top_k, resolution=resolution, request_id=identity(request))
        service.closed(found[:1], rendering)  # the content refers to its times
        return json_response(content)
    if format == "png":
        body = await service.threaded(lambda: render.png(found[0], colormap=colormap, opacity=opacity, signed=signed))
    elif format == "npy":
        body = render.npy(found, resolution=resolution)
    else:
        body = await service.threaded(lambda: render.arrow(found, resolution=resolution, top_k=top_k))
    service.closed(found[:1], rendering)
    return Response(body, headers=render.headers(found[0]), media_type=TYPES[format])


OPTIONS = tuple(inspect.signature(explain).parameters)[1:]


def _check_options(request: Request) -> None:
    """A name that is misspelt would otherwise be an answer to another question."""
    unknown = request.query_params.keys() - set(OPTIONS)
    if unknown:
        raise RefusedError(
            "unknown_option", f"no option is named {min(unknown)[:50]!r}; there are: {', '.join(OPTIONS)}"
        )
