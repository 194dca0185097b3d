"""KServe's V1 protocol: `:predict` and `:explain` with instances of base64 text."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from schemas.answers import ModelStatus, Predicted, PredictedAndExplained
from schemas.job import as_text
from serve.answers import explained, facts, top
from serve.forms import json_response
from serve.requests import arrived, checked, identity, instance, json_body, service_of
from serve.service import Answer, numbered

router = APIRouter()


class Parameters(BaseModel):
    """What is asked of every instance."""

    model_config = ConfigDict(extra="forbid")

    method: str | None = None
    target: Annotated[str, BeforeValidator(as_text)] = Field("predicted", max_length=200)
    top_k: int = Field(5, ge=1, le=1000)
    sample_id: str | None = Field(None, max_length=1000)


class Instances(BaseModel):
    """A request; other fields than these are left to the protocol's future."""

    instances: list[Any] = Field(min_length=1)  # each is looked at by itself, after they are counted
    parameters: Parameters = Field(default_factory=Parameters)


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["instances"],
                    "properties": {
                        "instances": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["b64"],
                                "properties": {"b64": {"type": "string", "format": "byte"}},
                            },
                        },
                        "parameters": Parameters.model_json_schema(),
                    },
                }
            }
        },
    }
}


@router.post(
    "/v1/models/{model}:predict",
    openapi_extra=BODY,
    responses={200: {"model": Predicted}},
    summary="Predictions of some images",
)
async def predict(request: Request, model: str) -> Response:
    """One prediction an instance."""
    return await _answered(request, model, explain=False)


@router.post(
    "/v1/models/{model}:explain",
    openapi_extra=BODY,
    responses={200: {"model": PredictedAndExplained}},
    summary="Predictions and explanations of some images",
)
async def explain(request: Request, model: str) -> Response:
    """One prediction and one explanation an instance."""
    return await _answered(request, model, explain=True)


@router.get("/v1/models/{model}", responses={200: {"model": ModelStatus}}, summary="Whether a model is ready")
async def status(request: Request, model: str) -> Response:
    """The model's name and readiness."""
    service = service_of(request)
    return json_response({"name": service.served(model).name, "ready": service.is_ready()})


async def _answered(request: Request, model: str, *, explain: bool) -> Response:
    service = service_of(request)
    service.served(model)
    body = checked(Instances, await json_body(request))
    asked = body.parameters
    question = service.question(model, asked.method, asked.target, sample_id=asked.sample_id)
    service.check_count(len(body.instances))
    sources = await numbered([instance(service, value) for value in body.instances])
    found = await service.ask(question, sources, arrived=arrived(request))
    rendering = time.perf_counter()
    content = {"predictions": [_prediction(answers[0], asked.top_k) for answers in found]}
    if explain:
        content["explanations"] = [_explanation(answers) for answers in found]
    return json_response({**content, **_closing(request, found, rendering)})


def _closing(request: Request, found: list[list[Answer]], rendering: float) -> dict[str, Any]:
    """What is said once for all instances; the times are those of the slowest."""
    slowest = service_of(request).closed([answers[0] for answers in found], rendering)
    return {**facts(slowest), "request_id": identity(request), "timing_ms": slowest.timing_ms}


def _prediction(answer: Answer, top_k: int) -> dict[str, Any]:
    best = top(answer, top_k)
    return {**best[0], "top": best}


def _explanation(answers: list[Answer]) -> dict[str, Any]:
    """Of one instance."""
    return {**facts(answers[0]), **explained(answers), "cached": all(answer.cached for answer in answers)}
