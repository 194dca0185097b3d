"""Open Inference over gRPC, asked by NVIDIA's client through a real server in this process."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from ray.serve._private.grpc_util import gRPCGenericServer
from ray.serve._private.proxy_request_response import gRPCStreamingType
from samples import jpeg
from serving import listening, started, talk
from tritonclient.grpc import service_pb2 as peer
from tritonclient.utils import InferenceServerException

from serve import grpc_server
from serve.grpc_inference import METHODS, STATUS, UNAVAILABLE, GrpcInference
from serve.grpc_messages import MESSAGES
from serve.grpc_server import NAMES, SERVICE
from serve.problems import STATUS as PROBLEMS
from serve.service import Service


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with listening(service) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as found:
        yield found


def photos(*seeds: int) -> list[triton.InferInput]:
    found = triton.InferInput("image", [len(seeds)], "BYTES")
    found.set_data_from_numpy(np.array([jpeg(seed) for seed in seeds], dtype=np.object_))
    return [found]


def plain(service: Service, seed: int, **query: Any) -> Any:
    return talk(service, lambda c: c.post("/explain", params=query, files={"image": jpeg(seed)})).json()


def test_health_and_metadata(client: triton.InferenceServerClient, service: Service) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert client.get_server_metadata(as_json=True) == talk(service, lambda c: c.get("/v2")).json()
    found = client.get_model_metadata("tiny", as_json=True)
    expected = talk(service, lambda c: c.get("/v2/models/tiny")).json()
    for tensor in (*found["inputs"], *found["outputs"]):
        tensor["shape"] = [int(size) for size in tensor["shape"]]  # JSON of protobuf has integers of 64 bits as text
    assert found == expected


def test_encoded_images(client: triton.InferenceServerClient, service: Service) -> None:
    found = client.infer("tiny", photos(0, 1, 2), request_id="mine", parameters={"target": "runner-up"})
    for n in range(3):
        expected = plain(service, n, target="runner-up")
        assert found.as_numpy("prediction")[n] == expected["prediction"]["class"]
        assert found.as_numpy("target")[n] == expected["target"]["class"] != expected["prediction"]["class"]
        assert found.as_numpy("scores")[n].max() == pytest.approx(expected["prediction"]["score"], rel=1e-5)
        np.testing.assert_allclose(found.as_numpy("heatmap")[n], expected["heatmap"]["data"], rtol=1e-3, atol=1e-9)
    response = found.get_response()
    assert (response.id, response.model_name, response.model_version) == ("mine", "tiny", "1")
    said = response.parameters
    assert said["graph_digest"].string_param == expected["graph_digest"]
    assert said["method"].string_param == "gradcam"
    assert said["total_ms"].double_param > 0
    assert not said["cached"].bool_param


def test_pixels_of_the_model_s_size(client: triton.InferenceServerClient, service: Service) -> None:
    served = service.served("tiny")
    pixels = np.stack([served.decoder.decode(jpeg(n)).pixels for n in range(2)])
    raw = triton.InferInput("image", pixels.shape, "UINT8").set_data_from_numpy(pixels)
    expected = client.infer("tiny", photos(0, 1)).as_numpy("heatmap")
    np.testing.assert_allclose(client.infer("tiny", [raw]).as_numpy("heatmap"), expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("kind", ["BYTES", "UINT8"])
def test_contents_instead_of_raw_bytes(address: str, service: Service, kind: str) -> None:
    """Triton's client always sends raw bytes; others need not."""
    pixels = service.served("tiny").decoder.decode(jpeg(3)).pixels
    contents = {"BYTES": {"bytes_contents": [jpeg(3)]}, "UINT8": {"uint_contents": pixels.reshape(-1).tolist()}}[kind]
    shape = {"BYTES": [1], "UINT8": [1, *pixels.shape]}[kind]
    given = {"name": "image", "datatype": kind, "shape": shape, "contents": contents}
    found = infer(address, inputs=[given])
    heatmap = np.frombuffer(found.raw_output_contents[-1], np.float32)
    expected = np.ravel(plain(service, 3)["heatmap"]["data"])
    np.testing.assert_allclose(heatmap, expected, rtol=1e-3, atol=1e-9)


def infer(address: str, **changed: Any) -> Any:
    """One call with the peer's messages, and what a client may put into them by hand."""
    request = peer.ModelInferRequest(**{"model_name": "tiny", **changed})
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer", peer.ModelInferRequest.SerializeToString)
        return peer.ModelInferResponse.FromString(call(request, timeout=10))


def test_outputs_and_half_precision(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput(name) for name in ("heatmap", "target")]
    half = client.infer("tiny", photos(0), outputs=wanted, parameters={"heatmap_dtype": "FP16", "target": 2})
    assert [output.name for output in half.get_response().outputs] == ["heatmap", "target", "heatmap_scale"]
    assert half.as_numpy("target").tolist() == [2]
    assert half.as_numpy("heatmap").dtype == np.float16
    restored = half.as_numpy("heatmap").astype(np.float32) * half.as_numpy("heatmap_scale")[:, None, None]
    full = client.infer("tiny", photos(0), parameters={"target": 2})
    np.testing.assert_allclose(restored, full.as_numpy("heatmap"), rtol=1e-3)


def fields(descriptor: Any) -> dict[str, Any]:
    """Name, number and type of every field, and those of the messages within."""
    own = {field.name: (field.number, field.type, field.is_repeated) for field in descriptor.fields}
    return own | {nested.name: fields(nested) for nested in descriptor.nested_types}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_triton_s_on_the_wire(name: str) -> None:
    assert fields(MESSAGES[name].DESCRIPTOR) == fields(getattr(peer, name).DESCRIPTOR)


def test_every_problem_has_a_status() -> None:
    by_code = {code: STATUS.get(status) or UNAVAILABLE.get(code) for code, status in PROBLEMS.items()}
    over_http = {"not_found", "method_not_allowed", "body_timeout"}
    assert {code for code, status in by_code.items() if status is None} <= over_http


IMAGE: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1]}


@pytest.mark.parametrize(
    ("changed", "status", "word"),
    [
        ({"model_name": "other"}, "NOT_FOUND", "there are: tiny"),
        ({"model_version": "2"}, "NOT_FOUND", "version 1 only"),
        ({"raw_input_contents": []}, "INVALID_ARGUMENT", "0 elements"),
        ({"raw_input_contents": [b"", b""]}, "INVALID_ARGUMENT", "one element an input"),
        ({"raw_input_contents": [b"\x09\0\0\0abc"]}, "INVALID_ARGUMENT", "within an element"),
        ({"raw_input_contents": [b"\x02\0\0\0hi"]}, "INVALID_ARGUMENT", "no known image"),
        ({"inputs": [], "raw_input_contents": []}, "INVALID_ARGUMENT", "inputs"),
        ({"inputs": [{**IMAGE, "shape": [-1]}]}, "INVALID_ARGUMENT", "shape"),
        ({"inputs": [{**IMAGE, "shape": [65]}]}, "INVALID_ARGUMENT", "at most 64"),
        ({"inputs": [{**IMAGE, "contents": {"bytes_contents": [b"x"]}}]}, "INVALID_ARGUMENT", "no input has contents"),
        ({"inputs": [{**IMAGE, "name": "x"}]}, "INVALID_ARGUMENT", "one input `image`"),
        ({"outputs": [{"name": "x"}]}, "INVALID_ARGUMENT", "no output is named"),
        ({"parameters": {"method": {"string_param": "x"}}}, "INVALID_ARGUMENT", "has no method"),
        ({"parameters": {"target": {"double_param": 0.5}}}, "INVALID_ARGUMENT", "target"),
        ({"parameters": {"x": {"bool_param": True}}}, "INVALID_ARGUMENT", "no parameter"),
    ],
)
def test_errors_are_statuses(address: str, changed: dict[str, Any], status: str, word: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(address, **{"inputs": [IMAGE], "raw_input_contents": [b"\x02\0\0\0hi"], **changed})
    assert (caught.value.code().name, word in caught.value.details()) == (status, True), caught.value.details()
    assert "raylens-code" in dict(caught.value.trailing_metadata())


def test_bytes_that_are_no_message(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        for method in NAMES:
            with pytest.raises(grpc.RpcError, match="the request is no ") as caught:
                channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff\xff", timeout=10)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def guarded() -> Iterator[triton.InferenceServerClient]:
    """A service with a key and narrow limits."""
    found = started(
        api_keys=[{"sha256": sha256(b"secret").hexdigest(), "per_minute": 4}],
        limits={"body_bytes": 20_000, "queue": 4},
        cache={"bytes": 0},
    )
    with listening(found) as address, triton.InferenceServerClient(address) as client:
        yield client
    found.close()


def test_keys_and_limits(guarded: triton.InferenceServerClient) -> None:
    key = {"authorization": "Bearer secret"}
    assert guarded.is_server_live()
    with pytest.raises(InferenceServerException, match="a key is needed") as caught:
        guarded.infer("tiny", photos(0))
    assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    assert guarded.infer("tiny", photos(0), headers=key).as_numpy("heatmap").shape == (1, 4, 4)
    with pytest.raises(InferenceServerException, match="at most 20000 bytes"):
        guarded.infer("tiny", photos(*range(40)), headers=key)
    with pytest.raises(InferenceServerException, match="5 maps in a request; at most 4") as caught:
        guarded.infer("tiny", photos(0, 1, 2, 3, 4), headers={"x-api-key": "secret"})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    guarded.is_model_ready("tiny", headers=key)
    with pytest.raises(InferenceServerException, match="4 requests a minute") as caught:
        guarded.is_model_ready("tiny", headers=key)
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_deadlines_and_cancelled_calls(
    client: triton.InferenceServerClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol's own timeout, and that of gRPC, which cancels the call: neither is computed."""
    engine = service.served("tiny").offer("gradcam").backend.engine  # type: ignore[union-attr]
    graph = engine.graph
    entered, go, sizes, whole = threading.Event(), threading.Event(), [], graph.answer

    def held(pixels: Any, *arguments: Any) -> Any:
        sizes.append(len(pixels))
        entered.set()
        go.wait(20)
        return whole(pixels, *arguments)

    monkeypatch.setattr(graph, "answer", held)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.infer, "tiny", photos(50))
        entered.wait(10)
        with pytest.raises(InferenceServerException, match=r"not answered within 0\.05 s") as caught:
            client.infer("tiny", photos(51), timeout=50_000)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        with pytest.raises(InferenceServerException, match="Deadline"):
            client.infer("tiny", photos(52), client_timeout=0.05)
        time.sleep(0.5)  # what a client gave up may still be on its way to the service
        while engine.gate.inside > 1:
            time.sleep(0.01)
        last = pool.submit(client.infer, "tiny", photos(53))
        go.set()
        assert len(first.result(10).as_numpy("heatmap")) == len(last.result(10).as_numpy("heatmap")) == 1
    assert sum(sizes) == 2


class Losing(GrpcInference):
    """Stands for Ray's proxy: some calls lose their process, which it tells with a bare status.

    Args:
        service: answers the others.
        losses: calls that are lost.
        status: of those.
    """

    def __init__(self, service: Service, losses: int, status: grpc.StatusCode) -> None:
        super().__init__(service)
        self.left, self.status = losses, status

    async def ServerLive(self, request: bytes, grpc_context: Any) -> Any:
        self.left -= 1
        assert not grpc_context.code()  # where it is set, Ray sets none
        assert not grpc_context.details()
        if self.left < 0:
            return await super().ServerLive(request, grpc_context)
        grpc_context.set_code(self.status)
        grpc_context.set_details("The actor died unexpectedly")
        return b""

    def ray_server(self) -> gRPCGenericServer:
        """Ray's own, which puts handlers in the place of those that it is given."""

        def handler(service_method: str, streaming_type: gRPCStreamingType) -> Any:
            async def answered(request: bytes, context: Any) -> bytes:
                found = await getattr(self, service_method.rpartition("/")[2])(request, context)
                return found if isinstance(found, bytes) else bytes(found.SerializeToString())

            return answered

        return gRPCGenericServer(handler)


def live(service: Service, losses: int, status: grpc.StatusCode, *, of_ray: bool = True) -> tuple[Losing, bool]:
    losing = Losing(service, losses, status)
    server_of = losing.ray_server if of_ray else grpc.aio.server
    with listening(losing, server_of) as address, triton.InferenceServerClient(address) as client:
        return losing, client.is_server_live()


@pytest.mark.parametrize("of_ray", [True, False])
@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE])
def test_a_call_that_lost_its_process_is_made_again(
    service: Service, monkeypatch: pytest.MonkeyPatch, status: grpc.StatusCode, *, of_ray: bool
) -> None:
    monkeypatch.setattr(grpc_server, "PAUSE_S", 0.0)
    losing, answer = live(service, 2, status, of_ray=of_ray)
    assert answer
    assert losing.left == -1


def test_a_server_is_told_of_every_method() -> None:
    assert tuple(METHODS) == NAMES


def test_it_ends_as_unavailable(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "PAUSE_S", 0.0)
    with pytest.raises(InferenceServerException, match="was lost; try again") as caught:
        live(service, 99, grpc.StatusCode.INTERNAL)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"


def test_a_failure_of_our_own_is_told_and_counted(
    client: triton.InferenceServerClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray counts such a call as answered: the alert needs our own counter."""

    async def failing(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setitem(METHODS, "ServerMetadata", failing)
    with pytest.raises(InferenceServerException, match="an internal error") as caught:
        client.get_server_metadata()
    assert caught.value.status() == "StatusCode.INTERNAL"
    labels = {"route": "ServerMetadata", "status": "INTERNAL"}
    assert service.metrics.registry.get_sample_value("raylens_requests_total", labels) == 1


def test_what_ray_refuses_is_not_made_again(service: Service) -> None:
    with pytest.raises(InferenceServerException) as caught:
        live(service, 1, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
