"""Builds the page of a search from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stormproof_train.console import drop_empty_columns
from stormproof_train.evaluation.intervals import IntervalRecord
from stormproof_train.report.kit.chart import Chart, Line, Table
from stormproof_train.report.kit.json_numbers import finite_or_none
from stormproof_train.report.kit.page import Page, Section
from stormproof_train.search.records import RandomSearchRecord, SearchNumbers, WinnerComparison
from stormproof_train.search.report.front import front_charts, front_table
from stormproof_train.search.report.history import history_chart
from stormproof_train.search.report.marks import LAST_VALUE_NOTE
from stormproof_train.search.report.parallel import parallel_chart
from stormproof_train.search.report.rungs import curves_chart, rung_table
from stormproof_train.search.report.search_info import (
    ParameterInfo,
    SearchInfo,
    TrialInfo,
    format_objective,
    format_param,
    read_search,
)
from stormproof_train.search.report.slices import slice_chart
from stormproof_train.search.report.verdict import sentences, tone

MAX_SLICES = 24
"""Maximum number of charts of single parameters. More would slow the page down."""
MAX_BEST_TRIALS = 10


def search_page(numbers: SearchNumbers) -> Page:
    """Builds the page of a search, finished or not.

    Values of objectives may be None or not finite. Texts are not trusted.
    """
    search = read_search(numbers)
    return Page(
        title=numbers["name"],
        tone=tone(numbers, search),
        sentences=sentences(numbers, search),
        sections=[
            _winner_section(numbers),
            _history_section(search, numbers["random"]),
            _front_section(search),
            _parameters_section(search, numbers["importances"]),
            _all_parameters_section(search),
            _rungs_section(search),
            Section("Search space", tables=[("", _space_table(search))] if search.space else []),
            _trials_section(search),
            _stopped_section(search),
        ],
    )


def _winner_section(numbers: SearchNumbers) -> Section:
    final, overrides = numbers["final"], numbers["overrides"]
    paragraphs = [
        f"{side.capitalize()}: {' '.join(overrides[side])}." for side in ("winner", "default") if overrides[side]
    ]
    tables = []
    if numbers["test"]:
        tables.append(("Test of the winner", _winner_test_table(numbers["test"])))
    if final and final["seeds"]:
        tables.append(("On fresh seeds", _seeds_table(final)))
    if final and final["failed"]:
        failures = [(run["run"], run["reason"]) for run in final["failed"]]
        tables.append(("Runs on fresh seeds that failed", Table(("run", "reason"), failures)))
    return Section("Winner and default", paragraphs if tables else [], tables)


def _history_section(search: SearchInfo, random_search: RandomSearchRecord | None) -> Section:
    if not search.trials:
        return Section("History", ["No trial has started."])
    charts = [
        history_chart(search, objective_index, None if objective_index else random_search)
        for objective_index in range(len(search.objectives))
    ]
    return Section("History", [LAST_VALUE_NOTE], wide_charts=charts)


def _front_section(search: SearchInfo) -> Section:
    if len(search.objectives) < 2:
        return Section("Pareto front")
    table = front_table(search)
    return Section("Pareto front", tables=[("", table)] if table.rows else [], charts=front_charts(search))


def _parameters_section(search: SearchInfo, importances: Sequence[Mapping[str, float]]) -> Section:
    bar_charts = [
        _importance_chart(objective.name, shares)
        for objective, shares in zip(search.objectives, importances, strict=False)
        if shares
    ]
    slice_charts, omitted_keys = _slice_charts(search, importances[0] if importances else {})
    paragraphs = [LAST_VALUE_NOTE] if slice_charts else []
    num_complete = sum(trial.is_complete for trial in search.trials)
    if bar_charts:
        paragraphs.append(f"The importances are estimated from {num_complete:,} complete trials.")
    elif search.trials:
        paragraphs.append("There are too few complete trials to estimate importances.")
    if omitted_keys:
        paragraphs.append(
            f"The charts show {len(slice_charts)} parameters. The table of all trials contains the others: "
            f"{', '.join(omitted_keys)}."
        )
    return Section("Parameters", paragraphs, charts=[*bar_charts, *slice_charts])


def _slice_charts(search: SearchInfo, importances: Mapping[str, float]) -> tuple[list[Chart], list[str]]:
    """Returns the charts of the parameters, the most important first, and the keys of parameters without a chart."""
    keys = list(_sort_shares(importances))
    parameters: list[ParameterInfo] = sorted(
        search.space, key=lambda candidate: keys.index(candidate.key) if candidate.key in keys else len(keys)
    )
    max_parameters = max(1, MAX_SLICES // len(search.objectives))
    charts = [
        chart
        for parameter in parameters[:max_parameters]
        for objective_index in range(len(search.objectives))
        if (chart := slice_chart(search, objective_index, parameter)) is not None
    ]
    # the legend of the first chart applies to all of them
    return [*charts[:1], *(replace(chart, legend=()) for chart in charts[1:])], [
        candidate.key for candidate in parameters[max_parameters:]
    ]


def _all_parameters_section(search: SearchInfo) -> Section:
    charts = [parallel_chart(search, objective_index) for objective_index in range(len(search.objectives))]
    return Section("All parameters", wide_charts=[chart for chart in charts if chart is not None])


def _rungs_section(search: SearchInfo) -> Section:
    curves = curves_chart(search)
    return Section(
        "Rungs" if search.rungs else "Curves",
        tables=[("Trials at each rung", rung_table(search))] if search.rungs and search.trials else [],
        wide_charts=[curves] if curves else [],
    )


def _trials_section(search: SearchInfo) -> Section:
    best_trials = search.ranked_trials(0)[:MAX_BEST_TRIALS]
    all_trials = sorted(search.trials, key=lambda trial: trial.number)
    suffix = f", by {search.objectives[0].name}" if len(search.objectives) > 1 else ""
    return Section(
        "Trials",
        [f"Each trial has a folder, such as {all_trials[0].run}."] if all_trials else [],
        tables=[(f"Best trials{suffix}", _trials_table(best_trials, search))] if best_trials else [],
        folded=[(f"All {len(all_trials):,} trials", _trials_table(all_trials, search))] if all_trials else [],
    )


def _stopped_section(search: SearchInfo) -> Section:
    trials = sorted(search.trials, key=lambda trial: trial.number)
    failed_trials = [trial for trial in trials if trial.state == "failed"]
    pruned_trials = [trial for trial in trials if trial.state == "pruned"]
    return Section(
        "Failed and stopped early",
        tables=[("Failed", _stopped_trials_table(failed_trials))] if failed_trials else [],
        folded=[(f"{len(pruned_trials):,} stopped early", _stopped_trials_table(pruned_trials))]
        if pruned_trials
        else [],
    )


_MAX_ROW_HEIGHT = 24
_MAX_BARS = 25


def _importance_chart(name: str, importances: Mapping[str, float]) -> Chart:
    """Draws the shares of the variance of an objective as bars.

    Args:
        name: Name of the objective.
        importances: Shares in [0, 1] by key of the parameter. At least one.
    """
    title = f"Parameter importance for {name}"
    shares = _sort_shares(importances)
    rows = [(key, f"{share:.1%}") for key, share in shares.items()]
    drawn_shares = dict(list(shares.items())[:_MAX_BARS])
    return Chart(
        title=title,
        text=f"{title}, the most important first: {', '.join(f'{key} {share}' for key, share in rows)}.",
        spec={
            "width": "container",
            "height": len(drawn_shares) * _MAX_ROW_HEIGHT,  # with a step size, Vega warns about fit-x
            "autosize": {"type": "fit-x", "contains": "padding"},
            "data": {"name": "bars"},
            "mark": {"type": "bar", "color": Line("", 0).color},
            "encoding": {
                "y": {
                    "field": "key", "type": "nominal", "title": None, "sort": None,
                    "axis": {"labelLimit": 140, "ticks": False, "domain": False},
                },
                "x": {
                    "field": "share", "type": "quantitative", "title": "share of the variance",
                    "axis": {"format": ".0%", "tickCount": 4}, "scale": {"domainMin": 0},
                },
                "tooltip": [{"field": "key", "title": "parameter"}, {"field": "share", "format": ".1%"}],
            },
        },
        data={"bars": {"key": list(drawn_shares), "share": [round(share, 6) for share in drawn_shares.values()]}},
        note=f"Shows the first {_MAX_BARS} parameters." if len(shares) > _MAX_BARS else "",
        table=Table(("parameter", "share"), rows),
    )  # fmt: skip


def _sort_shares(importances: Mapping[str, float]) -> dict[str, float]:
    """Returns the shares in descending order."""
    finite_shares = {key: finite_or_none(share) or 0.0 for key, share in importances.items()}
    return dict(sorted(finite_shares.items(), key=lambda pair: -pair[1]))


def _space_table(search: SearchInfo) -> Table:
    """Returns the search space."""
    rows = [
        (parameter.key, _format_values(parameter), _format_condition(parameter.only_with)) for parameter in search.space
    ]
    return Table(*drop_empty_columns(("parameter", "values", "only with"), rows))


def _trials_table(trials: Sequence[TrialInfo], search: SearchInfo) -> Table:
    """Returns trials with their parameters, results and costs."""
    keys = list(
        dict.fromkeys(
            [*(parameter.key for parameter in search.space), *(key for trial in trials for key in trial.params)]
        )
    )
    head = ("trial", "state", *(objective.name for objective in search.objectives), *keys, "steps", "seconds", "reason")
    rows = [
        (
            str(trial.number), _format_state(trial, search), *map(format_objective, trial.values),
            *(format_param(trial.params[key]) if key in trial.params else "" for key in keys),
            f"{trial.steps:,}", f"{trial.seconds:,.1f}", trial.reason,
        )
        for trial in trials
    ]  # fmt: skip
    return Table(*drop_empty_columns(head, rows))


def _stopped_trials_table(trials: Sequence[TrialInfo]) -> Table:
    """Returns incomplete trials with their progress and the reason why they ended."""
    rows = [
        (
            str(trial.number), f"{trial.steps:,}", f"{trial.curve[-1][0]:.1%}" if trial.curve else "", trial.reason,
            trial.overrides, trial.run,
        )
        for trial in trials
    ]  # fmt: skip
    head = ("trial", "steps", "fraction", "reason", "parameters", "folder")
    return Table(*drop_empty_columns(head, rows))


def _seeds_table(final: WinnerComparison) -> Table:
    """Returns the values of the winner and the default on each fresh seed."""
    rows = []
    for index, seed in enumerate(final["seeds"]):
        winner, default = (_finite_at(final[side], index) for side in ("winner", "default"))
        difference = None if winner is None or default is None else winner - default
        rows.append((str(seed), *map(format_objective, (winner, default, difference))))
    return Table(("seed", f"{final['metric']} of the winner", "of the default", "winner minus default"), rows)


def _winner_test_table(test: Mapping[str, IntervalRecord]) -> Table:
    """Returns the test metrics of the winner with their 95% intervals."""
    rows = [
        (
            name,
            _format_number(estimate["value"]),
            " to ".join(filter(None, (_format_number(estimate["low"]), _format_number(estimate["high"])))),
        )
        for name, estimate in test.items()
    ]
    return Table(("metric", "test", "95% interval"), rows)


def _finite_at(values: Sequence[Any], index: int) -> float | None:
    return finite_or_none(values[index]) if index < len(values) else None


def _format_number(value: Any) -> str:
    return format_objective(finite_or_none(value))


def _format_values(parameter: ParameterInfo) -> str:
    if parameter.choices is not None:
        return ", ".join(parameter.choices)
    prefix = "integers, " if parameter.kind == "int" else ""
    suffix = ", logarithmic" if parameter.is_log else ""
    return f"{prefix}{format_param(parameter.low)} to {format_param(parameter.high)}{suffix}"


def _format_condition(only_with: Mapping[str, Sequence[str]]) -> str:
    return " and ".join(f"{key}={' or '.join(values)}" for key, values in only_with.items())


def _format_state(trial: TrialInfo, search: SearchInfo) -> str:
    labels = [trial.state]
    if not trial.is_feasible:
        labels.append("violates a constraint")
    if trial.number in search.best_trial_numbers:
        labels.append("on the Pareto front" if len(search.objectives) > 1 else "best")
    return ", ".join(labels)
