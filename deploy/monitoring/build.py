"""Writes the Grafana dashboards, and the rules as an object of Kubernetes: `python deploy/monitoring/build.py`.

A dashboard is a list of rows of panels, and a panel is a title, a unit and its queries by legend; the rest is the form
that Grafana wants.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
WIDTH, HEIGHT = 24, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RAYLENS = 'namespace=~"$namespace"'
JOB = f'{RAYLENS}, instance=~"$instance"'
SERVED = f'{RAYLENS}, application="raylens"'


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: of the panel.
        queries: PromQL by legend.
        unit: of Grafana, such as s, percentunit, bytes, reqps.
        kind: timeseries, stat or table.
    """

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"

    def to_json(self, number: int, place: dict[str, int]) -> dict[str, Any]:
        """In Grafana's form."""
        targets = [
            {"refId": chr(ord("A") + n), "expr": query, "legendFormat": legend, "instant": self.kind != "timeseries"}
            for n, (legend, query) in enumerate(self.queries.items())
        ]
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "datasource": SOURCE,
            "gridPos": place,
            "fieldConfig": {"defaults": {"unit": self.unit, "min": 0}, "overrides": []},
            "targets": [{**target, "datasource": SOURCE} for target in targets],
        }


BATCH = [
    [
        Panel(
            "Done",
            {"{{instance}} {{method}}": f"raylens_job_images_done{{{JOB}}} / (raylens_job_images{{{JOB}}} > 0)"},
            "percentunit",
            "stat",
        ),
        Panel(
            "Time left",
            {
                "{{instance}} {{method}}": f"(raylens_job_images{{{JOB}}} - raylens_job_images_done{{{JOB}}})"
                f" / raylens_job_images_per_second{{{JOB}}}"
            },
            "s",
            "stat",
        ),
        Panel(
            "Since the last success",
            {"{{instance}} {{method}}": f"raylens:job_age_seconds{{{JOB}}}"},
            "s",
            "stat",
        ),
        Panel("Last run failed", {"{{instance}} {{error}}": f"raylens_job_failed{{{JOB}}}"}, "bool", "stat"),
    ],
    [
        Panel(
            "Images a second, committed",
            {"{{instance}} {{method}}": f"sum by (instance, method) (rate(raylens_images_total{{{JOB}}}[5m]))"},
        ),
        Panel(
            "Images a second, in the graph",
            {"{{method}} {{device}}": f"raylens:graph_images:rate5m{{{RAYLENS}}}"},
        ),
        Panel(
            "Time of a block",
            {
                f"p{share}": f"histogram_quantile(0.{share}, sum by (le) "
                f"(rate(ray_raylens_graph_block_seconds_bucket{{{RAYLENS}}}[5m])))"
                for share in (50, 99)
            },
            "s",
        ),
    ],
    [
        Panel("Share rejected", {"{{instance}}": f"raylens:reject_share:ratio{{{JOB}}}"}, "percentunit"),
        Panel("Rejects by code", {"{{code}}": f"sum by (code) (raylens_rejects_total{{{JOB}}})"}),
    ],
    [
        Panel("CPU of a node", {"{{ip}}": f"ray_node_cpu_utilization{{{RAYLENS}}} / 100"}, "percentunit"),
        Panel("GPU of a node", {"{{ip}} {{GpuIndex}}": f"ray_node_gpus_utilization{{{RAYLENS}}}"}, "percent"),
        Panel(
            "Object store in use, by place",
            {"{{NodeAddress}} {{Location}}": f"sum by (NodeAddress, Location) (ray_object_store_memory{{{RAYLENS}}})"},
            "bytes",
        ),
        Panel("Steps that failed", {"{{operator}}": f"sum by (operator) (ray_data_num_tasks_failed{{{RAYLENS}}})"}),
    ],
]
ENDPOINT = [
    [
        Panel(
            "Status: 6 runs, 5 is being deployed, 2 is unhealthy, 1 failed",
            {"{{application}}": f"min by (application) (ray_serve_application_status{{{SERVED}}})"},
            kind="stat",
        ),
        Panel("Requests a second", {"all": f"sum(raylens:http_requests:rate5m{{{SERVED}}})"}, "reqps", "stat"),
        Panel("Share that fails", {"5xx": f"raylens:http_error_share:ratio_rate5m{{{SERVED}}}"}, "percentunit", "stat"),
        Panel("Share refused", {"503": f"raylens:http_overload_share:ratio_rate5m{{{SERVED}}}"}, "percentunit", "stat"),
    ],
    [
        Panel(
            "Answers by status",
            {"{{status_code}}": f"sum by (status_code) (raylens:http_requests:rate5m{{{SERVED}}})"},
            "reqps",
        ),
        Panel(
            "Time of an answer",
            {
                f"p{share} {{{{route}}}}": f"raylens:http_latency_seconds:p{share}_rate5m{{{SERVED}}}"
                for share in (50, 99)
            },
            "s",
        ),
        Panel("Time by stage, p99", {"{{stage}}": f"raylens:stage_seconds:p99_rate5m{{{RAYLENS}}}"}, "s"),
    ],
    [
        Panel(
            "Requests that wait",
            {
                "{{deployment}}": f"raylens:queued_requests:sum{{{SERVED}}}",
                "{{model}} {{method}}, images": f"sum by (model, method) (raylens_queue_images{{{RAYLENS}}})",
            },
        ),
        Panel(
            "Requests in progress",
            {"{{deployment}}": f"sum by (deployment) (ray_serve_replica_processing_queries{{{SERVED}}})"},
        ),
        Panel(
            "Processes",
            {
                "{{deployment}} healthy": f"sum by (deployment) (ray_serve_deployment_replica_healthy{{{SERVED}}})",
                "{{deployment}} wanted": f"max by (deployment) (ray_serve_autoscaling_target_replicas{{{SERVED}}})",
            },
        ),
        Panel("Processes started in 30 min", {"{{deployment}}": f"raylens:replica_starts:increase30m{{{SERVED}}}"}),
    ],
    [
        Panel(
            "Images explained a second",
            {"{{model}} {{method}}": f"sum by (model, method) (rate(raylens_explained_total{{{RAYLENS}}}[5m]))"},
        ),
        Panel(
            "Images in a batch, mean",
            {
                "{{model}} {{method}}": f"sum by (model, method) (rate(raylens_batch_images_sum{{{RAYLENS}}}[5m]))"
                f" / sum by (model, method) (rate(raylens_batch_images_count{{{RAYLENS}}}[5m]))"
            },
        ),
        Panel(
            "Share from the cache",
            {
                "hits": f'sum(rate(raylens_cache_total{{{RAYLENS}, result="hit"}}[5m]))'
                f" / sum(rate(raylens_cache_total{{{RAYLENS}}}[5m]))"
            },
            "percentunit",
        ),
        Panel("Memory of the cache", {"bytes": f"sum(raylens_cache_bytes{{{RAYLENS}}})"}, "bytes"),
    ],
    [
        Panel(
            "Answers over gRPC by status",
            {
                "{{status_code}}, Ray": f"sum by (status_code) (raylens:grpc_requests:rate5m{{{SERVED}}})",
                "{{status}}, ours": "sum by (status) "
                f'(rate(raylens_requests_total{{{RAYLENS}, route=~"Server.+|Model.+"}}[5m]))',
            },
            "reqps",
        ),
        Panel(
            "Requests by route, gRPC too",
            {"{{route}}": f"sum by (route) (rate(raylens_requests_total{{{RAYLENS}}}[5m]))"},
            "reqps",
        ),
        Panel(
            "Requests by key",
            {"{{key}}": f"sum by (key) (rate(raylens_key_requests_total{{{RAYLENS}}}[5m]))"},
            "reqps",
        ),
        Panel(
            "Refusals by code",
            {"{{code}}": f"sum by (code) (rate(raylens_rejected_total{{{RAYLENS}}}[5m]))"},
            "reqps",
        ),
    ],
]
AUDIT = [
    [
        Panel("Alerts", {"{{instance}} {{method}}": f"raylens_audit_alerts{{{JOB}}}"}, kind="stat"),
        Panel("Since the last night", {"{{instance}} {{method}}": f"raylens:audit_age_seconds{{{JOB}}}"}, "s", "stat"),
        Panel("Images", {"{{instance}} {{method}}": f"raylens_audit_images{{{JOB}}}"}, kind="stat"),
        Panel("Last audit failed", {"{{instance}} {{error}}": f"raylens_audit_failed{{{JOB}}}"}, "bool", "stat"),
    ],
    [
        Panel("Accuracy", {"{{instance}} {{method}}": f"raylens_audit_accuracy{{{JOB}}}"}, "percentunit"),
        Panel("Calibration error", {"{{instance}} {{method}}": f"raylens_audit_calibration_error{{{JOB}}}"}),
        Panel(
            "Share rejected", {"{{instance}} {{method}}": f"raylens:audit_reject_share:ratio{{{JOB}}}"}, "percentunit"
        ),
    ],
    [
        Panel(
            "Effects against the night before",
            {"{{instance}} {{comparison}}": f"raylens_audit_drift_effect{{{JOB}}}"},
        ),
        Panel(
            "Metrics of the maps, and of maps that know nothing",
            {"{{instance}} {{metric}} {{maps}}": f"raylens_audit_map_metric{{{JOB}}}"},
        ),
    ],
]
DASHBOARDS = {
    "batch": ("raylens: jobs", BATCH, "raylens_job_images"),
    "endpoint": ("raylens: endpoint", ENDPOINT, None),
    "audit": ("raylens: audit", AUDIT, "raylens_audit_images"),
}
"""Title, rows, and the metric whose instances can be chosen."""


def dashboard(name: str) -> dict[str, Any]:
    """A dashboard in Grafana's form.

    Args:
        name: key of `DASHBOARDS`.

    Returns:
        Its JSON model.
    """
    title, rows, of_instances = DASHBOARDS[name]
    variables = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    variables.append(_variable("namespace", of_instances or "ray_serve_application_status"))
    if of_instances:
        variables.append(_variable("instance", of_instances))
    return {
        "uid": f"raylens-{name}",
        "title": title,
        "tags": ["raylens"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h" if name != "audit" else "now-30d", "to": "now"},
        "templating": {"list": variables},
        "panels": list(_placed(rows)),
    }


def _variable(label: str, metric: str) -> dict[str, Any]:
    """A choice of a label's values; without a choice also series that have no such label."""
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values({metric}, {label})", "refId": label},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(rows: list[list[Panel]]) -> Iterator[dict[str, Any]]:
    number = 0
    for y, row in enumerate(rows):
        width = WIDTH // len(row)
        for x, panel in enumerate(row):
            number += 1
            yield panel.to_json(number, {"x": x * width, "y": y * HEIGHT, "w": width, "h": HEIGHT})


def prometheus_rule() -> dict[str, Any]:
    """All rules as the Prometheus operator takes them."""
    groups = [
        group
        for path in sorted((HERE / "rules").glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "raylens", "labels": {"app.kubernetes.io/name": "raylens"}},
        "spec": {"groups": groups},
    }


def files() -> dict[str, str]:
    """Everything that is written, by path below this folder."""
    written = {f"dashboards/{name}.json": json.dumps(dashboard(name), indent=1) + "\n" for name in DASHBOARDS}
    rule = yaml.safe_dump(prometheus_rule(), sort_keys=False, width=120, allow_unicode=True)
    return {**written, "prometheusrule.yaml": f"# Written by build.py from rules/.\n{rule}"}


if __name__ == "__main__":
    for path, text in files().items():
        (HERE / path).write_text(text)
