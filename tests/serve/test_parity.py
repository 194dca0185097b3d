"""One graph, every way to it: a job's records and the answers of every protocol, on real photographs."""

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from numpy.typing import NDArray
from PIL import Image
from samples import mobilenet, state
from serving import TINY, listening, talk

from pipeline.jobs.explain import explain
from pipeline.report.overlay import overlay
from schemas.job import JobSpec
from schemas.online import ServeSpec
from serve.service import Service

pytestmark = pytest.mark.data
COUNT = 8
METHODS: dict[str, Any] = {"gradcam": {}, "smoothgrad": {"samples": 2}}
Maps = NDArray[np.float32]


class Told(NamedTuple):
    """What is said of the photographs: the graph, the classes, the scores, the maps (N, h, w); a job's keys."""

    digest: str
    classes: list[int]
    scores: list[float]
    maps: Maps
    keys: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "imagenet_sample").glob("*.JPEG"))[:: 500 // COUNT][:COUNT]


@pytest.fixture(scope="module", params=["torch", "onnx"])
def model(request: pytest.FixtureRequest, shared_data: Path) -> dict[str, Any]:
    """Fields of the job and of the service; what is compiled is small, since that takes a while."""
    fields = mobilenet(shared_data) if request.param == "torch" else {k: v for k, v in TINY.items() if k != "methods"}
    return {**fields, "batch_size": COUNT, "runtime": request.param}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where compiled graphs are kept."""
    return str(tmp_path_factory.mktemp("graphs"))


Job = Callable[[str, list[Path]], Told]


@pytest.fixture(scope="module")
def job(graphs: str, model: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What the records of `raylens explain` say of some photographs, by method."""

    def records(method: str, paths: list[Path]) -> Told:
        out = tmp_path_factory.mktemp(method)
        (out / "in.csv").write_text("path\n" + "".join(f"{path}\n" for path in paths))
        how = {"method": method, "method_args": METHODS[method], "heatmap_dtype": "float32", "cache": graphs}
        where = {"input": str(out / "in.csv"), "output": str(out / "out"), "runner": "local", "progress": "none"}
        explain(JobSpec(**where, **how, **model))
        table = pq.read_table(out / "out" / "explanations")
        order = [table["uri"].to_pylist().index(str(path)) for path in paths]
        classes, scores = (table[name].to_numpy()[order].tolist() for name in ("prediction", "score"))
        maps = table["heatmap"].combine_chunks().to_numpy_ndarray()[order]
        keys = tuple(table["sample_id"].to_pylist()[row] for row in order)
        return Told(state(out / "out", "run.json")["graph_digest"], classes, scores, maps, keys)

    return records


@pytest.fixture(scope="module")
def service(graphs: str, model: dict[str, Any]) -> Iterator[Service]:
    """Without a cache, and patient: the images of one request are one batch, as in the job."""
    served = {**model, "methods": METHODS, "batch_wait_ms": 10_000}
    found = Service(ServeSpec(models={"net": served}, graphs=graphs, cache={"bytes": 0}))
    found.start()
    yield found
    found.close()


def kserve(service: Service, data: list[bytes]) -> Told:
    instances = [{"b64": base64.b64encode(item).decode()} for item in data]
    body = talk(service, lambda c: c.post("/v1/models/net:explain", json={"instances": instances})).json()
    maps = np.array([row["heatmap"]["data"] for row in body["explanations"]], np.float32)
    best = body["predictions"]
    return Told(body["graph_digest"], [row["class"] for row in best], [row["score"] for row in best], maps)


def open_inference(service: Service, data: list[bytes], *, binary: bool) -> Told:
    image = http.InferInput("image", [len(data)], "BYTES")
    if binary:
        image.set_data_from_numpy(np.array(data, dtype=np.object_), binary_data=True)
        body, length = http.InferenceServerClient.generate_request_body([image])
        headers = {"Inference-Header-Content-Length": str(length)}
    else:
        texts = [base64.b64encode(item).decode() for item in data]
        given = {"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": texts}
        body, headers = httpx.Request("POST", "http://-", json={"inputs": [given]}).content, {}
    answer = talk(service, lambda c: c.post("/v2/models/net/infer", content=body, headers=headers))
    length = answer.headers.get("Inference-Header-Content-Length")
    found = http.InferenceServerClient.parse_response_body(answer.content, header_length=length and int(length))
    return tensors(found, found.get_response()["parameters"]["graph_digest"])


def open_inference_grpc(service: Service, data: list[bytes]) -> Told:
    image = grpc.InferInput("image", [len(data)], "BYTES").set_data_from_numpy(np.array(data, dtype=np.object_))
    with listening(service) as address, grpc.InferenceServerClient(address) as client:
        found = client.infer("net", [image])
    return tensors(found, found.get_response().parameters["graph_digest"].string_param)


def tensors(found: Any, digest: str) -> Told:
    scores = found.as_numpy("scores")
    return Told(digest, found.as_numpy("prediction").tolist(), scores.max(axis=1).tolist(), found.as_numpy("heatmap"))


MANY: dict[str, Callable[[Service, list[bytes]], Told]] = {
    "KServe V1": kserve,
    "V2 JSON": lambda service, data: open_inference(service, data, binary=False),
    "V2 binary": lambda service, data: open_inference(service, data, binary=True),
    "gRPC": open_inference_grpc,
}
"""Protocols that take all photographs at once."""


def posted(service: Service, data: bytes, **query: Any) -> httpx.Response:
    found: httpx.Response = talk(service, lambda c: c.post("/explain", params=query, files={"image": data}))
    assert found.status_code == 200, found.text
    return found


def as_json(service: Service, data: bytes) -> Told:
    return told(posted(service, data).json())


def told(body: Any) -> Told:
    best = body["prediction"]
    return one(body["graph_digest"], best["class"], best["score"], body["heatmap"]["data"])


def as_npy(service: Service, data: bytes) -> Told:
    found = posted(service, data, format="npy")
    said = {name: found.headers[f"x-raylens-{name}"] for name in ("graph-digest", "prediction", "score")}
    values = np.load(io.BytesIO(found.content))
    return one(said["graph-digest"], int(said["prediction"]), float(said["score"]), values)


def as_arrow(service: Service, data: bytes) -> Told:
    table = pa.ipc.open_stream(posted(service, data, format="arrow").content).read_all()
    digest = table.schema.metadata[b"raylens.graph_digest"].decode()
    values = table["heatmap"].combine_chunks().to_numpy_ndarray()[0]
    return one(digest, table["prediction"][0].as_py(), table["score"][0].as_py(), values)


def one(digest: str, prediction: int, score: float, heatmap: Any) -> Told:
    return Told(digest, [prediction], [score], np.asarray(heatmap, np.float32)[None])


SINGLE: dict[str, Callable[[Service, bytes], Told]] = {"json": as_json, "npy": as_npy, "arrow": as_arrow}
"""Formats of /explain."""


def same(found: Told, expected: Told) -> None:
    """At most 1e-3 of each map's largest value apart."""
    assert (found.digest, found.classes) == (expected.digest, expected.classes)
    assert found.scores == pytest.approx(expected.scores, rel=1e-3)
    assert found.maps.shape == expected.maps.shape
    largest = np.abs(expected.maps).max(axis=(1, 2), keepdims=True)
    assert (np.abs(found.maps - expected.maps) <= 1e-3 * largest).all()


@pytest.fixture(scope="module")
def recorded(job: Job, photographs: list[Path]) -> Told:
    return job("gradcam", photographs)


@pytest.mark.parametrize("protocol", MANY)
def test_all_at_once_equals_the_job_bit_by_bit(
    service: Service, recorded: Told, photographs: list[Path], protocol: str
) -> None:
    found = MANY[protocol](service, [path.read_bytes() for path in photographs])
    same(found, recorded)
    np.testing.assert_array_equal(found.maps, recorded.maps)


@pytest.mark.parametrize("kind", SINGLE)
def test_one_at_a_time(service: Service, recorded: Told, photographs: list[Path], kind: str) -> None:
    found = [SINGLE[kind](service, path.read_bytes()) for path in photographs]
    [digest] = {single.digest for single in found}
    classes, scores, maps = (np.concatenate(values) for values in list(zip(*found, strict=True))[1:4])
    same(Told(digest, classes.tolist(), scores.tolist(), maps), recorded)


def test_the_picture_shows_the_map_of_the_job(service: Service, recorded: Told, photographs: list[Path]) -> None:
    content = posted(service, photographs[0].read_bytes(), format="png").content
    seen = service.served("net").decoder.decode(photographs[0].read_bytes()).pixels
    expected = overlay(Image.fromarray(seen), recorded.maps[0])
    difference = np.abs(np.asarray(Image.open(io.BytesIO(content)), int) - np.asarray(expected, int))
    assert difference.max() <= 2


def test_a_method_that_draws_random_numbers(service: Service, job: Job, model: Any, photographs: list[Path]) -> None:
    """The key of the record seeds the same draws."""
    if model["runtime"] != "torch":
        pytest.skip("such a method runs in torch")
    recorded = job("smoothgrad", photographs[:1])
    found = posted(service, photographs[0].read_bytes(), method="smoothgrad", sample_id=recorded.keys[0])
    same(told(found.json()), recorded)
