"""The main job on 500 real photographs with real weights, through a real S3 server."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from samples import encoded, mobilenet

from pipeline.errors import GoldenError, RejectLimitError
from pipeline.jobs.explain import explain
from pipeline.stream.ledger import Ledger
from pipeline.stream.storage import open_filesystem
from schemas.job import JobSpec

pytestmark = pytest.mark.data
SHARDS = 5
REFERENCE_IMAGES = 12


def photographs(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "imagenet_sample").glob("*.JPEG"))


def upload(filesystem: Any, root: str, samples: list[tuple[str, bytes, str]]) -> None:
    """Writes (key, image, WordNet number) as tars."""
    each = -(-len(samples) // SHARDS)
    for shard in range(SHARDS):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for key, image, label in samples[shard * each : (shard + 1) * each]:
                for extension, content in (("jpg", image), ("txt", label.encode())):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        filesystem.pipe_file(f"{root}/photographs/{shard}.tar", buffer.getvalue())


def named(path: Path) -> tuple[str, bytes, str]:
    return path.stem.replace(".", "_"), path.read_bytes(), path.name.split("_")[0]


@pytest.fixture(scope="module")
def bucket(s3: Any, shared_data: Path) -> str:
    name: str = s3.bucket("photographs")
    filesystem, root = open_filesystem(f"s3://{name}", s3.storage_options())
    upload(filesystem, root, [named(path) for path in photographs(shared_data)])
    return name


def read(output: str, storage: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    ledger = Ledger(output, storage)
    found = []
    for path in sorted(ledger.filesystem.glob(ledger.path(kind, "*.parquet"))):
        found += pq.read_table(io.BytesIO(ledger.filesystem.cat_file(path))).to_pylist()
    return found


def slow_gradcam(shared_data: Path, path: Path) -> tuple[int, np.ndarray[Any, Any]]:
    """Prediction and Grad-CAM in float64 with timm's own transform, by the paper's equations 1 and 2."""
    model = timm.create_model(
        "mobilenetv2_100",
        pad_type="same",
        pretrained_cfg_overlay={"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"},
    ).eval()
    model.load_state_dict(load_file(shared_data / "mobilenet_v2" / "model.safetensors"))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    from PIL import ImageOps

    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    x = transform(image).double()[None]
    features = model.double().forward_features(x).detach().requires_grad_()
    logits = model.forward_head(features)[0]
    prediction = int(logits.argmax())
    (gradient,) = torch.autograd.grad(logits[prediction], features)
    heatmap = torch.zeros(features.shape[2:], dtype=torch.float64)
    for k in range(features.shape[1]):
        heatmap += gradient[0, k].mean() * features[0, k].detach()
    return prediction, heatmap.clamp_min(0).numpy()


@pytest.mark.ray
def test_500_photographs_from_s3(bucket: str, s3: Any, shared_data: Path, cluster: Any) -> None:
    storage = s3.storage_options()
    output = f"s3://{bucket}/explained"
    record = explain(
        JobSpec(
            input=f"s3://{bucket}/photographs/*.tar",
            output=output,
            heatmap_dtype="float32",
            storage=storage,
            progress="none",
            **mobilenet(shared_data),
        )
    )
    assert (record.images, record.explained, record.rejected) == (500, 500, 0)
    assert record.correct / record.labelled >= 0.88
    rows = {row["sample_id"].partition("/")[2]: row for row in read(output, storage, "explanations")}
    assert len(rows) == 500
    files = photographs(shared_data)
    for path in files[:: len(files) // REFERENCE_IMAGES]:
        prediction, reference = slow_gradcam(shared_data, path)
        row = rows[named(path)[0]]
        heatmap = np.array(row["heatmap"]).reshape(reference.shape)
        assert row["prediction"] == prediction
        assert np.abs(heatmap - reference).max() <= 1e-4 * np.abs(reference).max(), path.name


def broken_files(good: bytes) -> list[tuple[str, bytes, str]]:
    """Sixty files that are no photographs, with the code each must be rejected with."""
    png = encoded(Image.new("RGB", (300, 300), "red"), "PNG")
    large = encoded(Image.new("L", (9000, 2000)), "PNG")
    kinds = [
        (b"", "empty"),
        (b"<html>not found</html>", "not_an_image"),
        (good[: len(good) // 3], "truncated"),
        (good[:100], "truncated"),
        (png[: len(png) // 2], "truncated"),
        (large, "too_large"),
    ]
    return [(f"broken-{i:02d}", *kinds[i % len(kinds)]) for i in range(60)]


def test_sixty_broken_files_among_the_photographs(s3: Any, shared_data: Path) -> None:
    name = s3.bucket("broken")
    storage = s3.storage_options()
    filesystem, root = open_filesystem(f"s3://{name}", storage)
    good = [named(path) for path in photographs(shared_data)]
    broken = broken_files(good[0][1])
    mixed = [
        item
        for i, photograph in enumerate(good)
        for item in ([photograph, _unlabelled(broken[i // 8])] if i % 8 == 0 and i // 8 < 60 else [photograph])
    ]
    upload(filesystem, root, mixed)
    spec = JobSpec(
        input=f"s3://{name}/photographs",
        output=f"s3://{name}/explained",
        storage=storage,
        runner="local",
        progress="none",
        max_pixels=16_000_000,
        max_reject_share=0.05,
        **mobilenet(shared_data),
    )
    with pytest.raises(RejectLimitError, match="60 of 560 images"):
        explain(spec)
    record = explain(spec.model_copy(update={"max_reject_share": 0.2}))
    assert (record.images, record.explained, record.rejected) == (560, 500, 60)
    found = {row["sample_id"].partition("/")[2]: row["code"] for row in read(spec.output, storage, "rejects")}
    assert found == {key: code for key, _, code in broken}


def _unlabelled(item: tuple[str, bytes, str]) -> tuple[str, bytes, str]:
    return item[0], item[1], ""


@pytest.mark.parametrize(
    "wrong",
    [{"model_args": {}}, {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}],
    ids=["padding mode", "normalisation"],
)
def test_the_golden_set_notices_what_loads_without_a_word(
    shared_data: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    """Both cases of mobilenet_v2/README.md: the weights load and 9 to 19 points are lost."""
    lines = [f"{path},{path.name.split('_')[0]}" for path in photographs(shared_data)[::2]]
    (tmp_path / "golden.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    (tmp_path / "one.jpg").write_bytes(photographs(shared_data)[0].read_bytes())
    fields: dict[str, Any] = {
        "input": str(tmp_path / "one.jpg"),
        "runner": "local",
        "progress": "none",
        "golden": str(tmp_path / "golden.csv"),
        "golden_top1": 0.87,
    }
    right = JobSpec(output=str(tmp_path / "right"), **fields, **mobilenet(shared_data))
    assert explain(right).images == 1
    with pytest.raises(GoldenError, match="padding mode"):
        explain(JobSpec(output=str(tmp_path / "wrong"), **fields, **mobilenet(shared_data, **wrong)))
