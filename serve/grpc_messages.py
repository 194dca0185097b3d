"""Messages of `open_inference.proto`, and their way to and from plain values."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessages

from serve.inference import VERSION, Inference
from serve.problems import RefusedError
from serve.requests import checked
from serve.tensors import InferRequest, packed

PARAMETERS = ((bool, "bool_param"), (int, "int64_param"), (float, "double_param"), (str, "string_param"))
"""Fields by type; bool before int, since it is one."""


def _messages() -> Mapping[str, Any]:
    """The classes, in a pool of their own: the clients of KServe and Triton fill the default one with these names."""
    compiled = Path(__file__).with_name("open_inference.binpb").read_bytes()
    found = GetMessages(FileDescriptorSet.FromString(compiled).file, pool=DescriptorPool())
    return {name.removeprefix("inference."): message for name, message in found.items()}


MESSAGES = _messages()


def message(kind: str, **fields: Any) -> Message:
    """A message.

    Args:
        kind: its name in `open_inference.proto`.
        **fields: its values.

    Returns:
        The message.
    """
    made: Message = MESSAGES[kind](**fields)
    return made


def read(kind: str, content: bytes) -> Any:
    """A message from its bytes.

    Args:
        kind: its name in `open_inference.proto`.
        content: of the request.

    Returns:
        The message.

    Raises:
        RefusedError: `bad_request`.
    """
    try:
        return MESSAGES[kind].FromString(content)
    except DecodeError as error:
        raise RefusedError("bad_request", f"the request is no {kind} of Open Inference, version 2") from error


def asked(request: Any) -> tuple[InferRequest, bytes | None]:
    """A `ModelInferRequest` as the request that HTTP brings too.

    Args:
        request: the message.

    Returns:
        The request, and the bytes of its input; None where it has numbers.

    Raises:
        RefusedError: `bad_request`.
    """
    inputs = [
        {
            "name": found.name,
            "datatype": found.datatype,
            "shape": list(found.shape),
            "data": list(found.contents.uint_contents) or None,
        }
        for found in request.inputs
    ]
    fields = {
        "id": request.id,
        "parameters": _values(request.parameters),
        "inputs": inputs,
        "outputs": [{"name": found.name} for found in request.outputs],
    }
    return checked(InferRequest, fields), _blob(request)


def _blob(request: Any) -> bytes | None:
    """The bytes of the first input; that there is one only is checked later."""
    raw, contents = request.raw_input_contents, [found.contents for found in request.inputs]
    if raw:
        if len(raw) != len(request.inputs) or any(found.ByteSize() for found in contents):
            raise RefusedError("bad_request", "raw_input_contents has one element an input, and no input has contents")
        return bytes(raw[0])
    items = contents[0].bytes_contents if contents else ()
    return b"".join(struct.pack("<I", len(item)) + item for item in items) if items else None


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], choice) for name, choice in chosen.items() if choice is not None}


def answer(found: Inference, request_id: str) -> Message:
    """A `ModelInferResponse`, tensors as bytes.

    Args:
        found: to tell.
        request_id: of the request.

    Returns:
        The message.
    """
    outputs = [packed(name, values, binary=True) for name, values in found.tensors.items()]
    described = [{key: d[key] for key in ("name", "datatype", "shape")} for d, _ in outputs]
    return message(
        "ModelInferResponse",
        model_name=found.model,
        model_version=VERSION,
        id=found.asked.id,
        outputs=described,
        raw_output_contents=[blob for _, blob in outputs],
        parameters={name: _parameter(value) for name, value in found.parameters(request_id).items()},
    )


def _parameter(value: str | float | bool) -> Message:
    field = next(field for kind, field in PARAMETERS if isinstance(value, kind))
    return message("InferParameter", **{field: value})
