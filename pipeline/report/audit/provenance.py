"""How a night was computed: what somebody else needs to compute it again."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.jobs.audit import Night


def facts(night: "Night") -> Iterator[tuple[str, str]]:
    """Digests, seeds and addresses.

    Args:
        night: the audit.

    Yields:
        Names and values.
    """
    record = night.explained.record
    model, spec = record.model, record.spec
    yield "model", str(model["source"])
    yield "weights, SHA-256", str(model["weights_sha256"])
    yield "layer of the map", str(model["layer"]["name"])
    yield "method", _with_arguments(spec["method"], spec.get("method_args") or {})
    yield "target", str(spec["target"])
    yield "graph digest", record.graph_digest
    yield "job digest", record.job_digest
    yield "seeds", _seeds(night)
    yield "explained", night.explained.address
    yield "computed", f"{record.started} to {record.finished}, {record.seconds:.0f} s"
    if night.measured:
        yield "measured", night.measured.address
    if night.before:
        yield "compared with", night.before.address
        same = night.drift is not None and night.drift.same_graph
        yield "its graph digest", f"{night.before.record.graph_digest}, {'the same' if same else 'another'}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))


def _with_arguments(method: str, arguments: dict[str, object]) -> str:
    return " ".join([method, *(f"{name}={value}" for name, value in arguments.items())])


def _seeds(night: "Night") -> str:
    spec = night.spec
    return f"job {night.explained.record.spec.get('seed', 0)}, sample {spec.measure.seed}, comparison {spec.drift.seed}"


def specification(night: "Night") -> str:
    """The audit's specification without credentials, as JSON."""
    return json.dumps(night.spec.public(), indent=2, sort_keys=True)
