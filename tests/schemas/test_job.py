"""The job specification: what is refused, what decides a job's identity, and what is saved."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.job import IDENTITY, SECRETS, JobSpec

GIVEN: dict[str, Any] = {"input": "/data/images", "output": "/data/out", "model": "timm:resnet18"}

CHANGED: dict[str, Any] = {
    "input": "/data/other",
    "format": "folder",
    "image_field": "img",
    "label_field": "fine",
    "id_field": "key",
    "attributes": ("light",),
    "model": "timm:resnet50",
    "model_args": {"num_classes": 10},
    "weights": "random",
    "weights_sha256": "ab" * 32,
    "labels": "/data/labels.txt",
    "layer": "layer3",
    "size": 256,
    "resize": 300,
    "resize_mode": "pad",
    "interpolation": "bicubic",
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "method": "eigencam",
    "method_args": {"steps": 10},
    "target": "label",
    "device": "cpu",
    "batch_size": 3,
    "heatmap_dtype": "float32",
    "embedding": True,
    "max_pixels": 1000,
    "scaled_decoding": False,
    "limit": 5,
    "seed": 1,
    "output": "/data/elsewhere",
    "max_reject_share": 0.5,
    "overwrite": True,
    "golden": "/data/golden.csv",
    "golden_top1": 0.5,
    "runner": "local",
    "ray_address": "ray://head:10001",
    "workers": 3,
    "max_workers": 9,
    "gpus_per_worker": 0.5,
    "cache": "/data/graphs",
    "storage": {"anon": True},
    "progress": "json",
    "metrics_port": 9000,
    "metrics_pushgateway": "localhost:9091",
    "metrics_file": "/tmp/metrics.prom",
    "metrics_instance": "nightly",
    "interval_h": 24.0,
}

TOGETHER = ("runtime", "precision", "block_images")
"""Fields that need another one."""


def spec(**fields: Any) -> JobSpec:
    return JobSpec(**{**GIVEN, **fields})


@pytest.mark.parametrize("name", [name for name in JobSpec.model_fields if name not in TOGETHER])
def test_the_digest_depends_on_what_is_written_and_on_nothing_else(name: str) -> None:
    changed = spec(**{name: CHANGED[name]})
    assert getattr(changed, name) != getattr(spec(), name)
    assert (changed.digest() != spec().digest()) == (name in IDENTITY)
    assert (changed.identity() != spec().identity()) == (name in IDENTITY)


def test_the_digest_depends_on_the_precision() -> None:
    digests = {spec(device="cpu", precision=kind).digest() for kind in ("auto", "float32", "bfloat16", "float16")}
    assert len(digests) == 4


def test_how_a_job_runs_is_no_part_of_its_identity() -> None:
    assert not IDENTITY & {"output", "runner", "workers", "storage", "progress", "max_reject_share", "overwrite"}
    assert spec(batch_size=16, block_images=64).digest() == spec(batch_size=16).digest()
    assert {"input", "model", "method", "target", "seed", "batch_size", "max_pixels", "limit"} <= IDENTITY


def test_the_digest_is_stable() -> None:
    """A change of this number makes every job that was begun before impossible to resume: was it meant?"""
    assert spec().digest() == "9125f5ae9d2c27bb"
    assert JobSpec(**dict(reversed(GIVEN.items()))).digest() == spec().digest()
    assert JobSpec.model_validate_json(spec(size=64).model_dump_json()).digest() == spec(size=64).digest()


def test_order_and_number_of_inputs_matter() -> None:
    digests = {spec(input=given).digest() for given in (["/a", "/b"], ["/b", "/a"], ["/a"], "/b")}
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nosuchfield": 1}, "nosuchfield"),
        ({"input": []}, "input"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_reject_share": 1.5}, "max_reject_share"),
        ({"golden_top1": -0.1}, "golden_top1"),
        ({"format": "zip"}, "'auto', 'folder', 'webdataset', 'parquet' or 'manifest'"),
        ({"heatmap_dtype": "float64"}, "heatmap_dtype"),
        ({"size": 0}, "size"),
        ({"size": (1, 2, 3)}, "size"),
        ({"workers": 4, "max_workers": 2}, "max_workers 2 is less than workers 4"),
        ({"mean": (0.5,) * 3, "std": (0.5,)}, "mean has 3 and std 1 values"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be positive"),
        ({"precision": "float16"}, "precision float16 needs an explicit device"),
        ({"limit": 0}, "limit"),
        ({"gpus_per_worker": 0}, "gpus_per_worker"),
        ({"block_images": 0}, "block_images"),
        ({"block_images": 32}, "block_images 32 needs a batch_size that divides it, found None"),
        ({"block_images": 8, "batch_size": 16}, "block_images 8 needs a batch_size that divides it, found 16"),
        ({"target": None}, "target"),
        ({"target": True}, "target"),
    ],
)
def test_wrong_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**fields)


@pytest.mark.parametrize("name", ["input", "output", "model"])
def test_what_must_be_given(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        JobSpec(**{field: value for field, value in GIVEN.items() if field != name})


def test_a_specification_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().batch_size = 3


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"output": "out", "weights": "w.safetensors", "labels": "l.txt", "golden": "g.csv"}
    found = spec(input=["images", "s3://bucket/x", "/abs", "~/home", "tars/*.tar"], **names)
    assert found.input == (
        f"{tmp_path}/images", "s3://bucket/x", "/abs", str(Path("~/home").expanduser()), f"{tmp_path}/tars/*.tar",
    )  # fmt: skip
    assert {name: getattr(found, name) for name in names} == {n: f"{tmp_path}/{v}" for n, v in names.items()}
    assert spec(input="images").digest() == spec(input=f"{tmp_path}/images").digest()


@pytest.mark.parametrize("weights", ["pretrained", "random", None, "s3://bucket/w.safetensors"])
def test_weights_that_are_no_path_stay(weights: str | None) -> None:
    assert spec(weights=weights).weights == weights


@pytest.mark.parametrize(("given", "found"), [(224, (224, 224)), ((128, 256), (128, 256)), ([64, 32], (64, 32))])
def test_one_number_is_a_square(given: Any, found: tuple[int, int]) -> None:
    assert spec(size=given).size == found
    assert spec(size=given).model_spec().size == found


def test_a_number_is_a_target() -> None:
    assert spec(target=7).target == "7"
    assert spec(target=7).digest() == spec(target="7").digest()


def test_credentials_are_not_saved() -> None:
    storage = dict.fromkeys(SECRETS, "hidden") | {"endpoint_url": "http://x", "anon": False}
    saved = spec(storage=storage)
    assert "hidden" not in str(saved.public())
    assert saved.public()["storage"]["endpoint_url"] == "http://x"
    assert "storage" not in saved.identity()
    assert saved.storage["key"] == "hidden"


@pytest.mark.parametrize(
    "storage",
    [
        {"client_kwargs": {"aws_secret_access_key": "hidden"}},
        {"aws_secret_access_key": "hidden"},
        {"aws_session_token": "hidden"},
        {"account_key": "hidden"},
        {"sas_token": "hidden"},
        {"connection_string": "AccountKey=hidden"},
        {"s3": {"key": "a", "secret": "hidden"}},
    ],
)
def test_credentials_of_other_storage_and_deeper_ones_are_not_saved(storage: dict[str, Any]) -> None:
    assert "hidden" not in str(spec(storage=storage).public())


def test_what_is_saved_builds_the_same_job() -> None:
    made = spec(size=64, mean=(0.5,) * 3, std=(0.5,) * 3, model_args={"a": [1, None, "x"]}, limit=3)
    assert JobSpec(**made.public()) == made


def test_every_field_of_the_model_and_the_graph_is_passed_on() -> None:
    fields = {name: value for name, value in CHANGED.items() if name in IDENTITY}
    graph = spec(**fields, precision="float32").graph_spec("cpu")
    renamed = {"source": "model", "arguments": "model_args"}
    for part in (graph.model, graph):
        for name in type(part).model_fields:
            if name not in ("model", "runtime") or part is graph.model:
                expected = getattr(spec(**fields, precision="float32"), renamed.get(name, name))
                assert getattr(part, name) == expected, name


@pytest.mark.parametrize(("device", "precision", "batch"), [("cpu", "float32", 16), ("cuda", "bfloat16", 128)])
def test_defaults_of_a_device(device: Any, precision: str, batch: int) -> None:
    graph = spec().graph_spec(device)
    assert (graph.device, graph.precision, graph.batch_size) == (device, precision, batch)


def test_every_field_is_described() -> None:
    assert [name for name, info in JobSpec.model_fields.items() if not info.description] == []
