"""What kustomize makes of the overlays in deploy/kubernetes, and the parts of it that tests ask about."""

import functools
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = tuple(sorted(path.name for path in (KUBERNETES / "overlays").iterdir()))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

Resource = dict[str, Any]


@functools.cache
def rendered(overlay: str) -> tuple[Resource, ...]:
    """The resources of an overlay."""
    return kustomized(KUBERNETES / "overlays" / overlay)


def kustomized(folder: Path) -> tuple[Resource, ...]:
    """The resources of a folder, by the kustomize that is in kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which has kustomize, is not installed")
    command = [kubectl, "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, kind: str) -> list[Resource]:
    """Resources of one kind."""
    return [resource for resource in rendered(overlay) if resource["kind"] == kind]


def named(overlay: str, kind: str, name: str) -> Resource:
    """The one resource of a kind and name."""
    [found] = [resource for resource in of_kind(overlay, kind) if resource["metadata"]["name"] == name]
    return found


def values(node: Any, key: str) -> Iterator[Any]:
    """Every value of a key, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from values(value, key)


def pods(resources: Any) -> list[Resource]:
    """Every template of a pod."""
    templates = [*values(resources, "template"), *values(resources, "submitterPodTemplate")]
    return [found for found in templates if "containers" in found.get("spec", {})]


def labels(pod: Resource) -> dict[str, str]:
    """Labels of a pod of a template."""
    found: dict[str, str] = pod["metadata"]["labels"]
    return found


def selected(pod: Resource, selector: Resource) -> bool:
    """Whether a selector with `matchLabels` alone selects a pod."""
    assert set(selector) <= {"matchLabels"}, selector
    return selector.get("matchLabels", {}).items() <= labels(pod).items()


def port_names(pod: Resource) -> dict[str, int]:
    """Ports of a pod's containers by name."""
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", [])]
    return {port["name"]: port["containerPort"] for port in ports}


def entry_points(overlay: str) -> dict[str, str]:
    """The commands of jobs, by name of the job; a night's is that of its RayJob."""
    jobs = [*of_kind(overlay, "RayJob"), *of_kind(overlay, "RayCronJob")]
    return {job["metadata"]["name"]: job["spec"].get("jobTemplate", job["spec"])["entrypoint"] for job in jobs}


def job_cluster(job: Resource) -> Resource:
    """The specification of a job's Ray cluster."""
    found: Resource = job["spec"].get("jobTemplate", job["spec"])["rayClusterSpec"]
    return found
