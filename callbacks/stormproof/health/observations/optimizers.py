"""Learning rates, and the parameters of the optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ParameterGroup:
    """Learning rates of a parameter group.

    Attributes:
        optimizer: Index of its optimizer.
        name: Name in findings.
        lr: Current learning rate.
        initial_lr: First learning rate.
        max_lr: Highest learning rate so far.
        base_lr: Learning rate that a scheduler multiplies. Without a scheduler, the highest one so far.
        zero_since: Step since which the learning rate is zero, or negligible compared to the highest one. None if it
            is not.
    """

    optimizer: int
    name: str
    lr: float
    initial_lr: float
    max_lr: float
    base_lr: float
    zero_since: int | None

    @property
    def is_rising(self) -> bool:
        """Returns whether the learning rate is in its warm-up."""
        return self.lr >= self.max_lr > self.initial_lr


@dataclass(frozen=True)
class Optimizers:
    """Optimizers of a run.

    Attributes:
        groups: Parameter groups.
        unoptimized_entries: Number of entries with a gradient and without an optimizer, by layer.
        foreign_parameters: Number of parameters in optimizers that the module does not own.
        unregistered_entries: Number of entries of parameters that the step uses, in no submodule and no optimizer.
        duplicated_layers: Layers whose parameters are in two groups.
        have_stepped: Whether an optimizer has stepped. Lightning does not count all steps in manual optimization.
    """

    groups: Sequence[ParameterGroup] = ()
    unoptimized_entries: Mapping[str, int] = field(default_factory=dict)
    foreign_parameters: int = 0
    unregistered_entries: int = 0
    duplicated_layers: Sequence[str] = ()
    have_stepped: bool = False
