"""Keys, rates, headers for browsers, and addresses of storage."""

import base64
import hashlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from samples import jpeg
from serving import started, talk

from pipeline.stream.s3server import S3Server
from schemas.online import ServeSpec
from serve import security
from serve.service import Service

KEYS = ("first-key", "schlüssel")


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def closed() -> Iterator[Service]:
    """A service with keys, of which the second may ask three times a minute; one web page may ask."""
    limited = {"sha256": sha256(KEYS[1]), "name": "second", "per_minute": 3}
    found = started(api_keys=[sha256(KEYS[0]), limited], cors_origins=["https://ours.example"])
    yield found
    found.close()


def ask(service: Service, method: str, path: str, **options: Any) -> httpx.Response:
    found: httpx.Response = talk(service, lambda client: client.request(method, path, **options))
    return found


def test_the_specification_holds_no_key(closed: Service) -> None:
    assert not any(key in closed.spec.model_dump_json() for key in KEYS)
    with pytest.raises(ValueError, match="pattern"):
        ServeSpec(models=closed.spec.models, api_keys=[KEYS[0]])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {KEYS[0]}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {sha256(KEYS[0])}"},
        {"x-api-key": KEYS[0].upper()},
        {"x-api-key": ""},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny:predict", "/v2/models/tiny/infer", "/explain"])
def test_nothing_is_told_without_a_key(closed: Service, path: str, headers: dict[str, str]) -> None:
    answer = ask(closed, "POST", path, headers=headers, content=jpeg(0))
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer KEY" in answer.text


def test_either_header_opens(closed: Service) -> None:
    for headers in ({"authorization": f"bearer {KEYS[0]}"}, {"x-api-key": KEYS[0]}):
        assert ask(closed, "GET", "/v1/models", headers=headers).status_code == 200


def test_probes_documents_and_the_page_are_open(closed: Service) -> None:
    for path in security.OPEN:
        assert ask(closed, "GET", path).status_code == 200
    for path in ("/metrics", "/methods", "/page/../metrics", "/healthz/../metrics"):
        assert ask(closed, "GET", path).status_code == 401


def test_every_key_is_compared_in_constant_time(closed: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    genuine = security.hmac.compare_digest
    monkeypatch.setattr(security.hmac, "compare_digest", lambda a, b: compared.append(a) or genuine(a, b))
    ask(closed, "GET", "/v1/models", headers={"x-api-key": KEYS[0]})
    assert compared == [sha256(KEYS[0]), sha256(KEYS[1])]


def test_a_key_has_its_own_rate(closed: Service) -> None:
    headers = {"x-api-key": KEYS[1].encode()}
    statuses = [ask(closed, "GET", "/v2", headers=headers).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    refused = ask(closed, "GET", "/v2", headers=headers)
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert "more than 3 requests a minute" in refused.json()["error"]
    assert ask(closed, "GET", "/v2", headers={"x-api-key": KEYS[0]}).status_code == 200
    metrics = ask(closed, "GET", "/metrics", headers={"x-api-key": KEYS[0]}).text
    assert 'raylens_key_requests_total{key="second",replica=""} 3.0' in metrics
    assert not any(key in metrics for key in KEYS)


def test_a_bucket_fills_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(security.time, "monotonic", lambda: now[0])
    bucket = security.Bucket(60)
    assert [bucket.take() for _ in range(61)] == [0.0] * 60 + [1.0]
    now[0] += 2
    assert [bucket.take() for _ in range(3)] == [0.0, 0.0, 1.0]


# --- browsers ---------------------------------------------------------------------------------------------------------


def test_web_pages_of_others_may_not_ask(service: Service) -> None:
    answer = ask(service, "GET", "/v1/models", headers={"origin": "https://evil.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert ask(service, "OPTIONS", "/explain", headers=preflight).status_code == 405


def test_a_web_page_that_may_ask_reads_answers_and_refusals(closed: Service) -> None:
    ours = {"origin": "https://ours.example"}
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    assert ask(closed, "OPTIONS", "/explain", headers={**ours, **wanted}).status_code == 200
    refused = ask(closed, "POST", "/explain", headers=ours)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ours["origin"])
    key = {"x-api-key": KEYS[0]}
    picture = ask(closed, "POST", "/explain", headers={**ours, **key}, content=jpeg(0), params={"format": "png"})
    exposed = {name.strip().lower() for name in picture.headers["access-control-expose-headers"].split(",")}
    assert {name for name in picture.headers if name.startswith("x-raylens")} <= exposed
    other = ask(closed, "GET", "/v1/models", headers={**key, "origin": "https://ours.example.evil"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.js", "/v1/models", "/nothing", "/metrics"])
def test_every_answer_forbids_what_browsers_guess(service: Service, path: str) -> None:
    headers = ask(service, "GET", path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def storing(s3: S3Server) -> Iterator[Service]:
    """A service that may read a folder of a bucket, beside which there are others."""
    folder = s3.root / s3.bucket("photos")
    for name in ("open/a.jpg", "open/deep/b é.jpg", "open-secret/c.jpg", "closed/d.jpg", "OPEN/e.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(1))
    (folder / "open" / "large.jpg").write_bytes(b"\0" * 30_000)
    s3.refresh()
    limits = {"body_bytes": 20_000, "deadline_s": 10.0}
    storage: Any = s3.storage_options()
    found = started(storage_prefixes=["s3://photos/open/"], storage=storage, limits=limits)
    yield found
    found.close()


def predicted(service: Service, address: object) -> httpx.Response:
    return ask(service, "POST", "/v1/models/tiny:predict", json={"instances": [{"address": address}]})


def test_an_address_below_the_prefix_is_read(storing: Service) -> None:
    image = {"b64": base64.b64encode(jpeg(1)).decode()}
    expected = ask(storing, "POST", "/v1/models/tiny:predict", json={"instances": [image]}).json()["predictions"]
    for name in ("a.jpg", "deep/b é.jpg"):
        assert predicted(storing, f"s3://photos/open/{name}").json()["predictions"] == expected


@pytest.mark.parametrize(
    "address",
    [
        "s3://photos/open-secret/c.jpg",
        "s3://photos/closed/d.jpg",
        "s3://photos/OPEN/e.jpg",
        "S3://photos/open/a.jpg",
        "s3a://photos/open/a.jpg",
        "s3://photos/open/../closed/d.jpg",
        "s3://photos/open/%2e%2e/closed/d.jpg",
        "s3://photos/open/..%2fclosed/d.jpg",
        "s3://photos/open/\\..\\closed\\d.jpg",
        "s3://photos/open/a.jpg?versionId=1",
        "s3://photos/open/*.jpg",
        "s3://photos/open/\0",
        "s3://photos/open/a.jpg\n",
        "s3://photos/open/",
        "s3://photos/open",
        "s3://photos@evil.example/open/a.jpg",
        "zip://a::s3://photos/open/a.zip",
        " s3://photos/open/a.jpg",
        "http://127.0.0.1/open/a.jpg",
        "file:///etc/passwd",
        "/etc/passwd",
        "",
    ],
)
def test_other_addresses_are_refused_without_a_look(storing: Service, address: str) -> None:
    answer = predicted(storing, address)
    assert answer.status_code == 422
    assert "no storage address outside the allowed ones" in answer.json()["error"]


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [
        ("nothing.jpg", 422, "FileNotFoundError"),
        ("deep", 422, "cannot be read"),
        ("large.jpg", 413, "at most 20000 bytes"),
        ("x" * 2000, 422, "cannot be read"),
    ],
)
def test_objects_that_are_none(storing: Service, name: str, status: int, word: str) -> None:
    answer = predicted(storing, f"s3://photos/open/{name}")
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]
    assert "127.0.0.1" not in answer.text


def test_a_storage_that_is_silent_does_not_hold_a_request(s3: S3Server) -> None:
    """A port that accepts and says nothing, which is what a storage that is down behind a load balancer looks like."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        storage: Any = {**s3.storage_options(), "endpoint_url": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        limits = {"deadline_s": 1.0}
        service = started(storage_prefixes=["s3://photos/open/"], storage=storage, limits=limits)
        begun = time.monotonic()
        answer = predicted(service, "s3://photos/open/a.jpg")
        waited_s = time.monotonic() - begun
        service.close()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "did not answer within 1 s" in answer.json()["error"]
    assert waited_s < 20
