"""The documents at `/docs`: the OpenAPI description as one page, without scripts and without another host's files."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, StrictUndefined, Template

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Every operation with its parameters, bodies and answers."""
    return Response(_template().render(api=request.app.openapi()), media_type="text/html; charset=utf-8")


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"kind": kind, "indented": _indented}
    return environment.from_string(files("serve").joinpath("docs.html.jinja").read_text("utf-8"))


def kind(schema: dict[str, Any]) -> str:
    """A schema in a word or two.

    Args:
        schema: of JSON.

    Returns:
        Its type, its values, or the name it refers to.
    """
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(kind(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    return str(schema.get("format", schema.get("type", "any")))


def _indented(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
