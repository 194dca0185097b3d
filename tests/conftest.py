"""Fixtures: one local Ray cluster a session, a real S3 server, and the real data beside the project."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # other tests take the cores meanwhile

os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # workers import networks of the tests

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmarks", action="store_true", help="run tests/benchmarks (make bench)")
    parser.addoption(
        "--thorough", action="store_true", help="run what takes minutes, and every form of a test (make thorough)"
    )


LONGEST = ("test_readme.py", "chaos", "jobs", "serve", "test_cli.py", "deploy")
"""What starts first: it takes longest, and mostly waits."""


if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)  # the other core is another worker's


def place(item: pytest.Item) -> int:
    """Among `LONGEST`, or after them."""
    first = item.path.relative_to(Path(__file__).parent).parts[0]
    return LONGEST.index(first) if first in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=place)
    for item in items:
        if "benchmarks" in item.path.parts and not config.getoption("--benchmarks"):
            item.add_marker(pytest.mark.skip(reason="a benchmark; run `make bench`"))
        if item.get_closest_marker("thorough") and not config.getoption("--thorough"):
            item.add_marker(pytest.mark.skip(reason="takes minutes, or is one more form; `make thorough`"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("data") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"the real data are not at {SHARED}"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real weights and photographs; tests that use it are marked `data`."""
    return SHARED


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """One local Ray cluster of two CPUs for the whole session."""
    import ray

    from pipeline.jobs.cluster import own

    context = ray.init(**own(), num_cpus=2, object_store_memory=300 * 2**20, log_to_driver=False, logging_level="error")
    yield context
    ray.shutdown()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real S3 server on loopback."""
    from pipeline.stream.s3server import serve_s3

    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server
