"""The Open Inference protocol, version 2, over HTTP, with the binary tensor extension."""

import json
from typing import Any

from fastapi import APIRouter, Request, Response

from schemas.answers import Inferred, Live, ModelMetadata, ModelStatus, Ready, Server
from serve.forms import BINARY, json_response
from serve.inference import SCALE, VERSION, Inference, image_of, infer, model_metadata, server_metadata
from serve.problems import RefusedError
from serve.requests import arrived, checked, identity, parsed_object, service_of
from serve.tensors import InferRequest, behind, packed, split

router = APIRouter()
VERSIONED = f"/v2/models/{{model}}/versions/{VERSION}"
LENGTH = "Inference-Header-Content-Length"
MANY_VALUES = 2_000_000
"""Most values in a request: pixels may be numbers of JSON, though nobody should send them so."""


def _inlined() -> dict[str, Any]:
    """The schema of a request without references: a body's schema has no place for definitions."""
    schema = InferRequest.model_json_schema()
    definitions = schema.pop("$defs")
    for name in ("inputs", "outputs"):
        items = schema["properties"][name]
        items["items"] = definitions[items["items"]["$ref"].rsplit("/", 1)[1]]
        for value in items["items"]["properties"].values():
            value.pop("$ref", None)
    return schema


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _inlined()},
            "application/octet-stream": BINARY,
        },
    }
}


@router.get("/v2", responses={200: {"model": Server}}, summary="Name, version and extensions of the server")
async def server() -> Response:
    """Metadata of the server."""
    return json_response(server_metadata())


@router.get("/v2/health/live", responses={200: {"model": Live}}, summary="Whether the process works")
async def live(request: Request) -> Response:
    """200 or 503."""
    return json_response({"live": _or_unavailable(service_of(request).is_healthy())})


@router.get("/v2/health/ready", responses={200: {"model": Ready}}, summary="Whether every graph is warm")
async def ready(request: Request) -> Response:
    """200 or 503."""
    return json_response({"ready": _or_unavailable(service_of(request).is_ready())})


@router.get(f"{VERSIONED}/ready", include_in_schema=False)
@router.get("/v2/models/{model}/ready", responses={200: {"model": ModelStatus}}, summary="Whether a model is ready")
async def model_ready(request: Request, model: str) -> Response:
    """200, 404 or 503."""
    service = service_of(request)
    return json_response({"name": service.served(model).name, "ready": _or_unavailable(service.is_ready())})


def _or_unavailable(value: bool) -> bool:
    if not value:
        raise RefusedError("unavailable", "the service is loading its models, or an engine has failed; try later")
    return value


@router.get(VERSIONED, include_in_schema=False)
@router.get("/v2/models/{model}", responses={200: {"model": ModelMetadata}}, summary="Inputs and outputs of a model")
async def metadata(request: Request, model: str) -> Response:
    """Metadata of a model."""
    return json_response(model_metadata(service_of(request).served(model)))


@router.post(f"{VERSIONED}/infer", include_in_schema=False)
@router.post(
    "/v2/models/{model}/infer",
    openapi_extra=BODY,
    responses={200: {"model": Inferred, "content": {"application/octet-stream": BINARY}}},
    summary="Scores and heatmaps of some images",
)
async def inferred(request: Request, model: str) -> Response:
    """Images in; scores (softmax), predictions, targets and heatmaps out."""
    service = service_of(request)
    service.served(model)
    header, raw = split(await request.body(), request.headers.get(LENGTH))
    asked = checked(InferRequest, parsed_object(header, most_values=MANY_VALUES))
    found = await infer(service, model, asked, behind(image_of(asked), raw), arrived=arrived(request))
    return _respond(found, identity(request))


def _respond(found: Inference, request_id: str) -> Response:
    default = found.asked.parameters.get("binary_data_output") is True
    binary = {output.name: output.parameters.get("binary_data", default) is True for output in found.asked.outputs}
    binary.setdefault(SCALE, binary.get("heatmap", default))
    outputs = [packed(n, values, binary=binary.get(n, default)) for n, values in found.tensors.items()]
    content = {
        "model_name": found.model,
        "model_version": VERSION,
        "id": found.asked.id,
        "outputs": [described for described, _ in outputs],
        "parameters": found.parameters(request_id),
    }
    return _joined(content, b"".join(blob for _, blob in outputs))


def _joined(content: dict[str, Any], blob: bytes) -> Response:
    """JSON, or JSON with the bytes behind it."""
    if not blob:
        return json_response(content)
    header = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Response(header + blob, headers={LENGTH: str(len(header))}, media_type="application/octet-stream")
