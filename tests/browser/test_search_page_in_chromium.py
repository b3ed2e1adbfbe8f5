"""The page of a search as a person meets it: in a browser, on a wide screen and on a narrow one, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from stormproof_train.report.kit.page import render_html
from stormproof_train.search.report.search_page import search_page
from tests.support.chromium import launch_chromium, open_page
from tests.support.search_records import LOSS_OBJECTIVE, random_trials, search_record, trial_record

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"' 🦆"
IMPORTANCES = {"optimizer.lr": 0.7, "model.dropout": 0.2, "activation": 0.1}
RANDOM = {"steps": 9000, "runs": 16.7, "expected": 0.15, "pool": 20, "stopped_early": 4}
PAIR = [LOSS_OBJECTIVE, {"name": "parameters", "higher_is_better": False}]
HOSTILE_SPACE = [
    {**search_record()["space"][0], "key": HOSTILE, "choices": [HOSTILE, "🦆", "'"]},
    *search_record()["space"],
]
SEARCHES = {
    "of one objective": search_record(random_trials(60), importances=[IMPORTANCES], random=RANDOM),
    "of two objectives": search_record(
        [trial_record(number, values=[0.1 + number / 9, 10.0**number]) for number in range(6)]
        + [trial_record(6, values=[0.5, None])],
        objectives=PAIR, best=None, front=[0], importances=[{}, IMPORTANCES],
    ),
    "without a value": search_record([trial_record(number, values=None, curve=[]) for number in range(3)],
    finished=False),
    "of one trial": search_record([trial_record(0)]),
    "with names that do harm": search_record(
        [trial_record(number, params={HOSTILE: HOSTILE, "activation": "🦆"},
        values=[number / 9]) for number in range(5)],
        space=HOSTILE_SPACE, importances=[{HOSTILE: 1.0}], name=HOSTILE, objectives=[{**LOSS_OBJECTIVE,
        "name": HOSTILE}],
    ),
    "of five hundred trials": search_record(random_trials(500, validations=108), importances=[IMPORTANCES]),
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_chromium() as chromium:
        yield chromium


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_chart_is_drawn_and_nothing_complains(
    browser: Browser, tmp_path: Path, name: str, width: int, scheme: str
):
    page_of_it = search_page(SEARCHES[name])
    charts = [chart for section in page_of_it.sections for chart in (*section.charts, *section.wide_charts)]
    file = tmp_path / "search.html"
    file.write_text(render_html(page_of_it))
    page, complaints = open_page(browser, file, width, scheme)
    assert complaints == []
    assert page.evaluate("window.hit") is None
    assert page.locator("[data-chart] svg").count() == len(charts) > 0
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for index, chart in enumerate(charts):
        svg = page.locator(f"[data-chart='{index}'] svg")
        assert "NaN" not in svg.inner_html()
        points = sum(len(chart.data[data]["style"]) for data in ("points", "valueless", "ends") if data in chart.data)
        assert svg.locator("g.mark-symbol.role-mark path").count() == points
        lines = sum(len(set(chart.data[data]["trial"])) for data in ("lines", "curves") if data in chart.data)
        assert svg.locator("g.mark-line path").count() >= lines
        assert svg.locator("g.mark-rect.role-mark path").count() == len(chart.data.get("bars", {}).get("key", ()))
    page.context.close()


def test_hovering_tells_of_which_trial_a_point_is(browser: Browser, tmp_path: Path):
    file = tmp_path / "search.html"
    file.write_text(render_html(search_page(search_record([trial_record(7)]))))
    page = browser.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn]")
    page.locator("[data-chart='0'] g.mark-symbol.role-mark path").hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert "activation=relu optimizer.lr=0.01" in tooltip.inner_text()
    assert "undefined" not in tooltip.inner_text()
    page.context.close()
