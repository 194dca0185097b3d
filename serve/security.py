"""Who may ask, how often, and what a browser may do with an answer."""

import hashlib
import hmac
import math
import threading
import time
from collections.abc import Mapping, Sequence

from schemas.online import ApiKey
from serve.problems import RefusedError

OPEN = ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
DOCS_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def is_open(path: str) -> bool:
    """Whether a path needs no key: probes, documents, and the page's own files."""
    return path in OPEN or path.startswith("/page/")


class Bucket:
    """A token bucket: a minute's requests may come at once, and then one after the other.

    Args:
        per_minute: requests.
    """

    def __init__(self, per_minute: int) -> None:
        self._capacity = float(per_minute)
        self._level = self._capacity
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Takes a token; returns 0, or the time in s until there is one."""
        with self._lock:
            now = time.monotonic()
            rate = self._capacity / 60
            self._level = min(self._capacity, self._level + (now - self._at) * rate)
            self._at = now
            if self._level >= 1:
                self._level -= 1
                return 0.0
            return (1 - self._level) / rate


class Keys:
    """The keys of a service.

    Args:
        keys: their digests; none lets everybody in.
    """

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = keys
        self._buckets = {key.sha256: Bucket(key.per_minute) for key in keys if key.per_minute}

    def check(self, headers: Mapping[str, str]) -> str | None:
        """Who asks; every key is compared, in constant time.

        Args:
            headers: of the request, names in lower case.

        Returns:
            The key's name; None where no keys are set.

        Raises:
            RefusedError: `unauthorized` or `rate_limited`.
        """
        if not self._keys:
            return None
        given = hashlib.sha256(_given(headers).encode("latin-1")).hexdigest()  # as it was sent
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, given):
                found = key
        if found is None:
            raise RefusedError("unauthorized", "a key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY")
        wait_s = self._buckets[found.sha256].take() if found.sha256 in self._buckets else 0.0
        if wait_s:
            raise RefusedError(
                "rate_limited", f"more than {found.per_minute} requests a minute", retry_after_s=math.ceil(wait_s)
            )
        return found.name


def _given(headers: Mapping[str, str]) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
