"""KServe's V1 protocol."""

import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from samples import jpeg

Ask = Callable[..., httpx.Response]


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def post(ask: Ask, verb: str, instances: list[Any], **parameters: Any) -> httpx.Response:
    return ask("POST", f"/v1/models/tiny:{verb}", json={"instances": instances, "parameters": parameters})


def test_one_prediction_and_one_explanation_an_instance(ask: Ask) -> None:
    photos = [jpeg(n) for n in range(3)]
    found = post(ask, "explain", [b64(photos[0]), {"image": b64(photos[1])}, b64(photos[2])]).json()
    single = [ask("POST", "/explain", files={"image": photo}).json() for photo in photos]
    assert [row["class"] for row in found["predictions"]] == [row["prediction"]["class"] for row in single]
    assert [row["target"] for row in found["explanations"]] == [row["target"] for row in single]
    assert found["graph_digest"] == single[0]["graph_digest"]
    assert found["explanations"][1]["image"] == single[1]["image"]
    assert {"method", "layer", "request_id", "timing_ms"} <= found.keys()
    only = post(ask, "predict", [b64(photos[0])]).json()
    assert only["predictions"] == found["predictions"][:1]
    assert "explanations" not in only


@pytest.mark.parametrize(("wrong", "status"), [({"b64": "aGVsbG8="}, 422), ({"b64": "%%"}, 400)])
def test_a_problem_of_one_of_several_names_it(ask: Ask, photo: bytes, wrong: dict[str, str], status: int) -> None:
    answer = post(ask, "explain", [b64(photo), b64(photo), wrong])
    assert answer.status_code == status
    assert answer.json()["error"].startswith("image 2: ")


def test_parameters(ask: Ask, photo: bytes) -> None:
    found = post(ask, "explain", [b64(photo)], target=2, method="eigencam", top_k=2).json()
    assert (found["explanations"][0]["target"]["class"], found["method"]) == (2, "eigencam")
    assert len(found["predictions"][0]["top"]) == 2
    [several] = post(ask, "explain", [b64(photo)], target="top:2").json()["explanations"]
    assert len(several["explanations"]) == 2


def test_models(ask: Ask) -> None:
    assert ask("GET", "/v1/models/tiny").json() == {"name": "tiny", "ready": True}
    assert ask("GET", "/v1/models/tiny/labels").json() == {"labels": ["0", "1", "2", "3"]}
    [model] = ask("GET", "/v1/models").json()["models"]
    assert (model["default_method"], model["classes"], model["input"]) == ("gradcam", 4, [32, 32, 3])
    assert {row["name"]: row["slow"] for row in model["methods"]} == {
        "gradcam": False,
        "eigencam": False,
        "smoothgrad": True,
    }


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "expected a JSON object"),
        (b'{"instances": [NaN]}', 400, "NaN"),
        (b"[" * 9_000, 400, "too deeply"),
        (b"{}", 400, "instances"),
        (b'{"instances": []}', 400, "instances"),
        (b'{"instances": ["x"]}', 400, "an instance is"),
        (b'{"instances": [{"b64": 7}]}', 400, "base64"),
        (b'{"instances": [{"b64": "%%"}]}', 400, "base64"),
        (b'{"instances": [{"b64": ""}]}', 422, "zero bytes"),
        (b'{"instances": [{"b64": "aGVsbG8="}]}', 422, "no known image format"),
        (b'{"instances": [{"address": "http://localhost/a.jpg"}]}', 422, "storage"),
        (b'{"instances": [{"address": "/etc/passwd"}]}', 422, "storage"),
        (b'{"instances": [1], "parameters": {"nothing": 1}}', 400, "parameters.nothing"),
        (b'{"instances": [1], "parameters": {"method": "no"}}', 422, "gradcam"),
        (b'{"instances": [1], "parameters": {"target": "zebra"}}', 422, "zebra"),
        (b'{"instances": [1], "parameters": {"target": "label"}}', 422, "name the class"),
        (b'{"instances": [' + b"1," * 5000 + b"1]}", 413, "at most 64"),
    ],
)
def test_errors_have_the_protocol_s_form(ask: Ask, content: bytes, status: int, word: str) -> None:
    answer = ask("POST", "/v1/models/tiny:predict", content=content)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert word in answer.json()["error"]


def test_an_unknown_model_is_told_what_there_is(ask: Ask) -> None:
    answer = ask("POST", "/v1/models/nothing:predict", json={"instances": [1]})
    assert answer.status_code == 404
    assert "there are: tiny" in answer.json()["error"]
