"""The page of a study in a real browser: who leads, what that is not, whole without network and without script."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from page_browser import browser_path, opened, written
from playwright.sync_api import Browser, Page, expect
from samples import job, write_tars

from pipeline.jobs.progress import Silence
from pipeline.jobs.study import Study, conduct
from pipeline.report.study.page import page
from schemas.study import StudySpec

METRICS = {"insertion": {"parameters": {"step": 64}}, "deletion": {"parameters": {"step": 64}}, "classsensitivity": {}}
HOSTILE = "a<img src=x onerror=document.title=1>"

pytestmark = pytest.mark.skipif(browser_path() is None, reason="no Chromium; set CHROME")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two models, of which one has a label that tries to be HTML."""
    folder = tmp_path_factory.mktemp("study")
    write_tars(folder / "in", shards=1, each=12)
    (folder / "labels.txt").write_text("\n".join([HOSTILE, "b", "c", "d"]))
    base = job(folder / "in", folder / "out", labels=str(folder / "labels.txt"))
    values = {name: getattr(base, name) for name in base.model_fields_set}
    methods = ["gradcam", "layercam", "inputxgradient", "chefer"]
    measure = {"images": 10, "grids": 0, "metrics": METRICS}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    models = {"last": {}, "earlier": {"layer": "features.1"}}
    study = conduct(StudySpec(**values, methods=methods, models=models, measure=measure), Silence(), lambda: None)
    torch.set_num_threads(before)
    return study


@pytest.fixture(scope="module")
def address(found: Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(page(found), tmp_path_factory.mktemp("page"))


def cells(tab: Page, table: str, row: str) -> list[str]:
    found = tab.locator(f"table#{table} tbody tr").filter(has=tab.get_by_role("rowheader", name=row)).first
    return [text.strip() for text in found.locator("th, td").all_inner_texts()]


def test_the_first_screen_says_who_leads_and_what_that_is_not(address: str, found: Study, browser: Browser) -> None:
    with opened(browser, address, ready=False) as tab:
        expect(tab.get_by_role("heading", level=1)).to_contain_text("metric")
        expect(tab.locator(".points li")).to_have_count(6)
        best = next(one for one in found.scores if one.metric == "insertion" and one.is_best)
        first = tab.locator(".points li").first
        expect(first).to_contain_text(f"insertion on last: {best.method} {best.value:.3f}")
        expect(tab.locator(".concerns")).to_contain_text("Insertion, deletion follow how confident a model is")


def test_the_table_marks_the_best_above_the_controls(address: str, found: Study, browser: Browser) -> None:
    with opened(browser, address, ready=False) as tab:
        bodies = tab.locator("table#model-1-methods tbody")
        names = [bodies.nth(place).locator("th").all_inner_texts() for place in range(2)]
        assert [name.split("\n")[0] for name in names[0]] == ["gradcam", "layercam", "inputxgradient", "chefer"]
        assert names[1] == ["random, 4 x 4", "random, 32 x 32", "edges"]
        assert "not measured: it has no attention" in names[0][3]
        (best,) = [one for one in found.scores if one.model == "last" and one.metric == "deletion" and one.is_best]
        texts = cells(tab, "model-1-methods", best.method)
        assert texts[2].startswith(f"{best.value:.3f}")
        assert "best" in texts[2]


def test_controls_stay_below_when_methods_are_sorted(address: str, browser: Browser) -> None:
    with opened(browser, address, ready=False) as tab:
        tab.locator("table#model-1-methods th").nth(1).get_by_role("button").click()
        last = tab.locator("table#model-1-methods tbody tr").last
        expect(last).to_contain_text("edges")


def test_metrics_that_follow_confidence_do_not_rank_models(address: str, browser: Browser) -> None:
    with opened(browser, address, ready=False) as tab:
        expect(tab.locator("#models-beside .note")).to_contain_text("Insertion, deletion do not compare models.")
        for row in tab.locator("table#beside tbody tr").all():
            name, verdict = row.locator("th").inner_text(), row.locator("td").last.inner_text()
            if name.split()[0] in ("insertion", "deletion"):
                assert verdict == "not comparable"
            else:
                assert verdict in ("last", "earlier", "not told apart")


def test_every_part_is_there_and_nothing_is_fetched(address: str, browser: Browser) -> None:
    asked: list[str] = []
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(address)
    assert [url for url in asked if not url.startswith("data:")] == [address]
    headings = [text.strip() for text in tab.locator("main section > h2").all_inner_texts()]
    assert headings == ["last", "earlier", "Models", "What these numbers cannot say", "How this was computed"]
    assert tab.locator("#model-1 .strip").count() == 4
    expect(tab.locator("#model-1 .strip").first.locator("img")).to_have_count(4)  # the image and three maps
    assert tab.locator("svg.plot title").count() == tab.locator("svg.plot desc").count() == 2 * 7
    expect(tab.get_by_role("button")).to_have_count(0)
    context.close()


def test_names_are_text_and_ids_are_unique(address: str, browser: Browser) -> None:
    with opened(browser, address, ready=False) as tab:
        assert tab.title().startswith("Study: ")
        assert tab.locator("img:not([src^='data:'])").count() == 0
        ids = tab.evaluate("Array.from(document.querySelectorAll('[id]'), (element) => element.id)")
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_scrolls_sideways(address: str, browser: Browser, width: int, scheme: str) -> None:
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with opened(browser, address, ready=False, **options) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") == width


def test_one_model_and_one_method_say_what_is_missing(found: Study, browser: Browser, tmp_path: Path) -> None:
    entrants = tuple(one for one in found.entrants if one.model == "last" and one.method == "gradcam")
    scores = tuple(one for one in found.scores if one.model == "last" and one.method == "gradcam")
    alone = replace(
        found,
        predictions={"last": found.predictions["last"]},
        measured={("last", "gradcam"): found.measured["last", "gradcam"]},
        entrants=entrants,
        scores=scores,
        agreements=(),
    )
    with opened(browser, written(page(alone), tmp_path), ready=False) as tab:
        expect(tab.get_by_role("heading", level=1)).to_have_text("Nothing to rank")
        expect(tab.locator(".verdict .answer")).to_contain_text("two methods that a metric measures")
        expect(tab.locator("#model-1")).to_contain_text("That needs two metrics")
        expect(tab.locator("#models-beside")).to_contain_text("There is one model")


def test_the_page_is_the_same_again(found: Study) -> None:
    assert page(found) == page(found)
