"""Decides which differences make a resume inexact, and which have no effect on training."""

from __future__ import annotations

from functools import cache

from stormproof.replay.comparison.history import History
from stormproof.replay.comparison.step_difference import StepDifference
from stormproof.replay.comparison.variables import (
    VariableKind,
    VariableKinds,
    is_of_callback,
    is_variable,
    was_reset,
)


class Significance:
    """Significant components of a restarted process.

    All components count, except random states, which matter only if something else differs, and most variables.
    Programs sum up losses for display and rebuild the rest of an epoch, so a variable counts only in two cases:

    - It is the state of a metric.
    - It is not a sequence, changes only at some steps, has an earlier value after the restart, and is still different
      at the end. Such a variable is the best loss, a patience counter or a level. In a framework's callback, it may
      also count steps, and need not be different at the end.

    Args:
        reference: The uninterrupted run.
        restarted: The restarted process.
        offset: Number of steps before the first step of the restarted process.
    """

    def __init__(self, reference: History, restarted: History, offset: int) -> None:
        self._reference, self._restarted, self._offset = reference, restarted, offset
        self._kinds = VariableKinds(reference)
        self._is_significant = cache(self._check_variable)  # many variables differ at each step

    def select(self, difference: StepDifference) -> frozenset[str]:
        """Returns the components that count: all of them, if any is neither a variable nor a random state."""
        names = difference.components
        if any(not is_variable(name) and not name.startswith("rng/") for name in names):
            return names
        return frozenset(name for name in names if is_variable(name) and self._is_significant(name))

    def _check_variable(self, name: str) -> bool:
        kind = self._kinds[name]
        if self._kinds.is_metric(name):
            return kind in {VariableKind.STATE, VariableKind.RESULT}
        if self._kinds.is_sequence(name) or not was_reset(self._reference, self._restarted, name, self._offset + 1):
            return False
        if is_of_callback(name):
            return kind in {VariableKind.STATE, VariableKind.COUNTER}
        return kind is VariableKind.STATE and self._differs_at_end(name)

    def _differs_at_end(self, name: str) -> bool:
        last = min(self._offset + len(self._restarted.steps), len(self._reference.steps))
        expected = self._reference.steps[last - 1].components.get(name)
        return self._restarted.steps[last - self._offset - 1].components.get(name) != expected
