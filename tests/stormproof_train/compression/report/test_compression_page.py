"""What the page of a compression says."""

import json
import math
import re
from typing import Any

import pytest

from stormproof_train.compression.results import compression_page
from stormproof_train.report.kit import page as page_module
from stormproof_train.report.kit.chart import Chart, Table
from stormproof_train.report.kit.json_numbers import to_json
from stormproof_train.report.kit.page import Page, render_html
from tests.support.compression_records import (
    ARTIFACTS,
    ARTIFACTS_OVER_BUDGET,
    FINE_TUNING,
    ORIGINAL,
    artifact_record,
    compression_record,
    regression_record,
)
from tests.support.compression_records import interval as made_spread

HOSTILE = "</script><script>alert(1)</script> 🦆"
BEST = "pruned-2x-int8"


@pytest.fixture(autouse=True)
def no_script(monkeypatch: pytest.MonkeyPatch):
    """Nobody waits for Vega's script."""
    monkeypatch.setattr(page_module, "load_vega_script", lambda: "window.vegaEmbed = null")


def _charts(page: Page) -> list[Chart]:
    return [chart for section in page.sections for chart in (*section.charts, *section.wide_charts)]


def _table(page: Page, column: str) -> Table:
    """The one with this column."""
    tables = [table for section in page.sections for _, table in (*section.tables, *section.folded)]
    (table,) = (table for table in tables if column in table.head)
    return table


def _column(table: Table, name: str) -> list[str]:
    return [row[list(table.head).index(name)] for row in table.rows]


def _strip_tags(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def _artifacts_with(name: str, **fields: Any) -> list[dict[str, Any]]:
    return [{**artifact, **fields} if artifact["name"] == name else artifact for artifact in ARTIFACTS]


def test_the_parts_of_a_page_come_in_the_order_in_which_they_are_read():
    page = compression_page(compression_record(fine_tuning=FINE_TUNING, skipped=["no dense layer gets smaller"]))
    assert [section.title for section in page.sections if not section.is_empty] == [
        "Artifacts", "Test split", "Trade-offs", "Methods", "Notes", "Measurements",
    ]  # fmt: skip


def test_the_recommendation_says_what_it_costs_and_what_it_gains():
    page = compression_page(compression_record())
    assert page.tone == "good"
    assert " ".join(page.sentences) == (
        f"{BEST} is recommended: of 5 artifacts within the budget of 1pp no other artifact is significantly faster. On "
        "validation, it loses 0.40 percentage points of accuracy (95% interval 0.00 to 0.80): 0.9710, the original "
        "0.9750. On the test split, it loses 0.40 percentage points of accuracy (95% interval -0.10 to 0.90): within "
        f"the budget of 1pp. Only the original is correct on 12 of its samples, only {BEST} on 8; McNemar's test: p = "
        "0.5. For a single sample, it is 3.1 times faster (95% interval 2.88 to 3.32; 0.313 ms, "
        "the original 0.999 ms); in batches of 32, it is 3.1 times faster (95% interval 2.88 to 3.32; "
        "4.38 ms, the original 14 ms). Its file is 7.6 times smaller (108 kB, the original 820 kB); "
        "it has 2 times fewer multiply-accumulates (2.4 M, the original 4.8 M); it has 2 times fewer parameters "
        "(102 k, the original 204 k). It was selected on 2,000 validation samples only: the upper end of the"
        " interval of the degradation must be within the budget. The test split (1,500 samples) was used "
        "only afterwards. 7 artifacts in addition to the original: 2 over the budget, 2 within it but "
        "dominated by another."
    )


@pytest.mark.parametrize(
    ("lost", "told", "tone"),
    [
        (made_spread(0.02, 0.005), "(95% interval 1.50 to 2.50): more than the budget of 1pp.", "doubtful"),
        (made_spread(0.012, 0.005), "more than the budget of 1pp, possibly by chance.", "doubtful"),
        (made_spread(0.008, 0.005), "within the budget of 1pp, but its interval exceeds it.", "good"),
        (
            made_spread(-0.002, 0.005),
            "it gains 0.20 percentage points of accuracy (95% interval -0.30 to 0.70)",
            "good",
        ),
        ({"value": 0.0, "low": None, "high": None}, "possibly by chance, because there is no interval", "good"),
        (None, "On the test split, its accuracy is 0.9690; the value of the original is unknown.", "good"),
    ],
)
def test_what_the_test_split_says_against_the_budget_is_told(lost: dict[str, Any] | None, told: str, tone: str):
    page = compression_page(compression_record(_artifacts_with(BEST, test_degradation=lost)))
    assert told in page.sentences[2]
    assert page.tone == tone


@pytest.mark.parametrize(
    ("speedup", "told", "tone"),
    [
        ({"value": 1.1, "low": 0.9, "high": 1.2}, "For a single sample, no significant difference", "doubtful"),
        ({"value": 0.5, "low": 0.4, "high": 0.6}, "For a single sample, it is slower, 0.5 times as fast", "doubtful"),
        ({"value": 2.0, "low": None, "high": None}, "For a single sample, it is 2 times faster (0.313 ms,", "good"),
        ({"value": None, "low": None, "high": None}, "in batches of 32, it is 3.1 times faster", "doubtful"),
    ],
)  # fmt: skip
def test_a_speedup_is_claimed_only_where_it_was_measured(speedup: dict[str, Any], told: str, tone: str):
    page = compression_page(
        compression_record(_artifacts_with(BEST, speedup={"1": speedup, "32": made_spread(3.1, 0.1)}))
    )
    assert page.sentences[3].startswith(told)
    assert page.tone == tone


def test_where_nothing_is_within_the_budget_the_closest_is_told():
    reason = "no artifact is within budget=1pp: raise it"
    page = compression_page(compression_record(ARTIFACTS_OVER_BUDGET, best=None, why_none=reason))
    assert page.tone == "bad"
    assert " ".join(page.sentences) == (
        f"No artifact is recommended: {reason}. The closest to the budget of 1pp is pruned-2x, which loses 3.00 "
        "percentage points of accuracy (95% interval 2.60 to 3.40). 2 artifacts in addition to the original: 2 over "
        "the budget."
    )


@pytest.mark.parametrize(("wanted", "is_missed"), [(3.0, False), (4.0, True)])
def test_without_a_budget_the_target_is_what_is_told(wanted: float, is_missed: bool):
    artifacts = [{**artifact, "within": True} for artifact in ARTIFACTS]
    page = compression_page(compression_record(artifacts, budget=None, target={"speedup": wanted}))
    text = " ".join(page.sentences)
    assert f"({wanted:g} times faster)" in page.sentences[0]
    assert (f"It misses the target of {wanted:g} times faster: it is 3.1." in text) == is_missed
    assert "without a budget" in text
    assert "budget of" not in text
    assert page.tone == "doubtful"
    assert [line.label for line in _charts(page)[0].legend] == [
        "★ recommended", "■ the original", "● another artifact", "▼ dominated",
    ]  # fmt: skip


def test_of_regression_a_loss_is_in_the_metrics_own_unit():
    page = compression_page(regression_record())
    assert page.sentences[1] == (
        "On validation, it loses 0.5200 of rmse (95% interval 0.1200 to 0.9200): 53.7200, the original 53.2000."
    )
    assert page.sentences[2] == "It was not tested on the test split."
    assert [_strip_tags(cell) for cell in _column(_table(page, "rmse degradation"), "rmse degradation")] == [
        "0.0000", "0.5200 (0.1200 to 0.9200)", "9.0000 (8.6000 to 9.4000)",
    ]  # fmt: skip
    assert all(section.is_empty for section in page.sections if section.title == "Test split")


def test_every_artifact_is_in_the_table_with_what_stands_against_it():
    table = compression_page(compression_record()).sections[0].tables[0][1]
    assert [tuple(map(_strip_tags, row[:3])) for row in table.rows] == [
        ("original", "the original", "0.00"),
        ("original-int8", "", "0.10 (-0.30 to 0.50)"),
        ("original-weights-int8", "dominated by original-int8, not faster", "0.20 (-0.20 to 0.60)"),
        ("pruned-1.5x", "dominated by original-int8", "0.20 (-0.20 to 0.60)"),
        ("pruned-2x", "", "0.30 (-0.10 to 0.70)"),
        (BEST, "recommended", "0.40 (0.00 to 0.80)"),
        ("pruned-4x", "over the budget", "2.10 (1.70 to 2.50)"),
        ("pruned-4x-int8", "over the budget", "2.40 (2.00 to 2.80)"),
    ]


def test_what_became_of_the_fine_tunings_is_told():
    page = compression_page(compression_record(fine_tuning=FINE_TUNING))
    assert _column(_table(page, "outcome"), "outcome") == [
        "",
        "degradation too large",
        "failed: it diverged",
    ]
    assert page.sentences[-1].endswith("1 fine-tuning run failed.")


def test_what_is_lost_is_drawn_over_speed_size_and_macs():
    page = compression_page(compression_record())
    speed, size, macs = _charts(page)
    assert [chart.title for chart in (speed, size, macs)] == [
        f"accuracy degradation (pp) over {quantity}" for quantity in ("speed", "size", "multiply-accumulates")
    ]
    styles = dict(zip(speed.data["points"]["artifact"], speed.data["points"]["style"], strict=True))
    assert styles == {
        "original": "original", "original-int8": "within", "original-weights-int8": "dominated",
        "pruned-1.5x": "dominated", "pruned-2x": "within", BEST: "best", "pruned-4x": "over budget",
        "pruned-4x-int8": "over budget",
    }  # fmt: skip
    assert speed.data["front"] == {"x": [1.0, 1.9, 3.1, 3.4, 5.2], "degradation": [0.0, 0.1, 0.4, 2.1, 2.4]}
    assert size.data["front"]["degradation"] == [0.4, 0.1, 0.0]
    assert len(speed.data["intervals"]["low"]) == 7  # the original has none
    for chart in (speed, size, macs):
        assert chart.data["budget"] == {"level": [1.0]}
        low, high = chart.spec["layer"][3]["encoding"]["y"]["scale"]["domain"]
        assert (low < -0.3, high > 2.8) == (True, True)


def test_the_budget_is_on_the_axis_and_what_lost_far_more_at_its_edge():
    artifacts = [ORIGINAL, *(artifact_record(f"pruned-{times}x", 0.001, times) for times in range(2, 7))]
    page = compression_page(compression_record([*artifacts, artifact_record("pruned-64x", 0.7, 40.0)]))
    chart = _charts(page)[0]
    low, high = chart.spec["layer"][3]["encoding"]["y"]["scale"]["domain"]
    assert (low < 0, 1 < high < 2) == (True, True)
    assert "1 worse value lies at the edge of accuracy degradation (pp)." in chart.note
    assert chart.spec["layer"][3]["encoding"]["x"]["scale"]["type"] == "log"


BROKEN: list[Any] = [None, math.nan, math.inf, -math.inf, "nan", 1e308, -1e308, 0.0, -3]
NUMBERS = ("calibration_error", "bytes", "parameters", "macs", "memory", "load_seconds", "difference")


@pytest.mark.parametrize("value", BROKEN)
def test_no_number_and_no_lack_of_any_breaks_the_page(value: Any):
    pair = {"value": value, "low": value, "high": value}
    fields: dict[str, Any] = {
        **dict.fromkeys(NUMBERS, value),
        **dict.fromkeys(("validation", "degradation", "test", "test_degradation"), pair),
        "latency": {"1": {"median": value, "p95": value, "original": value}}, "speedup": {"1": pair},
        "mcnemar": {"only_first_correct": 0, "only_second_correct": 0, "p_value": value},
    }  # fmt: skip
    broken = [artifact_record(name, 0.0, **fields) for name in ("original", BEST, "pruned-4x")]
    run = {"name": "x", "run": None, "steps": value, "seconds": value, "times": value, "outcome": None}
    for artifacts in ([], broken, [ORIGINAL, *broken[1:]], [broken[0], *ARTIFACTS[1:]]):
        for budget in (None, {"requested": "2%", "allowed": value}):
            numbers = compression_record(artifacts, budget=budget, target={"size": 2.0}, fine_tuning=[run])
            for record in (numbers, to_json(numbers)):
                text = render_html(compression_page(record))
                charts = json.loads(re.findall(r'id="charts">(.*?)</script>', text, re.DOTALL)[0])
                assert len(charts) == text.count('role="img"')
                assert not re.search(r"\b(NaN|Infinity|nan|inf)\b", json.dumps(charts))


def test_hostile_texts_stay_text():
    artifacts = [
        ORIGINAL,
        artifact_record(HOSTILE, 0.002, 2.0, method=HOSTILE, dominated_by=HOSTILE, remarks=[HOSTILE], folder=HOSTILE),
        artifact_record("pruned-4x", 0.02, 4.0, dominated_by=HOSTILE, remarks=[HOSTILE]),
    ]
    run = {**FINE_TUNING[0], "name": HOSTILE, "run": HOSTILE, "outcome": HOSTILE}
    fields = dict.fromkeys(("name", "run", "checkpoint", "headline"), HOSTILE)
    machine = {"processor": HOSTILE, "threads": 2, "int8": HOSTILE}
    for best in (HOSTILE, None):
        text = render_html(compression_page(compression_record(
            artifacts, **fields, best=best, why_none=HOSTILE, skipped=[HOSTILE], fine_tuning=[run], machine=machine,
        )))  # fmt: skip
        assert HOSTILE not in text
        assert text.count("</script>") == text.count("<script") == 3


def test_the_test_split_is_told_of_what_it_was_read_for():
    table = _table(compression_page(compression_record()), "p (McNemar)")
    assert _column(table, "artifact") == [artifact["name"] for artifact in ARTIFACTS[:6]]
