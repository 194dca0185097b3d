"""The service that most tests ask."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from samples import jpeg
from serving import started, talk

from serve.service import Service


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """The service that most tests ask; nobody changes it."""
    found = started()
    yield found
    found.close()


@pytest.fixture(scope="session")
def ask(service: Service) -> Callable[..., httpx.Response]:
    """One request to the service."""

    def request(method: str, path: str, **options: Any) -> httpx.Response:
        found: httpx.Response = talk(service, lambda client: client.request(method, path, **options))
        return found

    return request


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A JPEG of 48 x 40 px."""
    return jpeg(0)
