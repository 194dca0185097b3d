"""Every manifest that kustomize renders: valid for the API server, consistent, without secrets, of this version."""

import functools
import json
import os
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import certifi
import kubernetes_validate
import pytest
import yaml
from deploy.rendered import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    VERSION,
    Resource,
    entry_points,
    job_cluster,
    kustomized,
    labels,
    named,
    of_kind,
    pods,
    port_names,
    rendered,
    selected,
    values,
)
from jsonschema import Draft202012Validator

from schemas.job import SECRETS
from serve.security import is_open

CORE = {
    "ConfigMap", "CronJob", "Namespace", "NetworkPolicy", "PodDisruptionBudget", "Role", "RoleBinding",
    "ServiceAccount",
}  # fmt: skip
RAY = {"RayJob", "RayCronJob", "RayService"}
KUBERNETES_VERSIONS = ("1.32.0", kubernetes_validate.latest_version())

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def strict(schema: Any) -> Any:
    """A CRD's schema as JSON Schema that refuses what the API server would prune."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(value) for name, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        return {"type": ["integer", "string"]}
    open_ends = ("additionalProperties", "x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and not any(name in schema for name in open_ends):
        found["additionalProperties"] = False
    return found


@functools.cache
def custom_resource(folder: Path, kind: str) -> Draft202012Validator:
    text = (folder / f"ray.io_{kind.lower()}s.yaml").read_text()
    [version] = [found for found in yaml.load(text, yaml.CSafeLoader)["spec"]["versions"] if found["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    properties = {name: strict(value) for name, value in schema["properties"].items()}
    return Draft202012Validator(
        {**schema, "properties": {**properties, "metadata": {"type": "object"}}, "additionalProperties": False}
    )


def problems(validator: Draft202012Validator, resource: Resource) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(resource)]


@pytest.mark.data
@overlays
def test_custom_resources_are_valid_and_lose_no_field(overlay: str, shared_data: Path) -> None:
    resources = [resource for resource in rendered(overlay) if resource["kind"] in RAY]
    assert len(resources) == (4 if overlay == "older-operator" else 5)
    for resource in resources:
        assert problems(custom_resource(shared_data / "kuberay-crds", resource["kind"]), resource) == []


@pytest.mark.data
def test_a_field_that_would_be_pruned_is_found(shared_data: Path) -> None:
    service = json.loads(json.dumps(named("cpu", "RayService", "raylens-endpoint")))
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    service["spec"]["upgrades"] = "NewCluster"
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] = "two"
    assert len(problems(custom_resource(shared_data / "kuberay-crds", "RayService"), service)) == 3


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@overlays
def test_core_resources_and_pods_are_valid(overlay: str, version: str) -> None:
    for resource in rendered(overlay):
        assert resource["kind"] in CORE | RAY | {"PodMonitor"}
        if resource["kind"] in CORE:
            kubernetes_validate.validate(resource, version, strict=True)
    for pod in pods(rendered(overlay)):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **pod}, version, strict=True)


@overlays
def test_every_selector_selects(overlay: str) -> None:
    found = pods(rendered(overlay))
    selectors = [resource["spec"]["selector"] for resource in of_kind(overlay, "PodDisruptionBudget")]
    selectors += [resource["spec"]["podSelector"] for resource in of_kind(overlay, "NetworkPolicy")]
    selectors += list(values(found, "labelSelector"))
    assert len(selectors) >= 5
    for selector in selectors:
        assert any(selected(pod, selector) for pod in found), selector
    everywhere, *_ = of_kind(overlay, "NetworkPolicy")
    assert all(selected(pod, everywhere["spec"]["podSelector"]) for pod in found)


@overlays
def test_metrics_are_read_from_ports_that_exist(overlay: str) -> None:
    [monitor] = of_kind(overlay, "PodMonitor")
    chosen = [pod for pod in pods(rendered(overlay)) if selected(pod, monitor["spec"]["selector"])]
    names = {name: number for pod in chosen for name, number in port_names(pod).items()}
    wanted = {names[endpoint["port"]] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    for command in entry_points(overlay).values():
        assert int(command.split("--metrics-port ")[1].split()[0]) == names["job"]
    policy = named(overlay, "NetworkPolicy", "raylens")["spec"]["ingress"]
    [opened] = [rule["ports"] for rule in policy if "monitoring" in json.dumps(rule)]
    assert {port["port"] for port in opened} == wanted


def asked_with_a_key(resources: tuple[Resource, ...]) -> dict[str, bool]:
    """Ports of the PodMonitor, and whether Prometheus has a key for them."""
    [monitor] = [resource for resource in resources if resource["kind"] == "PodMonitor"]
    return {found["port"]: "authorization" in found for found in monitor["spec"]["podMetricsEndpoints"]}


@overlays
def test_prometheus_has_a_key_where_the_endpoint_asks_for_one(overlay: str) -> None:
    assert not is_open("/metrics")
    service = named(overlay, "RayService", "raylens-endpoint")["spec"]
    [application] = yaml.safe_load(service["serveConfigV2"])["applications"]
    assert asked_with_a_key(rendered(overlay))["serve"] == ("api_keys" in application["args"])


def test_the_component_of_keys_gives_one_to_the_endpoint_alone(tmp_path: Path) -> None:
    places = {name: os.path.relpath(KUBERNETES / name, tmp_path) for name in ("overlays/cpu", "components/keys")}
    content = {"resources": [places["overlays/cpu"]], "components": [places["components/keys"]]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
    found = kustomized(tmp_path)
    assert asked_with_a_key(found) == {"metrics": False, "job": False, "serve": True}
    [credentials] = values(found, "credentials")
    secret = f"secret generic {credentials['name']} --namespace raylens --from-literal={credentials['key']}="
    assert secret in (ROOT / "deploy" / "README.md").read_text()
    others = [resource for resource in found if resource["kind"] != "PodMonitor"]
    assert others == [resource for resource in rendered("cpu") if resource["kind"] != "PodMonitor"]


@overlays
def test_policies_and_probes_name_ports_that_exist(overlay: str) -> None:
    found = pods(rendered(overlay))
    numbers = {number for pod in found for number in port_names(pod).values()}
    ingress = [rule for policy in of_kind(overlay, "NetworkPolicy") for rule in policy["spec"]["ingress"]]
    assert {port["port"] for rule in ingress for port in rule.get("ports", [])} <= numbers
    for pod in found:
        for probe in values(pod, "httpGet"):
            assert probe["port"] == 52365 or probe["port"] in port_names(pod)  # of Ray's agent, see test_entry_points


@overlays
def test_accounts_volumes_and_files_are_there(overlay: str) -> None:
    accounts = {resource["metadata"]["name"] for resource in of_kind(overlay, "ServiceAccount")}
    maps = {resource["metadata"]["name"]: resource["data"] for resource in of_kind(overlay, "ConfigMap")}
    for pod in pods(rendered(overlay)):
        spec = pod["spec"]
        assert spec["serviceAccountName"] in accounts
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume} <= maps.keys()
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
    for job in [*of_kind(overlay, "RayJob"), *of_kind(overlay, "RayCronJob")]:
        [file] = [word for word in entry_points(overlay)[job["metadata"]["name"]].split() if word.startswith("/")]
        [head] = pods(job_cluster(job)["headGroupSpec"])
        mounts = {mount["mountPath"]: mount["name"] for mount in head["spec"]["containers"][0]["volumeMounts"]}
        [volume] = [found for found in head["spec"]["volumes"] if found["name"] == mounts[str(Path(file).parent)]]
        assert Path(file).name in maps[volume["configMap"]["name"]]


@overlays
def test_jobs_wait_and_share_one_cluster(overlay: str) -> None:
    jobs = of_kind(overlay, "RayJob")
    assert all(job["spec"]["suspend"] for job in jobs)
    nights = of_kind(overlay, "RayCronJob")
    assert all({**night["spec"]["jobTemplate"], "suspend": True} in [job["spec"] for job in jobs] for night in nights)
    clusters = [job_cluster(job) for job in [*jobs, *nights]]
    assert len(clusters) >= 3
    assert all(cluster == clusters[0] for cluster in clusters)
    [workers] = clusters[0]["workerGroupSpecs"]
    [limits] = [container["resources"]["limits"] for container in workers["template"]["spec"]["containers"]]
    most = workers["maxReplicas"] * int(limits.get("nvidia.com/gpu", limits["cpu"]))
    for command in entry_points(overlay).values():
        assert int(command.split("--max-workers ")[1].split()[0]) == most


@overlays
def test_replicas_of_the_endpoint_fit_its_workers(overlay: str) -> None:
    service = named(overlay, "RayService", "raylens-endpoint")["spec"]
    [application] = yaml.safe_load(service["serveConfigV2"])["applications"]
    replicas = application["args"]["replicas"]
    [workers] = service["rayClusterConfig"]["workerGroupSpecs"]
    [limits] = [container["resources"]["limits"] for container in workers["template"]["spec"]["containers"]]
    assert (int(limits["cpu"]), int(limits.get("nvidia.com/gpu", 0))) == (replicas["cpus"], replicas.get("gpus", 0))
    assert workers["minReplicas"] == workers["replicas"] == replicas["min_replicas"] >= 2
    assert workers["maxReplicas"] == replicas["max_replicas"]


@overlays
def test_images_are_of_this_version(overlay: str) -> None:
    kind = "cpu" if overlay in ("cpu", "older-operator") else "gpu"
    images = set(values(rendered(overlay), "image"))
    assert images == {f"registry.example.com/raylens:{VERSION}-{kind}"}
    lock = (ROOT / "requirements.lock").read_text()
    for version in values(rendered(overlay), "rayVersion"):
        assert f"\nray=={version} " in lock


@overlays
def test_only_workers_have_gpus(overlay: str) -> None:
    for pod in pods(rendered(overlay)):
        asked = "nvidia.com/gpu" in json.dumps(pod["spec"]["containers"])
        has_gpus = overlay in ("gpu", "spot") and labels(pod)["app.kubernetes.io/component"] in ("worker", "endpoint")
        assert asked == has_gpus
        assert ("nvidia.com/gpu.present" in pod["spec"].get("nodeSelector", {})) == has_gpus
        assert any(found["key"] == "nvidia.com/gpu" for found in pod["spec"].get("tolerations", [])) == has_gpus


def test_only_workers_of_jobs_are_on_spot_machines() -> None:
    for pod in pods(rendered("spot")):
        component = labels(pod)["app.kubernetes.io/component"]
        terms = [term["matchExpressions"] for found in values(pod, "nodeSelectorTerms") for term in found]
        operators = {one["operator"] for term in terms for one in term}
        assert operators == {"worker": {"In"}, "driver": {"NotIn"}}.get(component, set())
        tolerated = {found["key"] for found in pod["spec"].get("tolerations", [])} - {"nvidia.com/gpu"}
        assert bool(tolerated) == (component == "worker")


@overlays
def test_pods_are_bounded_and_have_few_rights(overlay: str) -> None:
    for pod in pods(rendered(overlay)):
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        needs_token = pod["spec"]["serviceAccountName"] in ("raylens-head", "raylens-nightly")
        assert pod["spec"].get("automountServiceAccountToken", True) == needs_token
        for container in pod["spec"]["containers"]:
            rights = container["securityContext"]
            assert (rights["allowPrivilegeEscalation"], rights["readOnlyRootFilesystem"]) == (False, True)
            assert rights["capabilities"] == {"drop": ["ALL"]}
            resources = container["resources"]
            assert resources["limits"]["memory"] == resources["requests"]["memory"]
            assert "cpu" in resources["requests"]


@overlays
def test_there_is_no_secret(overlay: str) -> None:
    assert not of_kind(overlay, "Secret")
    for variables in values(rendered(overlay), "env"):
        for variable in variables:
            assert not any(word in variable["name"].lower() for word in SECRETS), variable["name"]
    for content in of_kind(overlay, "ConfigMap"):
        for name, text in content["data"].items():
            if name.endswith(".yaml"):
                keys = {line.strip().partition(":")[0].lower() for line in text.splitlines()} - {"api_keys"}  # digests
                assert not [key for key in keys if any(word in key for word in SECRETS)]


def test_older_operators_are_asked_for_nothing_newer() -> None:
    assert not of_kind("older-operator", "RayCronJob")
    assert not list(values(rendered("older-operator"), "authOptions"))
    assert [found["mode"] for found in values(rendered("cpu"), "authOptions")] == ["token"] * 5
    [nightly] = of_kind("older-operator", "CronJob")
    [container] = nightly["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    *_, file, pattern = container["command"]
    assert named("older-operator", "RayJob", pattern)["spec"]["suspend"]
    assert Path(file).name in named("older-operator", "ConfigMap", "raylens-nightly")["data"]
    [rule, _] = named("older-operator", "Role", "raylens-nightly")["rules"]
    assert rule["resourceNames"] == [pattern]
    assert nightly["spec"]["schedule"] == of_kind("cpu", "RayCronJob")[0]["spec"]["schedule"]


def test_a_night_is_a_copy_of_the_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = named("older-operator", "RayJob", "raylens-audit")
    asked: list[tuple[str, str, str, Any]] = []

    class Kubernetes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(None, {**pattern, "metadata": {**pattern["metadata"], "uid": "1", "resourceVersion": "7"}})

        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(job, {"metadata": {"name": job["metadata"]["generateName"] + "x7k2"}})

        def answer(self, body: Any, content: Any) -> None:
            asked.append((self.command, self.path, self.headers["Authorization"], body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.syspath_prepend(KUBERNETES / "components" / "older-operator")
    from again import main  # a file of the ConfigMap

    (tmp_path / "token").write_text("abc")
    (tmp_path / "namespace").write_text("raylens")
    shutil.copy(certifi.where(), tmp_path / "ca.crt")
    server = HTTPServer(("127.0.0.1", 0), Kubernetes)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert main("raylens-audit", tmp_path, f"http://127.0.0.1:{server.server_port}") == "raylens-audit-x7k2"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        sys.modules.pop("again")
    jobs = "/apis/ray.io/v1/namespaces/raylens/rayjobs"
    assert [found[:3] for found in asked] == [
        ("GET", f"{jobs}/raylens-audit", "Bearer abc"),
        ("POST", jobs, "Bearer abc"),
    ]
    assert asked[1][3]["spec"] == {**pattern["spec"], "suspend": False}
    assert "uid" not in asked[1][3]["metadata"]
