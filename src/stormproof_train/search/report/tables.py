"""Builds the tables of a search."""

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
    """Returns the search space."""
    rows = [
        (parameter.key, _format_values(parameter), _format_condition(parameter.only_with)) for parameter in search.space
    ]
    return Table(*drop_empty_columns(("parameter", "values", "only with"), rows))


def trials_table(trials: Sequence[TrialInfo], search: SearchInfo) -> Table:
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


def stopped_trials_table(trials: Sequence[TrialInfo]) -> Table:
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


def seeds_table(final: WinnerComparison) -> Table:
    """Returns the values of the winner and the default on each fresh seed.

    Args:
        final: Comparison of the winner with the default.
    """
    rows = []
    for index, seed in enumerate(final["seeds"]):
        winner, default = (_finite_at(final[side], index) for side in ("winner", "default"))
        difference = None if winner is None or default is None else winner - default
        rows.append((str(seed), *map(format_objective, (winner, default, difference))))
    return Table(("seed", f"{final['metric']} of the winner", "of the default", "winner minus default"), rows)


def winner_test_table(test: Mapping[str, IntervalRecord]) -> Table:
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
