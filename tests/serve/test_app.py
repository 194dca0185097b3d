"""`serve run serve.app:build_app`, as Ray's own users start an application: with a file, and with `args`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import tritonclient.grpc as triton
import yaml
from pydantic import ValidationError
from samples import jpeg
from serving import TINY, free_port, wait_until_ready

from pipeline.errors import MethodError, SpecError
from serve.app import build_app

FIELDS: dict[str, Any] = {"models": {"tiny": {**TINY, "methods": ["gradcam"]}}, "replicas": {"cpus": 0.3}}


def serve_run(folder: Path, *arguments: str) -> None:
    """Ray's command, from a folder without our sources."""
    address = ray.get_runtime_context().gcs_address
    command = [Path(sys.executable).with_name("serve"), "run", "--non-blocking", "--address", address, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def ports(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Two applications: one as a RayService describes it, one by a file, below /second."""
    folder = tmp_path_factory.mktemp("run")
    http, grpc = free_port(), free_port()
    functions = ["serve.grpc_server.add_to_server"]
    config = {
        "http_options": {"host": "127.0.0.1", "port": http},
        "grpc_options": {"port": grpc, "grpc_servicer_functions": functions},
        "applications": [{"name": "raylens", "import_path": "serve.app:build_app", "args": FIELDS}],
    }
    (folder / "service.yaml").write_text(yaml.safe_dump(config))
    (folder / "serve.yaml").write_text(yaml.safe_dump(FIELDS))
    serve_run(folder, "service.yaml")
    serve_run(folder, "--name", "second", "--route-prefix", "/second", "serve.app:build_app", "config=serve.yaml")
    yield http, grpc
    from ray import serve

    serve.shutdown()


@pytest.mark.ray
def test_args_a_file_and_grpc_are_one_graph(ports: tuple[int, int]) -> None:
    http, grpc = ports
    with httpx.Client(base_url=f"http://127.0.0.1:{http}", timeout=60) as client:
        wait_until_ready(client)
        found = [client.post(f"{at}/explain", files={"image": jpeg(0)}).json() for at in ("", "/second")]
    image = triton.InferInput("image", [1], "BYTES").set_data_from_numpy(np.array([jpeg(0)], dtype=np.object_))
    with triton.InferenceServerClient(f"127.0.0.1:{grpc}") as client:
        answer = client.infer("tiny", [image], headers={"application": "raylens"})
    maps = [row["heatmap"]["data"] for row in found] + [answer.as_numpy("heatmap")[0]]
    for other in maps[1:]:
        np.testing.assert_allclose(maps[0], other, rtol=1e-3, atol=1e-9)
    digests = {row["graph_digest"] for row in found}
    assert digests == {answer.get_response().parameters["graph_digest"].string_param}


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump({**FIELDS, "prot": 1}))
    with pytest.raises(SpecError, match="did you mean 'port'"):
        build_app({"config": str(tmp_path / "serve.yaml")})
    with pytest.raises(SpecError, match="cannot be read"):
        build_app({"config": str(tmp_path / "nothing.yaml")})
    with pytest.raises(ValidationError, match="did you mean 'models'"):
        build_app({"model": "tiny"})
    with pytest.raises(MethodError, match=r"no method is named 'gradcamm'; there are: .*gradcam"):
        build_app({"models": {"tiny": {**FIELDS["models"]["tiny"], "methods": ["gradcamm"]}}})
    with pytest.raises(ValidationError, match="on all interfaces"):
        build_app({**FIELDS, "grpc_port": 9000})
    with pytest.raises(ValidationError, match="one of its own"):
        build_app({**FIELDS, "host": "0.0.0.0", "port": 9000, "grpc_port": 9000})


def test_replicas_grow_between_bounds_and_share_a_gpu() -> None:
    replicas = {"min_replicas": 1, "max_replicas": 3, "cpus": 2, "gpus": 0.25, "ongoing": 16}
    deployment = build_app({**FIELDS, "replicas": replicas})._bound_deployment
    scaled = deployment._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (1, 3, 4)
    assert deployment.ray_actor_options == {"num_cpus": 2, "num_gpus": 0.25}
    alone = build_app(FIELDS)._bound_deployment
    assert alone._deployment_config.autoscaling_config is None
    assert alone.num_replicas == 1
