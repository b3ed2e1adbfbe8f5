"""Reads the numbers of a search for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stormproof_train.console import format_value
from stormproof_train.report.kit.json_numbers import finite_or_none
from stormproof_train.report.tables import format_setting
from stormproof_train.search.objectives import Objective
from stormproof_train.search.records import ReportedTrial, SearchNumbers


@dataclass(frozen=True)
class ParameterInfo:
    """A parameter of the search space: the fields of :class:`ParameterRecord` that the page shows."""

    key: str
    kind: str
    is_log: bool
    choices: Sequence[str] | None
    low: float | None
    high: float | None
    only_with: Mapping[str, Sequence[str]]

    def numeric_value(self, trial: TrialInfo) -> float | None:
        """Returns its numeric value in a trial, or None."""
        return finite_or_none(trial.params.get(self.key))

    def text_value(self, trial: TrialInfo) -> str | None:
        """Returns its value in a trial as written on the command line, or None if it does not exist there."""
        return format_param(trial.params[self.key]) if self.key in trial.params else None


@dataclass(frozen=True)
class TrialInfo:
    """A trial: the fields of :class:`ReportedTrial` that the page shows. All numbers are finite or None.

    Attributes:
        values: One value per objective, None if it has no finite value.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    values: Sequence[float | None]
    is_feasible: bool
    curve: Sequence[tuple[float, int, float | None]]
    steps: int
    seconds: float
    end: str | None
    reason: str
    run: str

    def value(self, objective_index: int) -> float | None:
        """Returns the value of an objective. For an incomplete trial, returns the last value of the first objective."""
        if self.values[objective_index] is not None or self.is_complete or objective_index:
            return self.values[objective_index]
        return next((value for _, _, value in reversed(self.curve) if value is not None), None)

    @property
    def is_complete(self) -> bool:
        """True if it reached its full length."""
        return self.state == "complete"

    @property
    def overrides(self) -> str:
        """Its parameters as overrides."""
        return " ".join(f"{key}={format_param(value)}" for key, value in self.params.items())


@dataclass(frozen=True)
class SearchInfo:
    """A search: the fields of :class:`SearchNumbers` that the page shows.

    Attributes:
        trials: Trials by their end time. Trials that have not ended come last.
    """

    objectives: Sequence[Objective]
    space: Sequence[ParameterInfo]
    trials: Sequence[TrialInfo]
    best: int | None
    front: Sequence[int]
    rungs: Sequence[float]

    @cached_property
    def best_trial_numbers(self) -> set[int]:
        """The numbers of the best trial, or of the trials on the Pareto front."""
        if len(self.objectives) > 1:
            return set(self.front)
        return set() if self.best is None else {self.best}

    def ranked_trials(self, objective_index: int) -> list[TrialInfo]:
        """Returns the complete trials with a value of this objective, best first. Infeasible trials come last."""
        objective = self.objectives[objective_index]
        trial_values = [(trial, trial.values[objective_index]) for trial in self.trials if trial.is_complete]
        sort_keys = [
            (not trial.is_feasible, objective.as_loss(value), trial.number, trial)
            for trial, value in trial_values
            if value is not None
        ]
        return [trial for *_, trial in sorted(sort_keys, key=lambda sort_key: sort_key[:3])]


def read_search(numbers: SearchNumbers) -> SearchInfo:
    """Converts the numbers of a search."""
    objectives = [Objective(entry["name"], entry["higher_is_better"]) for entry in numbers["objectives"]]
    trials = [_read_trial(entry, len(objectives)) for entry in numbers["trials"]]
    return SearchInfo(
        objectives=objectives,
        space=[
            ParameterInfo(
                entry["key"], entry["kind"], entry["log"], entry["choices"], finite_or_none(entry["low"]),
                finite_or_none(entry["high"]),
                entry["only_with"] or {},
            )
            for entry in numbers["space"]
        ],
        trials=sorted(trials, key=lambda trial: (trial.end is None, trial.end or "", trial.number)),
        best=numbers["best"],
        front=numbers["front"],
        rungs=sorted(numbers["rungs"]),
    )  # fmt: skip


def _read_trial(entry: ReportedTrial, num_objectives: int) -> TrialInfo:
    values = [finite_or_none(value) for value in entry["values"] or ()]
    return TrialInfo(
        number=entry["number"],
        state=entry["state"],
        params=entry["params"],
        values=(values + [None] * num_objectives)[:num_objectives],
        is_feasible=entry["feasible"],
        curve=[
            (fraction, step, finite_or_none(value))
            for fraction, step, value in entry["curve"]
            if finite_or_none(fraction) is not None
        ],
        steps=entry["steps"] or 0,
        seconds=finite_or_none(entry["seconds"]) or 0.0,
        end=entry["end"],
        reason=entry["reason"] or "",
        run=entry["run"] or "",
    )  # fmt: skip


def format_param(value: Any) -> str:
    """Formats a number with six significant digits, and any other value as on the command line.

    Example:
        >>> format_param(64), format_param(1234567.0), format_param(0.001234567), format_param(True), format_param(None)
        ('64', '1234567', '0.00123457', 'true', 'null')
    """
    return (
        f"{value:.6g}"
        if isinstance(value, float) and not value.is_integer()
        else format_setting(_to_whole_number(value))
    )


def format_objective(value: float | None) -> str:
    """Formats a value of an objective. Empty for None.

    Example:
        >>> format_objective(0.0823456), format_objective(26122.0), format_objective(None)
        ('0.0823', '26,122', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 100 else format_value(value)


def _to_whole_number(value: Any) -> Any:
    """Converts a float without decimals to an int, unless that would be longer."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value
