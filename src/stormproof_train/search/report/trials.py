"""The numbers of a search as the parts of its page read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stormproof_train.console import shown
from stormproof_train.report.kit.json_numbers import finite
from stormproof_train.report.tables import in_yaml
from stormproof_train.search.objectives import Objective


@dataclass(frozen=True)
class Parameter:
    """What was searched: ``choices`` as text, of a number None; ``low`` and ``high`` of a number, else None."""

    key: str
    kind: str
    is_log: bool
    choices: Sequence[str] | None
    low: float | None
    high: float | None
    only_with: Mapping[str, Sequence[str]]

    def number(self, trial: Trial) -> float | None:
        """Its value in a trial, where it is a number."""
        return finite(trial.params.get(self.key))

    def text(self, trial: Trial) -> str | None:
        """Its value in a trial as a user types it, where it has a part in it."""
        return as_text(trial.params[self.key]) if self.key in trial.params else None


@dataclass(frozen=True)
class Trial:
    """One trial, all of whose numbers are finite or None.

    Attributes:
        number: of the trial.
        state: ``complete``, ``pruned``, ``failed``, ``running`` or ``paused``.
        params: by key, those that have a part in it.
        values: one an objective.
        feasible: whether it keeps to all constraints.
        curve: fraction of its length, step and first objective at each validation.
        steps: it took.
        seconds: it took.
        end: in ISO 8601, None where it has none.
        reason: why it was pruned or failed.
        run: its folder, seen from that of the search.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    values: Sequence[float | None]
    feasible: bool
    curve: Sequence[tuple[float, int, float | None]]
    steps: int
    seconds: float
    end: str | None
    reason: str
    run: str

    def value(self, place: int) -> float | None:
        """The value of an objective; of one that has no value, the last that it had of the first objective."""
        if self.values[place] is not None or self.is_complete or place:
            return self.values[place]
        return next((value for _, _, value in reversed(self.curve) if value is not None), None)

    @property
    def is_complete(self) -> bool:
        """Whether it came to its end."""
        return self.state == "complete"

    @property
    def words(self) -> str:
        """Its parameters as a user types them."""
        return " ".join(f"{key}={as_text(value)}" for key, value in self.params.items())


@dataclass(frozen=True)
class Search:
    """A search, its trials in the order in which they ended, with what has not ended last."""

    objectives: Sequence[Objective]
    space: Sequence[Parameter]
    trials: Sequence[Trial]
    best: int | None
    front: Sequence[int]
    rungs: Sequence[float]

    @cached_property
    def chosen(self) -> set[int]:
        """The numbers of the best trial, or of those on the Pareto front."""
        if len(self.objectives) > 1:
            return set(self.front)
        return set() if self.best is None else {self.best}

    def in_order(self, place: int) -> list[Trial]:
        """The complete trials with a value of this objective, the best first; those that break a constraint last."""
        objective = self.objectives[place]
        valued = [(trial, trial.values[place]) for trial in self.trials if trial.is_complete]
        ranks = [
            (not trial.feasible, objective.as_loss(value), trial.number, trial)
            for trial, value in valued
            if value is not None
        ]
        return [trial for *_, trial in sorted(ranks, key=lambda rank: rank[:3])]


def read_search(numbers: Mapping[str, Any]) -> Search:
    """Reads a search.

    Args:
        numbers: as :func:`stormproof_train.search.report.search_page.search_page` takes them.
    """
    objectives = [Objective(each["name"], each["higher_is_better"]) for each in numbers["objectives"]]
    trials = [_trial(each, len(objectives)) for each in numbers["trials"]]
    return Search(
        objectives=objectives,
        space=[
            Parameter(
                each["key"], each["kind"], each["log"], each["choices"], finite(each["low"]), finite(each["high"]),
                each["only_with"] or {},
            )
            for each in numbers["space"]
        ],
        trials=sorted(trials, key=lambda trial: (trial.end is None, trial.end or "", trial.number)),
        best=numbers["best"],
        front=numbers["front"],
        rungs=sorted(numbers["rungs"]),
    )  # fmt: skip


def _trial(trial: Mapping[str, Any], objectives: int) -> Trial:
    values = [finite(value) for value in trial["values"] or ()]
    return Trial(
        number=trial["number"],
        state=trial["state"],
        params=trial["params"],
        values=(values + [None] * objectives)[:objectives],
        feasible=trial["feasible"],
        curve=[
            (fraction, step, finite(value))
            for fraction, step, value in trial["curve"]
            if finite(fraction) is not None
        ],
        steps=trial["steps"] or 0,
        seconds=finite(trial["seconds"]) or 0.0,
        end=trial["end"],
        reason=trial["reason"] or "",
        run=trial["run"] or "",
    )  # fmt: skip


def as_text(value: Any) -> str:
    """A number to six significant digits, anything else as a user types it.

    Example:
        >>> as_text(64), as_text(1234567.0), as_text(0.001234567), as_text(True), as_text(None)
        ('64', '1234567', '0.00123457', 'true', 'null')
    """
    return f"{value:.6g}" if isinstance(value, float) and not value.is_integer() else in_yaml(_whole(value))


def value_text(value: float | None) -> str:
    """A value of an objective as it is shown; empty for None.

    Example:
        >>> value_text(0.0823456), value_text(26122.0), value_text(None)
        ('0.0823', '26,122', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 100 else shown(value)


def _whole(value: Any) -> Any:
    """A float without decimals as an int, where that is not longer."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value
