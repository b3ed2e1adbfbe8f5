"""The page of a compression as a person meets it: in a browser, wide and narrow, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from stormproof_train.compression.results import compression_page
from stormproof_train.report.kit.page import render_html
from tests.support.chromium import launch_chromium, open_page
from tests.support.compression_records import (
    ARTIFACTS_OVER_BUDGET,
    FINE_TUNING,
    ORIGINAL,
    artifact_record,
    compression_record,
    regression_record,
)

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"' 🦆"
COMPRESSIONS = {
    "of a classifier": compression_record(fine_tuning=FINE_TUNING, skipped=["no dense layer gets smaller by it"]),
    "of regression": regression_record(),
    "with nothing within the budget": compression_record(ARTIFACTS_OVER_BUDGET, best=None, why_none="allow more"),
    "with a target only": compression_record(budget=None, target={"speedup": 3.0}),
    "of decades": compression_record([ORIGINAL, *(artifact_record(f"x{n}", n / 9, 10.0**n) for n in range(1, 4))]),
    "with names that do harm": compression_record(
        [ORIGINAL, artifact_record(HOSTILE, 0.001, 2.0, dominated_by=HOSTILE)],
        name=HOSTILE,
        headline=HOSTILE,
        best=HOSTILE,
    ),
    "with long names": compression_record(
        [ORIGINAL, *(artifact_record(f"pruned-{n}x-factored-{n}x-weights-int8" * 3, 0.001, float(n)) for n in (2, 3))],
    ),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_chromium() as chromium:
        yield chromium


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_artifact_is_drawn_with_its_interval_the_front_and_the_budget(
    browser: Browser, tmp_path: Path, name: str, width: int, scheme: str
):
    report_page = compression_page(COMPRESSIONS[name])
    charts = [chart for section in report_page.sections for chart in section.charts]
    file = tmp_path / "report.html"
    file.write_text(render_html(report_page))
    page, complaints = open_page(browser, file, width, scheme)
    assert complaints == []
    assert page.evaluate("window.hit") is None
    assert page.locator("[data-chart] svg").count() == len(charts) == 3
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for index, chart in enumerate(charts):
        svg = page.locator(f"[data-chart='{index}'] svg")
        assert "NaN" not in svg.inner_html()
        assert svg.locator("g.mark-symbol.role-mark path").count() == len(chart.data["points"]["x"])
        lines = len(chart.data["intervals"]["x"]) + len(chart.data["budget"]["level"])
        assert svg.locator("g.mark-rule.role-mark line").count() == lines
        assert svg.locator("g.mark-line path").count() == 1
    page.context.close()


def test_hovering_tells_which_artifact_a_point_is(browser: Browser, tmp_path: Path):
    file = tmp_path / "report.html"
    file.write_text(
        render_html(compression_page(compression_record([ORIGINAL, artifact_record("pruned-2x", 0.001, 2.0)])))
    )
    page, _ = open_page(browser, file, 1280, "light")
    page.locator("[data-chart='0'] g.mark-symbol.role-mark path").last.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert "pruned-2x" in tooltip.inner_text()
    assert "undefined" not in tooltip.inner_text()
    page.context.close()
