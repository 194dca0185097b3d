"""What there is: models, methods, labels, health and metrics."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from pipeline.attribution import METHODS
from schemas.answers import Labels, Methods, Models, Status
from serve.forms import TOLD_BY_KSERVE, json_response
from serve.metrics import text
from serve.models import Served, slow
from serve.problems import RefusedError
from serve.requests import service_of
from serve.service import Service

router = APIRouter()


@router.get("/healthz", responses={200: {"model": Status}}, summary="Whether the process works")
async def healthy(request: Request) -> Response:
    """200, or 503 where a device has failed for good."""
    if not service_of(request).is_healthy():
        raise RefusedError("unavailable", "an engine has failed; the process must be replaced")
    return json_response({"status": "ok"})


@router.get("/readyz", responses={200: {"model": Status}}, summary="Whether every graph is warm")
async def ready(request: Request) -> Response:
    """200, or 503 while models load."""
    if not service_of(request).is_ready():
        raise RefusedError("unavailable", "the service is loading its models; try later")
    return json_response({"status": "ready"})


@router.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics of all processes")
async def metrics(request: Request) -> Response:
    """In Prometheus' text format; the label `replica` is the process."""
    return Response(text(await service_of(request).metrics.everywhere()), media_type=CONTENT_TYPE_LATEST)


@router.get("/methods", responses={200: {"model": Methods}}, summary="Attribution methods and their traits")
async def methods() -> Response:
    """Every method that raylens knows; /v1/models says which are loaded."""
    found = [
        {
            "name": name,
            "needs": str(method.traits.needs),
            "forwards": method.traits.forwards,
            "discriminative": method.traits.discriminative,
            "resolution": method.traits.resolution,
            "check": method.traits.check or None,
            "source": method.traits.source,
            "slow": slow(name),
        }
        for name, method in METHODS.items()
    ]
    return json_response({"methods": found})


@router.get("/v1/models", responses={200: {"model": Models}}, summary="Models that are loaded")
async def models(request: Request) -> Response:
    """Every model with its methods, classes and input."""
    service = service_of(request)
    return json_response({"models": [described(service, served) for served in service.models.values()]})


@router.get(
    "/v1/models/{model}/labels", responses={200: {"model": Labels}, **TOLD_BY_KSERVE}, summary="Class names of a model"
)
async def labels(request: Request, model: str) -> Response:
    """In order of the class index."""
    return json_response({"labels": list(service_of(request).served(model).model.labels)})


def described(service: Service, served: Served) -> dict[str, Any]:
    """A model as the list of models shows it."""
    default = served.offer(None)
    return {
        "name": served.name,
        "methods": [
            {
                "name": offer.name,
                "discriminative": offer.method.traits.discriminative,
                "slow": offer.is_slow,
                "source": offer.method.traits.source,
                "graph_digest": offer.digest,
            }
            for offer in served.offers.values()
        ],
        "default_method": default.name,
        "classes": served.model.classes,
        "input": list(served.model.preprocessing.shape),
        "layer": served.model.layer.name,
        "runtime": default.graph.runtime,
        "graph_digest": default.digest,
        "ready": service.is_ready(),
    }
