"""What a search wants to be small or large, and what a trial has to keep to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stormproof_train.metrics import higher_is_better

COST_METRICS = {"parameters": "parameters of the network", "latency": "seconds for one sample, on this machine"}
"""What is known of a trial before it is trained."""
_CONSTRAINT = re.compile(r"\s*([\w/]+)\s*(<=|>=)\s*([-+\d.eE_]+)\s*")


@dataclass(frozen=True)
class Objective:
    """A number of a trial, and which way is better."""

    name: str
    higher_is_better: bool

    def get_value(self, measurements: Mapping[str, float]) -> float:
        """Its value among what was measured of a trial.

        Raises:
            ValueError: if it is none of that.
        """
        if self.name not in measurements:
            raise ValueError(f"{self.name} is not among what was measured ({', '.join(sorted(measurements))})")
        return measurements[self.name]

    def as_loss(self, value: float) -> float:
        """The same number, lower for the better; what is not finite is the worst."""
        loss = -value if self.higher_is_better else value
        return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class Constraint:
    """A bound on a number of a trial."""

    name: str
    operator: str
    bound: float

    def violation(self, measurements: Mapping[str, float]) -> float:
        """By how much it is missed, above 0; 0 or less where it holds."""
        value = measurements[self.name]
        if not math.isfinite(value):
            return math.inf
        return value - self.bound if self.operator == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.bound:g}"


def read_objective(name: str) -> Objective:
    """An objective by its name: of a validation, or of the network's size.

    Raises:
        ValueError: if it is neither.

    Example:
        >>> read_objective("val/accuracy")
        Objective(name='val/accuracy', higher_is_better=True)
    """
    if name in COST_METRICS:
        return Objective(name, higher_is_better=False)
    is_higher_better = higher_is_better(name)
    if is_higher_better is None or not name.startswith("val/"):
        raise ValueError(
            f"objectives={name}: a search looks at what validation measures (val/loss, val/accuracy, val/f1, val/rmse, "
            f"val/mae, val/r2), or {', '.join(COST_METRICS)}"
        )
    return Objective(name, is_higher_better)


def read_constraint(text: str) -> Constraint:
    """A constraint as a user writes it.

    Raises:
        ValueError: if it cannot be read.

    Example:
        >>> str(read_constraint("parameters <= 1e5"))
        'parameters<=100000'
    """
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"constraints={text} cannot be read: write parameters<=100000, latency<=0.01 or val/accuracy>=0.9"
        )
    name, operator, bound = match.groups()
    read_objective(name)
    try:
        return Constraint(name, operator, float(bound))
    except ValueError as error:
        raise ValueError(f"constraints={text}: {bound} is no number") from error
