"""Compares two uninterrupted runs: is the command deterministic?"""

from __future__ import annotations

from dataclasses import dataclass

from stormproof.replay.comparison.causes import find_causes, kind_of
from stormproof.replay.comparison.history import Histories
from stormproof.replay.comparison.step_difference import StepDifference, step_differences

ESSENTIAL = frozenset({"parameters", "data/batches", "data/indices", "loss", "gradients", "before/parameters"})
"""Kinds that a deterministic command repeats."""


@dataclass(frozen=True, slots=True)
class Determinism:
    """Result of a comparison of two uninterrupted runs.

    Attributes:
        ignored: Components that differ and are not essential, without ``before/``.
        step: First step at which an essential component differs. None if the command is deterministic.
        component: Component that explains this difference.
        rank: Rank on which it differs.
    """

    ignored: frozenset[str] = frozenset()
    step: int | None = None
    component: str = ""
    rank: int = 0

    @property
    def is_deterministic(self) -> bool:
        """True if the essential components are equal at all steps."""
        return self.step is None


def compare_uninterrupted(first: Histories, second: Histories) -> Determinism:
    """Compares all steps of two uninterrupted runs."""
    ignored, essential = set[str](), list[tuple[StepDifference, int]]()
    for rank, history in first.items():
        other = second.get(rank)
        if other is None or len(other.steps) != len(history.steps):
            steps = min(len(history.steps), len(other.steps) if other else 0)
            return Determinism(step=steps + 1, component="length", rank=rank)
        for difference in step_differences(history, other):
            if not essential and not ESSENTIAL.isdisjoint({kind_of(name) for name in difference.components}):
                essential.append((difference, rank))
            ignored |= {name.removeprefix("before/") for name in difference.components}
    if not essential:
        return Determinism(frozenset(ignored))
    difference, rank = min(essential, key=lambda item: item[0].step)
    causes = find_causes(first[rank], second[rank], 0, difference)
    return Determinism(frozenset(ignored), difference.step, causes.first, rank)
