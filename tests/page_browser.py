"""Debian's Chromium through Playwright, and what every visit of the page must keep to."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, expect, sync_playwright

ARGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
TOLD_BY_CHROMIUM = "Failed to load resource"  # logged for every answer that is an error, whatever the page does


def browser_path() -> str | None:
    """The browser: CHROME, or Debian's."""
    return os.environ.get("CHROME") or shutil.which("chromium")


@contextmanager
def launched() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=ARGS)
        try:
            yield browser
        finally:
            browser.close()


def written(html: str, folder: Path) -> str:
    """Address of a page that was written to a file."""
    path = folder / "report.html"
    path.write_text(html)
    return path.as_uri()


def headings(tab: Page) -> list[str]:
    return [text.strip() for text in tab.locator("main h2").all_inner_texts()]


@contextmanager
def opened(browser: Browser, address: str, *, ready: bool = True, **options: Any) -> Iterator[Page]:
    """A tab of its own at an address; at the end it must have logged no error and asked no other host.

    Args:
        browser: launched.
        address: of the page, perhaps with a hash.
        ready: wait until the models are there.
        options: of the context, for example `viewport` or `color_scheme`.

    Yields:
        The tab.
    """
    context = browser.new_context(**options)
    context.set_default_timeout(8000)
    page = context.new_page()
    errors: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    try:
        page.goto(address)
        if ready:
            expect(page.locator("#model")).to_be_enabled()
        yield page
    finally:
        context.close()
    assert [error for error in errors if not error.startswith(TOLD_BY_CHROMIUM)] == []
    assert len(hosts - {""}) <= (urlsplit(address).scheme != "file")


def pixels(page: Page, canvas: str, places: list[tuple[float, float]]) -> list[list[int]]:
    """RGB of a canvas at places given as shares of its width and height."""
    found: list[list[int]] = page.locator(canvas).evaluate(
        """(canvas, places) => places.map(([x, y]) => Array.from(canvas.getContext('2d').getImageData(
            Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data.slice(0, 3)))""",
        places,
    )
    return found
