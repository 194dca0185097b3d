"""The commands, files, environment and probes of the manifests, as they stand, on a Ray cluster of this machine.

Object storage is a local S3 server, the network a small one in the place of the large one, ports are free ones.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import timm
import yaml
from deploy.rendered import ROOT, entry_points, labels, named, pods, rendered, values
from safetensors.torch import save_file
from samples import jpeg, write_tars
from serving import free_port, wait_until_ready

from pipeline.stream.s3server import S3Server

BIN = Path(sys.executable).parent
README = (ROOT / "deploy" / "README.md").read_text()
SMALL = "resnet10t"
pytestmark = pytest.mark.ray


def pod(component: str) -> dict[str, Any]:
    """The template of a pod of the overlay for CPUs."""
    [found] = {
        json.dumps(found)
        for found in pods(rendered("cpu"))
        if labels(found)["app.kubernetes.io/component"] == component
    }
    parsed: dict[str, Any] = json.loads(found)
    return parsed


@pytest.fixture(scope="module")
def storage(s3: S3Server) -> dict[str, str]:
    """What the secret `raylens-storage` would give to a pod; the buckets hold images and a network."""
    data = s3.root / s3.bucket("raylens-data")
    s3.bucket("raylens-results")
    for folder in ("images", "tonight"):
        write_tars(data / folder, shards=1, each=48)
    (data / "models").mkdir()
    save_file(timm.create_model(SMALL).state_dict(), data / "models" / "resnet50.safetensors")
    s3.refresh()
    return {
        "AWS_ACCESS_KEY_ID": s3.key,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }


@pytest.fixture(scope="module")
def environment(storage: dict[str, str]) -> dict[str, str]:
    """Of every process: this one's, storage, and what the manifests give to the endpoint's pods."""
    given = {one["name"]: one["value"] for one in pod("endpoint")["spec"]["containers"][0]["env"]}
    haproxy = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    fallback = {f"RAY_SERVE_FALLBACK_PROXY_{name}_PORT": str(free_port()) for name in ("HTTP", "GRPC")}
    del given["HOME"]
    return {**os.environ, **storage, **given, **haproxy, **fallback, "PATH": f"{BIN}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def agent(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray node's agent; RAY_ADDRESS in `environment` is that of its cluster."""
    port, listens = free_port(), free_port()
    command = f"ray start --head --block --port {port} --num-cpus 2 --object-store-memory 200000000"
    command += f" --include-dashboard false --dashboard-agent-listen-port {listens}"
    log = tmp_path_factory.mktemp("ray") / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(shlex.split(command), env=environment, stdout=out, stderr=out, start_new_session=True) as ray,
    ):
        environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"
        try:
            yield f"http://127.0.0.1:{listens}"
        finally:
            ray.send_signal(signal.SIGTERM)
            ray.wait(60)


@pytest.mark.thorough
def test_pods_are_probed_where_ray_answers(agent: str) -> None:
    probes = {json.dumps(probe["httpGet"]) for probe in values(rendered("cpu"), "livenessProbe")}
    [probe] = [json.loads(text) for text in probes]
    source = Path(__import__("ray").__file__).parent / "_private" / "ray_constants.py"
    assert f"DEFAULT_DASHBOARD_AGENT_LISTEN_PORT = {probe['port']}" in source.read_text()
    with httpx.Client(base_url=agent, transport=httpx.HTTPTransport(retries=60)) as client:
        assert client.get(probe["path"], timeout=30).status_code == 200


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that pods find below /etc/raylens, but for the network's size and the number of images measured."""
    folder = tmp_path_factory.mktemp("etc")
    for name, text in named("cpu", "ConfigMap", "raylens-jobs")["data"].items():
        small = text.replace("timm:resnet50", f"timm:{SMALL}").replace("images: 64", "images: 4")
        (folder / name).write_text(small)
    return folder


def run(name: str, jobs: Path, environment: dict[str, str], *results: int) -> None:
    """Runs a job's command, in another folder than the project's."""
    command = entry_points("cpu")[name].replace("/etc/raylens", str(jobs)).replace("9000", str(free_port()))
    done = subprocess.run(shlex.split(command), cwd=jobs, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in results, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


@pytest.mark.thorough
@pytest.mark.usefixtures("agent")
def test_a_job_explains_and_bias_is_looked_for(s3: S3Server, jobs: Path, environment: dict[str, str]) -> None:
    run("raylens-explain", jobs, environment, 0)
    results = s3.root / "raylens-results"
    assert json.loads((results / "explained" / "run.json").read_text())["explained"] == 48
    run("raylens-bias", jobs, environment, 0)
    assert list((results / "bias").glob("*.json"))


@pytest.mark.thorough
@pytest.mark.usefixtures("agent")
def test_a_night_is_audited(s3: S3Server, jobs: Path, environment: dict[str, str]) -> None:
    run("raylens-audit", jobs, environment, 0, 11)  # the maps of a random network are no better than random ones
    [night] = json.loads((s3.root / "raylens-results" / "nights" / "index.json").read_text())
    assert night["images"] == 48
    for command in re.findall(r"^raylens .*|(?<=`)raylens explain --config [^`]*", README, re.M):
        here = command.replace("deploy/jobs", str(jobs)).replace("2026-01-01", night["night"])
        done = subprocess.run([BIN / "raylens", *shlex.split(here)[1:]], cwd=jobs, env=environment, check=False)
        assert done.returncode == 0, command


@pytest.mark.thorough
@pytest.mark.usefixtures("agent")
def test_the_endpoint_answers(jobs: Path, environment: dict[str, str]) -> None:
    """`serve run` deploys the file that the operator sends to the head."""
    config = yaml.safe_load(named("cpu", "RayService", "raylens-endpoint")["spec"]["serveConfigV2"])
    config["applications"][0]["args"]["replicas"] = {"cpus": 1}
    text = yaml.safe_dump(config).replace("timm:resnet50", f"timm:{SMALL}")
    port = free_port()
    (jobs / "serve.yaml").write_text(text.replace("8000", str(port)))
    [probe] = [found["httpGet"] for found in values(pod("endpoint"), "readinessProbe")]
    with subprocess.Popen([str(BIN / "serve"), "run", "serve.yaml"], cwd=jobs, env=environment) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                wait_until_ready(client, lambda: process.poll() is None)
                assert client.get(probe["path"]).status_code == 200
                answer = client.post("/explain", files={"image": jpeg(0)})
                assert (answer.status_code, answer.json()["model"]) == (200, "resnet50")
                assert "raylens_requests_total" in client.get("/metrics").text
            check = healthcheck(port)
            assert subprocess.run(check, env=environment, check=False).returncode == 0
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(90)
    assert subprocess.run(check, env=environment, stderr=subprocess.DEVNULL, check=False).returncode != 0


def healthcheck(port: int) -> list[str]:
    """The command of the image's health check."""
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    found = re.search(r"HEALTHCHECK (?:--\S+ )+\\\n  CMD (\[.*\])", text)
    assert found is not None
    command: list[str] = json.loads(found[1].replace("8000", str(port)))
    return command
