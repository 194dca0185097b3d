"""Small inputs for tests: images of every kind, tars, and a job that explains them in seconds."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from schemas.graph import ModelSpec
from schemas.job import JobSpec

SIZE = 32


def array(seed: int, height: int = 40, width: int = 48) -> np.ndarray[Any, Any]:
    """(H, W, 3) uint8: a smooth gradient with a bright blob, different for every seed."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    y, x = generator.uniform(0.2, 0.8, 2) * (height, width)
    blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (0.02 * height * width))
    base = generator.uniform(30, 120, 3) + rows[..., None] * generator.uniform(-1, 1, 3)
    return (base + 120 * blob[..., None] * generator.uniform(0, 1, 3)).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The image as bytes of a format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed: int, **size: int) -> bytes:
    """A JPEG of `array`."""
    return encoded(Image.fromarray(array(seed, **size)), quality=90)


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> Path:
    """A WebDataset tar of (key, {extension: bytes})."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, fields in samples:
            for extension, content in fields.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_tars(folder: Path, *, shards: int = 3, each: int = 20) -> list[Path]:
    """Tars of labelled JPEGs; keys are numbers over all shards."""
    return [
        write_tar(
            folder / f"shard-{shard:03d}.tar",
            [
                (f"{shard * each + i:05d}", {"jpg": jpeg(shard * each + i), "cls": str(i % 4).encode()})
                for i in range(each)
            ],
        )
        for shard in range(shards)
    ]


def save_sure_network(path: Path, images: int) -> None:
    """A random network that is sure of the first `jpeg`s, each its class: the head sees features without a mean."""
    import torch

    from pipeline.bias import tinycnn

    torch.manual_seed(0)
    model = tinycnn.TinyCNN(4).eval()
    pixels = torch.from_numpy(np.stack([array(seed) for seed in range(images)]))
    with torch.no_grad():
        features = model.pool(model.features(tinycnn.preprocess(pixels))).flatten(1)
        deviation, mean = torch.std_mean(features, dim=0)
        model.head.weight.copy_(8 * torch.randn(4, features.shape[1]) / (deviation + 1e-6))
        model.head.bias.copy_(-model.head.weight @ mean)
    tinycnn.save(model, path)


def job(source: Any, output: Any, **fields: Any) -> JobSpec:
    """A job on a tiny network with random weights."""
    defaults: dict[str, Any] = {
        "input": [str(item) for item in source] if isinstance(source, list) else str(source),
        "output": str(output),
        "model": "module:pipeline.bias.tinycnn:tiny_cnn",
        "weights": "random",
        "size": SIZE,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "batch_size": 4,
        "heatmap_dtype": "float32",
        "runner": "local",
        "progress": "none",
        "max_reject_share": 0.0,
    }
    return JobSpec(**{**defaults, **fields})


def rows(output: Any, kind: str = "explanations") -> list[dict[str, Any]]:
    """All rows of a run's files, ordered by shard and row."""
    folder = Path(str(output)) / kind
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))] if folder.exists() else []
    found = [row for table in tables for row in table.to_pylist()]
    return sorted(found, key=lambda row: (row["shard"], row["row"], row.get("rank") or 0))


def state(output: Any, name: str) -> Any:
    """A JSON file of an output."""
    return json.loads((Path(str(output)) / name).read_text())


def mobilenet(shared_data: Path, **changes: Any) -> dict[str, Any]:
    """The job's fields that describe the real network; see mobilenet_v2/README.md."""
    folder = shared_data / "mobilenet_v2"
    fields = {
        "model": "timm:mobilenetv2_100",
        "model_args": {"pad_type": "same"},
        "weights": str(folder / "model.safetensors"),
        "labels": str(folder / "labels.txt"),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
    }
    return {**fields, **changes}


def mobilenet_spec(shared_data: Path) -> ModelSpec:
    """The real network without a job."""
    return JobSpec(input=("-",), output="-", **mobilenet(shared_data)).model_spec()
