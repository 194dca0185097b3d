"""The documents at `/docs`: complete, readable without another host, and without a script."""

import re
from collections.abc import Callable

import httpx

Ask = Callable[..., httpx.Response]


def test_the_page_tells_every_operation_and_object(ask: Ask) -> None:
    page, api = ask("GET", "/docs"), ask("GET", "/openapi.json").json()
    assert page.headers["content-type"].startswith("text/html")
    for path, operations in api["paths"].items():
        assert path in page.text
        assert all(f'id="{operation["operationId"]}"' in page.text for operation in operations.values())
    assert all(f'id="{name}"' in page.text for name in api["components"]["schemas"])
    for link in re.findall(r'href="#([^"]+)"', page.text):
        assert f'id="{link}"' in page.text


def test_the_page_needs_no_other_host_and_may_run_nothing(ask: Ask) -> None:
    page = ask("GET", "/docs")
    assert "<script" not in page.text
    links = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
    assert links
    assert all(ask("GET", link).status_code == 200 for link in set(links))
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "unsafe" not in policy


def test_every_answer_has_a_schema(ask: Ask) -> None:
    api = ask("GET", "/openapi.json").json()
    for operations in api["paths"].values():
        for operation in operations.values():
            assert {"200", "4XX", "503"} <= operation["responses"].keys()
            for response in operation["responses"].values():
                assert all(content["schema"] for content in response["content"].values())
