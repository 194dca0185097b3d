"""The page at `/` in a real browser: every way in, every choice, every way out, and what goes wrong.

Over 400 lines, since one browser and one service serve all of it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_browser import browser_path, launched, opened, pixels
from page_service import BODY_BYTES, LABELS, build, serving
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect
from samples import encoded

pytestmark = pytest.mark.skipif(browser_path() is None, reason="no Chromium: set CHROME or install chromium")
Answer = dict[str, Any]
KEY = "correct-horse"


@pytest.fixture(scope="module")
def app() -> Any:
    return build()


@pytest.fixture(scope="module")
def address(app: Any) -> Iterator[str]:
    with serving(app) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A fresh tab; after the test it must have logged no error and asked no other host."""
    with opened(browser, address) as found:
        yield found


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 x 80: the left half red, the right half dark blue; the service sees columns 40..120."""
    halves = np.zeros((80, 160, 3), np.uint8)
    halves[:, :80], halves[:, 80:] = (220, 20, 30), (0, 0, 60)
    path = tmp_path_factory.mktemp("photo") / "halves.png"
    Image.fromarray(halves).save(path)
    return path


def explained(page: Page, photo: Path) -> None:
    page.set_input_files("#file", photo)
    expect(page.locator("#sentence")).not_to_be_empty()


def hash_of(page: Page) -> str:
    return page.url.partition("#")[2]


def answered(route: Route, status: int, code: str, message: str, **headers: str) -> None:
    said = {"error": {"code": code, "message": message, "request_id": "r-9"}}
    route.fulfill(status=status, json=said, headers=headers)


# --- ways in


def test_a_chosen_image_is_explained(page: Page, photo: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose an image").click()
    chooser.value.set_files(photo)
    expect(page.locator("#sentence")).to_contain_text("is greatest at the top centre")
    best = page.locator("#classes button").first
    expect(best).to_have_attribute("aria-pressed", "true")
    expect(best).to_contain_text("%")
    sentence = page.locator("#sentence").inner_text()
    expect(page.locator("#picture")).to_have_attribute("aria-label", re.compile(re.escape(sentence)))
    expect(page.locator("#status")).to_have_text(sentence)


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_dropped_or_pasted_image_is_explained(page: Page, photo: Path, kind: str) -> None:
    page.evaluate(
        """([kind, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'it.png', { type: 'image/png' }));
            const event = kind === 'drop'
                ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        }""",
        [kind, list(photo.read_bytes())],
    )
    expect(page.locator("#sentence")).not_to_be_empty()


def test_the_bytes_sent_are_the_file_s_own(page: Page, photo: Path, app: Any) -> None:
    explained(page, photo)
    assert app.state.received == photo.read_bytes()


def test_a_turned_photograph_is_shown_upright_below_its_map(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    Image.new("RGB", (160, 80), "red").save(turned, exif=exif)
    explained(page, turned)
    width, height = page.locator("#picture").evaluate("canvas => [canvas.width, canvas.height]")
    assert height == 2 * width
    assert pixels(page, "#picture", [(0.5, 0.02)])[0][0] < 160, "outside the square that the model saw: darkened"


# --- choices


def test_another_class_is_explained_and_kept(page: Page, photo: Path, app: Any) -> None:
    explained(page, photo)
    first, second = page.locator("#classes button").nth(0), page.locator("#classes button").nth(1)
    second.click()
    expect(second).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#sentence")).to_contain_text(second.locator(".class-name").inner_text())
    asked = app.state.explained
    first.click()
    expect(first).to_have_attribute("aria-pressed", "true")
    assert app.state.explained == asked, "known already"


def test_a_class_is_searched_by_keyboard(page: Page, photo: Path) -> None:
    explained(page, photo)
    search = page.get_by_role("combobox", name="Any other class")
    search.fill("mediumsea")
    expect(search).to_have_attribute("aria-expanded", "true")
    expect(page.locator("#found [role=option]")).to_have_count(1)
    search.fill("goldenr")
    search.press("Enter")
    expect(page.locator("#classes button[aria-pressed=true]")).to_contain_text("goldenrod")
    search.fill("green")
    search.press("ArrowDown")
    expect(page.locator("#found [aria-selected=true]")).to_have_attribute("id", "found-1")
    search.press("Escape")
    expect(page.locator("#found")).to_be_hidden()
    search.fill("no such thing")
    expect(page.locator("#found")).to_contain_text("No class")
    search.fill(str(LABELS.index("teal")))
    search.press("Enter")
    expect(page.locator("#sentence")).to_contain_text("teal")


def test_methods_models_and_what_they_say_of_themselves(page: Page, photo: Path) -> None:
    explained(page, photo)
    page.get_by_label("Method", exact=True).select_option("darkness")
    expect(page.locator("#sentence")).to_contain_text("Darkness")
    expect(page.locator("#method-note")).to_contain_text("the same for every class")
    expect(page.locator("#method-note")).to_contain_text("takes a while")
    page.get_by_label("Model", exact=True).select_option("colours-large")
    expect(page.locator("#details-list")).to_contain_text("colours-large")
    assert "model=colours-large&method=darkness&target=predicted" in hash_of(page)


def test_methods_are_compared(page: Page, photo: Path) -> None:
    explained(page, photo)
    page.get_by_role("radio", name="Compare").check()
    cards = page.get_by_role("article")
    expect(cards).to_have_count(3)
    for name in ("likeness", "brightness", "contrast"):
        expect(page.get_by_role("article", name=name)).to_contain_text(name.capitalize())
    expect(page.locator(".legend")).to_have_count(2)
    page.get_by_label("darkness").check()
    expect(page.get_by_role("article", name="darkness")).to_contain_text("Darkness")
    assert "compare=likeness,brightness,contrast,darkness" in hash_of(page)
    page.get_by_role("button", name="Use contrast alone").click()
    expect(page.locator("#compare")).to_be_hidden()
    expect(page.locator("#sentence")).to_contain_text("Contrast")
    expect(page.locator("#legends")).to_contain_text("speaks against")


def test_the_heatmap_lies_over_the_part_that_the_model_saw(page: Page, photo: Path) -> None:
    """Brightness of the left half in the crop is the map's maximum, of the right one its minimum: black at 55 %."""
    explained(page, photo)
    page.get_by_label("Method", exact=True).select_option("brightness")
    expect(page.locator("#sentence")).to_contain_text("Brightness")
    page.get_by_label("Heatmap opacity").fill("100")
    bright, dark, outside = pixels(page, "#picture", [(0.3, 0.5), (0.7, 0.5), (0.1, 0.5)])
    assert np.allclose(bright, (252, 255, 164), atol=2)
    assert np.allclose(dark, (0, 0, 0.55 * 4 + 0.45 * 60), atol=2)
    assert np.allclose(outside, np.multiply((220, 20, 30), 0.45), atol=2)
    page.get_by_role("radio", name="Original").check()
    assert np.allclose(pixels(page, "#picture", [(0.3, 0.5)]), (220, 20, 30), atol=2)


def test_between_cells_the_map_is_bilinear(page: Page) -> None:
    """Against Pillow, which computes it independently."""
    raw = np.random.default_rng(0).uniform(0, 1, (5, 4)).astype(np.float32)
    drawn = page.evaluate(
        """async (data) => {
            const { colour } = await import('/page/heatmap.js');
            const image = new ImageData(80, 60);
            colour(image, { shape: [data.length, data[0].length], data });
            return Array.from(image.data);
        }""",
        raw.tolist(),
    )
    unit = (raw - raw.min()) / (raw.max() - raw.min())
    wanted = np.asarray(Image.fromarray(unit).resize((80, 60), Image.Resampling.BILINEAR))
    import matplotlib as mpl

    colours = mpl.colormaps["inferno"](wanted)[..., :3] * 255
    found = np.array(drawn).reshape(60, 80, 4)[..., :3]
    assert np.abs(found - colours).max() < 9, "the page's table has 17 stops"


def test_opacity_by_keyboard(page: Page, photo: Path) -> None:
    explained(page, photo)
    before = pixels(page, "#picture", [(0.3, 0.5)])
    slider = page.get_by_role("slider", name="Heatmap opacity")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowLeft")
    expect(page.locator("#opacity-value")).to_have_text("40 %")
    assert pixels(page, "#picture", [(0.3, 0.5)]) != before
    assert "opacity=40" in hash_of(page)
    slider.press("Home")
    assert np.allclose(pixels(page, "#picture", [(0.1, 0.5), (0.3, 0.5)]), (220, 20, 30), atol=2)


# --- ways out


def test_a_link_reproduces_the_view(page: Page, browser: Browser, photo: Path) -> None:
    explained(page, photo)
    page.get_by_label("Method", exact=True).select_option("contrast")
    page.locator("#classes button").nth(2).click()
    page.get_by_label("Heatmap opacity").fill("35")
    expect(page.locator("#classes button").nth(2)).to_have_attribute("aria-pressed", "true")
    sentence = page.locator("#sentence").inner_text()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    link = page.evaluate("() => navigator.clipboard.readText()")
    assert str(photo.name) not in link
    drawn = pixels(page, "#picture", [(0.3, 0.5), (0.6, 0.4)])
    with opened(browser, link) as other:
        expect(other.locator("#link-hint")).to_contain_text("choose the same image")
        explained(other, photo)
        expect(other.locator("#sentence")).to_have_text(sentence)
        assert pixels(other, "#picture", [(0.3, 0.5), (0.6, 0.4)]) == drawn


def test_downloads(page: Page, photo: Path) -> None:
    explained(page, photo)
    with page.expect_download() as picture:
        page.get_by_role("button", name="Save picture").click()
    assert picture.value.suggested_filename.startswith("raylens-colours-likeness-")
    assert Image.open(picture.value.path()).size == (160, 80), "the image's own size"
    with page.expect_download() as data:
        page.get_by_role("button", name="Save data").click()
    assert json.loads(Path(data.value.path()).read_text())["heatmap"]["shape"] == [7, 7]


# --- what goes wrong


def test_a_file_that_is_no_image(page: Page, photo: Path) -> None:
    page.set_input_files("#file", {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"Dear sir"})
    expect(page.get_by_role("alert")).to_contain_text("“letter.txt” is no image")
    explained(page, photo)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_file_over_the_limit_is_not_sent(page: Page, app: Any) -> None:
    asked = app.state.explained
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    large = encoded(Image.fromarray(noise), "PNG")
    assert len(large) > BODY_BYTES
    page.set_input_files("#file", {"name": "large.png", "mimeType": "image/png", "buffer": large})
    expect(page.get_by_role("alert")).to_contain_text("accepts up to 2.0 MB")
    assert app.state.explained == asked


@pytest.mark.parametrize(("status", "words"), [(413, "too large"), (422, "cannot be explained"), (500, "failed")])
def test_what_the_service_refuses_is_said(page: Page, photo: Path, status: int, words: str) -> None:
    page.route("**/explain?*", lambda route: answered(route, status, "some_code", "the reason in words"))
    page.set_input_files("#file", photo)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(words)
    expect(alert).to_contain_text("The reason in words.")
    expect(alert).to_contain_text("r-9")
    page.keyboard.press("Escape")
    expect(alert).to_be_hidden()


def test_a_busy_service_is_asked_again_after_a_countdown(page: Page, photo: Path) -> None:
    page.route(
        "**/explain?*", lambda route: answered(route, 503, "busy", "queue full", **{"Retry-After": "2"}), times=1
    )
    page.set_input_files("#file", photo)
    expect(page.get_by_role("alert")).to_contain_text("Trying again in 2 s")
    expect(page.get_by_role("alert")).to_contain_text("Trying again in 1 s")
    expect(page.locator("#sentence")).not_to_be_empty()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_an_image_waits_for_a_service_that_is_still_starting(browser: Browser, address: str, photo: Path) -> None:
    with opened(browser, "about:blank", ready=False) as page:
        page.route("**/v1/models", lambda route: route.fulfill(json={"models": []}), times=1)
        page.goto(address)
        expect(page.get_by_role("alert")).to_contain_text("No model is loaded")
        page.set_input_files("#file", photo)
        expect(page.locator("#sentence")).not_to_be_empty(timeout=8000)


def test_offline_and_back(page: Page, photo: Path) -> None:
    explained(page, photo)
    page.context.set_offline(True)
    page.locator("#classes button").nth(1).click()
    expect(page.get_by_role("alert")).to_contain_text("No connection")
    page.context.set_offline(False)
    expect(page.locator("#classes button").nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_waiting_is_shown_and_can_be_left(page: Page, photo: Path, app: Any) -> None:
    explained(page, photo)
    app.state.delay_s = 1.0
    page.get_by_label("Method", exact=True).select_option("darkness")
    expect(page.locator("#busy")).to_be_visible()
    expect(page.locator("#frame")).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")
    app.state.delay_s = 0.0
    expect(page.locator("#busy")).to_be_hidden()
    expect(page.get_by_label("Method", exact=True)).to_have_value("likeness")


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Browser) -> None:
    guarded = build()
    guarded.state.key = KEY
    with serving(guarded) as address, opened(browser, address, ready=False) as page:
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Use key").click()
        expect(page.get_by_role("dialog")).to_contain_text("does not know that key")
        page.get_by_label("API key").fill(KEY)
        page.get_by_label("API key").press("Enter")
        expect(page.locator("#model")).to_be_enabled()
        assert KEY in page.evaluate("() => Object.values(sessionStorage)")
        assert page.evaluate("() => localStorage.length + document.cookie.length") == 0


# --- for everybody


def test_every_control_has_a_name_and_every_landmark_is_there(page: Page, photo: Path) -> None:
    explained(page, photo)
    for role in ("banner", "main", "contentinfo", "status"):
        expect(page.get_by_role(role)).to_have_count(1)
    assert page.locator("html").get_attribute("lang") == "en"
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input:not([type=file]), [role=img], dialog, summary')]
            .filter((e) => !e.labels?.length && !e.ariaLabel && !e.hasAttribute('aria-labelledby'))
            .filter((e) => e.textContent.trim() === '').map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("h1").count() == 1
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_everything_is_reached_by_tab_with_a_visible_focus(page: Page, photo: Path) -> None:
    explained(page, photo)
    page.locator("body").press("Tab")
    reached = set()
    for _ in range(24):
        name, outline = page.evaluate(
            """() => {
                const e = document.activeElement;
                const seen = e.matches('.segments input') ? e.nextElementSibling : e;
                return [e.id || e.name || e.className, getComputedStyle(seen).outlineStyle];
            }"""
        )
        if name:
            reached.add(name)
            assert outline != "none", name
        page.keyboard.press("Tab")
    wanted = {"skip", "model", "mode", "view", "another", "opacity", "class", "search", "method", "copy", "save-data"}
    assert wanted <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, address: str, scheme: Any) -> None:
    """WCAG AA: 4.5 between each text colour and the grounds it stands on."""
    with opened(browser, address, color_scheme=scheme) as page:
        colours = page.evaluate(
            """() => Object.fromEntries(['ground', 'surface', 'sunken', 'text', 'quiet', 'accent', 'accent-text',
                'accent-soft', 'bad', 'bad-soft'].map((name) => {
                    const probe = document.createElement('p');
                    probe.style.color = `var(--${name})`;
                    document.body.append(probe);
                    return [name, getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(Number)];
                }))"""
        )
    pairs = [(text, ground) for text in ("text", "quiet") for ground in ("ground", "surface", "sunken", "accent-soft")]
    for text, ground in [*pairs, ("accent-text", "accent"), ("accent", "ground"), ("bad", "bad-soft")]:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(one: list[int], other: list[int]) -> float:
    def luminance(colour: list[int]) -> float:
        unit = np.array(colour) / 255
        linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_phone_of_360_px(browser: Browser, address: str, photo: Path) -> None:
    options = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    with opened(browser, address, **options) as page:
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Take a photo").tap()
        assert chooser.value.element.get_attribute("capture") == "environment"
        chooser.value.set_files(photo)
        expect(page.locator("#sentence")).not_to_be_empty()
        page.get_by_role("radio", name="Compare").tap()
        expect(page.get_by_role("article")).to_have_count(3)
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360
        small = page.evaluate(
            """() => [...document.querySelectorAll('button, select, .chip, .segments label')]
                .filter((e) => e.checkVisibility() && e.offsetHeight < 32).map((e) => e.textContent)"""
        )
        assert small == []


def test_reduced_motion_stops_every_animation(browser: Browser, address: str) -> None:
    with opened(browser, address, reduced_motion="reduce") as page:
        moving = "() => getComputedStyle(document.querySelector('.spinner')).animationName"
        assert page.evaluate(moving) == "none"
