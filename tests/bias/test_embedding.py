"""Embeddings beside explanations: what each space shows to the network, and images without evidence."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import SIZE, array, job
from torch import Tensor

from pipeline.bias.embedder import Embedder
from pipeline.bias.masks import evidence_masks, smooth_masks, upsampled
from pipeline.embedding import EmbeddingGraph
from pipeline.errors import ModelError
from pipeline.graph import Columns, ExplanationGraph, seed_of
from pipeline.model import LoadedModel, load
from pipeline.records import Rows
from schemas.embeddings import COLUMNS, SHARE, EmbedSpec
from schemas.graph import ModelSpec

SPACES = ("image", "evidence", "rest", "random")
IDS = ["a", "b", "c", "d", "e"]


def decoded(pixels: np.ndarray) -> Rows:
    """Images as the graph gets them."""
    count = len(pixels)
    content = pa.array([image.tobytes() for image in pixels], pa.binary(pixels[0].size))
    columns: dict[str, Any] = {
        "sample_id": IDS[:count],
        "uri": IDS[:count],
        "shard": ["s"] * count,
        "row": list(range(count)),
        "content_digest": pa.nulls(count, pa.string()),
        "width": [SIZE] * count,
        "height": [SIZE] * count,
        "pixels": content,
    }
    return Rows(pa.table(columns), np.full(count, -1))


def before_the_head(model: LoadedModel, x: Tensor) -> Tensor:
    found = []
    handle = model.module.get_submodule(str(model.head)).register_forward_pre_hook(lambda _, given: found.append(given))
    with torch.no_grad():
        model.module(x)
    handle.remove()
    return found[0][0]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    images = [Image.fromarray(array(seed)).resize((SIZE, SIZE)) for seed in range(5)]
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingGraph:
    folder = tmp_path_factory.mktemp("embedding")
    return EmbeddingGraph(job(folder, folder).graph_spec("cpu"), EmbedSpec(spaces=SPACES, seed=3))


@pytest.fixture(scope="module")
def explained(graph: EmbeddingGraph, pixels: np.ndarray) -> tuple[Columns, pa.Table]:
    found = graph.explain(pixels, IDS)
    return found, graph.rows(decoded(pixels), found)


def vectors(table: pa.Table, space: str) -> np.ndarray:
    return np.stack(table.column(COLUMNS[space]).to_pylist())


def test_the_image_space_is_the_graphs_own_embedding(
    explained: tuple[Columns, pa.Table], pixels: np.ndarray, tmp_path: Path
) -> None:
    spec = job(tmp_path, tmp_path, embedding=True).graph_spec("cpu")
    own = ExplanationGraph(spec).explain(pixels, IDS)["embedding"]
    np.testing.assert_allclose(vectors(explained[1], "image"), own, rtol=1e-5, atol=1e-6)


def test_each_space_is_the_network_on_a_masked_image(
    graph: EmbeddingGraph, explained: tuple[Columns, pa.Table], pixels: np.ndarray
) -> None:
    """By hand: normalised, multiplied, and read before the classifier."""
    found, table = explained
    model = graph.model
    x = model.preprocessing.normalise(torch.tensor(pixels), torch.float32)
    evidence = evidence_masks(torch.tensor(found["heatmaps"][:, 0]), (SIZE, SIZE), kept=0.3)
    assert evidence.any(dim=(1, 2)).sum() >= 2
    np.testing.assert_allclose(table.column(SHARE).to_numpy(), evidence.float().mean(dim=(1, 2)), rtol=1e-6)
    seeds = [seed_of(name) for name in IDS]
    blobs = smooth_masks(evidence.sum(dim=(1, 2)).tolist(), seeds, (SIZE, SIZE), cells=graph.method.shape, seed=3)
    for space, mask in (("evidence", evidence), ("rest", ~evidence), ("random", blobs)):
        features = before_the_head(model, x * mask[:, None])
        for row, kept in zip(range(len(IDS)), evidence.any(dim=(1, 2)), strict=True):
            stored = table.column(COLUMNS[space])[row].as_py()
            if kept:
                np.testing.assert_allclose(stored, features[row], rtol=1e-4, atol=1e-5)
            else:
                assert stored is None


def test_an_image_without_evidence_is_counted_not_masked(graph: EmbeddingGraph, pixels: np.ndarray) -> None:
    found = graph.explain(pixels, IDS)
    found["heatmaps"][2] = -1.0
    table = graph.rows(decoded(pixels), found)
    assert table.column(SHARE)[2].as_py() == 0
    assert [table.column(COLUMNS[space])[2].as_py() is None for space in SPACES] == [False, True, True, True]
    assert table.column(COLUMNS["evidence"]).null_count == (np.asarray(table.column(SHARE)) == 0).sum()


def test_top_k_stands_beside_the_first_target(pixels: np.ndarray, tmp_path: Path) -> None:
    graph = EmbeddingGraph(job(tmp_path, tmp_path, target="top:2").graph_spec("cpu"), EmbedSpec())
    found = graph.explain(pixels, IDS)
    table = graph.rows(decoded(pixels), found)
    assert [row is None for row in table.column("embedding").to_pylist()] == [False, True] * 5
    assert table.schema == graph.schema


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), kept=st.floats(0.05, 0.9), cells=st.integers(1, 9))
def test_evidence_is_the_top_of_the_positive_part(seed: int, kept: float, cells: int) -> None:
    maps = torch.randn(3, cells, cells, generator=torch.Generator().manual_seed(seed))
    masks = evidence_masks(maps, (16, 20), kept=kept)
    heights = upsampled(maps, (16, 20))
    for mask, height in zip(masks, heights, strict=True):
        assert not (mask & (height <= 0)).any()
        outside = height[~mask]
        assert not mask.any() or outside.numel() == 0 or height[mask].min() >= outside.max()
        threshold = height.flatten().sort(descending=True).values[max(1, int(kept * 320)) - 1]
        assert mask.sum() == ((height >= threshold) & (height > 0)).sum()


def test_a_map_without_positive_cells_keeps_nothing() -> None:
    """The published rule keeps the whole image here."""
    assert not evidence_masks(torch.zeros(1, 4, 4), (8, 8), kept=0.3).any()
    assert not evidence_masks(-torch.rand(1, 4, 4), (8, 8), kept=0.3).any()


def test_blobs_have_the_area_asked_for_and_repeat() -> None:
    masks = smooth_masks([0, 5, 100], [1, 2, 3], (20, 20), cells=(4, 4), seed=0)
    assert masks.sum(dim=(1, 2)).tolist() == [0, 5, 100]
    assert torch.equal(masks, smooth_masks([0, 5, 100], [1, 2, 3], (20, 20), cells=(4, 4), seed=0))
    assert not torch.equal(masks, smooth_masks([0, 5, 100], [1, 2, 3], (20, 20), cells=(4, 4), seed=1))


def test_another_network_with_its_own_size_and_normalisation(pixels: np.ndarray) -> None:
    """As its own loader would give it, within the rounding of the resize."""
    other = load(ModelSpec(source="timm:resnet18", weights="random", size=64))
    mask = torch.zeros(5, SIZE, SIZE, dtype=torch.bool)
    mask[:, : SIZE // 2] = True
    features = Embedder(other)(torch.tensor(pixels), mask)
    assert features.shape == (5, 512) == (5, Embedder(other).width)
    large = torch.nn.functional.interpolate(
        torch.tensor(pixels).permute(0, 3, 1, 2).float(), (64, 64), mode="bilinear", antialias=True
    ).round()
    x = (large / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    x[:, :, 32:] = 0
    with torch.no_grad():
        expected = other.module.forward_head(other.module.forward_features(x), pre_logits=True)
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)


def test_an_encoder_without_classifier_gives_its_output(pixels: np.ndarray) -> None:
    encoder = load(ModelSpec(source="timm:resnet18", weights="random", size=64, arguments={"num_classes": 0}))
    assert encoder.head is None
    assert Embedder(encoder)(torch.tensor(pixels)).shape == (5, Embedder(encoder).width) == (5, 512)


def test_grey_images_are_coloured_and_colours_refused() -> None:
    colour = load(ModelSpec(source="timm:resnet18", weights="random", size=64))
    assert Embedder(colour)(torch.zeros(1, 8, 8, 1, dtype=torch.uint8)).shape == (1, 512)
    grey = load(ModelSpec(source="timm:resnet18", weights="random", size=64, arguments={"in_chans": 1}))
    with pytest.raises(ModelError, match="takes 1 channels and the explained one 3"):
        Embedder(grey)(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
