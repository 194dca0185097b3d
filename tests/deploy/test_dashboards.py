"""Dashboards and rules ask for what real runs expose; a real Prometheus answers each of their queries."""

import json
import re
import shutil
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import ray
import tritonclient.grpc as triton
import yaml
from deploy.promql import Selector, grouped, selectors
from prometheus_client.parser import text_string_to_metric_families
from samples import job, jpeg, write_tar
from serving import TINY, free_port, started, talk, wait_until_ready

from pipeline.jobs.audit import audit
from pipeline.jobs.explain import explain
from schemas.audit import AuditSpec

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
TARGET = {"job", "instance", "namespace", "le"}
"""Labels of what is scraped, and of buckets."""
KEY = "3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0"  # of "token"
NEEDS_A_GPU = {"ray_node_gpus_utilization"}
Exposed = dict[str, set[str]]


def dashboards() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((MONITORING / "dashboards").glob("*.json"))}


def panel_queries() -> dict[str, str]:
    """Of every panel, by dashboard, title and legend."""
    return {
        f"{name}: {panel['title']}: {target['legendFormat']}": target["expr"]
        for name, board in dashboards().items()
        for panel in board["panels"]
        for target in panel["targets"]
    }


def rules() -> list[dict[str, Any]]:
    groups = [g for path in (MONITORING / "rules").glob("*.yaml") for g in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def recorded() -> Exposed:
    """Recorded series, with the labels that their rules keep."""
    return {rule["record"]: grouped(rule["expr"]) or TARGET | {"method"} for rule in rules() if "record" in rule}


def variable_metrics() -> set[str]:
    queries = [
        v["query"]["query"] for b in dashboards().values() for v in b["templating"]["list"] if v["type"] == "query"
    ]
    return {match[1] for query in queries if (match := re.match(r"label_values\((\w+),", query))}


def exposed(*texts: str) -> Exposed:
    """Labels by name of every sample."""
    found: Exposed = defaultdict(set)
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] |= set(sample.labels)
    return found


def tiny_runs(folder: Path, **fields: Any) -> list[str]:
    """What a job with a reject and two nights of an audit leave in text files."""
    samples = [(f"{n:03d}", {"jpg": jpeg(n), "cls": str(n % 4).encode()}) for n in range(12)]
    write_tar(folder / "in" / "a.tar", [*samples, ("bad", {"jpg": b"", "cls": b"0"})])
    explained = job(
        folder / "in",
        folder / "out",
        max_reject_share=1.0,
        interval_h=24,
        metrics_file=str(folder / "job.prom"),
        **fields,
    )
    explain(explained)
    for night in ("first", "second"):
        measure = {"images": 4, "metrics": {"deletion": {"parameters": {"step": 256}}}}
        audit(
            AuditSpec(
                output=str(folder / "nights"), explanations=str(folder / "out"), night=night, measure=measure,
                limits={"better_than_random": False}, max_reject_share=1.0, runner="local", progress="none",
                metrics_file=str(folder / "audit.prom"), input=explained.input, model=explained.model,
            )
        )  # fmt: skip
    return [(folder / name).read_text() for name in ("job.prom", "audit.prom")]


class Endpoint(NamedTuple):
    """Clients of a service on Ray.

    Attributes:
        http: with a key.
        grpc: without.
    """

    http: httpx.Client
    grpc: triton.InferenceServerClient

    def ask_everything(self) -> None:
        """An answer, one from the cache, a refusal, and a call over gRPC."""
        for method in ("gradcam", "smoothgrad", "gradcam"):
            assert self.http.post("/explain", params={"method": method}, content=jpeg(0)).status_code == 200
        assert self.http.post("/explain", content=b"x").status_code == 422
        assert self.grpc.is_model_ready("tiny", headers={"authorization": "Bearer token"})


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Exposed:
    """What our own registries expose after a tiny job, an audit and some requests."""
    service = started(api_keys=[{"name": "shop", "sha256": KEY}])

    async def requests(client: httpx.AsyncClient) -> str:
        client.headers["Authorization"] = "Bearer token"
        for body in (jpeg(0), jpeg(0), b"x"):
            await client.post("/explain", content=body)
        return (await client.get("/metrics")).text

    text = talk(service, requests)
    service.close()
    return exposed(text, *tiny_runs(tmp_path_factory.mktemp("runs")))


def asked() -> set[Selector]:
    """Of all panels, rules and variables."""
    queries = [*panel_queries().values(), *(rule["expr"] for rule in rules()), *variable_metrics()]
    return {found for query in queries for found in selectors(query)}


def test_the_reader_of_queries_finds_names_and_labels() -> None:
    query = 'sum by (a, b) (rate(x_bucket{l="1,} y", m=~"z"}[5m])) / on (c) group_left () w:v:u offset 1h unless q > 0'
    assert selectors(query) == {
        Selector("x_bucket", frozenset("lm")), Selector("w:v:u", frozenset()), Selector("q", frozenset())
    }  # fmt: skip
    assert grouped(query) == {"a", "b", "c"}


def test_own_metrics_have_the_names_and_labels_that_are_asked_for(own: Exposed) -> None:
    ours = {found for found in asked() if found.metric.startswith("raylens_")}
    assert len({found.metric for found in ours}) > 20
    for metric, labels in ours:
        assert metric in own, metric
        assert labels <= own[metric] | TARGET, f"{metric} has {sorted(own[metric])}"


def test_recorded_series_have_the_names_and_labels_that_are_asked_for() -> None:
    known = recorded()
    for metric, labels in asked():
        if ":" in metric:
            assert labels <= known[metric] | TARGET, f"{metric} keeps {sorted(known[metric])}"
    assert {found.metric for found in asked() if ":" in found.metric} == set(known), "recorded, and nobody asks for it"


def test_ray_still_has_the_metrics_that_are_asked_for() -> None:
    """By its sources and its own dashboards, since the real check is a thorough one."""
    folder = Path(ray.__file__).parent
    paths = [*folder.glob("serve/_private/*.py"), *folder.glob("dashboard/modules/metrics/dashboards/*.py")]
    sources = "".join(path.read_text() for path in paths)
    names = {found.metric for found in asked() if found.metric.startswith("ray_") and "raylens" not in found.metric}
    assert len(names) > 8
    for name in names:
        bare = re.sub(r"_(total|bucket|count)$", "", name.removeprefix("ray_"))
        assert f'"{bare}"' in sources or f"ray_{bare}" in sources, name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, which is in Debian's package prometheus")
def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"query:{n}", "expr": filled(query)} for n, query in enumerate(panel_queries().values())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def filled(query: str) -> str:
    """Without the variables of a dashboard."""
    return re.sub(r"\$\w+", ".*", query)


def hurried(text: str) -> str:
    """Rates over a minute, for a run of a minute."""
    return re.sub(r"\[\d+[mhd]\]", "[1m]", text)


def test_panels_stand_beside_each_other() -> None:
    for board in dashboards().values():
        taken = [(p["gridPos"]["x"] + x, p["gridPos"]["y"]) for p in board["panels"] for x in range(p["gridPos"]["w"])]
        assert len(set(taken)) == len(taken)
        assert max(x for x, _ in taken) < 24
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        assert len({panel["title"] for panel in board["panels"]}) == len(board["panels"])


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The port of a server of a folder's files."""

    class Quiet(SimpleHTTPRequestHandler):
        extensions_map = {"": "text/plain"}  # noqa: RUF012

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def prometheus(folder: Path, targets: dict[str, tuple[int, str]]) -> Iterator[httpx.Client]:
    """A real Prometheus with our rules, hurried; targets are ports and paths by job."""
    (folder / "rules").mkdir(parents=True)
    for path in (MONITORING / "rules").glob("*.yaml"):
        (folder / "rules" / path.name).write_text(hurried(path.read_text()))
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    scraped = {one["job_name"]: one for one in config["scrape_configs"]}
    scraped["pushgateway-audit"] = {**scraped["pushgateway"], "job_name": "pushgateway-audit"}
    scraped["raylens-endpoint"]["authorization"] = {"credentials": "token"}
    config["scrape_configs"] = [
        {**scraped[name], "metrics_path": path, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        for name, (port, path) in targets.items()
    ]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus", "--config.file=prometheus.yaml", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30) as client:
                yield client
        finally:
            process.terminate()


def value(client: httpx.Client, query: str) -> list[Any]:
    answer = client.get("/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    found: list[Any] = answer["data"]["result"]
    return found


@pytest.fixture(scope="module")
def endpoint(cluster: Any) -> Iterator[Endpoint]:
    """The service on the session's cluster, by HTTP and gRPC."""
    from ray import serve

    from serve.app import build_app

    http, grpc = free_port(), free_port()
    functions = ["serve.grpc_server.add_to_server"]
    serve.start(
        http_options={"host": "127.0.0.1", "port": http},
        grpc_options={"port": grpc, "grpc_servicer_functions": functions},
    )
    fields = {"models": {"tiny": {**TINY, "methods": {"gradcam": {}, "smoothgrad": {"samples": 4}}}}}
    small = {"cpus": 0.2}
    keys = [{"name": "shop", "sha256": KEY}]
    serve.run(build_app({**fields, "replicas": small, "slow": small, "api_keys": keys}), name="raylens")
    headers = {"Authorization": "Bearer token"}
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{http}", timeout=60, headers=headers) as client,
        triton.InferenceServerClient(f"127.0.0.1:{grpc}") as calls,
    ):
        wait_until_ready(client)
        yield Endpoint(client, calls)
    serve.shutdown()


@pytest.mark.ray
@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus, which is a package of Debian")
def test_a_real_prometheus_answers_every_query(endpoint: Endpoint, tmp_path: Path) -> None:
    """Of every panel something, of every rule no error; and nothing is told to be wrong where nothing is."""
    endpoint.ask_everything()
    tiny_runs(tmp_path / "runs", runner="ray", workers=1)
    [node] = ray.nodes()  # type: ignore[no-untyped-call]
    with served(tmp_path / "runs") as files:
        targets = {
            "pushgateway": (files, "/job.prom"),
            "pushgateway-audit": (files, "/audit.prom"),
            "ray": (node["MetricsExportPort"], "/metrics"),
            "raylens-endpoint": (endpoint.http.base_url.port or 80, "/metrics"),
        }
        with prometheus(tmp_path / "prometheus", targets) as client:
            empty = wait_for_answers(client, endpoint)
            groups = client.get("/rules").json()["data"]["groups"]
    assert empty == set()
    broken = {rule["name"]: rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")}
    assert broken == {}
    firing = {rule["name"] for group in groups for rule in group["rules"] if rule.get("state") == "firing"}
    assert firing <= {"RaylensAuditAlerts"}, "an audit of the same images twice may say so, the others not"


def wait_for_answers(client: httpx.Client, endpoint: Endpoint) -> set[str]:
    """Titles of panels that stay empty; Ray tells its metrics every ten seconds, and a rate needs two of them."""
    wanted = {
        title: hurried(filled(query))
        for title, query in panel_queries().items()
        if not {found.metric for found in selectors(query)} & NEEDS_A_GPU
    }
    deadline = time.monotonic() + 120
    while wanted and time.monotonic() < deadline:
        endpoint.ask_everything()
        time.sleep(2)
        try:
            wanted = {title: query for title, query in wanted.items() if not value(client, query)}
        except httpx.TransportError:
            continue
    return set(wanted)
