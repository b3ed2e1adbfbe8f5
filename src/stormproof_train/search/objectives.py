"""Defines objectives and constraints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stormproof_train.metric_direction import higher_is_better

COST_METRICS = {"parameters": "parameters of the network", "latency": "seconds for one sample, on this machine"}
"""Metrics of a trial that are known before training."""
_CONSTRAINT = re.compile(r"\s*([\w/]+)\s*(<=|>=)\s*([-+\d.eE_]+)\s*")


@dataclass(frozen=True)
class Objective:
    """A metric to optimize and its direction."""

    name: str
    higher_is_better: bool

    def get_value(self, measurements: Mapping[str, float]) -> float:
        """Returns the value of the metric among the measurements of a trial.

        Raises:
            ValueError: If it was not measured.
        """
        if self.name not in measurements:
            raise ValueError(f"{self.name} was not measured (available: {', '.join(sorted(measurements))})")
        return measurements[self.name]

    def as_loss(self, value: float) -> float:
        """Returns the value as a loss, where lower is better. A non-finite value becomes infinity."""
        loss = -value if self.higher_is_better else value
        return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric of a trial."""

    name: str
    operator: str
    bound: float

    def violation(self, measurements: Mapping[str, float]) -> float:
        """Returns the amount by which the constraint is violated. Not positive if it is satisfied."""
        value = measurements[self.name]
        if not math.isfinite(value):
            return math.inf
        return value - self.bound if self.operator == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.bound:g}"


def read_objective(name: str) -> Objective:
    """Parses an objective: a validation metric or a cost of the network.

    Raises:
        ValueError: If the name is neither.

    Example:
        >>> read_objective("val/accuracy")
        Objective(name='val/accuracy', higher_is_better=True)
    """
    if name in COST_METRICS:
        return Objective(name, higher_is_better=False)
    is_higher_better = higher_is_better(name)
    if is_higher_better is None or not name.startswith("val/"):
        raise ValueError(
            f"objectives={name} is not supported: use a validation metric (val/loss, val/accuracy, val/f1, val/rmse, "
            f"val/mae, val/r2) or {', '.join(COST_METRICS)}"
        )
    return Objective(name, is_higher_better)


def read_constraint(text: str) -> Constraint:
    """Parses a constraint.

    Raises:
        ValueError: If it has another form.

    Example:
        >>> str(read_constraint("parameters <= 1e5"))
        'parameters<=100000'
    """
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"constraints={text} is not valid: write parameters<=100000, latency<=0.01 or val/accuracy>=0.9"
        )
    name, operator, bound = match.groups()
    read_objective(name)
    try:
        return Constraint(name, operator, float(bound))
    except ValueError as error:
        raise ValueError(f"constraints={text}: {bound} is not a number") from error
