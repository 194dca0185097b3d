"""`run.json`: what a finished job did, written last."""

from typing import Any, Literal

from pydantic import NonNegativeInt

from schemas.graph import Frozen


class RunRecord(Frozen):
    """Counts and digests of a finished job. Images = explained + rejected, counted from the files."""

    raylens: str
    schema_version: int
    status: Literal["complete", "too_many_rejects"]
    job_digest: str
    graph_digest: str
    images: NonNegativeInt
    explained: NonNegativeInt
    rejected: NonNegativeInt
    rejects_by_code: dict[str, int]
    rows: NonNegativeInt
    labelled: NonNegativeInt
    correct: NonNegativeInt
    shards: NonNegativeInt
    parts: NonNegativeInt
    started: str
    finished: str
    seconds: float
    versions: dict[str, str]
    model: dict[str, Any]
    spec: dict[str, Any]
