"""Creates a RayJob after one that is suspended: `python again.py NAME`, in a pod whose role allows it."""

import json
import ssl
import sys
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SERVER = "https://kubernetes.default.svc"


def again(pattern: dict[str, Any]) -> dict[str, Any]:
    """The job of tonight.

    Args:
        pattern: the suspended job.

    Returns:
        The same job, not suspended, under a name that the server completes.
    """
    metadata = {"generateName": f"{pattern['metadata']['name']}-", "labels": pattern["metadata"].get("labels", {})}
    return {
        "apiVersion": pattern["apiVersion"],
        "kind": pattern["kind"],
        "metadata": metadata,
        "spec": {**pattern["spec"], "suspend": False},
    }


def main(name: str, account: Path = ACCOUNT, server: str = SERVER) -> str:
    """Creates the job.

    Args:
        name: of the suspended job.
        account: folder of the token, namespace and certificate that Kubernetes gives to a pod.
        server: address of Kubernetes' API.

    Returns:
        The name of the new job.

    Raises:
        HTTPError: there is no such job, or Kubernetes refuses.
    """
    jobs = f"{server}/apis/ray.io/v1/namespaces/{(account / 'namespace').read_text()}/rayjobs"
    trusted = ssl.create_default_context(cafile=str(account / "ca.crt"))
    headers = {"Authorization": f"Bearer {(account / 'token').read_text()}", "Content-Type": "application/json"}

    def ask(address: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(address, body, headers)  # noqa: S310 - Kubernetes' API
        with urllib.request.urlopen(request, timeout=30, context=trusted) as answer:  # noqa: S310 - the same
            return json.load(answer)

    job = again(ask(f"{jobs}/{name}"))
    return str(ask(jobs, json.dumps(job).encode())["metadata"]["name"])


if __name__ == "__main__":
    sys.stdout.write(f"created {main(*sys.argv[1:])}\n")
