"""What a gRPC server is told of the Open Inference protocol; proxies load it, so it knows no network."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message

from serve.problems import RETRY_AFTER_S
from serve.proxy import ATTEMPTS, PAUSE_S, TEXTS

SERVICE = "inference.GRPCInferenceService"
NAMES = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""Its methods."""
LOST = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
"""How a call ends in Ray's proxy where its process was lost; ours end so only with trailing metadata."""
Handler = Callable[[bytes, Any], Awaitable[Message | bytes]]


def add_to_server(servicer: object, server: grpc.aio.Server) -> None:
    """Registers the service, as `grpc_servicer_functions` of Ray Serve's gRPC options want it.

    Requests stay bytes, so that a proxy does not parse what it hands on, and a limit is checked before they are parsed.
    A call that lost its process is made again: it changes nothing.

    Args:
        servicer: has the methods of `serve.grpc_inference.GrpcInference`.
        server: of Ray Serve, or any other.
    """
    handlers = {
        f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(getattr(servicer, name), response_serializer=_bytes)
        for name in NAMES
    }
    server.add_generic_rpc_handlers((Retried(handlers),))


class Retried(grpc.GenericRpcHandler):  # type: ignore[misc] # gRPC has no types
    """Finds the handler of a call, and lets it try again: whichever is there when the call comes.

    Args:
        handlers: by the path of their method; Ray's server puts its own in their place, by the name of the attribute.
    """

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        self._method_handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler; None for what is no method of ours."""
        found = self._method_handlers.get(handler_call_details.method)
        return found and found._replace(unary_unary=_again(found.unary_unary))


def _again(handler: Handler) -> Handler:
    async def answered(request: bytes, context: Any) -> Message | bytes:
        for attempt in range(ATTEMPTS):
            found = await handler(request, context)
            if context.code() not in LOST or context.trailing_metadata():
                return found
            context.set_code(0)  # as at first: Ray keeps a code and details that are set
            context.set_details("")
            await asyncio.sleep(PAUSE_S * 2**attempt)
        context.set_code(grpc.StatusCode.UNAVAILABLE)
        context.set_details(TEXTS["unavailable"])
        beside = {"raylens-code": "unavailable", "retry-after": str(RETRY_AFTER_S["unavailable"])}
        context.set_trailing_metadata(tuple(beside.items()))
        return found

    return answered


def _bytes(found: Message | bytes) -> bytes:
    content: bytes = found if isinstance(found, bytes) else found.SerializeToString()
    return content
