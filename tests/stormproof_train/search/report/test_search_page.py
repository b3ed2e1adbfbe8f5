import json
import math
import re
import time
from typing import Any

import pytest

from stormproof_train.report.kit import page as page_module
from stormproof_train.report.kit.chart import Chart, Table
from stormproof_train.report.kit.page import Page, Section, render_html
from stormproof_train.search.report.search_page import MAX_SLICES, search_page
from tests.support.search_records import LOSS_OBJECTIVE, RUN_STEPS, RUNGS, random_trials, search_record, trial_record

HOSTILE = "</script><script>alert(1)</script> 🦆"
SCRIPT = 900_000
"""Letters of Vega's script, which stands in each page."""


@pytest.fixture(autouse=True)
def no_script(monkeypatch: pytest.MonkeyPatch):
    """Nobody waits for Vega's script."""
    monkeypatch.setattr(page_module, "load_vega_script", lambda: "window.vegaEmbed = null")


def _sections(page: Page) -> dict[str, Section]:
    return {section.title: section for section in page.sections if not section.is_empty}


def _charts(page: Page) -> list[Chart]:
    return [chart for section in page.sections for chart in (*section.charts, *section.wide_charts)]


def _chart(page: Page, title: str) -> Chart:
    (chart,) = (chart for chart in _charts(page) if chart.title == title)
    return chart


def _tables(page: Page) -> dict[str, Table]:
    return {title: table for section in page.sections for title, table in (*section.tables, *section.folded)}


def _column(table: Table, name: str) -> list[str]:
    return [row[list(table.head).index(name)] for row in table.rows]


def _two_objectives(trials: list[dict[str, Any]]) -> dict[str, Any]:
    objectives = [LOSS_OBJECTIVE, {"name": "parameters", "higher_is_better": False}]
    return search_record(trials, objectives=objectives, best=None, front=[0, 1], importances=[{}, {}])


def test_the_parts_of_a_page_come_in_the_order_in_which_they_are_read():
    page = search_page(search_record(random_trials(60), importances=[{"optimizer.lr": 0.8, "activation": 0.2}]))
    assert list(_sections(page)) == [
        "History", "Parameters", "All parameters", "Rungs", "Search space", "Trials",
        "Failed and stopped early",
    ]  # fmt: skip


@pytest.mark.parametrize("trials", [[], random_trials(60)], ids=["none", "sixty"])
def test_every_chart_has_words_and_columns_of_one_length(trials: list[dict[str, Any]]):
    for chart in _charts(search_page(search_record(trials))):
        assert chart.text
        for columns in chart.data.values():
            assert len({len(column) for column in columns.values()}) == 1


def test_every_trial_every_parameter_and_every_reason_is_on_the_page():
    trials = random_trials(60)
    page = search_page(search_record(trials))
    every = _tables(page)["All 60 trials"]
    assert _column(every, "trial") == [str(number) for number in range(60)]
    for trial, row in zip(trials, every.rows, strict=True):
        assert (trial["reason"] or "") in row
        for value in trial["params"].values():
            assert (f"{value:.6g}" if isinstance(value, float) else str(value)) in row
    end_states = {trial["state"] for trial in trials} - {"complete"}
    assert end_states == {"pruned", "failed"}
    failed, pruned = _tables(page)["Failed"], next(t for name, t in _tables(page).items() if "stopped early" in name)
    reasons = dict(zip(_column(failed, "trial"), _column(failed, "reason"), strict=True))
    reasons |= dict(zip(_column(pruned, "trial"), _column(pruned, "reason"), strict=True))
    assert reasons == {str(trial["number"]): trial["reason"] for trial in trials if trial["reason"]}


def test_each_parameter_is_drawn_with_the_trials_in_which_it_has_a_part():
    trials = random_trials(60)
    page = search_page(search_record(trials))
    for parameter in search_record()["space"]:
        points = _chart(page, f"val/loss over {parameter['key']}").data["points"]
        assert sorted(points["trial"]) == [t["number"] for t in trials if parameter["key"] in t["params"]]


def test_no_complete_trial_is_lost_in_the_parts_of_a_parameter():
    trials = random_trials(60)
    complete = sum(trial["state"] == "complete" for trial in trials)
    for key in ("activation", "optimizer.lr", "model.dropout", "data.batch_size"):
        table = _chart(search_page(search_record(trials)), f"val/loss over {key}").table
        assert len(table.rows) == 4
        assert sum(int(count) for count in _column(table, "complete trials")) == complete
    alone = search_page(
        search_record([trial_record(0)], space=[{**search_record()["space"][1], "low": 0.01, "high": 0.01}])
    )
    assert _chart(alone, "val/loss over optimizer.lr").table.rows == [("0.01 to 0.01", "1", "0.2000", "0.2000")]


def test_what_was_searched_by_its_logarithm_is_drawn_so():
    page = search_page(search_record(random_trials(10)))
    scales = {chart.title: chart.spec["encoding"]["x"].get("scale", {}).get("type") for chart in _charts(page)[1:6]}
    assert scales["val/loss over optimizer.lr"] == "log"
    assert scales["val/loss over model.dropout"] == "linear"
    assert _chart(page, "val/loss over activation").spec["encoding"]["x"]["type"] == "nominal"


def test_more_parameters_than_anybody_looks_at_are_named_and_not_drawn():
    keys = [f"model.width_{number}" for number in range(MAX_SLICES + 2)]
    space = [{**search_record()["space"][2], "key": key} for key in keys]
    trials = [trial_record(number, params=dict.fromkeys(keys, number / 9)) for number in range(9)]
    page = search_page(search_record(trials, space=space, importances=[{keys[-1]: 1.0}]))
    parameters = _sections(page)["Parameters"]
    assert len(parameters.charts) == 1 + MAX_SLICES
    assert parameters.charts[1].title == f"val/loss over {keys[-1]}"
    assert parameters.sentences[-1].endswith(f"{keys[-3]}, {keys[-2]}.")
    assert set(keys) <= set(_tables(page)["All 9 trials"].head)


def test_the_best_so_far_is_what_complete_trials_that_keep_to_the_constraints_had():
    trials = [
        trial_record(0, values=[0.5]),
        trial_record(1, values=[0.1], feasible=False),
        trial_record(2, state="pruned", values=None, curve=[[0.1, 54, 0.05]], steps=54),
        trial_record(3, values=[0.3]),
        trial_record(4, values=[0.4]),
    ]
    chart = _chart(search_page(search_record(trials, best=3)), "val/loss over the steps spent")
    assert chart.table.rows == [("0", "0.5000", "540"), ("3", "0.3000", "1,674")]
    assert chart.data["best so far"] == {"spent": [540, 1674, 2214], "value": [0.5, 0.3, 0.3]}
    styles = dict(zip(chart.data["points"]["trial"], chart.data["points"]["style"], strict=True))
    assert styles == {0: "complete", 1: "outside", 2: "pruned", 3: "best", 4: "complete"}


def test_trials_stand_where_they_ended_and_not_where_they_began():
    early, late = trial_record(1, steps=10), trial_record(0, end="2026-01-02T00:00:00.000+00:00", steps=500)
    points = _chart(search_page(search_record([late, early])), "val/loss over the steps spent").data["points"]
    assert dict(zip(points["trial"], points["spent"], strict=True)) == {1: 10, 0: 510}


def test_what_random_search_would_reach_is_a_level_of_the_first_objective():
    random = {"steps": 9000, "runs": 16.7, "expected": 0.15, "pool": 20, "stopped_early": 4}
    page = search_page(search_record([trial_record(0)], random=random))
    assert _chart(page, "val/loss over the steps spent").data["random"] == {"level": [0.15]}
    (sentence,) = (candidate for candidate in page.sentences if candidate.startswith("Random"))
    assert sentence == (
        "Random search with as many steps (9,000, enough for 16.7 runs) would be expected to reach val/loss 0.1500, "
        "estimated from 20 random trials, 4 of which were stopped early: the search was not better, with 0.2000."
    )


def test_a_rung_says_who_came_went_on_and_was_stopped():
    def came_to(number: int, fractions: list[float], state: str) -> dict[str, Any]:
        curve = [[fraction, round(fraction * RUN_STEPS), 1 - fraction] for fraction in fractions]
        return trial_record(number, state=state, values=[0.0] if state == "complete" else None, curve=curve)

    trials = [
        came_to(0, [*RUNGS, 1.0], "complete"),
        came_to(1, [RUNGS[0]], "pruned"),
        came_to(2, [RUNGS[0], RUNGS[1]], "pruned"),
        came_to(3, [RUNGS[0]], "paused"),
        came_to(4, [RUNGS[0], 0.05], "running"),
        came_to(5, [RUNGS[0]], "failed"),
        came_to(6, [], "failed"),
    ]
    table = _tables(search_page(search_record(trials)))["Trials at each rung"]
    assert [row[:6] for row in table.rows] == [
        ("3.7%", "6", "3", "1", "1", "1"), ("11.1%", "2", "1", "1", "0", "0"), ("33.3%", "1", "1", "0", "0", "0"),
    ]  # fmt: skip


def test_without_rungs_the_curves_are_drawn_alone():
    page = search_page(search_record(random_trials(5), rungs=[]))
    assert not _sections(page)["Curves"].tables
    assert _sections(page)["Curves"].wide_charts[0].data["rungs"] == {"at": []}


def test_a_line_goes_through_all_parameters_of_each_complete_trial():
    trials = random_trials(60)
    lines = _chart(search_page(search_record(trials)), "All parameters and val/loss").data["lines"]
    complete = [trial["number"] for trial in trials if trial["state"] == "complete"]
    assert sorted(lines["trial"]) == sorted(complete * 6)
    assert set(lines["rank"]) == {"tenth", "better", "half", "outside"}
    assert all(-0.1 <= position <= 1 for position in lines["position"])
    best = search_record(trials)["best"]
    at = {axis: p for t, axis, p in zip(lines["trial"], lines["axis"], lines["position"], strict=True) if t == best}
    assert at[5] == 1


def test_the_axis_of_a_value_ends_where_the_worst_would_leave_no_room():
    trials = [trial_record(number, values=[0.1 + number / 100]) for number in range(9)] + [
        trial_record(9, values=[1e8])
    ]
    chart = _chart(search_page(search_record(trials)), "val/loss over the steps spent")
    low, high = chart.spec["layer"][1]["encoding"]["y"]["scale"]["domain"]
    assert (0 < low < 0.1, 0.3 < high < 0.4) == (True, True)
    assert chart.note == "1 worse value lies at the edge of val/loss."
    assert 1e8 in chart.data["points"]["value"]


def test_of_several_objectives_the_front_is_told_and_drawn_in_pairs_with_the_first():
    objectives = [
        LOSS_OBJECTIVE,
        {"name": "parameters", "higher_is_better": False},
        {"name": "val/f1", "higher_is_better": True},
    ]
    values = [[0.1, 900.0, 0.5], [0.3, 100.0, 0.9], [0.4, 950.0, 0.4]]
    trials = [trial_record(number, values=value) for number, value in enumerate(values)]
    page = search_page(search_record(trials, objectives=objectives, best=0, front=[0, 1], importances=[{}, {}, {}]))
    front = _sections(page)["Pareto front"]
    assert [chart.title for chart in front.charts] == ["parameters over val/loss", "val/f1 over val/loss"]
    assert [row[:4] for row in front.tables[0][1].rows] == [
        ("0", "0.1000", "900", "0.5000"),
        ("1", "0.3000", "100", "0.9000"),
    ]
    assert dict(zip(*(front.charts[0].data["points"][name] for name in ("trial", "style")), strict=True)) == {
        0: "best", 1: "best", 2: "complete",
    }  # fmt: skip
    assert page.sentences[0] == (
        "2 trials are on the Pareto front: no other trial is better in one of val/loss, parameters, val/f1 and as good "
        "in the rest: trial 0 (0.1000, 900, 0.5000); trial 1 (0.3000, 100, 0.9000). The best by val/loss is trial 0, "
        "with val/loss 0.1000: activation=relu optimizer.lr=0.01."
    )


def test_two_objectives_have_their_front_as_a_line():
    trials = [
        trial_record(0, values=[0.3, 10.0]),
        trial_record(1, values=[0.1, 90.0]),
        trial_record(2, values=[0.4, 95.0]),
    ]
    chart = _chart(search_page(_two_objectives(trials)), "parameters over val/loss")
    assert chart.data["front"] == {"x": [0.1, 0.3], "y": [90.0, 10.0]}


BROKEN = [None, [None], [math.nan], [math.inf], ["nan"], [1e308], [-1e308], [0.0], [-3]]


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial_record(0)],
        [trial_record(number, state="failed", values=None, curve=[], reason="lost") for number in range(3)],
        [trial_record(number, state="running", values=None, end=None, curve=[]) for number in range(2)],
        [trial_record(number, values=values) for number, values in enumerate(BROKEN)],
        [trial_record(number, state="pruned", values=values, curve=[[0.1, 5, math.nan], [0.2, 9, values and values[0]]])
         for number, values in enumerate(BROKEN)],
        [trial_record(number, params={"optimizer.lr": value, "activation": value, "model.dropout": value})
         for number, value in enumerate([None, math.nan, -1.0, 0, True, "🦆", [1, 2], 1e-310])],
    ],
    ids=["none", "one", "failed", "running", "not finite", "stopped and not finite", "odd parameters"],
)  # fmt: skip
def test_no_number_and_no_lack_of_any_breaks_the_page(trials: list[dict[str, Any]]):
    best = 0 if trials and trials[0]["state"] == "complete" and trials[0]["values"] else None
    for numbers in (
        search_record(trials, best=best),
        search_record(trials, best=best, finished=False, rungs=[], space=[]),
    ):
        text = render_html(search_page(numbers))
        charts = json.loads(re.search(r'id="charts">(.*?)</script>', text, re.DOTALL).group(1))
        assert len(charts) == text.count('role="img"')
        assert not re.search(r"\b(NaN|Infinity)\b", json.dumps(charts))


def test_several_objectives_may_have_no_values_either():
    trials = [
        trial_record(0, values=None),
        trial_record(1, values=[0.1, math.nan]),
        trial_record(2, state="failed", values=None),
    ]
    render_html(search_page({**_two_objectives(trials), "front": []}))
    render_html(search_page({**_two_objectives([]), "front": []}))


def test_hostile_names_stay_text():
    space = [
        {
            **search_record()["space"][0],
            "key": HOSTILE,
            "choices": [HOSTILE, "'\"<b>"],
            "only_with": {HOSTILE: [HOSTILE]},
        }
    ]
    trials = [
        trial_record(number, state=state, params={HOSTILE: HOSTILE}, reason=HOSTILE, run=HOSTILE)
        for number, state in enumerate(("complete", "complete", "pruned", "failed"))
    ]
    final = {**_final(-0.1, 0.1), "failed": [{"run": HOSTILE, "reason": HOSTILE}]}
    text = render_html(
        search_page(
            search_record(
                trials, name=HOSTILE, space=space, importances=[{HOSTILE: 1.0}], constraints=[HOSTILE], final=final,
                tested=HOSTILE, test={HOSTILE: {"value": 0.5, "low": None, "high": None}}, sampler=HOSTILE,
                objectives=[{**LOSS_OBJECTIVE, "name": HOSTILE}], words={"winner": [HOSTILE], "default": []},
            )
        )
    )  # fmt: skip
    assert HOSTILE not in text
    assert text.count("</script>") == text.count("<script") == 3
    assert "<b>" not in text


def test_five_hundred_trials_make_a_small_page_soon():
    trials = random_trials(500, validations=108)
    start = time.perf_counter()
    text = render_html(search_page(search_record(trials)))
    assert time.perf_counter() - start < 3
    assert len(text) + SCRIPT < 2_500_000


def _final(low: float | None, high: float | None, **fields: Any) -> dict[str, Any]:
    return {
        "metric": "loss", "higher_is_better": False, "seeds": [101, 102], "winner": [0.2, 0.4], "default": [0.5, 0.7],
        "difference": -0.3, "low": low, "high": high, "p_value": 0.0123, "samples_known": True, "failed": [], **fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("final", "verdict", "tone"),
    [
        (_final(-0.4, -0.2), "(95% interval -0.4000 to -0.2000, p = 0.012): the winner is better.", "good"),
        (_final(0.2, 0.4), "the winner is worse.", "doubtful"),
        (_final(0.2, 0.4, higher_is_better=True), "the winner is better.", "good"),
        (_final(-0.4, 0.2), "no significant difference on these seeds.", "doubtful"),
        (_final(None, None), "possibly by chance, because there are too few seeds for an interval.", "doubtful"),
        (_final(math.nan, math.nan, p_value=None), "too few seeds for an interval.", "doubtful"),
        (_final(None, None, winner=[None, math.nan]), "cannot be compared on fresh seeds.", "doubtful"),
        (
            _final(None, None, seeds=[], winner=[], default=[], difference=None),
            "for both winner and default yet.",
            "doubtful",
        ),
    ],
)
def test_the_winner_is_called_better_only_where_fresh_seeds_show_it(final: dict[str, Any], verdict: str, tone: str):
    page = search_page(search_record([trial_record(0)], final=final))
    assert page.sentences[1].endswith(verdict)
    assert page.tone == tone


def test_what_failed_on_fresh_seeds_is_told_with_its_reason():
    failed = [{"run": "final/default-102", "reason": "it diverged"}]
    page = search_page(search_record([trial_record(0)], final=_final(-0.4, 0.2, default=[0.5], failed=failed)))
    assert page.sentences[1].endswith("1 of these runs failed.")
    assert _tables(page)["Runs on fresh seeds that failed"].rows == [("final/default-102", "it diverged")]
    assert _tables(page)["On fresh seeds"].rows == [
        ("101", "0.2000", "0.5000", "-0.3000"), ("102", "0.4000", "", ""),
    ]  # fmt: skip


def test_the_test_of_the_winner_is_told_once():
    test = {"accuracy": {"value": 0.97, "low": 0.95, "high": 0.98}, "loss": {"value": 0.1, "low": None, "high": None}}
    page = search_page(search_record([trial_record(0)], test=test, tested="final/winner-101"))
    assert (
        "The test split was used once, for the winner, by final/winner-101: accuracy 0.9700 (95% interval 0.9500 to "
        "0.9800), loss 0.1000."
    ) in page.sentences
    untested = search_page(search_record([trial_record(0)], tested="its checkpoint is damaged"))
    assert "The winner could not be tested: its checkpoint is damaged." in untested.sentences


@pytest.mark.parametrize(
    ("numbers", "tone", "sentence"),
    [
        (
            search_record([trial_record(0)], finished=False),
            "open",
            "The best trial so far is trial 0, with val/loss 0.2000",
        ),
        (search_record(finished=False), "open", "No trial has completed so far with a finite value."),
        (
            search_record(constraints=["parameters<=9"]),
            "bad",
            "No trial that satisfies the constraints has completed",
        ),
        (search_record([trial_record(0)]), "doubtful", "activation=relu optimizer.lr=0.01."),
    ],
)
def test_the_verdict_says_no_more_than_is_known(numbers: dict[str, Any], tone: str, sentence: str):
    page = search_page(numbers)
    assert page.tone == tone
    assert sentence in page.sentences[0]
    assert any("no fresh seeds were trained" in page_sentence for page_sentence in page.sentences) == (
        tone == "doubtful"
    )


def test_who_breaks_a_constraint_is_counted_and_marked():
    trials = [trial_record(0), trial_record(1, feasible=False), trial_record(2)]
    page = search_page(search_record(trials, constraints=["parameters<=9"], best=0))
    assert page.sentences[-1] == "1 trial violates a constraint (parameters<=9)."
    assert _column(_tables(page)["All 3 trials"], "state") == [
        "complete, best", "complete, violates a constraint", "complete",
    ]  # fmt: skip
    assert _column(_tables(page)["Best trials"], "trial") == ["0", "2", "1"]
