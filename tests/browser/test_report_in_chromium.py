"""The report's page as a person meets it: in a browser, on a screen and on paper, by mouse and by keyboard."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from stormproof.finding import Finding, Problem, Severity
from stormproof_train.cli.report import run as report
from tests.support.chromium import launch_chromium
from tests.support.run_folders import SETTINGS, make_predictions, training_rows, write_run

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"' 🦆"
HOSTILE_NAME = HOSTILE.replace("/", "")
LAYERS = [HOSTILE, "a-layer-whose-name-is-long." * 12, *(f"network.{place}" for place in range(6))]
WIDTHS = (360, 768, 1280)

WIDEST = """
Math.max(...[...document.querySelectorAll("[data-chart] svg")].map((svg) => svg.getBoundingClientRect().right))
"""
CONTRASTS = """
() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (colour) => parts(colour)
    .map((part) => part / 255).map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (colour) => {
    const ink = light(colour);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  const lowest = (selector, property) => Math.min(
    ...[...document.querySelectorAll(selector)].map((element) => ratio(getComputedStyle(element)[property])));
  return {
    text: lowest("h1, h2, p, a, li, th, td, summary, figcaption, caption", "color"),
    axes: lowest(".role-axis-label text, .role-axis-title text, .role-legend-label text", "fill"),
    lines: lowest("g.mark-line path", "stroke"),
    signs: lowest("g.mark-rule.role-mark line, .swatch line", "stroke"),
  };
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_chromium() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that was killed once, has findings, values that are not finite, and names that do harm."""
    rows = [
        *training_rows(2000, LAYERS),
        *training_rows(1500, LAYERS, attempt=2, first_step=1500),
        (2, 2999, "train/loss", math.nan),
        (2, 2999, f"gradients/norm/{LAYERS[0]}", math.inf),
        *((1, step, HOSTILE, float(step)) for step in range(5)),
    ]
    findings = [
        Finding(Problem.DEAD_UNITS, Severity.WARNING, HOSTILE, 700, 800, {"dead": HOSTILE}, HOSTILE, (HOSTILE,))
    ]
    attempts = [{"first_step": 0, "last_step": 2000, "reason": HOSTILE}, {"first_step": 1500, "last_step": 3000}]
    folder = write_run(
        tmp_path_factory.mktemp("one") / HOSTILE_NAME, rows=rows, attempts=attempts, findings=findings,
        predictions=make_predictions(),
        settings={**SETTINGS, HOSTILE: HOSTILE},
    )  # fmt: skip
    report([str(folder)])
    return folder / "report.html"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    runs = [
        write_run(folder / name, rows=training_rows(300 + 100 * seed), settings={**SETTINGS, "seed": seed})
        for seed, name in enumerate(("first", "second", "a <i>third<i>"))
    ]
    report([*map(str, runs), "--output", str(folder / "page.html")])
    return folder / "page.html"


def _open(browser: Browser, file: Path, width: int = 1280, scheme: str = "light") -> tuple[Page, list[str], list[str]]:
    """The page with all its charts, what it complained of, and what it asked for."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()  # pyright: ignore[reportArgumentType]
    complaints: list[str] = []
    requests: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn]")
    return page, complaints, requests


def test_nothing_fails_and_nothing_is_asked_for_but_the_file(browser: Browser, one: Path, several: Path):
    for file in (one, several):
        _, complaints, requests = _open(browser, file)
        assert complaints == []
        assert requests == [file.as_uri()]


def test_evidence_and_advice_of_a_finding_are_on_the_screen_of_a_phone(browser: Browser, one: Path):
    page, _, _ = _open(browser, one, width=390)
    cells = page.locator("table.stacks td[data-head]")
    heads = {cells.nth(index).get_attribute("data-head") for index in range(cells.count())}
    assert {"evidence", "advice"} <= heads
    boxes = [cells.nth(index).bounding_box() for index in range(cells.count())]
    assert all(box is None or box["x"] + box["width"] <= 390 for box in boxes)  # None: folded away
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_every_number_is_drawn(browser: Browser, one: Path):
    page, _, _ = _open(browser, one)
    charts = page.evaluate("JSON.parse(document.getElementById('charts').textContent)")
    figures = page.locator("[data-chart]")
    assert figures.count() == len(charts)
    kinds = set()
    for index, chart in enumerate(charts):
        svg = page.locator(f"[data-chart='{index}'] svg")
        for name, columns in chart["data"].items():
            kinds.add(name)
            if name == "points" and "value" in columns:
                finite = sum(value is not None for value in columns["value"])
                assert svg.locator("g.mark-line path").count() == len(set(columns["line"]))
                assert svg.locator("g.mark-symbol.role-mark path").count() == finite
                assert svg.locator("g.mark-text.role-mark text", has_text="✕").count() == len(columns["value"]) - finite
            if name == "events":
                assert svg.locator("g.mark-rule.role-mark line").count() == len(columns["step"]) == 2
            if name in {"cells", "bars"}:
                assert svg.locator("g.mark-rect.role-mark path").count() == len(next(iter(columns.values())))
    assert kinds == {"points", "events", "cells", "bars", "ideal", "bins"}


def test_names_that_do_harm_stay_text(browser: Browser, one: Path, several: Path):
    page, _, _ = _open(browser, one)
    assert page.locator("h1").inner_text() == HOSTILE_NAME
    assert page.title() == HOSTILE_NAME
    assert page.evaluate("window.hit") is None
    assert page.locator("img, table script, h1 *").count() == 0
    assert page.locator("figcaption", has_text=HOSTILE).count() == 2
    assert _open(browser, several)[0].locator("label", has_text="a <i>third<i>").count() == 1


def test_hovering_shows_the_values(browser: Browser, one: Path):
    page, _, _ = _open(browser, one)
    for index, expected_text in ((0, "dead_fraction"), (1, "/loss"), (6, "network."), (-1, "class")):
        chart = page.locator("[data-chart] svg").nth(index)
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6)
        tooltip = page.locator("#vg-tooltip-element.visible")
        tooltip.wait_for()
        assert expected_text in tooltip.inner_text()
        assert "undefined" not in tooltip.inner_text()
        page.mouse.move(0, 0)


def test_runs_are_hidden_by_mouse_and_by_keyboard(browser: Browser, several: Path):
    page, _, _ = _open(browser, several)
    lines = page.locator("[data-chart='0'] g.mark-line path")
    boxes = page.get_by_role("checkbox")
    assert (lines.count(), boxes.count()) == (3, 3)
    boxes.nth(0).click()
    page.wait_for_function("document.querySelectorAll(\"[data-chart='0'] g.mark-line path\").length == 2")
    boxes.nth(0).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll(\"[data-chart='0'] g.mark-line path\").length == 1")
    assert [boxes.nth(index).is_checked() for index in range(3)] == [False, False, True]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_as_wide_as_the_screen_and_can_be_read(browser: Browser, one: Path, several: Path, scheme: str):
    for width in WIDTHS:
        for file in (one, several):
            page, _, _ = _open(browser, file, width, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate(WIDEST) <= width
        contrasts = page.evaluate(CONTRASTS)
        assert contrasts["text"] >= 4.5, contrasts
        assert contrasts["axes"] >= 4.5, contrasts
        assert min(contrasts["lines"], contrasts["signs"]) >= 3, contrasts


def test_it_is_printed_dark_on_white_without_what_paper_cannot_do(browser: Browser, several: Path):
    page, _, _ = _open(browser, several, scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRASTS)["axes"] >= 4.5
    assert not page.locator("nav").is_visible()
    assert page.pdf()[:4] == b"%PDF"
