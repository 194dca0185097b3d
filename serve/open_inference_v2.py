"""The Open Inference protocol, version 2, with the binary tensor extension."""

import json
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from pipeline.heatmap import scaled_for_half
from serve.answers import facts
from serve.forms import json_response
from serve.problems import RefusedError
from serve.requests import checked, identity, parsed_object, service_of
from serve.service import Answer, Question, Service
from serve.tensors import InferRequest, images, packed, split

router = APIRouter()
LENGTH = "Inference-Header-Content-Length"
OUTPUTS = ("scores", "prediction", "target", "heatmap")
SCALE = "heatmap_scale"
PARAMETERS = ("method", "target", "sample_id", "heatmap_dtype", "timeout", "binary_data_output")


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
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.get("/v2", summary="Name, version and extensions of the server")
async def server() -> Response:
    """Metadata of the server."""
    return json_response({"name": "raylens", "version": version("raylens"), "extensions": ["binary_tensor_data"]})


@router.get("/v2/health/live", summary="Whether the process works")
async def live(request: Request) -> Response:
    """200 or 503."""
    return json_response({"live": _or_unavailable(service_of(request).is_healthy())})


@router.get("/v2/health/ready", summary="Whether every graph is warm")
async def ready(request: Request) -> Response:
    """200 or 503."""
    return json_response({"ready": _or_unavailable(service_of(request).is_ready())})


@router.get("/v2/models/{model}/ready", summary="Whether a model is ready")
async def model_ready(request: Request, model: str) -> Response:
    """200, 404 or 503."""
    service = service_of(request)
    return json_response({"name": service.served(model).name, "ready": _or_unavailable(service.is_ready())})


def _or_unavailable(value: bool) -> bool:
    if not value:
        raise RefusedError("unavailable", "the service is loading its models, or an engine has failed; try later")
    return value


@router.get("/v2/models/{model}", summary="Inputs and outputs of a model")
async def metadata(request: Request, model: str) -> Response:
    """Metadata of a model; `image` may also be UINT8 of the model's own size."""
    served = service_of(request).served(model)
    tensors = [("scores", "FP32", [-1, served.model.classes]), ("prediction", "INT64", [-1])]
    tensors += [("target", "INT64", [-1]), ("heatmap", "FP32", [-1, -1, -1])]
    return json_response(
        {
            "name": served.name,
            "versions": ["1"],
            "platform": f"raylens_{served.offer(None).graph.runtime}",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in tensors],
        }
    )


@router.post("/v2/models/{model}/infer", openapi_extra=BODY, summary="Scores and heatmaps of some images")
async def infer(request: Request, model: str) -> Response:
    """Images in; scores (softmax), predictions, targets and heatmaps out."""
    service = service_of(request)
    served = service.served(model)
    header, raw = split(await request.body(), request.headers.get(LENGTH))
    asked = checked(InferRequest, parsed_object(header))
    question = _question(service, model, asked)
    inputs = {found.name: found for found in asked.inputs}
    if list(inputs) != ["image"] or len(asked.inputs) != 1:
        raise RefusedError("bad_request", f"expected one input `image`, found {', '.join(inputs)[:100]}")
    if inputs["image"].shape[:1] == [0]:
        raise RefusedError("bad_request", "input image is empty")
    service.check_count(inputs["image"].shape[0] if inputs["image"].shape else 1)
    sources = images(inputs["image"], raw, served.model.preprocessing.shape)
    answers = [found[0] for found in await service.ask(question, sources)]
    return _respond(request, asked, answers, time.perf_counter())


def _question(service: Service, model: str, asked: InferRequest) -> Question:
    given = asked.parameters
    if unknown := sorted(given.keys() - set(PARAMETERS)):
        raise RefusedError(
            "unknown_option", f"no parameter is named {unknown[0][:50]!r}; there are {', '.join(PARAMETERS)}"
        )
    if given.get("heatmap_dtype", "FP32") not in ("FP32", "FP16"):
        raise RefusedError("unknown_option", "heatmap_dtype is FP32 or FP16")
    method, target, sample_id = (given.get(name) for name in ("method", "target", "sample_id"))
    if str(target).startswith("top:"):
        raise RefusedError("unknown_class", "a tensor has one map an image: ask for the classes of top:K one by one")
    timeout_us = given.get("timeout")
    is_time = isinstance(timeout_us, int) and timeout_us > 0
    return service.question(
        model,
        None if method is None else str(method),
        "predicted" if target is None else str(target)[:200],
        sample_id=None if sample_id is None else str(sample_id),
        timeout_s=float(timeout_us) / 1e6 if is_time else None,  # type: ignore[arg-type]
    )


def _values(answers: list[Answer], *, half: bool) -> dict[str, NDArray[Any]]:
    """Outputs by name, one row an image."""
    explained = [answer.explained for answer in answers]
    scores = np.stack([found.probabilities for found in explained])
    maps = np.stack([found.heatmap for found in explained])
    values: dict[str, NDArray[Any]] = {
        "scores": scores,
        "prediction": scores.argmax(axis=1).astype(np.int64),
        "target": np.array([found.target for found in explained], np.int64),
        "heatmap": maps,
    }
    if half:
        scaled, scale = scaled_for_half(torch.from_numpy(maps))
        values |= {"heatmap": scaled.numpy().astype(np.float16), SCALE: scale.numpy()}
    return values


def _respond(request: Request, asked: InferRequest, answers: list[Answer], rendering: float) -> Response:
    values = _values(answers, half=asked.parameters.get("heatmap_dtype") == "FP16")
    wanted = {output.name: output.parameters.get("binary_data") for output in asked.outputs} or dict.fromkeys(values)
    if unknown := sorted(wanted.keys() - values.keys()):
        raise RefusedError("unknown_option", f"no output is named {unknown[0][:50]!r}; there are {', '.join(values)}")
    if SCALE in values:
        wanted.setdefault(SCALE, wanted.get("heatmap"))
    default = asked.parameters.get("binary_data_output") is True
    outputs = [packed(n, values[n], binary=default if b is None else b is True) for n, b in wanted.items()]
    content = {
        "model_name": answers[0].question.served.name,
        "model_version": "1",
        "id": asked.id,
        "outputs": [described for described, _ in outputs],
        "parameters": _closing(request, answers, rendering),
    }
    return _joined(content, b"".join(blob for _, blob in outputs))


def _joined(content: dict[str, Any], blob: bytes) -> Response:
    """JSON, or JSON with the bytes behind it."""
    if not blob:
        return json_response(content)
    header = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Response(header + blob, headers={LENGTH: str(len(header))}, media_type="application/octet-stream")


def _closing(request: Request, answers: list[Answer], rendering: float) -> dict[str, Any]:
    """What is said once for all images; values are flat, as the protocol asks."""
    for answer in answers:
        answer.finish(rendering)
    slowest = max(answers, key=lambda answer: answer.timing_ms["total"])
    service_of(request).metrics.took(slowest.timing_ms)
    times = {f"{stage}_ms": round(value, 3) for stage, value in slowest.timing_ms.items()}
    cached = all(answer.cached for answer in answers)
    return {**facts(slowest), "request_id": identity(request), "cached": cached, **times}
