"""The files of the page at `/`: types, policy, validators, and nothing inline or from elsewhere."""

import re

from fastapi.testclient import TestClient
from page_service import BODY_BYTES, build

from serve import page as page_module


def test_files_have_types_policy_and_validators() -> None:
    client = TestClient(build())
    html = client.get("/")
    policy = html.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    names = re.findall(r'(?:src|href)="(page/[^"]+)"', html.text)
    assert len(names) == 3
    for name in ["", *(f"page/{name}" for name in page_module.assets())]:
        found = client.get(f"/{name}")
        assert found.headers["x-content-type-options"] == "nosniff"
        again = client.get(f"/{name}", headers={"If-None-Match": f'W/"x", {found.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert client.head(f"/{name}").headers["content-length"] == str(len(found.content))
    assert client.get("/page/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.get("/page/limits.json").json() == {"body_bytes": BODY_BYTES}
    for path in ("/page/page.py", "/page/..%2fpage.py", "/page/missing.js"):
        assert client.get(path).status_code == 404


def test_the_page_holds_no_inline_code_and_names_no_other_host() -> None:
    for name, asset in page_module.assets().items():
        text = asset.content.decode()
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}, name
        assert "innerHTML" not in text
        assert len(text.splitlines()) <= 400, name
    html = page_module.assets()["index.html"].content.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", html)
