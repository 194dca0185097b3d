"""Requests drawn from the OpenAPI document: no 5xx but 503, and every answer is what the document says.

`RAYLENS_EXAMPLES=1000 pytest tests/serve/test_schemathesis.py` looks deeper.
"""

import base64
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from samples import jpeg
from schemathesis import Case, HookContext
from schemathesis.openapi import from_asgi
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from serving import spec

from serve.service import Service
from serve.web import create_web

EXAMPLES = int(os.environ.get("RAYLENS_EXAMPLES", "12"))
CHECKS = [
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
PHOTO = base64.b64encode(jpeg(3)).decode()


SERVICE = Service(spec())
schema = from_asgi("/openapi.json", create_web(SERVICE))  # it tells its document before it is ready


@pytest.fixture(scope="module", autouse=True)
def _started() -> Iterator[None]:
    threads = torch.get_num_threads()
    SERVICE.start()
    torch.set_num_threads(threads)
    yield
    SERVICE.close()


@schema.hook
def map_path_parameters(context: HookContext, path_parameters: Any) -> Any:
    """A model that is there, three times of four: what is behind the name is to be reached."""
    if path_parameters and len(str(path_parameters.get("model", ""))) % 4:
        path_parameters["model"] = "tiny"
    return path_parameters


@schema.hook
def map_body(context: HookContext, body: Any) -> Any:
    """Real photographs among the noise."""
    return with_photographs(body)


def with_photographs(value: Any) -> Any:
    """Some values of `b64` and of `data` become a photograph."""
    if isinstance(value, list):
        return [with_photographs(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {name: with_photographs(item) for name, item in value.items()}
    if isinstance(found.get("b64"), str) and len(found["b64"]) % 2:
        found["b64"] = PHOTO
    if {"shape", "datatype"} <= found.keys() and len(str(found["datatype"])) % 2:
        found |= {"name": "image", "shape": [1], "datatype": "BYTES", "data": [PHOTO], "parameters": {}}
    return found


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_every_answer_is_what_the_document_says(case: Case) -> None:
    response = case.call()
    assert response.status_code < 500 or response.status_code == 503, response.text[:500]
    case.validate_response(response, checks=CHECKS)
