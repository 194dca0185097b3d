"""Every specification in deploy/jobs is loaded by the code that runs it, and storage policies allow what it does."""

import json
from fnmatch import fnmatchcase
from typing import Any

import aiobotocore.client
import pytest
import yaml
from deploy.rendered import ROOT
from ray.serve.schema import ServeDeploySchema
from samples import job, write_tars

from pipeline.attribution import METHODS
from pipeline.flags import merged, parsed
from pipeline.jobs.again import specification
from pipeline.jobs.audit import audit
from pipeline.jobs.explain import explain
from pipeline.stream.s3server import S3Server
from schemas.audit import AuditSpec
from schemas.bias import BiasSpec
from schemas.job import JobSpec
from schemas.online import ServeSpec

JOBS = ROOT / "deploy" / "jobs"
POLICIES = ROOT / "deploy" / "security"
IAM = {
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "DeleteObjects": "s3:DeleteObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
}
"""Actions that allow S3's operations, where the names differ."""


def test_jobs_are_specifications() -> None:
    explained = parsed(JobSpec, {"config": JOBS / "explain.yaml"})
    audited = specification(AuditSpec, {"config": JOBS / "audit.yaml"})
    assert explained.method in METHODS
    assert audited.model_spec() == explained.model_spec()
    bias = merged(BiasSpec, {"config": JOBS / "bias.yaml"})  # the rest is in the run that it looks at
    assert bias["explanations"] == explained.output
    assert parsed(BiasSpec, {"config": JOBS / "bias.yaml", "input": ["-"], "model": explained.model}).images
    outputs = {explained.output, audited.output, bias["output"]}
    assert len(outputs) == 3
    assert all(output.startswith("s3://raylens-results/") for output in outputs)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_services_are_specifications(kind: str) -> None:
    content = yaml.safe_load((JOBS / f"serve-{kind}.yaml").read_text())
    assert ServeDeploySchema(**content).http_options.port == 8000
    [application] = content["applications"]
    spec = ServeSpec(**application["args"])
    assert spec.replicas.gpus == (1 if kind == "gpu" else 0)
    longest_s = spec.limits.body_s + spec.limits.deadline_s
    assert content["http_options"]["request_timeout_s"] > longest_s
    assert {name for model in spec.models.values() for name in model.methods} <= METHODS.keys()


def test_every_file_is_given_to_the_cluster() -> None:
    [generated] = yaml.safe_load((JOBS / "kustomization.yaml").read_text())["configMapGenerator"]
    assert sorted(generated["files"]) == sorted(path.name for path in JOBS.glob("*.yaml") if "kustom" not in path.name)


def allowed(policies: list[dict[str, Any]], action: str, resource: str) -> bool:
    """Whether a statement allows an action on a bucket or an object."""
    statements = [statement for policy in policies for statement in policy["Statement"]]
    return any(
        statement["Effect"] == "Allow"
        and action in statement["Action"]
        and any(fnmatchcase(resource, pattern) for pattern in statement["Resource"])
        for statement in statements
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Actions and what they were done to, of every call to S3 of this process."""
    found: set[tuple[str, str]] = set()
    call = aiobotocore.client.AioBaseClient._make_api_call

    async def recorded(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
        action, bucket = IAM.get(operation, f"s3:{operation}"), parameters["Bucket"]
        name = bucket if action == "s3:ListBucket" else f"{bucket}/{parameters.get('Key', 'any')}"
        found.add((action, f"arn:aws:s3:::{name}"))
        return await call(client, operation, parameters)

    monkeypatch.setattr(aiobotocore.client.AioBaseClient, "_make_api_call", recorded)
    return found


def test_storage_policies_allow_what_jobs_do_and_no_more(s3: S3Server, asked: set[tuple[str, str]]) -> None:
    for bucket in ("raylens-data", "raylens-results"):
        s3.bucket(bucket)
    write_tars(s3.root / "raylens-data" / "policy", shards=2, each=4)
    s3.refresh()
    asked.clear()
    fields = {"storage": dict(s3.storage_options()), "embedding": True}
    spec = job("s3://raylens-data/policy", "s3://raylens-results/policy", **fields)
    explain(spec)
    explain(spec.model_copy(update={"overwrite": True}))
    given = {name: getattr(spec, name) for name in spec.model_fields_set}
    audit(
        AuditSpec(
            **given | {"output": "s3://raylens-results/nights", "night": "1", "limits": {"better_than_random": False}}
        )
    )
    policies = [json.loads(path.read_text()) for path in sorted(POLICIES.glob("*.json"))]
    assert len(policies) == 2
    assert {one for one in asked if not allowed(policies, *one)} == set()
    granted = {action for policy in policies for statement in policy["Statement"] for action in statement["Action"]}
    assert granted - {action for action, _ in asked} <= {"s3:AbortMultipartUpload"}  # of large files that fail
    assert all(action in ("s3:ListBucket", "s3:GetObject") for action, name in asked if "raylens-data" in name)


def test_inputs_are_only_read() -> None:
    policy = json.loads((POLICIES / "read-input.json").read_text())
    assert {action for statement in policy["Statement"] for action in statement["Action"]} == {
        "s3:ListBucket",
        "s3:GetObject",
    }
    assert not allowed([policy], "s3:GetObject", "arn:aws:s3:::raylens-results/explained/run.json")


def test_patterns_name_the_buckets_of_the_jobs() -> None:
    text = "".join(path.read_text() for path in POLICIES.glob("*.json"))
    for path in sorted(JOBS.glob("*.yaml")):
        for bucket in {word.split("/")[2] for word in path.read_text().split() if word.startswith("s3://")}:
            assert f"arn:aws:s3:::{bucket}/*" in text
