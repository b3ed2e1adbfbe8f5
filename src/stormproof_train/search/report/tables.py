"""The tables of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.console import drop_empty_columns
from stormproof_train.evaluation.intervals import IntervalRecord
from stormproof_train.report.kit.chart import Table
from stormproof_train.report.kit.json_numbers import finite_or_none
from stormproof_train.search.records import WinnerComparison
from stormproof_train.search.report.search_info import (
    ParameterInfo,
    SearchInfo,
    TrialInfo,
    format_objective,
    format_param,
)


def space_table(search: SearchInfo) -> Table:
    """What was searched."""
    rows = [
        (parameter.key, _format_values(parameter), _format_condition(parameter.only_with)) for parameter in search.space
    ]
    return Table(*drop_empty_columns(("parameter", "values", "only with"), rows))


def trials_table(trials: Sequence[TrialInfo], search: SearchInfo) -> Table:
    """Trials with all that was set, what it came to, and what it cost."""
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


def stopped_trials_table(trials: Sequence[TrialInfo]) -> Table:
    """Trials that did not come to their end, how far they came, and why."""
    rows = [
        (
            str(trial.number), f"{trial.steps:,}", f"{trial.curve[-1][0]:.1%}" if trial.curve else "", trial.reason,
            trial.overrides, trial.run,
        )
        for trial in trials
    ]  # fmt: skip
    return Table(*drop_empty_columns(("trial", "steps", "came to", "reason", "with", "folder"), rows))


def seeds_table(final: WinnerComparison) -> Table:
    """What the winner and the default came to on each fresh seed; ``final`` of the numbers of a search."""
    rows = []
    for index, seed in enumerate(final["seeds"]):
        winner, default = (_finite_at(final[side], index) for side in ("winner", "default"))
        difference = None if winner is None or default is None else winner - default
        rows.append((str(seed), *map(format_objective, (winner, default, difference))))
    return Table(("seed", f"{final['metric']} of the winner", "of the default", "winner minus default"), rows)


def winner_test_table(test: Mapping[str, IntervalRecord]) -> Table:
    """The test of the winner, by metric its ``value`` with the ends of its 95% interval."""
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
    prefix = "whole numbers, " if parameter.kind == "int" else ""
    suffix = ", by their logarithms" if parameter.is_log else ""
    return f"{prefix}{format_param(parameter.low)} to {format_param(parameter.high)}{suffix}"


def _format_condition(only_with: Mapping[str, Sequence[str]]) -> str:
    return " and ".join(f"{key}={' or '.join(values)}" for key, values in only_with.items())


def _format_state(trial: TrialInfo, search: SearchInfo) -> str:
    labels = [trial.state]
    if not trial.is_feasible:
        labels.append("breaks a constraint")
    if trial.number in search.best_trial_numbers:
        labels.append("on the Pareto front" if len(search.objectives) > 1 else "the best")
    return ", ".join(labels)
