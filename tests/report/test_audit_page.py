"""The audit's page in a real browser: complete, without network, readable without script, inert to what data say."""

from dataclasses import replace
from pathlib import Path

import pytest
from audit_nights import HOSTILE, IMAGES, Nights, unlabelled
from page_browser import browser_path, headings, opened, written
from playwright.sync_api import Browser, expect

from pipeline.evaluation.aggatt import EDGES
from pipeline.report.audit.gallery import KINDS
from pipeline.report.audit.headline import headline
from pipeline.report.audit.metrics import sentences
from pipeline.report.audit.page import page
from schemas.grids import SETTINGS

SECTIONS = ("Counts", "Performance", "Calibration", "Classes", "How good the maps are", "Images to look at", "Drift")

pytestmark = pytest.mark.skipif(browser_path() is None, reason="no Chromium; set CHROME")


@pytest.fixture(scope="module")
def alarmed(found: Nights, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the page with every part."""
    return written(page(found.alarmed), tmp_path_factory.mktemp("page"))


def test_the_first_screen_answers(alarmed: str, browser: Browser, found: Nights) -> None:
    with opened(browser, alarmed, ready=False, viewport={"width": 1280, "height": 800}) as tab:
        expect(tab.get_by_role("heading", level=1)).to_have_text(f"!{len(found.alarmed.alerts)} alerts")
        assert len(found.alarmed.alerts) > 3
        shown = tab.locator(".verdict")
        expect(shown).to_contain_text("The model looks elsewhere in")
        expect(shown).to_contain_text("Night two against one")
        first = tab.locator(".concern").first
        expect(first.locator("img")).to_have_count(8)  # a mean and three examples of both nights
        for part in (shown.locator(".answer"), first):
            box = part.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= 800


def test_every_part_is_there_and_nothing_is_fetched(alarmed: str, browser: Browser) -> None:
    asked: list[str] = []
    context = browser.new_context()
    tab = context.new_page()
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(alarmed)
    assert [url for url in asked if not url.startswith("data:")] == [alarmed]
    assert [name for name in SECTIONS if name not in headings(tab)] == []
    titles = tab.locator("#images h3").all_inner_texts()
    assert titles == [kind.title for kind in KINDS.values()]
    assert tab.locator("svg.plot title").count() == tab.locator("svg.plot desc").count() >= 7
    assert tab.evaluate("Array.from(document.images).every((image) => image.naturalWidth > 0)")
    ids = tab.evaluate("Array.from(document.querySelectorAll('[id]'), (element) => element.id)")
    assert len(ids) == len(set(ids))
    context.close()


def test_an_image_of_both_nights_shows_its_earlier_map(alarmed: str, browser: Browser) -> None:
    with opened(browser, alarmed, ready=False) as tab:
        cards = tab.locator("h3#drifted ~ .cards").first.locator(".card")
        assert cards.count() == 8
        expect(cards.first.locator("img")).to_have_count(3)


def test_without_classes_to_compare_the_first_screen_shows_images(
    found: Nights, browser: Browser, tmp_path: Path
) -> None:
    with opened(browser, written(page(found.few), tmp_path), ready=False) as tab:
        expect(tab.locator(".verdict")).to_contain_text(f"Of {IMAGES} images that both nights hold")
        shown = tab.locator(".concerns")
        expect(shown.get_by_role("heading")).to_have_text("The maps that moved most")
        expect(shown.locator("img")).to_have_count(6 * 3)
        distances = [float(one.split()[-1]) for one in shown.get_by_text("distance").all_inner_texts()]
        assert distances == sorted(distances, reverse=True)
        assert distances[0] > 0.2


def test_where_no_map_moved_none_is_said_to_have(found: Nights, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, written(page(found.still), tmp_path), ready=False) as tab:
        expect(tab.locator(".verdict")).to_contain_text("none has a map that moved")
        shown = tab.locator(".concerns")
        expect(shown.get_by_role("heading")).to_have_text("No map moved: the least alike of them")
        assert set(shown.get_by_text("distance").all_inner_texts()) == {"distance 0.000"}


def test_images_that_moved_as_a_whole_are_told_where_no_class_can_be(found: Nights) -> None:
    drift = found.alarmed.drift
    assert drift is not None
    unpaired = replace(drift, classes=(), findings=tuple(one for one in drift.findings if one.family == "population"))
    moved = headline(replace(found.alarmed, drift=unpaired)).answer
    assert "Over all images the evidence lies elsewhere; of which classes is not known: no class has 5 maps" in moved
    calm = replace(unpaired, findings=tuple(replace(one, alert=False) for one in unpaired.findings))
    assert "Whether the model looks where it did is not known" in headline(replace(found.alarmed, drift=calm)).answer


def test_panels_frame_the_cell_of_their_class(alarmed: str, browser: Browser) -> None:
    with opened(browser, alarmed, ready=False) as tab:
        rows = tab.locator("#maps .panels")
        assert rows.count() == len(SETTINGS)
        assert [row.locator("img").count() for row in rows.all()] == [len(EDGES) - 1] * len(SETTINGS)
        panel = rows.first.locator(".framed").first
        whole, framed = panel.bounding_box(), panel.locator("i").bounding_box()
        assert whole is not None
        assert framed is not None
        assert (framed["x"], framed["y"]) == (whole["x"], whole["y"])
        assert framed["width"] == pytest.approx(whole["width"] / 2)
        assert framed["height"] == pytest.approx(whole["height"] / 2)


def test_maps_are_told_by_class_and_slice(found: Nights, alarmed: str, browser: Browser) -> None:
    with opened(browser, alarmed, ready=False) as tab:
        folds = tab.locator("#maps details")
        titles = [
            f"{what} by {told}" for told in ("class", "prediction_name") for what in ("Metrics", "Shape of the maps")
        ]
        expect(folds.locator("summary")).to_contain_text(titles)
        expect(folds.first).to_contain_text(
            "with fewer than 10 measured images: no number is given; measure.images asks for more."
        )
        assert folds.first.locator("table").count() == 0
        folds.nth(1).locator("summary").click()
        shapes = folds.nth(1).locator("table")
        expect(shapes).to_be_visible()
        known = {one.name for one in found.alarmed.breakdown if one.by == "class" and one.is_known}
        assert set(shapes.locator("tbody").first.locator("th").all_inner_texts()) == known != set()
        expect(shapes.locator("tbody").last).to_contain_text("all images")


def test_a_table_is_sorted_by_keyboard(alarmed: str, browser: Browser) -> None:
    with opened(browser, alarmed, ready=False) as tab:
        column = tab.locator("table#findings td:nth-child(3)")
        effects = [float(text.split()[0]) for text in column.all_inner_texts()]
        head = tab.locator("table#findings th").nth(2)
        head.get_by_role("button").focus()
        tab.keyboard.press("Enter")
        expect(head).to_have_attribute("aria-sort", "descending")
        assert [float(text.split()[0]) for text in column.all_inner_texts()] == sorted(effects, reverse=True)
        tab.keyboard.press("Enter")
        expect(head).to_have_attribute("aria-sort", "ascending")
        assert [float(text.split()[0]) for text in column.all_inner_texts()] == sorted(effects)


def test_it_is_read_without_script(alarmed: str, browser: Browser) -> None:
    with opened(browser, alarmed, ready=False, java_script_enabled=False) as tab:
        assert [name for name in SECTIONS if name not in headings(tab)] == []
        expect(tab.get_by_role("button")).to_have_count(0)
        expect(tab.locator("table#findings")).to_be_visible()


def test_class_names_are_text(alarmed: str, browser: Browser) -> None:
    with opened(browser, alarmed, ready=False) as tab:
        assert tab.title() not in ("1", "2")
        expect(tab.locator("script")).to_have_count(1)
        assert tab.locator("img:not([src^='data:'])").count() == 0
        names = tab.locator("table#classes tbody th").all_inner_texts()
        assert sorted(names) == sorted(HOSTILE)
        expect(tab.locator("svg.plot").filter(has_text="$x^2$").first).to_be_visible()


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_scrolls_sideways(alarmed: str, browser: Browser, width: int, scheme: str) -> None:
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with opened(browser, alarmed, ready=False, **options) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") == width


def test_print_shows_whole_tables(alarmed: str, browser: Browser) -> None:
    with opened(browser, alarmed, ready=False) as tab:
        tab.emulate_media(media="print")
        hidden = "(box) => box.scrollHeight - box.clientHeight"
        assert tab.locator(".scroll.tall").first.evaluate(hidden) == 0
        expect(tab.locator("nav")).to_be_hidden()


def test_a_calm_night_says_so(found: Nights, browser: Browser, tmp_path: Path) -> None:
    assert found.calm.alerts == ()
    with opened(browser, written(page(found.calm), tmp_path), ready=False) as tab:
        expect(tab.get_by_role("heading", level=1)).to_contain_text("Nothing changed")
        expect(tab.locator(".verdict")).to_contain_text("The model looks where it did")


def test_the_first_night_has_nothing_to_compare_with(found: Nights, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, written(page(found.first), tmp_path), ready=False) as tab:
        expect(tab.get_by_role("heading", level=1)).to_contain_text("First night")
        expect(tab.locator("#drift")).to_contain_text("There is no earlier run to compare with.")
        expect(tab.locator("#images")).to_contain_text(KINDS["drifted"].empty)
        for concern in tab.locator(".concern").all():
            assert concern.locator("img").count() > 1


def test_too_few_maps_to_test_are_told_from_untested_ones(found: Nights) -> None:
    """Eight images; twelve grids are enough."""
    rows = found.first.metrics
    few = tuple(row for row in rows if row.name == "insertion")
    bare = tuple(replace(row, controls={}) for row in few)
    assert "By insertion and mprt, too few maps were measured" in " ".join(sentences(rows, 0.01))
    assert list(sentences(bare, 0.01)) == [one for one in sentences(few, 0.01) if "too few" not in one]
    notes = [headline(replace(found.first, metrics=each)).tiles[3].note for each in (rows, few, bare)]
    assert notes == ["", "too few images to test", ""]


def test_empty_parts_say_why(found: Nights, browser: Browser, tmp_path: Path) -> None:
    """No label, no plan and so no photograph, no metric, no earlier run."""
    html = page(unlabelled(tmp_path / "run", found.first))
    with opened(browser, written(html, tmp_path), ready=False) as tab:
        expect(tab.locator("#performance")).to_contain_text("No image has a label")
        expect(tab.locator("#performance")).to_contain_text("Mean score")
        expect(tab.locator("#performance")).not_to_contain_text("Mean score where right")
        expect(tab.locator("#calibration")).to_contain_text("Calibration needs labels")
        expect(tab.locator("#maps")).to_contain_text("No map was measured")
        expect(tab.locator(".first")).to_contain_text("could not be read again")
        assert tab.locator(".absent").count() > 0


def test_photographs_that_have_gone_leave_a_place(found: Nights) -> None:
    tar = found.images / "planted-00000.tar"
    kept = tar.rename(tar.with_suffix(".gone"))
    try:
        html = page(found.alarmed)
    finally:
        kept.rename(tar)
    assert "could not be read again" in html
    assert "no photograph" in html
    assert "no photograph" not in page(found.alarmed)


def test_the_page_is_small_and_the_same_again(found: Nights) -> None:
    first, second = page(found.alarmed), page(found.alarmed)
    assert first == second
    assert len(first) < 2**20 + 60_000 * IMAGES
