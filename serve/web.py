"""The web application over a service; knows neither Ray nor where the service runs."""

from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from serve import admin, docs, explain, kserve_v1, open_inference_v2, page, render
from serve.forms import TOLD, TOLD_BY_KSERVE, problem_response
from serve.intake import Intake
from serve.open_inference_v2 import LENGTH
from serve.problems import RefusedError
from serve.requests import identity
from serve.service import Service

CODES = {404: "not_found", 405: "method_not_allowed", 401: "unauthorized", 413: "body_too_large"}
TEXTS = {
    "not_found": "there is nothing at this path; /docs lists what there is",
    "method_not_allowed": "the path does not take this method; /docs lists what there is",
}


def create_web(service: Service) -> FastAPI:
    """The application.

    Args:
        service: answers; may still be loading.

    Returns:
        An ASGI application with documents at /docs.
    """
    app = FastAPI(
        title="raylens",
        summary="Predictions of vision models, and where in the image they come from.",
        version=version("raylens"),
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.body_bytes = service.spec.limits.body_bytes
    for module in (explain, kserve_v1, open_inference_v2, admin):  # routes are tried in this order
        by_kserve = module in (kserve_v1, open_inference_v2)
        app.include_router(module.router, responses=TOLD_BY_KSERVE if by_kserve else TOLD)
    app.include_router(docs.router)
    app.include_router(page.router)
    app.exception_handler(RefusedError)(_refused)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http)
    app.add_middleware(Intake, service=service)
    if service.spec.cors_origins:  # around the intake, so that its refusals can be read there, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.spec.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-Api-Key", "X-Request-Id", "Content-Type", LENGTH],
            expose_headers=["Retry-After", "X-Request-Id", LENGTH, *map(render.header, render.FACTS)],
        )
    return app


async def _refused(request: Request, error: RefusedError) -> Response:
    request.app.state.service.metrics.rejected.labels(error.code).inc()
    return problem_response(error, request.url.path, identity(request))


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """A query parameter or path that is wrong."""
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"][1:])
    return await _refused(request, RefusedError("unknown_option", f"{place}: {found['msg']}"[:300]))


async def _http(request: Request, error: HTTPException) -> Response:
    code = CODES.get(error.status_code, "bad_request")
    response = await _refused(request, RefusedError(code, TEXTS.get(code, str(error.detail))))
    response.headers.update(error.headers or {})
    return response
