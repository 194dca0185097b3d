"""Jobs that go on from a finished run take what decides the result from it, and nothing of how it was run."""

from pathlib import Path

from samples import job, write_tars

from pipeline.jobs.again import HOW, UNALIKE, same_job
from pipeline.jobs.explain import explain
from pipeline.stream.finished import open_run
from schemas.bias import BiasSpec
from schemas.job import IDENTITY


def test_a_job_on_a_finished_run_has_its_own_name_at_the_gateway(tmp_path: Path) -> None:
    """Its metrics would otherwise replace those of the run that it looks at."""
    given = job(write_tars(tmp_path / "in", shards=1, each=4), tmp_path / "out", metrics_instance="explain", workers=3)
    explain(given)
    found = open_run(given.output)
    spec = BiasSpec(**given.model_dump() | {"metrics_instance": "bias", "workers": 1, "method": "eigencam"})
    again = same_job(spec, found, str(tmp_path / "again"), metrics_pushgateway="gateway:9091")
    assert (again.metrics_instance, again.metrics_pushgateway, again.workers) == ("bias", "gateway:9091", 1)
    assert again.identity() == given.identity() | {name: UNALIKE[name] for name in IDENTITY & UNALIKE.keys()}
    assert not IDENTITY & set(HOW)
