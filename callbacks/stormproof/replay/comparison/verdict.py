"""Judges a restarted command: is it the uninterrupted run again?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache

from stormproof.replay.comparison.alignment import Alignment, align
from stormproof.replay.comparison.causes import Causes, causal_position, find_causes, kind_of
from stormproof.replay.comparison.checkpoints import checkpoints_at_fault
from stormproof.replay.comparison.history import Histories, History
from stormproof.replay.comparison.step_difference import StepDifference, step_differences
from stormproof.replay.comparison.variables import (
    VariableKind,
    VariableKinds,
    is_of_callback,
    is_variable,
    was_reset,
)

LENGTH = "length"
"""Component of a run that ends at another step."""


class VerdictKind(Enum):
    """Result of a fault."""

    EXACT = "exact"
    DIFFERS = "differs"
    LOST_WORK = "lost work"
    FROM_SCRATCH = "started from scratch"
    REFUSED = "refused"
    HUNG = "hung"
    CORRUPT_ACCEPTED = "corrupt checkpoint accepted"
    FAILED = "failed after restart"
    NO_FAULT = "no fault"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Runs and facts from which a fault is judged.

    Attributes:
        reference: The uninterrupted run, by rank.
        attempt: The run until the fault, by rank.
        restarted: The restarted command, by rank.
        exit_code: Exit code of the restarted command. None if the certification stopped it after enough steps.
        hung: Whether the restarted command made no progress.
        damaged: Paths of checkpoints that the fault damaged.
        ignored: Components that differ between two uninterrupted runs.
        message: Last lines of output of a restarted command that failed.
    """

    reference: Histories
    attempt: Histories
    restarted: Histories
    exit_code: int | None = None
    hung: bool = False
    damaged: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()
    message: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Judgment of one fault.

    Attributes:
        kind: Result.
        resumed_step: Number of steps before the first step of the restarted command.
        compared_steps: Number of steps that were compared.
        lost_steps: Steps of the newest complete checkpoint that were not used.
        loaded: Checkpoints that the restarted command loaded.
        step: First step that differs. None if all steps are equal.
        rank: Rank on which it differs.
        component: The component that was not restored. Empty if all steps are equal.
        others: Other components that were not restored.
        restored: Components whose state was restored.
        without_effect: Components that differ without an effect on training.
        batch: Position of the batch of the first differing step, if the data differs.
        exit_code: Exit code of the restarted command, if it ended.
        message: Last lines of its output, if it failed.
    """

    kind: VerdictKind
    resumed_step: int = 0
    compared_steps: int = 0
    lost_steps: int = 0
    loaded: tuple[str, ...] = ()
    step: int | None = None
    rank: int = 0
    component: str = ""
    others: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()
    batch: BatchPosition | None = None
    exit_code: int | None = None
    message: str = ""

    @property
    def is_exact(self) -> bool:
        """True if the restarted command is the uninterrupted run again."""
        return self.kind is VerdictKind.EXACT


def judge(outcome: Outcome) -> Verdict:
    """Returns the verdict of a fault."""
    total = max(len(history.steps) for history in outcome.reference.values())
    checkpoints = checkpoints_at_fault(outcome.reference, outcome.attempt)
    rank = min(outcome.restarted, default=0)
    restarted = outcome.restarted.get(rank, History())
    alignment = align(outcome.reference[min(outcome.reference)], restarted, checkpoints.saved)
    base = Verdict(
        VerdictKind.EXACT,
        alignment.step,
        len(restarted.steps),
        loaded=alignment.loaded,
        exit_code=outcome.exit_code,
        message=outcome.message,
    )
    if outcome.hung:
        return replace(base, kind=VerdictKind.HUNG)
    if not restarted.steps:
        return _judge_without_steps(outcome, base, total)
    if outcome.exit_code not in {None, 0}:
        return replace(base, kind=VerdictKind.FAILED)
    if set(alignment.loaded) & set(outcome.damaged) and not alignment.parameters_match:
        return replace(base, kind=VerdictKind.CORRUPT_ACCEPTED)
    if alignment.step == 0 and checkpoints.had_progress:
        return replace(base, kind=VerdictKind.FROM_SCRATCH)
    newest = checkpoints.newest(alignment.loaded, outcome.damaged)
    lost = max(newest - max(alignment.loaded_step, alignment.step), 0) if alignment.loaded else 0
    verdict = _compare(outcome, alignment, replace(base, lost_steps=lost), total)
    return replace(verdict, kind=VerdictKind.LOST_WORK) if lost and verdict.is_exact else verdict


def _judge_without_steps(outcome: Outcome, base: Verdict, total: int) -> Verdict:
    done = max((len(history.steps) for history in outcome.attempt.values()), default=0)
    if outcome.exit_code == 0 and done >= total:
        return base
    return replace(base, kind=VerdictKind.REFUSED)


def _compare(outcome: Outcome, alignment: Alignment, base: Verdict, total: int) -> Verdict:
    """Compares all ranks, and names the first difference."""
    without_effect, candidates = set[str](), list[tuple[StepDifference, int]]()
    for rank, restarted in outcome.restarted.items():
        reference = outcome.reference.get(rank)
        if reference is None:
            continue
        significance = _Significance(reference, restarted, alignment.step)
        for difference in step_differences(reference, restarted, alignment.step, outcome.ignored):
            significant = significance.select(difference)
            if significant:
                candidates.append((replace(difference, components=significant), rank))
                break
            without_effect |= difference.components
    if not candidates:
        ended_at = alignment.step + base.compared_steps
        if outcome.exit_code == 0 and ended_at != total:
            return replace(base, kind=VerdictKind.DIFFERS, step=min(ended_at, total) + 1, component=LENGTH)
        kept = tuple(sorted(name for name in without_effect if not _is_constant(outcome.reference, name)))
        return replace(base, restored=_restored(outcome, alignment), without_effect=kept)
    difference, rank, causes = _earliest(outcome, alignment, candidates)
    return replace(
        base,
        kind=VerdictKind.DIFFERS,
        step=difference.step,
        rank=rank,
        component=causes.first,
        others=causes.others,
        batch=_find_batch(outcome.reference[rank], outcome.restarted[rank], alignment.step, difference.step)
        if causes.first.startswith("data/")
        else None,
        restored=tuple(name for name in _restored(outcome, alignment, rank) if name not in _named(causes)),
    )


def _earliest(
    outcome: Outcome, alignment: Alignment, candidates: list[tuple[StepDifference, int]]
) -> tuple[StepDifference, int, Causes]:
    """Returns the first difference and its causes.

    Ranks exchange gradients, so all of them differ at a step. The rank with the first cause in causal order is named.
    """
    step = min(difference.step for difference, _ in candidates)
    explained = list[tuple[StepDifference, int, Causes]]()
    for difference, rank in candidates:
        if difference.step == step:
            runs = outcome.reference[rank], outcome.restarted[rank]
            explained.append((difference, rank, find_causes(*runs, alignment.step, difference, outcome.ignored)))
    return min(explained, key=lambda item: (causal_position(item[2].first), item[1]))


def _is_constant(reference: Histories, name: str) -> bool:
    return is_variable(name) and all(
        VariableKinds(history)[name] is VariableKind.CONSTANT for history in reference.values()
    )


def _named(causes: Causes) -> set[str]:
    """Returns the named components, without ``before/``."""
    return {name.removeprefix("before/") for name in (causes.first, *causes.others)}


def _restored(outcome: Outcome, alignment: Alignment, rank: int | None = None) -> tuple[str, ...]:
    """Returns the components whose state was equal at the first step after the restart."""
    rank = min(outcome.restarted) if rank is None else rank
    reference, restarted = outcome.reference[rank], outcome.restarted[rank]
    if alignment.step >= len(reference.steps) or not restarted.steps:
        return ()
    first = next(step_differences(reference, restarted, alignment.step, outcome.ignored), None)
    differing = first.components if first and first.step == alignment.step + 1 else frozenset[str]()
    return tuple(dict.fromkeys(_restorable(restarted, differing, outcome.ignored)))


def _restorable(restarted: History, differing: frozenset[str], ignored: frozenset[str]) -> Iterator[str]:
    before = restarted.before[0].components if restarted.before else {}
    first = restarted.steps[0]
    for name in before:
        if (name == "parameters" or name.startswith("optimizer/")) and f"before/{name}" not in differing | ignored:
            yield name
    if first.batches and not any(name.startswith("data/") for name in differing):
        yield "data/indices" if first.indices else "data/batches"
    for name in first.components:
        kind = kind_of(name)
        is_state = kind in {"learning_rate", "scheduler", "scaler", "buffers", "averaged", "frozen"}
        if (is_state or name.startswith("rng/")) and name not in differing and name not in ignored:
            yield name


class _Significance:
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


@dataclass(frozen=True, slots=True)
class BatchPosition:
    """The batch of a step that differs.

    Attributes:
        epoch: Epoch of the step in the uninterrupted run, from 1.
        same_as: Step of the uninterrupted run with the same batch or samples. None if no step has it.
        same_epoch: Epoch of that step.
        starts_epoch: Whether that step is the first of its epoch.
    """

    epoch: int
    same_as: int | None = None
    same_epoch: int = 0
    starts_epoch: bool = False


def _find_batch(reference: History, restarted: History, offset: int, step: int) -> BatchPosition | None:
    """Returns the position of the batch of a step of a restarted run, or None if it has no recorded batch.

    Args:
        reference: The uninterrupted run.
        restarted: The restarted process.
        offset: Number of steps before the first step of the restarted process.
        step: Step in the uninterrupted run.
    """
    actual = restarted.steps[step - offset - 1]
    wanted = set(actual.indices[:1] or actual.batches[:1])
    if not wanted:
        return None
    starts = sorted({0, *reference.epochs})
    matches = [other.n for other in reference.steps if wanted & {*other.indices, *other.batches}]
    same_as = min(matches, key=lambda other: abs(other - step), default=None)
    if same_as is None:
        return BatchPosition(_epoch(starts, step))
    return BatchPosition(_epoch(starts, step), same_as, _epoch(starts, same_as), same_as - 1 in starts)


def _epoch(starts: list[int], step: int) -> int:
    return bisect_left(starts, step)
