"""Requests that are wrong, too large, too slow or meant to harm: a clear refusal in the protocol's own form."""

import asyncio
import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from samples import encoded, jpeg
from serving import started, talk

from serve.service import Service
from serve.web import create_web

Ask = Callable[..., httpx.Response]
BODY = 200_000
PREDICT, INFER = "/v1/models/tiny:predict", "/v2/models/tiny/infer"
FORM = {"content-type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def small() -> Iterator[Service]:
    """A service with narrow limits."""
    limits = {"body_bytes": BODY, "body_s": 0.3, "buffered_bytes": 2 * BODY, "pixels": 100_000, "instances": 4}
    found = started(limits={**limits, "queue": 6}, model={"methods": ["gradcam"]})
    yield found
    found.close()


@pytest.fixture
def ask(small: Service) -> Ask:
    def request(method: str, path: str, **options: Any) -> httpx.Response:
        found: httpx.Response = talk(small, lambda client: client.request(method, path, **options))
        return found

    return request


def check(answer: httpx.Response, status: int, word: str) -> None:
    """A refusal tells what is wrong in the protocol's form, at moderate length, and nothing of the machine."""
    assert answer.status_code == status, answer.text[:500]
    error = answer.json()["error"]
    is_kserve = answer.request.url.path.startswith(("/v1/models/", "/v2"))
    assert answer.json().keys() == {"error"}
    assert isinstance(error, str) if is_kserve else error.keys() == {"code", "message", "request_id"}
    message = error if is_kserve else error["message"]
    assert word in message
    assert len(message) < 600
    assert not any(part in answer.text for part in ("Traceback", ".py", "site-packages", 'File "'))


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/explain", PREDICT, INFER])
def test_a_body_over_the_limit_is_refused_whether_announced_or_not(ask: Ask, path: str) -> None:
    async def chunks() -> Any:
        for _ in range(BODY // 1000 + 1):
            yield b" " * 1000

    check(ask("POST", path, content=b" " * (BODY + 1)), 413, "at most 200000 bytes")
    check(ask("POST", path, content=chunks()), 413, "at most 200000 bytes")
    check(ask("POST", path, content=b"", headers={"content-length": "9" * 5000}), 413, "at most 200000 bytes")


def test_compressed_bodies_are_not_unpacked(ask: Ask) -> None:
    bomb = zlib.compress(b"\0" * 10**7)
    check(ask("POST", PREDICT, content=bomb, headers={"content-encoding": "deflate"}), 400, "without compression")


def arriving(service: Service, messages: list[Any], pause_s: float = 0.0) -> list[Any]:
    """What the application sends for a body that arrives in these messages, each after a pause; then silence."""

    async def run() -> list[Any]:
        sent: list[Any] = []
        coming = iter(messages)

        async def receive() -> Any:
            await asyncio.sleep(pause_s)
            for message in coming:
                return {"type": "http.request", **message} if "type" not in message else message
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/explain", "raw_path": b"/explain", "query_string": b"",
            "headers": [(b"content-type", b"image/jpeg")], "http_version": "1.1", "scheme": "http",
            "server": ("test", 80), "client": ("test", 1), "root_path": "",
        }  # fmt: skip
        await asyncio.wait_for(create_web(service)(scope, receive, send), 10)
        return sent

    return asyncio.run(run())


def test_a_slow_body_is_cut_off(small: Service) -> None:
    drops = [{"body": b"x", "more_body": True}] * 1000
    start, body = arriving(small, drops, pause_s=0.02)
    assert start["status"] == 408
    assert "within 0.3 s" in json.loads(body["body"])["error"]["message"]


def test_a_client_that_leaves_in_the_middle_is_not_answered_and_nothing_is_held(small: Service) -> None:
    for _ in range(5):
        half = {"body": b"x" * (BODY - 1), "more_body": True}
        assert arriving(small, [half, {"type": "http.disconnect"}]) == []
    start, _ = arriving(small, [{"body": jpeg(0)}])
    assert start["status"] == 200


def test_bodies_at_one_moment_are_bounded_together(small: Service) -> None:
    async def many(client: httpx.AsyncClient) -> list[httpx.Response]:
        async def slowly() -> Any:
            yield jpeg(0)
            yield b"\0" * (BODY - 10_000)
            await asyncio.sleep(0.1)
            yield b""

        return await asyncio.gather(*(client.post("/explain", content=slowly()) for _ in range(4)))

    answers = talk(small, many)
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 2
    for answer in refused:
        check(answer, 503, "too many bodies")
        assert answer.headers["retry-after"] == "1"


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [b"{},", b"[],", b"1,", b'"",', b'{"a":1},'])
@pytest.mark.parametrize("start", [b'{"instances":[', b'{"instances":[1],"later":['])
def test_a_flood_of_values_is_refused_before_it_is_parsed(ask: Ask, start: bytes, unit: bytes) -> None:
    check(ask("POST", PREDICT, content=start + unit * 11_000 + b"1]}"), 413, "more than 10000 values")


@pytest.mark.parametrize("depth", [100, 900, 5000])
def test_deep_nesting(ask: Ask, depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    check(ask("POST", PREDICT, content=b'{"instances": [' + deep + b"]}"), 400, "")
    shape = b'{"inputs": [{"name": "image", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": '
    check(ask("POST", INFER, content=shape + deep + b"}]}"), 400, "")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'{"instances": [' + b"9" * 5000 + b"]}", "digits"),
        (b'{"instances": [{"b64": Infinity}]}', "Infinity"),
        (b'{"instances": ["\xff"]}', "not JSON"),
        (b'{"instances": [{"b64": "\\ud800"}]}', "base64"),
        (b'{"instances": [{"b64": null}]}', "NoneType"),
        (b'{"instances": [{"image": {"image": {"b64": ""}}}]}', "an instance is"),
        (b'{"instances": {"b64": ""}}', "instances"),
        (b'{"instances": [1], "parameters": {"top_k": 1e999}}', "top_k"),
        (b'{"instances": [1], "parameters": {"top_k": true}}', "an instance is"),
        (b'{"instances": [1], "parameters": {"target": ["a"]}}', "target"),
        (b'{"instances": [1], "parameters": {"target": "\\ud800"}}', "target"),
        (b'{"instances": [1], "parameters": {"sample_id": "\\udfff"}}', "sample_id"),
        (b'{"instances": [1], "parameters": {"' + b"x" * 9999 + b'": 1}}', "xxx"),
        (b'{"instances": [1], "parameters": []}', "parameters"),
        (b"", "not JSON"),
        (b"null", "expected a JSON object"),
    ],
)
def test_wrong_values_in_v1(ask: Ask, content: bytes, word: str) -> None:
    check(ask("POST", PREDICT, content=content), 400, word)


def test_long_names_are_not_echoed(ask: Ask) -> None:
    name = "x" * 100_000
    check(ask("POST", PREDICT, json={"instances": [1], "parameters": {"method": name}}), 422, "has no method")
    check(ask("POST", f"/v1/models/{name[:5000]}:predict", json={"instances": [1]}), 404, "there are: tiny")
    check(ask("POST", "/explain", params={"colormap": "x" * 50}, content=jpeg(0)), 422, "no colormap")


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"timeout": 10**400}, "microseconds"),
        ({"timeout": -1}, "microseconds"),
        ({"timeout": True}, "microseconds"),
        ({"timeout": "1"}, "microseconds"),
        ({"timeout": 1.5}, "microseconds"),
        ({"sample_id": "\ud800"}, "Unicode"),
        ({"sample_id": "x" * 1001}, "1..1000"),
        ({"method": {"a": 1}}, "method"),
        ({"method": True}, "method"),
        ({"target": 1.5}, "target"),
        ({"heatmap_dtype": "FP64"}, "FP32 or FP16"),
        ({"heatmap_dtype": []}, "FP32 or FP16"),
    ],
)
def test_wrong_parameters_of_v2(ask: Ask, parameters: Any, word: str) -> None:
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(jpeg(0)).decode()]}
    check(ask("POST", INFER, content=json.dumps({"inputs": [image], "parameters": parameters})), 422, word)


def tensor(shape: list[int], size: Any, blob: bytes, datatype: str = "BYTES") -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    image = {"name": "image", "shape": shape, "datatype": datatype, "parameters": parameters}
    header = json.dumps({"inputs": [image]}).encode()
    return {"content": header + blob, "headers": {"Inference-Header-Content-Length": str(len(header))}}


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (tensor([1], 10**9, b"x" * 10), "binary_data_size is 1000000000"),
        (tensor([1], "9" * 9999, b"x" * 10), "binary_data_size is 999"),
        (tensor([1], -10, b"x" * 10), "binary_data_size is -10"),
        (tensor([1], 4, struct.pack("<I", 2**32 - 1)), "within an element"),
        (tensor([1], 100_000, b"\0" * 100_000), "2 elements"),
        (tensor([2], 4, b"\0" * 4), "1 elements"),
        (tensor([1, 32, 32, 3], 9, b"\0" * 9, "UINT8"), "9 values"),
        (tensor([1, 32, 32, 2**31], 9, b"\0" * 9, "UINT8"), "32, 32, 3"),
        (tensor([1] * 9, 9, b"\0" * 9, "UINT8"), "at most 8 items"),
    ],
)
def test_bytes_and_shapes_that_disagree(ask: Ask, request_: Any, word: str) -> None:
    check(ask("POST", INFER, **request_), 400, word)


# --- images -----------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *before: bytes) -> bytes:
    """A black PNG without its pixels' memory: the rows are one byte of depth 1."""
    rows = zlib.compress(b"\0" * ((width + 7) // 8 + 1) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), *before, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def icon(content: bytes) -> bytes:
    """An ICO that says 16 x 16 of a larger PNG."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(content), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + content


def many_scans(mode: str, count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each is a pass over the whole picture."""
    data = encoded(Image.new(mode, (64, 64)), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + b"\xff\xd9"


BOMBS = {
    "png": (png(10_000, 10_000), 413, "10000 x 10000 px is over max_pixels 100000"),
    "ico": (icon(png(9_000, 9_000)), 413, "9000 x 9000"),
    "gif": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";", 422, ""),
    "tiff": (encoded(Image.new("1", (5000, 5000)), "TIFF", compression="group4"), 413, "5000 x 5000"),
    "jpeg": (encoded(Image.new("L", (4000, 4000))), 413, "4000 x 4000"),
    "text": (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**8))), 422, "too large"),
    "profile": (png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 10**8))), 422, "too large"),
    "scans": (many_scans("RGB", 2000), 413, "more than 100 scans"),
    "scans of four inks": (many_scans("CMYK", 2000), 413, "more than 100 scans"),
    "truncated": (jpeg(0)[:-500], 422, ""),
    "empty": (b"", 422, "zero bytes"),
    "pickle": (b"\x80\x04\x95\x0b\x00\x00\x00", 422, "no known image format"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "no known image format"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "no known image format"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_that_harm(ask: Ask, name: str) -> None:
    content, status, word = BOMBS[name]
    check(ask("POST", "/explain", content=content, headers={"content-type": "image/png"}), status, word)


def test_scans_are_counted_in_the_picture_only(ask: Ask) -> None:
    """A phone appends a film to its JPEG, which may hold the bytes of any marker."""
    film = b"\xff\xda\x00\x02" * 500
    assert ask("POST", "/explain", content=jpeg(0) + film).status_code == 200


# --- forms ------------------------------------------------------------------------------------------------------------


def part(name: str, content: bytes, filename: str | None = "a.jpg") -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


@pytest.mark.parametrize(
    ("content", "headers", "word"),
    [
        (part("image", jpeg(0)), FORM, "no file in a field `image`"),
        (part("image", jpeg(0))[:300], FORM, "no file in a field `image`"),
        (part("photo", jpeg(0)) + b"--x--", FORM, "no file in a field `image`"),
        (part("image", b"text", None) + b"--x--", FORM, "no file in a field `image`"),
        (part("image", b"1") * 3 + b"--x--", FORM, "Too many files"),
        (part("a", b"1", None) * 30 + b"--x--", FORM, "Too many fields"),
        (part("a", b"1" * 2**17, None) + b"--x--", FORM, ""),
        (b"nothing", FORM, "cannot be read"),
        (b"", FORM, "no file in a field `image`"),
        (part("image", b"1") + b"--x--", {"content-type": "multipart/form-data"}, "boundary"),
        (b"--x\r\n" + b"A: b\r\n" * 5000 + b"\r\n", FORM, ""),
        (b"--x\r\nContent-Disposition: form-data; name*=utf-99''%ff\r\n\r\na\r\n--x--", FORM, ""),
        (b"image=1", {"content-type": "application/x-www-form-urlencoded"}, "multipart/form-data"),
        (b"{}", {"content-type": "application/json"}, "multipart/form-data"),
    ],
)
def test_forms_that_are_wrong(ask: Ask, content: bytes, headers: dict[str, str], word: str) -> None:
    check(ask("POST", "/explain", content=content, headers=headers), 400, word)


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({"opacity": "nan"}, "opacity"),
        ({"opacity": "1e999"}, "opacity"),
        ({"top_k": "0"}, "top_k"),
        ({"top_k": "9" * 5000}, "top_k"),
        ({"format": "exe"}, "format"),
        ({"target": "-5"}, "target"),
        ({"target": "top:0"}, "1..4"),
        ({"target": "top:²"}, "1..4"),
        ({"target": "\0"}, "target"),
        ({"target": "x" * 201}, "target"),
        ({"method": "os.system"}, "has no method"),
        ({"metod": "gradcam"}, "no option is named 'metod'; there are: model, method"),
        ({"colormap": "../../etc/passwd"}, "no colormap"),
    ],
)
def test_options_that_are_none(ask: Ask, query: dict[str, str], word: str) -> None:
    check(ask("POST", "/explain", params=query, content=jpeg(0)), 422, word)


def test_more_maps_than_can_ever_wait_are_no_matter_of_trying_later(ask: Ask) -> None:
    images = [{"b64": base64.b64encode(jpeg(n)).decode()} for n in range(4)]
    asked = {"instances": images, "parameters": {"target": "top:2"}}
    check(ask("POST", PREDICT, json=asked), 413, "8 maps in a request; at most 6")
    check(ask("POST", PREDICT, json={"instances": images * 2}), 413, "at most 4")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/page/../serve/app.py", 404),
        ("GET", "/page/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/explain", 405),
        ("DELETE", "/v1/models/tiny", 405),
        ("POST", "/v2/models/nothing/infer", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v2/models/%ff%fe", 404),
    ],
)
def test_paths_that_lead_nowhere(ask: Ask, method: str, path: str, status: int) -> None:
    check(ask(method, path), status, "")


def test_an_error_of_our_own_says_nothing_of_itself(monkeypatch: pytest.MonkeyPatch, small: Service, ask: Ask) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("/secret/path.py")

    monkeypatch.setattr(small.served("tiny").offer(None).backend.engine.graph, "answer", broken)
    check(ask("POST", "/explain", content=jpeg(9)), 500, "an internal error")
    image = {"b64": base64.b64encode(jpeg(9)).decode()}
    check(ask("POST", PREDICT, json={"instances": [image]}), 500, "an internal error")


def test_a_client_s_identity_is_kept_where_it_is_harmless(ask: Ask) -> None:
    for given, kept in (("mine-1", True), ("a b", False), ("x" * 129, False), ("<script>", False)):
        answer = ask("POST", "/explain", content=b"", headers={"x-request-id": given})
        assert (answer.headers["x-request-id"] == given) == kept
        assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
