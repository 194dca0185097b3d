"""The Open Inference protocol, asked by NVIDIA's client over a real port."""

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import uvicorn
from samples import jpeg
from tritonclient.utils import InferenceServerException

from serve.service import Service
from serve.web import create_web

Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    """A web server in a thread."""
    server = uvicorn.Server(uvicorn.Config(create_web(service), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as found:
        yield found


def photos(*seeds: int) -> triton.InferInput:
    found = triton.InferInput("image", [len(seeds)], "BYTES")
    found.set_data_from_numpy(np.array([jpeg(seed) for seed in seeds], dtype=np.object_), binary_data=True)
    return found


def plain(ask: Ask, seed: int, **query: Any) -> Any:
    return ask("POST", "/explain", params=query, files={"image": jpeg(seed)}).json()


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    found = client.get_model_metadata("tiny")
    assert found["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in found["outputs"]] == ["scores", "prediction", "target", "heatmap"]


@pytest.mark.parametrize("binary", [True, False])
def test_encoded_images(client: triton.InferenceServerClient, ask: Ask, binary: bool) -> None:
    names = ("scores", "prediction", "target", "heatmap")
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    found = client.infer("tiny", [photos(0, 1, 2)], outputs=wanted, request_id="mine")
    for n in range(3):
        expected = plain(ask, n)
        assert found.as_numpy("prediction")[n] == expected["prediction"]["class"]
        assert found.as_numpy("scores")[n].max() == pytest.approx(expected["prediction"]["score"], rel=1e-5)
        np.testing.assert_allclose(found.as_numpy("heatmap")[n], expected["heatmap"]["data"], rtol=1e-3, atol=1e-9)
    response = found.get_response()
    assert (response["id"], response["parameters"]["graph_digest"]) == ("mine", expected["graph_digest"])
    assert {"method", "layer", "request_id", "decode_ms", "graph_ms", "total_ms"} <= response["parameters"].keys()


def test_without_outputs_all_come_as_bytes(client: triton.InferenceServerClient) -> None:
    assert client.infer("tiny", [photos(0)]).as_numpy("heatmap").shape == (1, 4, 4)


def test_the_one_version(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready("tiny", "1")
    assert client.get_model_metadata("tiny", "1")["versions"] == ["1"]
    assert client.infer("tiny", [photos(0)], model_version="1").as_numpy("heatmap").shape == (1, 4, 4)
    assert not client.is_model_ready("tiny", "2")


def test_pixels_of_the_model_s_size(client: triton.InferenceServerClient, service: Service) -> None:
    served = service.served("tiny")
    pixels = np.stack([served.decoder.decode(jpeg(n)).pixels for n in range(2)])
    raw = triton.InferInput("image", pixels.shape, "UINT8").set_data_from_numpy(pixels, binary_data=True)
    text = triton.InferInput("image", pixels.shape, "UINT8").set_data_from_numpy(pixels, binary_data=False)
    expected = client.infer("tiny", [photos(0, 1)]).as_numpy("heatmap")
    for given in (raw, text):
        np.testing.assert_allclose(client.infer("tiny", [given]).as_numpy("heatmap"), expected, rtol=1e-3, atol=1e-9)


def test_parameters(client: triton.InferenceServerClient) -> None:
    found = client.infer("tiny", [photos(0)], parameters={"method": "eigencam", "target": 2})
    assert found.as_numpy("target").tolist() == [2]
    assert found.get_response()["parameters"]["method"] == "eigencam"
    half = client.infer("tiny", [photos(0)], parameters={"heatmap_dtype": "FP16"})
    full = client.infer("tiny", [photos(0)])
    assert half.as_numpy("heatmap").dtype == np.float16
    restored = half.as_numpy("heatmap").astype(np.float32) * half.as_numpy("heatmap_scale")[:, None, None]
    np.testing.assert_allclose(restored, full.as_numpy("heatmap"), rtol=1e-3)


def test_errors_reach_the_client(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="there are: tiny"):
        client.infer("nothing", [photos(0)])
    with pytest.raises(InferenceServerException, match="has no method"):
        client.infer("tiny", [photos(0)], parameters={"method": "nothing"})
    with pytest.raises(InferenceServerException, match="without compression"):
        client.infer("tiny", [photos(0)], request_compression_algorithm="gzip")


def infer(shape: list[int], datatype: str = "BYTES", **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": shape, "datatype": datatype, **more}]}


@pytest.mark.parametrize(
    ("content", "blob", "status", "word"),
    [
        (infer([1], data=["%"]), b"", 400, "base64"),
        (infer([2], data=["aGk="]), b"", 400, "1 elements"),
        (infer([1, 2, 3], data=["aGk="]), b"", 400, r"\[N\]"),
        (infer([1], "FP32", data=[1]), b"", 400, "BYTES or UINT8"),
        (infer([1, 8, 8, 3], "UINT8", data=[1]), b"", 400, "32, 32, 3"),
        (infer([1, 32, 32, 3], "UINT8", data=[300] * 3072), b"", 400, "0..255"),
        (infer([1, 32, 32, 3], "UINT8", data=["x"] * 3072), b"", 400, "numbers"),
        (infer([1, 32, 32, 3], "UINT8", data=[1, [2]]), b"", 400, "numbers"),
        (infer([1, 32, 32, 3], "UINT8", data=[1]), b"", 400, "1 values"),
        (infer([0], data=[]), b"", 400, "empty"),
        (infer([-1], data=[]), b"", 400, "shape"),
        (infer([2**31], data=[]), b"", 413, "at most 64"),
        (infer([1], parameters={"binary_data_size": 9}), b"", 400, "0 bytes follow"),
        (infer([1], parameters={"binary_data_size": 2}), b"12", 400, "within a length"),
        (infer([1], parameters={"binary_data_size": 8}), struct.pack("<I", 2**31) + b"1234", 400, "within an element"),
        ({"inputs": []}, b"", 400, "inputs"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES"}]}, b"", 400, "one input `image`"),
        ({**infer([1], data=["aGk="]), "outputs": [{"name": "x"}]}, b"", 422, "no output is named"),
        ({**infer([1], data=["aGk="]), "parameters": {"target": "top:2"}}, b"", 422, "one by one"),
        ({**infer([1], data=["aGk="]), "parameters": {"nothing": 2}}, b"", 422, "no parameter"),
    ],
)
def test_errors_have_the_protocol_s_form(ask: Ask, content: Any, blob: bytes, status: int, word: str) -> None:
    header = json.dumps(content).encode()
    lengths = {"Inference-Header-Content-Length": str(len(header))} if blob else {}
    answer = ask("POST", "/v2/models/tiny/infer", content=header + blob, headers=lengths)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert word.replace("\\", "") in answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "999999", "1" * 30, "²"])
def test_a_header_length_that_is_none(ask: Ask, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode("latin-1")}
    answer = ask("POST", "/v2/models/tiny/infer", content=b"{}", headers=headers)
    assert answer.status_code == 400
