"""Structured logs: one JSON object a line on stderr, each with the run that it belongs to."""

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def lines(*, json: bool) -> Any:
    """A logger of structlog.

    Args:
        json: one object a line, with the run; otherwise text for people.

    Returns:
        The logger; its methods take an event and values by name.
    """
    import structlog  # tasks of Ray that log nothing need not load it

    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    about: list[Any] = [structlog.contextvars.merge_contextvars, _process] if json else []
    rendered: list[Any] = [structlog.dev.ConsoleRenderer(colors=False)]
    if json:
        rendered = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    processors = [*about, structlog.processors.add_log_level, stamp, *rendered]
    return structlog.wrap_logger(structlog.PrintLogger(sys.stderr), processors=processors)


def _process(_logger: Any, _method: str, values: Any) -> Any:
    return {"pid": os.getpid(), **values}


@contextmanager
def named_run() -> Iterator[str]:
    """Names a run in the lines of this process; a run within a run, such as an audit's job, has its name.

    Yields:
        Twelve hexadecimal digits.
    """
    import structlog

    name = run() or uuid.uuid4().hex[:12]
    with structlog.contextvars.bound_contextvars(run=name):
        yield name


def run() -> str | None:
    """Name of the run that this process is in."""
    import structlog

    name: str | None = structlog.contextvars.get_contextvars().get("run")
    return name
