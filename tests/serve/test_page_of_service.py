"""The page on the service itself: what one sends is what the other reads."""

from collections.abc import Iterator
from typing import Any

import pytest
from page_browser import browser_path, launched, opened
from page_service import serving
from playwright.sync_api import Page, expect
from samples import jpeg
from serving import started

from serve.service import Service
from serve.web import create_web

pytestmark = pytest.mark.skipif(browser_path() is None, reason="no Chromium: set CHROME or install chromium")
PHOTO: Any = {"name": "blob.jpg", "mimeType": "image/jpeg", "buffer": jpeg(3)}


@pytest.fixture
def page(service: Service) -> Iterator[Page]:
    with serving(create_web(service)) as address, launched() as browser, opened(browser, address) as found:
        found.set_input_files("#file", PHOTO)
        yield found


def test_a_photograph_is_explained(page: Page) -> None:
    expect(page.locator("#sentence")).not_to_be_empty()
    expect(page.locator("#method")).to_have_value("gradcam")
    expect(page.locator("#details-list")).to_contain_text("tiny")
    expect(page.locator("#outside")).to_be_visible()


def test_another_class_and_methods_side_by_side(page: Page) -> None:
    page.locator("#classes button").nth(1).click()
    expect(page.locator("#classes button").nth(1)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("radio", name="Compare").check()
    page.get_by_label("smoothgrad").check()
    for method in ("gradcam", "eigencam", "smoothgrad"):
        expect(page.get_by_role("article", name=method).get_by_role("button", name="Save")).to_be_enabled()
    page.get_by_role("button", name="Use smoothgrad alone").click()
    expect(page.locator("#details-list")).to_contain_text("smoothgrad")


def test_what_the_service_refuses_is_said_in_its_words() -> None:
    service = started(limits={"pixels": 1000})
    with serving(create_web(service)) as address, launched() as browser, opened(browser, address) as page:
        page.set_input_files("#file", PHOTO)
        expect(page.get_by_role("alert")).to_contain_text("48 x 40 px is over")
    service.close()
