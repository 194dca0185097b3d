"""The page of bias discovery in a real browser: it answers at once, needs no network, and is inert to what data say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bias_slices import HOSTILE, IMAGES, Found, found_slices
from page_browser import browser_path, headings, opened, written
from playwright.sync_api import Browser, expect

from pipeline.bias.finding import SHOWN
from pipeline.bias.verdict import SliceVerdict, Status
from pipeline.jobs.bias import Discovery
from pipeline.report.bias.controls import controls
from pipeline.report.bias.landscape import IMAGES as DRAWN
from pipeline.report.bias.landscape import landscape
from pipeline.report.bias.naming import slice_names
from pipeline.report.bias.page import page
from pipeline.report.bias.performance import performance
from pipeline.report.bias.untested import untested

SECTIONS = ("Slices that fail, by the errors they cost", "Controls", "Performance", "How this was computed")
MARKUP = "<script>document.title = 3</script>"

browsed = pytest.mark.skipif(browser_path() is None, reason="no Chromium; set CHROME")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_slices(tmp_path_factory.mktemp("bias"))


@pytest.fixture(scope="module")
def failing(found: Found, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the page with every part."""
    return written(page(found.failing), tmp_path_factory.mktemp("page"))


def described(found: Discovery, **changes: object) -> Discovery:
    """With changes of every attribute value that a slice is described by."""
    changed = [
        replace(one, enrichment=tuple(replace(each, **changes) for each in one.enrichment)) for one in found.findings
    ]
    return replace(found, findings=tuple(changed))


def judged(found: Discovery, status: Status) -> Discovery:
    """As if every slice had been judged so."""

    def unsure(one: SliceVerdict) -> SliceVerdict:
        return replace(one, status=status)

    verdict = found.main.verdict
    main = replace(found.main, verdict=replace(verdict, slices=tuple(map(unsure, verdict.slices))))
    changed = tuple(replace(one, slice=unsure(one.slice)) for one in found.findings)
    return replace(found, trials=(main, *found.trials[1:]), findings=changed)


def test_the_job_finds_what_was_planted(found: Found) -> None:
    assert len(found.failing.confirmed) >= 2
    assert found.failing.confirmed[0].described.startswith("tag ")
    assert found.calm.main.verdict.confirmed == ()


@browsed
def test_the_first_screen_answers(failing: str, browser: Browser, found: Found) -> None:
    confirmed = found.failing.confirmed
    with opened(browser, failing, ready=False, viewport={"width": 1280, "height": 800}) as tab:
        expect(tab.get_by_role("heading", level=1)).to_have_text(f"!{len(confirmed)} slices fail")
        points = tab.locator(".verdict .points li")
        expect(points).to_have_count(len(confirmed))
        expect(points.first).to_contain_text(" with tag ")
        expect(points.first).to_contain_text(" right, where other images of ")
        worst = tab.locator(".concern")
        cases = worst.locator(".case")
        assert cases.count() == min(SHOWN, len(confirmed[0].wrong))
        expect(cases.first.locator("img")).to_have_count(4)  # wrong and right, each with its map
        expect(worst.locator(".means img")).to_have_count(2)
        for part in (tab.locator(".verdict .points"), cases.first.locator(".case-wrong")):
            box = part.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= 800


@browsed
def test_every_part_is_there_and_nothing_is_fetched(failing: str, browser: Browser, found: Found) -> None:
    asked: list[str] = []
    context = browser.new_context()
    tab = context.new_page()
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(failing)
    assert [url for url in asked if not url.startswith("data:")] == [failing]
    assert [name for name in SECTIONS if name not in headings(tab)] == []
    assert tab.locator("article.slice").count() == len(found.failing.findings)
    assert tab.locator("table#trials tbody tr").count() == len(found.failing.trials)
    assert tab.locator("svg.plot title").count() == tab.locator("svg.plot desc").count() == 1
    assert tab.evaluate("Array.from(document.images).every((image) => image.naturalWidth > 0)")
    ids = tab.evaluate("Array.from(document.querySelectorAll('[id]'), (element) => element.id)")
    assert len(ids) == len(set(ids))
    links = tab.evaluate("Array.from(document.querySelectorAll('a[href^=\"#\"]'), (link) => link.hash.slice(1))")
    assert set(links) <= set(ids)
    context.close()


@browsed
def test_it_is_read_without_script(failing: str, browser: Browser) -> None:
    with opened(browser, failing, ready=False, java_script_enabled=False) as tab:
        assert [name for name in SECTIONS if name not in headings(tab)] == []
        expect(tab.get_by_role("button")).to_have_count(0)
        expect(tab.locator("table#trials")).to_be_visible()


@browsed
def test_names_and_values_are_text(found: Found, browser: Browser, tmp_path: Path) -> None:
    hostile = described(found.failing, value=MARKUP)
    with opened(browser, written(page(hostile), tmp_path), ready=False) as tab:
        assert tab.title() not in ("1", "2", "3")
        expect(tab.locator("script")).to_have_count(1)
        assert tab.locator("img:not([src^='data:'])").count() == 0
        assert sorted(tab.locator("table#classes tbody th").all_inner_texts()) == sorted(HOSTILE)
        expect(tab.locator(".concern .points li").first).to_contain_text(MARKUP)
        expect(tab.locator("svg.plot").filter(has_text="1: <").first).to_be_visible()


@browsed
@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_scrolls_sideways(failing: str, browser: Browser, width: int, scheme: str) -> None:
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with opened(browser, failing, ready=False, **options) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") == width


@browsed
def test_slices_that_are_not_confirmed_prove_nothing(found: Found, browser: Browser, tmp_path: Path) -> None:
    unsure = judged(found.failing, "flagged")
    with opened(browser, written(page(unsure), tmp_path), ready=False) as tab:
        expect(tab.get_by_role("heading", level=1)).to_contain_text("No slice fails beyond chance")
        expect(tab.locator(".verdict")).to_contain_text("looked bad on the images that found")
        folded = tab.locator("#slices details")
        expect(folded.locator("summary")).to_contain_text("prove nothing")
        expect(folded.locator("article").first).to_be_hidden()
        folded.locator("summary").click()
        expect(folded.locator("article .case").first).to_be_visible()


@browsed
def test_a_confusion_names_no_reason(found: Found, browser: Browser, tmp_path: Path) -> None:
    confused = judged(found.failing, "confusion")
    with opened(browser, written(page(confused), tmp_path), ready=False) as tab:
        expect(tab.get_by_role("heading", level=1)).to_contain_text("No slice fails beyond chance")
        expect(tab.locator(".verdict")).to_contain_text("no reason can be named")
        expect(tab.locator("#slices summary")).to_contain_text("look like the rest of their class")


@browsed
def test_no_slice_says_what_could_have_been_found(found: Found, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, written(page(found.calm), tmp_path), ready=False) as tab:
        expect(tab.get_by_role("heading", level=1)).to_contain_text("No slice fails beyond chance")
        expect(tab.locator(".verdict")).to_contain_text("is certain from")
        expect(tab.locator(".concern")).to_contain_text("It is no proof that there is none")
        expect(tab.locator("article.slice")).to_have_count(0)


@browsed
def test_where_nothing_is_tested_nothing_is_claimed(found: Found, browser: Browser, tmp_path: Path) -> None:
    verdict = replace(found.calm.main.verdict, slices=())
    small = replace(found.calm, trials=(replace(found.calm.main, verdict=verdict),), findings=())
    with opened(browser, written(page(small), tmp_path), ready=False) as tab:
        expect(tab.get_by_role("heading", level=1)).to_contain_text("No slice could be tested")
        expect(tab.locator(".concerns")).not_to_contain_text("as far as these images can tell")
        expect(tab.locator(".concerns")).to_contain_text("fewer components, or whole slices")
        expect(tab.locator("#slices")).to_contain_text("None could be tested.")
        expect(tab.locator(".tiles div", has_text="Errors that the slices explain")).to_contain_text("–")
        assert tab.locator("table#trials tbody tr td").all_inner_texts()[-5:] == ["0", "0", "0", "0", "–"]


def test_where_nothing_was_embedded_no_part_speaks_of_embeddings(found: Found) -> None:
    bare = replace(found.calm, images=replace(found.calm.images, embeddings={}), cues=found.failing.cues)
    html = page(bare)
    for part in ("map", "controls"):
        assert f'id="{part}"' in page(found.calm)
        assert f'id="{part}"' not in html
    assert "goes by tag first" not in html
    assert "none: no slice could be tested" in html


def test_an_image_a_class_is_told_from_too_few_images(found: Found) -> None:
    """No rule mends it: whole slices have no others of their classes to be compared with either."""
    half = found.calm.main.discovery
    alone = replace(found.calm.main, discovery=replace(half, labels=np.arange(len(half.labels))))
    told = untested(replace(found.calm, trials=(alone,)))
    assert "in a half no class has two images, whatever the slicer and the rules" in told
    assert "Bring more images of each class: more than 30 for slices of one class" in told
    assert "fewer components" not in told


def test_classes_of_few_images_are_a_sentence(found: Found) -> None:
    """As if nine images were of a third class, and four of them were found."""
    images = found.failing.images
    third = np.arange(len(images))
    labels, predictions = np.where(third < 9, 2, images.labels), np.where(third < 4, 2, images.predictions)
    changed = replace(found.failing, images=replace(images, labels=labels, predictions=predictions))
    (table,) = performance(changed).tables
    assert {row[0].text for row in table.rows} == set(HOSTILE)
    assert table.note.startswith("1 class with fewer than 10 images: right 4 of 9.")


def test_without_attributes_slices_go_by_their_number(found: Found) -> None:
    bare = replace(found.failing, findings=tuple(replace(one, enrichment=()) for one in found.failing.findings))
    first = bare.findings[0].slice
    assert slice_names(bare.findings, {0: "a, b", 1: "c"})[0] == f"{'ac'[first.label or 0]}, slice {first.slice}"
    assert "name attributes of the input to describe slices by" in page(bare)
    assert "name attributes of the input" not in page(found.failing)


def test_slices_of_one_name_are_numbered(found: Found) -> None:
    [one, *_] = found.failing.findings
    other = replace(one, slice=replace(one.slice, slice=one.slice.slice + 1))
    alone, both = slice_names([one], {}), slice_names([one, other], {})
    assert both == (f"{alone[0]}, slice {one.slice.slice}", f"{alone[0]}, slice {one.slice.slice + 1}")


def test_photographs_that_have_gone_leave_a_place(found: Found) -> None:
    tars = sorted(found.images.iterdir())
    for tar in tars:
        tar.rename(tar.with_suffix(".gone"))
    try:
        html = page(found.failing)
    finally:
        for tar in tars:
            tar.with_suffix(".gone").rename(tar)
    assert "could not be read again" in html
    assert "no photograph" in html
    assert "no photograph" not in page(found.failing)


def test_cues_and_remedies_have_their_parts(found: Found) -> None:
    html = page(found.failing)
    assert "goes by tag first" in html
    assert "Group DRO" in html
    assert "label and tag" in html
    without = page(replace(found.failing, cues=None, mitigation=()))
    assert "goes by tag first" not in without
    assert "Group DRO" not in without


def test_that_the_mask_helps_is_only_said_where_it_finds_more(found: Found) -> None:
    trials = [one for one in found.failing.trials if one.slicer == "domino"]
    none = [replace(one, verdict=replace(one.verdict, slices=())) for one in trials]
    of_evidence = [one if one.space == "evidence" else bare for one, bare in zip(trials, none, strict=True)]
    assert sum(one.harm for one in of_evidence) > 0
    [helped], [idle] = (controls(replace(found.failing, trials=tuple(some))) for some in (of_evidence, none))
    assert "cannot settle" in helped.said[-1]
    assert len(idle.said) == 1


def test_the_map_draws_a_random_part_of_many_images(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    [part] = landscape(found.failing)
    assert f"all {IMAGES} of them, by the two principal components" in part.said[0]
    assert DRAWN <= 3_000
    assert str(part.figures[0].svg).count("<use") >= IMAGES
    monkeypatch.setattr("pipeline.report.bias.landscape.IMAGES", 50)
    assert f"50 of {IMAGES}, drawn at random, by" in landscape(found.failing)[0].said[0]


def test_the_page_is_small_and_the_same_again(found: Found) -> None:
    first, second = page(found.failing), page(found.failing)
    assert first == second
    assert len(first) < 3 * 2**20
