"""The Open Inference protocol, version 2, over gRPC: `inference.GRPCInferenceService`."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message

from serve import tracing
from serve.forms import request_id
from serve.grpc_messages import answer, asked, message, read
from serve.inference import check_version, infer, model_metadata, server_metadata
from serve.problems import RefusedError
from serve.service import Service

OPEN = ("ServerLive", "ServerReady")
"""Probes need no key."""
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
}
"""By the status of HTTP; those of 503 differ by code."""
UNAVAILABLE = {
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
}


class Context(Protocol):
    """What a call knows of itself: Ray Serve's context and gRPC's own have this in common."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What the client sent beside the request."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """How it ended."""

    def set_details(self, details: str) -> None:
        """Why."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        """What the client gets beside the answer."""


async def _server_live(service: Service, _: Any, __: str) -> Message:
    return message("ServerLiveResponse", live=service.is_healthy())


async def _server_ready(service: Service, _: Any, __: str) -> Message:
    return message("ServerReadyResponse", ready=service.is_ready())


async def _model_ready(service: Service, request: Any, _: str) -> Message:
    check_version(request.version)
    service.served(request.name)
    return message("ModelReadyResponse", ready=service.is_ready())


async def _server_metadata(_: Service, __: Any, ___: str) -> Message:
    return message("ServerMetadataResponse", **server_metadata())


async def _model_metadata(service: Service, request: Any, _: str) -> Message:
    check_version(request.version)
    return message("ModelMetadataResponse", **model_metadata(service.served(request.name)))


async def _model_infer(service: Service, request: Any, identity: str) -> Message:
    check_version(request.model_version)
    service.served(request.model_name)
    found = await infer(service, request.model_name, *asked(request))
    return answer(found, identity)


METHODS: dict[str, Callable[[Service, Any, str], Awaitable[Message]]] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ModelReady": _model_ready,
    "ServerMetadata": _server_metadata,
    "ModelMetadata": _model_metadata,
    "ModelInfer": _model_infer,
}


class GrpcInference:
    """The methods of the service, under the names that Ray Serve calls; each takes bytes and gives a message.

    Args:
        service: answers.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Whether the process works."""
        return await self._served("ServerLive", request, grpc_context)

    async def ServerReady(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Whether every graph is warm."""
        return await self._served("ServerReady", request, grpc_context)

    async def ModelReady(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Whether a model is ready."""
        return await self._served("ModelReady", request, grpc_context)

    async def ServerMetadata(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Name, version and extensions of the server."""
        return await self._served("ServerMetadata", request, grpc_context)

    async def ModelMetadata(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Inputs and outputs of a model."""
        return await self._served("ModelMetadata", request, grpc_context)

    async def ModelInfer(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Scores and heatmaps of some images."""
        return await self._served("ModelInfer", request, grpc_context)

    async def _served(self, method: str, request: bytes, context: Context) -> Message:
        """Runs a method, and tells what goes wrong as a status."""
        metadata = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        identity = request_id(metadata.get("x-request-id", ""))
        status = grpc.StatusCode.CANCELLED
        noted, started = self._service.access.begin(), time.perf_counter()
        try:
            with tracing.request(method, identity, metadata):
                found = await self._admitted(method, request, metadata, identity)
            status = grpc.StatusCode.OK
            context.set_trailing_metadata([("x-request-id", identity)])
        except RefusedError as problem:
            found, status = self._told(problem, method, context, identity)
        except Exception:  # noqa: BLE001 # told with its traceback
            self._service.access.fail(identity)
            internal = RefusedError("internal", "an internal error; it is logged")
            found, status = self._told(internal, method, context, identity)
        finally:
            self._service.metrics.requests.labels(method, status.name).inc()
            if method not in OPEN:
                self._service.access.end(
                    noted,
                    request=identity,
                    is_failure=status is grpc.StatusCode.INTERNAL,
                    route=method,
                    status=status.name,
                    ms=round((time.perf_counter() - started) * 1000, 1),
                )
        return found

    async def _admitted(self, method: str, request: bytes, metadata: Mapping[str, str], identity: str) -> Message:
        is_probe = method in OPEN
        admission, most = self._service.admission, self._service.spec.limits.body_bytes
        if not is_probe:
            admission.identified(metadata)
        if len(request) > most:
            raise RefusedError("body_too_large", f"a request has at most {most} bytes")
        with admission.entered(is_probe=is_probe):
            try:
                admission.hold(len(request))
                return await METHODS[method](self._service, read(f"{method}Request", request), identity)
            finally:
                admission.release(len(request))

    def _told(
        self, problem: RefusedError, method: str, context: Context, identity: str
    ) -> tuple[Message, grpc.StatusCode]:
        """The status of a call that is refused; the message is empty, and the client does not see it."""
        self._service.metrics.rejected.labels(problem.code).inc()
        status = STATUS.get(problem.status) or UNAVAILABLE[problem.code]
        beside = [("x-request-id", identity), ("raylens-code", problem.code)]
        if problem.retry_after_s is not None:
            beside.append(("retry-after", str(problem.retry_after_s)))
        context.set_code(status)
        context.set_details(str(problem))
        context.set_trailing_metadata(beside)
        return message(f"{method}Response"), status
