"""The access log: one JSON line a request on stderr, of a share of them, and of every one that failed."""

import logging
import zlib
from contextvars import ContextVar
from typing import Any

from pipeline.logs import lines

log = logging.getLogger("raylens.serve")
_facts: ContextVar[dict[str, Any] | None] = ContextVar("facts", default=None)


def about(**facts: Any) -> None:
    """Notes what the request of this context asks for; nothing where nobody will tell it."""
    if (noted := _facts.get()) is not None:
        noted.update(facts)


class AccessLog:
    """Tells requests when they have been answered.

    Args:
        share: of the requests, picked by their identity; with 0 none is told.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._log = lines(json=True) if share else None

    def begin(self) -> dict[str, Any]:
        """What is noted of a request from here on, see `about`."""
        noted: dict[str, Any] = {}
        if self._log is not None:
            _facts.set(noted)
        return noted

    def end(self, noted: dict[str, Any], *, request: str, is_failure: bool, **facts: Any) -> None:
        """Tells a request, or not.

        Args:
            noted: what `begin` gave.
            request: identity.
            is_failure: whether it is the service's own fault: always told.
            **facts: further values.
        """
        if self._log is not None and (is_failure or zlib.crc32(request.encode()) < self._share * 2**32):
            self._log.info("request", request=request, **facts, **noted)

    def fail(self, request: str) -> None:
        """Tells the exception that is being handled, with its traceback."""
        if self._log is None:
            log.exception("request %s failed", request)
        else:
            self._log.error("failed", request=request, exc_info=True)
