"""A real S3 server behind the proxy that injects faults: slightly, which is sat out, or so that the job gives up."""

import random
from pathlib import Path
from typing import Any

from chaos.faults import FaultyS3
from chaos.output import check
from chaos.scene import Outcome, Scene

from pipeline.cli import is_of_storage
from pipeline.errors import RaylensError
from pipeline.jobs.explain import explain
from pipeline.stream.s3server import S3Server, serve_s3
from pipeline.stream.storage import open_filesystem
from schemas.job import JobSpec

FAULTS: dict[str, dict[str, Any]] = {
    "errors": {"error_share": 0.15},
    "resets": {"reset_share": 0.2},
    "stalls": {"stall_share": 0.05, "stall_s": 4.0},
    "truncated": {"truncate_share": 0.2},
    "lost answers": {"lost_share": 0.25},
    "all": {"error_share": 0.08, "reset_share": 0.08, "truncate_share": 0.08, "lost_share": 0.08},
}
READ_TIMEOUT_S = 2
STORMY = ("error_share", "reset_share", "truncate_share", "lost_share")


class Bucket:
    """A bucket that holds the tars of a scene in `in`, seen through a proxy.

    Args:
        server: the real one.
        name: of the bucket.
        tars: folder that is copied there.
    """

    def __init__(self, server: S3Server, name: str, tars: Path) -> None:
        self.server = server
        self.address = f"s3://{server.bucket(name)}"
        self._filesystem, self._root = open_filesystem(self.address, server.storage_options())
        for tar in sorted(tars.glob("*.tar")):
            self._filesystem.pipe_file(f"{self._root}/in/{tar.name}", tar.read_bytes())

    def fields(self, proxy: FaultyS3, **options: Any) -> dict[str, Any]:
        """Input, and the storage of a job whose requests pass the proxy."""
        through = {"endpoint_url": proxy.endpoint, "read_timeout_s": READ_TIMEOUT_S, **options}
        return {"input": f"{self.address}/in", "storage": {**self.server.storage_options(), **through}}

    def fetched(self, folder: Path) -> Path:
        """The output `out`, copied to the disk without the proxy."""
        self._filesystem.get(f"{self._root}/out", str(folder), recursive=True)
        return folder


def stormy(scene: Scene, seed: int) -> Outcome:
    """A seeded kind of fault; every third time so many that the job fails, and goes on when the storm is over."""
    generator = random.Random(seed)
    server = scene.opened("s3", lambda: serve_s3(scene.folder / "s3"))
    bucket = Bucket(server, f"storm-{seed}", scene.tars)
    breaks = seed % 3 == 0
    shares = {generator.choice(STORMY): 0.6} if breaks else FAULTS[generator.choice(sorted(FAULTS))]
    failed = 0
    with FaultyS3(upstream=server.endpoint, seed=seed, **shares) as proxy:
        spec = scene.job(f"{bucket.address}/out", **bucket.fields(proxy, **({"max_attempts": 2} if breaks else {})))
        if breaks:
            failed = _gives_up(spec)
            for name in STORMY:
                setattr(proxy, name, 0.0)
        explain(spec)
        faults = sum(proxy.injected.values())
    assert faults, "no request was hit"
    check(bucket.fetched(scene.folder / f"storm-{seed}"), scene.undisturbed, elsewhere=True)
    return Outcome(faults, resumed=failed)


def _gives_up(spec: JobSpec) -> int:
    """1 if the job fails, with an error that the command can explain; 0 if it gets through."""
    try:
        explain(spec)
    except Exception as error:
        if isinstance(error, RaylensError) or is_of_storage(error):
            return 1
        raise
    return 0
