"""Which image is to blame where blocks are lost; `tests/chaos` kills real workers."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from samples import job, rows, write_tars

from pipeline.errors import WorkerDiedError
from pipeline.graph import ExplanationGraph
from pipeline.jobs.isolation import isolate
from pipeline.jobs.run import prepared
from pipeline.jobs.streaming import missing
from pipeline.model import load
from pipeline.stream import parts, sources
from pipeline.stream.ledger import Ledger
from pipeline.stream.steps import Work


@pytest.mark.parametrize("deadly", [{("shard-001.tar", 3)}, {("shard-000.tar", 0), ("shard-001.tar", 5)}], ids=len)
def test_only_images_that_are_lost_alone_are_rejected(deadly: set[tuple[str, int]], tmp_path: Path) -> None:
    write_tars(tmp_path / "in", shards=2, each=6)
    spec = job(tmp_path / "in", tmp_path / "out")
    model = load(spec.model_spec())
    steps = prepared(spec, spec.graph_spec("cpu"), model, Ledger(spec.output, {}))
    found = sources.find(spec.input, {}, image=None)
    plan = list(sources.plan(found, {}, sources.Fields(), state=str(tmp_path / "state")))
    graph = ExplanationGraph(steps.graph, model=model)

    def left() -> list[Work]:
        return missing(plan, steps.ledger.survey(plan))

    def run(work: Sequence[Work], errors_allowed: int) -> None:
        lost = 0
        for item in work:
            for table in steps.decoded(item):
                if deadly & set(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True)):
                    lost += 1
                else:
                    steps.commit(graph(table))
        if lost > errors_allowed >= 0:
            raise WorkerDiedError("a worker died")

    isolate(steps, left, run)
    assert left() == []
    coverage = steps.ledger.survey(plan)
    for group in parts.groups(plan, coverage, steps.part_rows):
        steps.seal(group)
    rejects = rows(spec.output, "rejects")
    assert {(row["shard"], row["row"], row["code"]) for row in rejects} == {(*place, "crashed") for place in deadly}
    assert len(rows(spec.output)) == 12 - len(deadly)
