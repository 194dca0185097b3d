"""Fixture: the nights that a report is made of, audited once a session."""

import pytest
from audit_nights import Nights, nights


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return nights(tmp_path_factory.mktemp("audit"))
