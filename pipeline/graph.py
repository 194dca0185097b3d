"""The explanation graph: uint8 images in, predictions and heatmaps out. No Ray, no I/O after loading."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline import attribution, records, target
from pipeline.attribution import Method
from pipeline.heatmap import statistics
from pipeline.model import LoadedModel, load
from pipeline.runtime import onnx_file
from pipeline.runtime.cache import obtain
from pipeline.runtime.session import OnnxGraph
from pipeline.runtime.torch_graph import Answer, TorchGraph, head
from schemas.explanations import SCHEMA_VERSION, TOP
from schemas.graph import GraphSpec

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


FUNCTION = ("method", "method_args", "runtime", "precision", "seed")
"""Fields of the specification that decide a map, beside the model and the class that is asked for."""


class Columns(TypedDict):
    """What the graph says of N images with k targets each; every array is on the CPU.

    Attributes:
        prediction: (N,) class index.
        top: (N, min(5, K)) class indices, best first.
        top_scores: their softmax probabilities.
        entropy: (N,) nat.
        targets: (N, k) class indices.
        target_scores: (N, k) softmax probabilities.
        heatmaps: (N, k, h, w) float32, raw and signed.
        statistics: see `pipeline.heatmap.statistics`; (N, k) or (N, k, 4).
        check: (N, k) or None.
        embedding: (N, D) or None.
        finite: (N,) whether every logit and every cell is a number.
    """

    prediction: Ints
    top: Ints
    top_scores: Floats
    entropy: Floats
    targets: Ints
    target_scores: Floats
    heatmaps: Floats
    statistics: dict[str, Floats]
    check: Floats | None
    embedding: Floats | None
    finite: NDArray[np.bool_]


class ExplanationGraph:
    """A model and its attribution as one function. Construction is cheap; the first use loads.

    Args:
        spec: what to compute.
        storage: fsspec options for remote weights.
        cache: folder or address where compiled graphs are kept; None for this machine's own.
        model: of the specification, where the caller has loaded it already.
    """

    def __init__(
        self,
        spec: GraphSpec,
        storage: Mapping[str, Any] | None = None,
        *,
        cache: str | None = None,
        model: LoadedModel | None = None,
    ) -> None:
        self.spec = spec
        self._model = model
        self._storage = dict(storage or {})
        self._cache = cache

    @cached_property
    def model(self) -> LoadedModel:
        """The model, loaded on first use; on the CPU where ONNX Runtime executes it."""
        if self._model is not None:
            return self._model
        spec = self.spec
        device = spec.device if spec.runtime == "torch" else "cpu"
        return load(spec.model, device=device, precision=spec.precision, storage=self._storage)

    @cached_property
    def method(self) -> Method:
        """The attribution method, bound to the model."""
        return self.bound(self.model)

    def bound(self, model: LoadedModel) -> Method:
        """The specification's method for a model, which may be a changed copy of its own."""
        return attribution.create(self.spec.method, model, seed=self.spec.seed, **self.spec.method_args)

    @cached_property
    def target(self) -> target.Target:
        """The rule that picks the classes to explain."""
        return target.resolve(self.spec.target, self.model)

    @cached_property
    def digest(self) -> str:
        """See `digest`."""
        return digest(self.spec, self.model)

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows that `__call__` returns."""
        return records.schema(self)

    @property
    def embedding_width(self) -> int | None:
        """Features before the classifier, where the specification asks for them."""
        return head(self.model).in_features if self.spec.embedding else None

    @cached_property
    def runtime(self) -> TorchGraph | OnnxGraph:
        """What executes the graph."""
        if self.spec.runtime == "onnx":
            return OnnxGraph(self.compiled(), device=self.spec.device)
        return TorchGraph(self.model, self.method, self.target, embedding=self.spec.embedding)

    def compiled(self) -> Path:
        """The graph's ONNX file; compiled where the cache does not hold it yet.

        Returns:
            Path on this machine.
        """
        spec = self.spec
        name = f"{spec.method}-{self.digest}-{_short([spec.target, spec.embedding, version('raylens')])}.onnx"

        def build() -> bytes:
            return onnx_file.compile_graph(spec, self.model, storage=self._storage, digest=self.digest).content

        return obtain(name, build, address=self._cache, storage=self._storage)

    def explain(
        self, pixels: NDArray[np.uint8], sample_ids: Sequence[str], labels: Sequence[int] | None = None
    ) -> Columns:
        """Predicts and explains one batch.

        Args:
            pixels: (N, H, W, C) uint8, resized and cropped by `model.preprocessing.pixels`.
            sample_ids: N identities; with the job's seed they decide every random number.
            labels: N class indices; needed for target `label` only.

        Returns:
            The columns of N images, in order.
        """
        return columns(self.answer(pixels, sample_ids, labels))

    def answer(
        self, pixels: NDArray[np.uint8], sample_ids: Sequence[str], labels: Sequence[int] | None = None
    ) -> Answer:
        """What the runtime says of one batch, every logit included; arguments as for `explain`."""
        device = self.spec.device
        x = torch.tensor(pixels).to(device, non_blocking=True)
        known = torch.tensor(labels if labels is not None else [0] * len(sample_ids), device=device)
        seeds = torch.tensor([seed_of(sample_id) for sample_id in sample_ids])
        return self.runtime(x, known, seeds)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Explains decoded rows; the signature that Ray Data's actor pool calls.

        Rows out = rows in, times k targets for the explained ones. Rows that were rejected before are passed on.

        Args:
            batch: of `schemas.decoded.decoded_schema`.

        Returns:
            Of `schemas.explanations.fragment_schema`.
        """
        rejects, rows = self.split(batch)
        parts = [rejects]
        for start in range(0, rows.table.num_rows, self.spec.batch_size):
            part = rows.slice(start, self.spec.batch_size)
            found = self.explain(part.pixels(self.model.preprocessing.shape), part.sample_ids, part.labels)
            parts.append(self.rows(part, found))
        return pa.concat_tables([records.with_schema(part, self.schema) for part in parts])

    def split(self, batch: pa.Table) -> tuple[pa.Table, records.Rows]:
        """Separates the images that can be explained; see `pipeline.records.split`."""
        return records.split(batch, self.model, needs_label=isinstance(self.target, target.Label))

    def rows(self, images: records.Rows, found: Columns) -> pa.Table:
        """The rows of one batch.

        Args:
            images: N decoded images.
            found: what the graph says of them.

        Returns:
            Explanations in the images' order, then rejects; of `schema`.
        """
        return records.explained(images, found, self)


def digest(spec: GraphSpec, model: LoadedModel) -> str:
    """Sixteen hexadecimal digits of everything that decides a map: equal in a batch job and online.

    Args:
        spec: of the graph.
        model: resolved from it, on any device.

    Returns:
        The digest of model, weights, preprocessing, layer, method, parameters, precision and versions.
    """
    parts = {
        **spec.model_dump(mode="json", include=set(FUNCTION)),
        "model": model.describe(),
        "schema": SCHEMA_VERSION,
        "torch": torch.__version__,
    }
    if spec.runtime == "onnx":
        parts |= {name: version(name) for name in ("onnxruntime-gpu", "onnxscript")}
    return _short(parts)


def _short(value: object) -> str:
    """Sixteen hexadecimal digits of a plain value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seed_of(sample_id: str) -> int:
    """A 63-bit integer that depends on the sample alone."""
    return int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest()) >> 1


def columns(answer: Answer) -> Columns:
    """The columns of what a runtime said."""
    result, features = answer.attribution, answer.embedding
    probabilities = result.logits.softmax(dim=1)
    top_scores, top = probabilities.topk(min(TOP, probabilities.shape[1]), dim=1)
    maps = result.maps.float()
    n, k, height, width = maps.shape
    summary = statistics(maps.reshape(n * k, height, width))
    finite = result.logits.isfinite().all(dim=1) & maps.isfinite().all(dim=3).all(dim=2).all(dim=1)
    return Columns(
        prediction=top[:, 0].cpu().numpy(),
        top=top.cpu().numpy(),
        top_scores=top_scores.cpu().numpy(),
        entropy=torch.special.entr(probabilities).sum(dim=1).cpu().numpy(),
        targets=result.targets.cpu().numpy(),
        target_scores=probabilities.gather(1, result.targets).cpu().numpy(),
        heatmaps=maps.cpu().numpy(),
        statistics={name: value.reshape(n, k, *value.shape[1:]).cpu().numpy() for name, value in summary.items()},
        check=None if result.check is None else result.check.float().cpu().numpy(),
        embedding=None if features is None else features.cpu().numpy(),
        finite=finite.cpu().numpy(),
    )
