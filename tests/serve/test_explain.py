"""`POST /explain`: every format and option, and the same numbers as a job."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from samples import encoded, job, jpeg, rows, state, write_tar
from serving import TINY

from pipeline.jobs.explain import explain
from pipeline.report.sentence import ninths, sentence
from serve.service import Service

Ask = Callable[..., httpx.Response]


def upload(ask: Ask, data: bytes, **query: Any) -> httpx.Response:
    return ask("POST", "/explain", params=query, files={"image": ("photo.jpg", data, "image/jpeg")})


def test_the_answer_has_every_fact_of_the_contract(ask: Ask, photo: bytes) -> None:
    found = upload(ask, photo).json()
    assert found.keys() == {
        "request_id", "model", "method", "layer", "graph_digest", "prediction", "top", "target", "heatmap",
        "statistics", "sentence", "image", "timing_ms", "cached",
    }  # fmt: skip
    assert found["timing_ms"].keys() == {"decode", "queue", "graph", "render", "total"}
    assert found["prediction"] == found["top"][0] == found["target"]
    assert sum(row["score"] for row in found["top"]) == pytest.approx(1)
    assert found["heatmap"]["shape"] == list(np.shape(found["heatmap"]["data"])) == [4, 4]
    assert found["heatmap"]["max"] == np.max(found["heatmap"]["data"])
    assert (found["image"]["width"], found["image"]["height"]) == (48, 40)


@pytest.fixture(scope="module")
def batch_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job says of six photographs."""
    folder = tmp_path_factory.mktemp("job")
    write_tar(folder / "in" / "a.tar", [(str(n), {"jpg": jpeg(n)}) for n in range(6)])
    explain(job(folder / "in", folder / "out", batch_size=4))
    return folder / "out"


def test_numbers_and_digest_are_those_of_the_job(ask: Ask, batch_job: Path) -> None:
    for n, row in enumerate(rows(batch_job)):
        found = upload(ask, jpeg(n)).json()
        assert found["graph_digest"] == state(batch_job, "run.json")["graph_digest"]
        assert (found["prediction"]["class"], found["target"]["class"]) == (row["prediction"], row["target"])
        assert found["prediction"]["score"] == pytest.approx(row["score"], rel=1e-5)
        heatmap = np.reshape(row["heatmap"], (4, 4)) * row["heatmap_scale"]
        error = np.abs(heatmap - found["heatmap"]["data"]).max() / np.abs(heatmap).max()
        assert error <= 1e-3
        assert found["statistics"]["gini"] == pytest.approx(row["gini"], rel=1e-3)


def test_a_random_method_repeats_the_job_by_the_sample_s_name(ask: Ask, tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", [("one", {"jpg": jpeg(1)})])
    explain(job(tmp_path / "in", tmp_path / "out", method="smoothgrad", method_args=TINY["methods"]["smoothgrad"]))
    [row] = rows(tmp_path / "out")
    found = upload(ask, jpeg(1), method="smoothgrad", sample_id=row["sample_id"]).json()
    other = upload(ask, jpeg(1), method="smoothgrad").json()
    heatmap = np.array(row["heatmap"]).reshape(found["heatmap"]["shape"]) * row["heatmap_scale"]
    np.testing.assert_allclose(found["heatmap"]["data"], heatmap, rtol=1e-3, atol=1e-6)
    assert not np.allclose(other["heatmap"]["data"], heatmap, rtol=1e-3, atol=1e-6)


def test_targets(ask: Ask, photo: bytes) -> None:
    ranked = [row["class"] for row in upload(ask, photo).json()["top"]]
    for text, rank in (("predicted", 0), ("runner-up", 1), (str(ranked[3]), 3), ("top:1", 0)):
        assert upload(ask, photo, target=text).json()["target"]["class"] == ranked[rank]
    several = upload(ask, photo, target="top:3").json()
    assert [found["target"]["class"] for found in several["explanations"]] == ranked[:3]
    single = upload(ask, photo, target=str(ranked[2])).json()
    np.testing.assert_allclose(
        several["explanations"][2]["heatmap"]["data"], single["heatmap"]["data"], rtol=1e-4, atol=1e-9
    )


def test_a_method_without_classes_says_so(ask: Ask, photo: bytes) -> None:
    first, second = (upload(ask, photo, method="eigencam", target=str(n)).json() for n in (0, 1))
    assert first["heatmap"] == second["heatmap"]
    assert (first["target"]["class"], second["target"]["class"]) == (0, 1)
    assert "the same for every class" in first["sentence"]


def test_formats_agree(ask: Ask, photo: bytes) -> None:
    plain = upload(ask, photo).json()
    array = np.load(io.BytesIO(upload(ask, photo, format="npy").content), allow_pickle=False)
    np.testing.assert_array_equal(array, np.array(plain["heatmap"]["data"], np.float32))
    answer = upload(ask, photo, format="arrow", target="top:2")
    table = pa.ipc.open_stream(answer.content).read_all()
    np.testing.assert_array_equal(table.column("heatmap").combine_chunks().to_numpy_ndarray()[0], array)
    assert table.schema.metadata[b"raylens.graph_digest"].decode() == plain["graph_digest"]
    assert table.column("target").to_pylist() == [row["class"] for row in plain["top"][:2]]
    assert answer.headers["x-raylens-graph-digest"] == plain["graph_digest"]
    large = upload(ask, photo, resolution="image").json()["heatmap"]
    assert large["shape"] == [32, 32]


def picture(ask: Ask, data: bytes, **query: Any) -> np.ndarray[Any, Any]:
    answer = upload(ask, data, format="png", **query)
    assert answer.headers["content-type"] == "image/png"
    assert json.loads(answer.headers["x-raylens-crop"])[1] == 0
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_every_option_of_the_picture_changes_it(ask: Ask, photo: bytes) -> None:
    plain = picture(ask, photo)
    assert plain.shape == (32, 32, 3)
    for option in ({"colormap": "viridis"}, {"opacity": 0.1}, {"target": "2"}):
        assert (picture(ask, photo, **option) != plain).any()
    signed = [picture(ask, photo, method="eigencam", signed=value) for value in (True, False)]
    assert (signed[0] != signed[1]).any()


def test_a_body_may_be_the_image_itself(ask: Ask, photo: bytes) -> None:
    plain = ask("POST", "/explain", content=photo, headers={"content-type": "image/jpeg"}).json()
    assert plain["heatmap"] == upload(ask, photo).json()["heatmap"]


def test_the_crop_is_what_the_network_sees(ask: Ask) -> None:
    """A white square that fills the crop, in a black picture: the network sees white only."""
    found = upload(ask, jpeg(0, height=60, width=100)).json()["image"]
    assert found["crop"] == pytest.approx([20, 0, 80, 60], abs=2)
    left, top, right, bottom = (round(side) for side in found["crop"])
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    seen = picture(ask, encoded(Image.fromarray(pixels), "PNG"), opacity=0)
    assert seen[:, 2:-2].min() > 250


def test_sentences_are_true_of_the_numbers() -> None:
    heatmap = np.zeros((6, 6), np.float32)
    heatmap[:2, :2] = 3
    heatmap[4:, 4:] = 1
    heatmap[0, 5] = -4
    assert ninths(heatmap.clip(min=0).astype(np.float64))[0, 0] == pytest.approx(0.75)
    text = sentence(heatmap, "goldfish, Carassius auratus", seen=0.5)
    assert text == (
        "75 % of the evidence for 'goldfish' lies in the upper left; half of it lies in 8 % of the view; "
        "20 % of the map speaks against it. The network saw 50 % of the picture."
    )
    assert sentence(np.ones((7, 7), np.float32), "x").startswith("The evidence for 'x' is spread: no ninth")
    assert sentence(-np.ones((7, 7), np.float32), "x") == "Nothing in the picture speaks for 'x' by this method."
    assert ninths(np.ones((7, 5)))[1, 2] == pytest.approx(1 / 9)


def test_what_is_known_is_not_computed_again(ask: Ask, service: Service) -> None:
    first, second = (upload(ask, jpeg(77)).json() for _ in range(2))
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["heatmap"] == second["heatmap"]
    assert first["image"] == second["image"]
    assert not upload(ask, jpeg(77), target="2").json()["cached"]
    assert 0 < len(service.cache) <= service.spec.cache.entries
