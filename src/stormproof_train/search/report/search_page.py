"""What the page of a search says, from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stormproof_train.report.kit.chart import Chart, Table
from stormproof_train.report.kit.section import Page, Section
from stormproof_train.search.report.front import front_charts, front_table
from stormproof_train.search.report.history import history_chart
from stormproof_train.search.report.importances import importance_chart, sorted_shares
from stormproof_train.search.report.looks import LAST_VALUE
from stormproof_train.search.report.parallel import parallel_chart
from stormproof_train.search.report.rungs import curves_chart, rung_table
from stormproof_train.search.report.slices import slice_chart
from stormproof_train.search.report.tables import ended_table, seeds_table, space_table, tested_table, trials_table
from stormproof_train.search.report.trials import Parameter, Search, read_search
from stormproof_train.search.report.verdict import sentences, tone

MOST_SLICES = 24
"""More drawings of one parameter each nobody looks at; their page would be slow."""
BEST_TRIALS = 10


def search_page(numbers: Mapping[str, Any]) -> Page:
    """The page of a search, finished or not.

    Any value of an objective may be None or not finite; any text may hold anything.

    Args:
        numbers: ``name``; ``finished``; ``objectives``, each with ``name`` and ``higher_is_better``; ``constraints`` as
            they were typed; ``sampler`` and ``pruner``; ``rungs``, fractions of a run's length; ``space``, of each
            parameter ``key``, ``kind`` (``choice``, ``float``, ``int``), ``log``, ``choices``, ``low``, ``high`` and
            ``only_with``, the choices under which it is there; ``trials``, of each ``number``, ``state`` (``complete``,
            ``pruned``, ``failed``, ``running``, ``paused``), ``params``, ``values``, one an objective, or None,
            ``feasible``, ``curve`` (fraction of its length, step, first objective), ``steps``, ``seconds``, ``start``,
            ``end``, ``reason`` and ``run``, its folder; ``best``, the number
            of the winner, of several objectives by the first, or None; ``front``, the numbers on the Pareto front;
            ``importances``, for each objective a share by key; ``random``, what random search would be expected to
            reach: ``steps``, ``runs``, ``expected``, ``pool`` and ``stopped_early``, or None; ``final``, winner and
            default on fresh seeds: ``metric``, ``higher_is_better``, ``seeds``, ``winner``, ``default``,
            ``difference``, ``low``, ``high``, ``p_value``, ``samples_known`` and ``failed`` (``run`` and ``reason``),
            or None; ``test``, by metric ``value``, ``low`` and ``high``, or None; ``tested``, the run that it is of, or
            why there is none; ``also_tested``, the numbers of trials for which the test split was read before;
            ``words`` of ``winner`` and ``default``; ``totals``: ``steps``, ``seconds`` and ``gpu_hours``.
    """
    search = read_search(numbers)
    return Page(
        title=numbers["name"],
        tone=tone(numbers, search),
        sentences=sentences(numbers, search),
        sections=[
            _winner(numbers),
            _history(search, numbers["random"]),
            _front(search),
            _parameters(search, numbers["importances"]),
            _all_parameters(search),
            _rungs(search),
            Section("Search space", tables=[("", space_table(search))] if search.space else []),
            _trials(search),
            _ended(search),
        ],
    )


def _winner(numbers: Mapping[str, Any]) -> Section:
    final, words = numbers["final"], numbers["words"]
    told = [f"{side.capitalize()}: {' '.join(words[side])}." for side in ("winner", "default") if words[side]]
    tables = []
    if numbers["test"]:
        tables.append(("Test of the winner", tested_table(numbers["test"])))
    if final and final["seeds"]:
        tables.append(("On fresh seeds", seeds_table(final)))
    if final and final["failed"]:
        failed = [(each["run"], each["reason"]) for each in final["failed"]]
        tables.append(("Runs on fresh seeds that failed", Table(("run", "reason"), failed)))
    return Section("Winner and default", told if tables else [], tables)


def _history(search: Search, random: Mapping[str, Any] | None) -> Section:
    if not search.trials:
        return Section("History", ["No trial has begun."])
    charts = [history_chart(search, place, None if place else random) for place in range(len(search.objectives))]
    return Section("History", [LAST_VALUE], wide_charts=charts)


def _front(search: Search) -> Section:
    if len(search.objectives) < 2:
        return Section("Pareto front")
    table = front_table(search)
    return Section("Pareto front", tables=[("", table)] if table.rows else [], charts=front_charts(search))


def _parameters(search: Search, importances: Sequence[Mapping[str, float]]) -> Section:
    bars = [
        importance_chart(objective.name, shares)
        for objective, shares in zip(search.objectives, importances, strict=False)
        if shares
    ]
    slices, left_out = _slices(search, importances[0] if importances else {})
    told = [LAST_VALUE] if slices else []
    complete = sum(trial.is_complete for trial in search.trials)
    if bars:
        told.append(f"What the objective depends on is reckoned from {complete:,} complete trials.")
    elif search.trials:
        told.append("Too few trials are complete to say which parameters matter.")
    if left_out:
        told.append(f"Drawn are {len(slices)} parameters; the table of all trials has the rest: {', '.join(left_out)}.")
    return Section("Parameters", told, charts=[*bars, *slices])


def _slices(search: Search, importances: Mapping[str, float]) -> tuple[list[Chart], list[str]]:
    """The drawings of the parameters, the most important first, and the keys of those for which there is no room."""
    order = list(sorted_shares(importances))
    parameters: list[Parameter] = sorted(
        search.space, key=lambda each: order.index(each.key) if each.key in order else len(order)
    )
    room = max(1, MOST_SLICES // len(search.objectives))
    charts = [
        chart
        for parameter in parameters[:room]
        for place in range(len(search.objectives))
        if (chart := slice_chart(search, place, parameter)) is not None
    ]
    # one legend of all of them, that of the first
    return [*charts[:1], *(replace(chart, legend=()) for chart in charts[1:])], [each.key for each in parameters[room:]]


def _all_parameters(search: Search) -> Section:
    charts = [parallel_chart(search, place) for place in range(len(search.objectives))]
    return Section("All parameters together", wide_charts=[chart for chart in charts if chart is not None])


def _rungs(search: Search) -> Section:
    curves = curves_chart(search)
    return Section(
        "Rungs" if search.rungs else "Curves",
        tables=[("What became of the trials at each rung", rung_table(search))]
        if search.rungs and search.trials
        else [],
        wide_charts=[curves] if curves else [],
    )


def _trials(search: Search) -> Section:
    best = search.in_order(0)[:BEST_TRIALS]
    every = sorted(search.trials, key=lambda trial: trial.number)
    of = f", by {search.objectives[0].name}" if len(search.objectives) > 1 else ""
    return Section(
        "Trials",
        [f"Each has a folder, as trial {every[0].number} has {every[0].run}."] if every else [],
        tables=[(f"The best{of}", trials_table(best, search))] if best else [],
        folded=[(f"All {len(every):,} trials", trials_table(every, search))] if every else [],
    )


def _ended(search: Search) -> Section:
    trials = sorted(search.trials, key=lambda trial: trial.number)
    failed = [trial for trial in trials if trial.state == "failed"]
    pruned = [trial for trial in trials if trial.state == "pruned"]
    return Section(
        "Failed and stopped early",
        tables=[("Failed", ended_table(failed))] if failed else [],
        folded=[(f"{len(pruned):,} stopped early", ended_table(pruned))] if pruned else [],
    )
