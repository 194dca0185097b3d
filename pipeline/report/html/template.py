"""Pages from templates: one file that needs no network, in which everything from data is escaped."""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.html import number

FRAME = "pipeline.report.html"
FILTERS = {
    name: getattr(number, name) for name in ("count", "number", "fixed", "percent", "p_value", "interval", "plural")
}


def render(package: str, template: str, values: Mapping[str, Any]) -> str:
    """Fills a template.

    Args:
        package: whose folder `templates` holds it, before those of this package.
        template: name of the file.
        values: by name; whatever is not Markup is escaped.

    Returns:
        HTML.
    """
    environment = Environment(
        autoescape=True,
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(FRAME)]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    script = _asset("page.js")
    return environment.get_template(template).render(
        values, style=_asset("page.css"), script=script, script_digest=_digest(script)
    )


def _asset(name: str) -> Markup:
    return Markup(files(FRAME).joinpath("templates", name).read_text("utf-8"))  # noqa: S704 - our own file


def _digest(script: str) -> str:
    """As a content policy names the only script that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
