"""Decides which differences make a resume inexact, and which have no effect on training."""

from __future__ import annotations

from stormproof.replay.comparison.history import History
from stormproof.replay.comparison.step_difference import StepDifference
from stormproof.replay.comparison.variables import VariableKind, VariableKinds, is_variable, was_reset


class Significance:
    """Significant components of a restarted process.

    All components count, except random states, which matter only if something else differs, and most variables.
    Programs sum up losses for display and rebuild the rest of an epoch, so a variable counts only in two cases:

    - It is the state of a metric.
    - It is no sequence, changes at some steps only, has an earlier value after the restart, and differs until the end.
      Such a variable is the best loss, a patience counter or a level.

    Args:
        reference: The uninterrupted run.
        restarted: The restarted process.
        offset: Number of steps before the first step of the restarted process.
    """

    def __init__(self, reference: History, restarted: History, offset: int) -> None:
        self._reference, self._restarted, self._offset = reference, restarted, offset
        self._kinds = VariableKinds(reference)

    def select(self, difference: StepDifference) -> frozenset[str]:
        """Returns the components that count. With one of them that is no variable, these are all."""
        names = difference.components
        if any(not is_variable(name) and not name.startswith("rng/") for name in names):
            return names
        return frozenset(name for name in names if is_variable(name) and self._counts(name))

    def _counts(self, name: str) -> bool:
        kind = self._kinds[name]
        if self._kinds.is_metric(name):
            return kind in {VariableKind.STATE, VariableKind.RESULT}
        return (
            kind is VariableKind.STATE
            and not self._kinds.is_sequence(name)
            and was_reset(self._reference, self._restarted, name, self._offset + 1)
            and self._differs_at_end(name)
        )

    def _differs_at_end(self, name: str) -> bool:
        last = min(self._offset + len(self._restarted.steps), len(self._reference.steps))
        expected = self._reference.steps[last - 1].components.get(name)
        return self._restarted.steps[last - self._offset - 1].components.get(name) != expected
