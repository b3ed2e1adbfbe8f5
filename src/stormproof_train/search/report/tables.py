"""The tables of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.console import but_empty_columns
from stormproof_train.report.kit.chart import Table
from stormproof_train.report.kit.json_numbers import finite
from stormproof_train.search.report.trials import Parameter, Search, Trial, as_text, value_text


def space_table(search: Search) -> Table:
    """What was searched."""
    rows = [(each.key, _values(each), _condition(each.only_with)) for each in search.space]
    return Table(*but_empty_columns(("parameter", "values", "only with"), rows))


def trials_table(trials: Sequence[Trial], search: Search) -> Table:
    """Trials with all that was set, what it came to, and what it cost."""
    keys = list(
        dict.fromkeys([*(each.key for each in search.space), *(key for trial in trials for key in trial.params)])
    )
    head = ("trial", "state", *(each.name for each in search.objectives), *keys, "steps", "seconds", "reason")
    rows = [
        (
            str(trial.number), _state(trial, search), *map(value_text, trial.values),
            *(as_text(trial.params[key]) if key in trial.params else "" for key in keys),
            f"{trial.steps:,}", f"{trial.seconds:,.1f}", trial.reason,
        )
        for trial in trials
    ]  # fmt: skip
    return Table(*but_empty_columns(head, rows))


def ended_table(trials: Sequence[Trial]) -> Table:
    """Trials that did not come to their end, how far they came, and why."""
    rows = [
        (
            str(trial.number), f"{trial.steps:,}", f"{trial.curve[-1][0]:.1%}" if trial.curve else "", trial.reason,
            trial.words, trial.run,
        )
        for trial in trials
    ]  # fmt: skip
    return Table(*but_empty_columns(("trial", "steps", "came to", "reason", "with", "folder"), rows))


def seeds_table(final: Mapping[str, Any]) -> Table:
    """What the winner and the default came to on each fresh seed; ``final`` of the numbers of a search."""
    rows = []
    for place, seed in enumerate(final["seeds"]):
        winner, default = (_at(final[side], place) for side in ("winner", "default"))
        difference = None if winner is None or default is None else winner - default
        rows.append((str(seed), *map(value_text, (winner, default, difference))))
    return Table(("seed", f"{final['metric']} of the winner", "of the default", "winner minus default"), rows)


def tested_table(test: Mapping[str, Mapping[str, Any]]) -> Table:
    """The test of the winner, by metric its ``value`` with the ends of its 95% interval."""
    rows = [
        (name, _number(each["value"]), " to ".join(filter(None, (_number(each["low"]), _number(each["high"])))))
        for name, each in test.items()
    ]
    return Table(("metric", "test", "95% interval"), rows)


def _at(values: Sequence[Any], place: int) -> float | None:
    return finite(values[place]) if place < len(values) else None


def _number(value: Any) -> str:
    return value_text(finite(value))


def _values(parameter: Parameter) -> str:
    if parameter.choices is not None:
        return ", ".join(parameter.choices)
    whole = "whole numbers, " if parameter.kind == "int" else ""
    scale = ", by their logarithms" if parameter.is_log else ""
    return f"{whole}{as_text(parameter.low)} to {as_text(parameter.high)}{scale}"


def _condition(only_with: Mapping[str, Sequence[str]]) -> str:
    return " and ".join(f"{key}={' or '.join(values)}" for key, values in only_with.items())


def _state(trial: Trial, search: Search) -> str:
    told = [trial.state]
    if not trial.feasible:
        told.append("breaks a constraint")
    if trial.number in search.chosen:
        told.append("on the Pareto front" if len(search.objectives) > 1 else "the best")
    return ", ".join(told)
