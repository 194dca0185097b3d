"""Fixtures: the nights that a report is made of, audited once a session, and a browser."""

from collections.abc import Iterator

import pytest
from audit_nights import Nights, nights
from page_browser import launched
from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return nights(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as one:
        yield one
