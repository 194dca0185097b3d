"""An input as its readers see it, without a job: shards and samples."""

from pathlib import Path
from typing import Any, Literal

from pipeline.stream import sources
from pipeline.stream.shards import Format, Sample, Shard


def shards(
    addresses: Any,
    state: Path,
    storage: dict[str, Any] | None = None,
    *,
    forced: Format | Literal["auto"] = "auto",
    **fields: str | None,
) -> list[Shard]:
    """The plan of an input; slices of listings go below `state`."""
    given = tuple(str(item) for item in addresses) if isinstance(addresses, list | tuple) else (str(addresses),)
    found = sources.find(given, storage or {}, forced=forced, image=fields.get("image"))
    return list(sources.plan(found, storage or {}, sources.Fields(**fields), state=str(state)))


def samples(addresses: Any, state: Path, storage: dict[str, Any] | None = None, **options: Any) -> list[Sample]:
    """Every sample of an input, in order."""
    plan = shards(addresses, state, storage, **options)
    return [sample for shard in plan for sample in sources.read(shard, storage or {})]


def tar_samples(path: Path, label_field: str | None = None) -> list[Sample]:
    """Every sample of one tar, good and bad."""
    options = {"label_field": label_field}
    return list(sources.read(Shard(0, path.name, str(path), "webdataset", options=options), {}))


def codes(found: list[Sample]) -> list[str | None]:
    """The error code of each sample, None for an image."""
    return [sample.error.code if sample.error else None for sample in found]
