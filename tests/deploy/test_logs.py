"""Logs for machines: JSON lines with run, shard and request, from every process of a job and from the endpoint."""

import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import job, jpeg, write_tar, write_tars
from serving import spec, started, talk

from pipeline.cli import app, main
from pipeline.jobs.explain import explain
from serve.access import AccessLog
from serve.service import Service

Line = dict[str, Any]


def lines(text: str) -> list[Line]:
    return [json.loads(line) for line in text.splitlines()]


def by_event(found: list[Line]) -> dict[str, list[Line]]:
    events = defaultdict(list)
    for line in found:
        events[line["event"]].append(line)
    return events


def test_every_line_of_a_job_has_its_run_and_steps_have_their_shard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tars(tmp_path / "in", shards=2, each=6)
    write_tar(tmp_path / "in" / "z.tar", [("a", {"jpg": jpeg(0)}), ("b", {"jpg": b""})])
    explain(job(tmp_path / "in", tmp_path / "out", progress="json", max_reject_share=1.0))
    found = lines(capsys.readouterr().err)
    [run] = {line["run"] for line in found}
    assert len(run) == 12
    assert {line["pid"] for line in found} == {os.getpid()}
    assert all(line["timestamp"].endswith("Z") and line["level"] == "info" for line in found)
    events = by_event(found)
    shards = {"shard-000.tar", "shard-001.tar", "z.tar"}
    assert {Path(line["shard"]).name for line in events["reading"]} == shards
    committed = {Path(line["shard"]).name: line for line in events["committed"]}
    assert {name: line["images"] for name, line in committed.items()} == dict(
        zip(sorted(shards), (6, 6, 2), strict=True)
    )
    assert (committed["z.tar"]["first"], committed["z.tar"]["rejects"]) == (0, {"empty": 1})
    [sealed] = events["sealed"]
    assert ({Path(name).name for name in sealed["shards"]}, sealed["explained"], sealed["rejected"]) == (shards, 13, 1)
    assert {"model", "input", "sealing", "done"} <= events.keys()
    explain(job(tmp_path / "in", tmp_path / "out", progress="json", max_reject_share=1.0))
    [again] = lines(capsys.readouterr().err)
    assert again["event"] == "nothing to do"
    assert again["run"] != run


def test_text_for_people_is_what_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tars(tmp_path / "in", shards=1, each=2)
    explain(job(tmp_path / "in", tmp_path / "out", progress="text"))
    text = capsys.readouterr().err
    assert "done" in text
    assert not {"run=", "pid=", "committed", "reading"} & set(text.replace("=", "= ").split())


def test_the_variable_switches_the_command_to_json_errors_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tars(tmp_path / "in", shards=1, each=2)
    given = job(tmp_path / "in", tmp_path / "out").model_dump(mode="json", exclude_unset=True)
    (tmp_path / "job.yaml").write_text(json.dumps(given | {"progress": "text"}))
    monkeypatch.setenv("RAYLENS_LOG", "json")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def command(*more: str) -> list[Line]:
        monkeypatch.setattr(sys, "argv", ["raylens", "explain", "--config", str(tmp_path / "job.yaml"), *more])
        with pytest.raises(SystemExit):
            main()
        return lines(capsys.readouterr().err)

    assert {"committed", "done"} <= by_event(command()).keys()
    [wrong] = by_event(command("--method", "nothing"))["failed"]
    assert (wrong["error"], wrong["level"], wrong["exit_code"]) == ("OutputError", "error", 6)
    assert "made by another job" in wrong["message"]


@pytest.mark.ray
def test_workers_tell_their_shards_in_logs_of_their_own(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each process writes to its own stderr, which Ray keeps for workers in its session's folder."""
    write_tars(tmp_path / "in", shards=2, each=3)
    explain(job(tmp_path / "in", tmp_path / "out", runner="ray", workers=1, progress="json"))
    [driver] = [line for line in capfd.readouterr().err.splitlines() if '"event": "done"' in line]
    found = list(of_workers(Path(cluster.address_info["session_dir"]) / "logs", json.loads(driver)["run"]))
    read = {Path(line["shard"]).name for line in found if line["event"] == "reading"}
    assert read == {"shard-000.tar", "shard-001.tar"}
    assert sum(line["images"] for line in found if line["event"] == "committed") == 6
    assert os.getpid() not in {line["pid"] for line in found}


def of_workers(logs: Path, run: str) -> Iterator[Line]:
    """Lines of a run in the logs of Ray's workers."""
    for path in logs.glob("worker-*.err"):
        for text in path.read_text(errors="replace").splitlines():
            if text.startswith("{") and run in text:
                yield json.loads(text)


def asked(service: Service, count: int = 1, **query: Any) -> list[int]:
    async def run(client: Any) -> list[int]:
        return [
            (
                await client.post("/explain", params=query, content=jpeg(0), headers={"X-Request-Id": f"request-{n}"})
            ).status_code
            for n in range(count)
        ]

    found: list[int] = talk(service, run)
    return found


def test_the_access_log_has_request_model_method_status_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    service = started(access_log=1.0)
    assert asked(service, method="eigencam") == [200]
    assert asked(service, method="nothing") == [422]
    service.close()
    answered, refused = lines(capsys.readouterr().err)
    assert (answered["request"], answered["model"], answered["method"]) == ("request-0", "tiny", "eigencam")
    assert (answered["route"], answered["status"], answered["key"]) == ("/explain", 200, None)
    assert answered["ms"] > 0
    assert refused["status"] == 422


def test_by_default_requests_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    service = started()
    assert asked(service) == [200]
    service.close()
    assert capsys.readouterr().err == ""
    assert spec().access_log == 0


def test_a_share_is_told_and_every_failure(capsys: pytest.CaptureFixture[str]) -> None:
    log = AccessLog(0.25)
    for n in range(1000):
        log.end(log.begin(), request=f"request-{n}", is_failure=n % 10 == 0)
    told = {line["request"] for line in lines(capsys.readouterr().err)}
    assert {f"request-{n}" for n in range(0, 1000, 10)} <= told
    assert 0.2 < (len(told) - 100) / 900 < 0.3


def test_what_failed_is_told_with_its_request_and_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    service = started(access_log=1.0)
    service.question = None  # type: ignore[assignment, method-assign]  # our own fault, whatever it is
    assert asked(service) == [500]
    service.close()
    failed, request = lines(capsys.readouterr().err)
    assert (failed["event"], failed["request"], failed["level"]) == ("failed", "request-0", "error")
    assert "Traceback" in failed["exception"]
    assert (request["event"], request["status"]) == ("request", 500)


def test_the_command_has_the_variable() -> None:
    from typer.testing import CliRunner

    assert "RAYLENS_LOG" in CliRunner().invoke(app, ["explain", "--help"], env={"COLUMNS": "200"}).stdout
