"""The output is for everybody: plain pyarrow, pandas, Polars and DuckDB read the same values, and the shape."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from samples import job, jpeg, write_tar

from pipeline.jobs.explain import explain
from schemas.explanations import SCHEMA_VERSION, explanations_schema

DTYPES = ("float16", "float32")
SHAPE = (4, 4)
SCALARS = (
    "sample_id", "uri", "shard", "row", "content_digest", "width", "height", "label", "prediction", "prediction_name",
    "score", "margin", "entropy", "rank", "target", "target_score", "method", "layer", "heatmap_scale",
    "heatmap_max", "heatmap_min", "mass_centre", "gini", "centroid_x", "centroid_y", "self_check",
)  # fmt: skip
LISTS = ("top5", "top5_scores", "box", "embedding")

READ_WITH_NOTHING_ELSE = """
import json, sys
import pyarrow.parquet as pq
table = pq.read_table(sys.argv[1])
column = table.column("heatmap")
maps = column.combine_chunks().to_numpy_ndarray()
foreign = sorted({name.partition(".")[0] for name in sys.modules} & {"pipeline", "schemas", "torch", "ray"})
metadata = {name.decode(): value.decode() for name, value in table.schema.metadata.items() if name != b"ARROW:schema"}
print(json.dumps({
    "type": str(column.type), "shape": maps.shape, "dtype": str(maps.dtype), "maps": maps.astype(float).tolist(),
    "permutation": column.type.permutation, "rows": table.drop_columns(["heatmap"]).to_pylist(), "foreign": foreign,
    "metadata": metadata,
}))
"""


@pytest.fixture(scope="module", params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def file(dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of nine rows, three images without a label, and an embedding."""
    root = tmp_path_factory.mktemp(dtype)
    samples = [(f"{i}", {"jpg": jpeg(i), **({"cls": b"1"} if i % 3 else {})}) for i in range(9)]
    write_tar(root / "a.tar", samples)
    explain(job(root / "a.tar", root / "out", heatmap_dtype=dtype, embedding=True))
    (path,) = (root / "out" / "explanations").glob("*.parquet")
    return path


@pytest.fixture(scope="module")
def plain(file: Path) -> dict[str, Any]:
    """What a process says that knows pyarrow alone."""
    command = [sys.executable, "-I", "-c", READ_WITH_NOTHING_ELSE, str(file)]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


def same(found: list[Any], expected: list[Any], name: str) -> None:
    """Equal values, where None, NaN and NA are all nothing."""
    assert [None if pd.isna(value) else value for value in found] == expected, name


def test_plain_pyarrow_knows_the_shape(plain: dict[str, Any], dtype: str) -> None:
    assert plain["foreign"] == []
    assert plain["shape"] == [9, *SHAPE]
    assert plain["dtype"] == dtype
    assert plain["type"].startswith("extension<arrow.fixed_shape_tensor[value_type=")
    assert plain["permutation"] in (None, [0, 1])
    peaks = np.abs(np.array(plain["maps"])).max(axis=(1, 2))
    assert (peaks > 0).sum() >= 4


def test_the_statistics_are_those_of_the_stored_maps(plain: dict[str, Any], dtype: str) -> None:
    """map = heatmap * heatmap_scale."""
    tolerance = 1e-3 if dtype == "float16" else 1e-6
    for values, stored in zip(plain["rows"], np.array(plain["maps"]), strict=True):
        heatmap = stored * values["heatmap_scale"]
        assert heatmap.max() == pytest.approx(values["heatmap_max"], rel=tolerance)
        y, x = np.mgrid[0:4, 0:4]
        mass = heatmap.clip(min=0)
        if mass.sum() == 0:
            assert (values["heatmap_max"], values["centroid_x"], values["box"]) == (0, None, None)
            continue
        assert ((x + 0.5) / 4 * mass).sum() / mass.sum() == pytest.approx(values["centroid_x"], rel=10 * tolerance)
        assert ((y + 0.5) / 4 * mass).sum() / mass.sum() == pytest.approx(values["centroid_y"], rel=10 * tolerance)


def test_metadata_of_the_file(plain: dict[str, Any], file: Path) -> None:
    run = json.loads((file.parents[1] / "run.json").read_text())
    metadata = plain["metadata"]
    assert metadata["graph_digest"] == run["graph_digest"]
    assert metadata["job_digest"] == run["job_digest"]
    assert metadata["schema_version"] == str(SCHEMA_VERSION) == str(run["schema_version"])
    assert json.loads(metadata["versions"])["torch"] == run["versions"]["torch"]
    assert json.loads(metadata["preprocessing"])["size"] == [32, 32]


def test_the_schema_is_the_declared_one(file: Path, dtype: str) -> None:
    found = pq.read_schema(file)
    width = found.field("embedding").type.list_size
    declared = explanations_schema(SHAPE, dtype, width)
    assert found.equals(declared)
    assert set(found.names) == {*SCALARS, *LISTS, "heatmap"}
    assert found.field("gini").metadata == declared.field("gini").metadata
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"


def test_pandas(file: Path, plain: dict[str, Any], dtype: str) -> None:
    frame = pd.read_parquet(file)
    for name in SCALARS:
        same(frame[name].tolist(), [row[name] for row in plain["rows"]], name)
    for name in LISTS:
        found = [None if value is None else list(value) for value in frame[name]]
        assert found == [row[name] for row in plain["rows"]], name
    maps = np.stack(frame["heatmap"].to_list())
    assert maps.dtype == dtype
    assert maps.reshape(-1, *SHAPE).tolist() == plain["maps"]


def test_polars(file: Path, plain: dict[str, Any], dtype: str) -> None:
    frame = pl.read_parquet(file)
    for name in (*SCALARS, *LISTS):
        assert frame[name].to_list() == [row[name] for row in plain["rows"]], name
    maps = frame["heatmap"].to_numpy()
    assert maps.dtype == dtype
    assert maps.reshape(-1, *SHAPE).tolist() == plain["maps"]


def test_polars_lazily(file: Path, plain: dict[str, Any]) -> None:
    found = pl.scan_parquet(file).filter(pl.col("label").is_null()).select("sample_id", "heatmap").collect()
    wanted = [index for index, row in enumerate(plain["rows"]) if row["label"] is None]
    assert found["heatmap"].to_numpy().reshape(-1, *SHAPE).tolist() == [plain["maps"][index] for index in wanted]


def test_duckdb(file: Path, plain: dict[str, Any]) -> None:
    with duckdb.connect() as connection:
        for name in (*SCALARS, *LISTS):
            # check is a reserved word of SQL
            found = connection.execute(f"SELECT \"{name}\" FROM '{file}' ORDER BY row").fetchall()
            values = [list(value) if isinstance(value, tuple) else value for (value,) in found]
            assert values == [row[name] for row in plain["rows"]], name
        maps = connection.execute(f"SELECT heatmap FROM '{file}' ORDER BY row").fetchall()
        assert np.array([value for (value,) in maps]).reshape(-1, *SHAPE).tolist() == plain["maps"]
        (peak,) = connection.execute(f"SELECT max(list_max(heatmap)) FROM '{file}'").fetchall()
        assert peak[0] == np.max(plain["maps"])
