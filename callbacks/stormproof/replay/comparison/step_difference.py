"""Compares two runs of the same command step by step."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from stormproof.replay.comparison.history import History
from stormproof.replay.ledger import Step

DATA = ("data/count", "data/indices", "data/batches")
"""Components that are compared batch by batch."""
EFFECTS = ("loss", "gradients")
"""Components that show whether a difference of the data has an effect."""


@dataclass(frozen=True, slots=True)
class StepDifference:
    """Components that differ at a step.

    Attributes:
        step: Number of the step in the uninterrupted run.
        optimizer: Index of the optimizer.
        components: Names of the components. ``before/…`` are components of the state before the step.
    """

    step: int
    optimizer: int
    components: frozenset[str]


def step_differences(
    reference: History, other: History, offset: int = 0, ignored: Collection[str] = ()
) -> Iterator[StepDifference]:
    """Yields the steps that differ, in order.

    Args:
        reference: The uninterrupted run.
        other: Another run of the same command.
        offset: Number of steps of the uninterrupted run before the first step of the other.
        ignored: Components to ignore.
    """
    for step in other.steps:
        number = step.n + offset
        if number > len(reference.steps):
            return
        expected = reference.steps[number - 1]
        names = set(_differing(expected, step))
        if step.n <= len(other.before) and any(map(_is_result, names)):
            names |= set(_differing_before(reference, other, step, number))
        names -= {name for name in names if name in ignored or name.removeprefix("before/") in ignored}
        names |= _differing_data(reference, expected, step, is_first=step.n == 1, names=names) - set(ignored)
        if names:
            yield StepDifference(number, expected.optimizer, frozenset(names))


def _is_result(name: str) -> bool:
    """Returns whether a component depends on the parameters and the optimizer state before the step.

    If none of them differs, that state differed without an effect. For example, a program may clip the parameters
    after a step: they are recorded before that, and a checkpoint contains them after it.
    """
    return name in EFFECTS or name == "parameters" or name.startswith("optimizer/")


def _differing(expected: Step, actual: Step) -> Iterator[str]:
    for name, value in actual.components.items():
        if name not in DATA and expected.components.get(name, value) != value:
            yield name


def _differing_before(reference: History, other: History, step: Step, number: int) -> Iterator[str]:
    """Yields parameters, optimizer states, buffers and averages that differ before a step.

    Other components of ``before`` are not compared here. Random states are read after the forward pass, so the
    uninterrupted run has no counterpart. :mod:`stormproof.replay.comparison.causes` compares variables.
    """
    state = next((state for state in other.before if state.n == step.n), None)
    if state is None:
        return
    reached = reference.steps[number - 1]
    expected = reference.state_after(number - 1, reached.optimizer)
    for name, value in state.components.items():
        is_state = name in {"parameters", "buffers", "averaged"} or name.startswith("optimizer/")
        possible = {expected.get(name, value)}
        if name == "averaged":
            possible.add(reached.components.get(name, value))  # a program may update the averages after the step
        if is_state and value not in possible:
            yield f"before/{name}"


def _differing_data(reference: History, expected: Step, actual: Step, *, is_first: bool, names: set[str]) -> set[str]:
    """Returns the data components that differ with an effect.

    Loaders fetch ahead, and batches of a validation count for the next step. So the number of batches may differ where
    the data of the step is the same: the last batches are equal then, and so are loss and gradients.
    """
    records_effects = any(name in expected.components and name in actual.components for name in EFFECTS)
    if records_effects and names.isdisjoint(EFFECTS):
        return set()
    differing = set[str]()
    if actual.batches and not expected.batches and expected.n > 1:
        previous = reference.steps[expected.n - 2]  # a loop that prefetches one batch fetched it during this step
        expected = replace(expected, batches=previous.batches[-1:], indices=previous.indices[-1:])
    if actual.batches or expected.batches:
        count = min(len(expected.batches), len(actual.batches))
        if _tail(expected.batches, count) != _tail(actual.batches, count):
            differing.add("data/batches")
            if _indices_differ(expected, actual, is_first=is_first):
                differing.add("data/indices")
        elif _count_differs(reference, expected, actual, is_first=is_first):
            differing.add("data/count")
    else:
        differing |= {
            name
            for name in DATA
            if name in actual.components and expected.components.get(name) not in {None, actual.components[name]}
        }
    return differing


def _indices_differ(expected: Step, actual: Step, *, is_first: bool) -> bool:
    """Returns whether the samplers gave other indices.

    At the first step after a resume, loaders with workers request several batches ahead.
    """
    if not expected.indices and not actual.indices:
        return False
    count = min(len(expected.indices), len(actual.indices), len(actual.batches))
    if is_first and len(actual.indices) != len(expected.indices):
        return _tail(actual.indices, 1) != _tail(expected.indices, 1)
    return count == 0 or actual.indices[:count] != expected.indices[:count]


def _count_differs(reference: History, expected: Step, actual: Step, *, is_first: bool) -> bool:
    """Returns whether an optimizer step used another number of batches.

    The first step of a process may fetch one batch ahead, and the step after a validation may contain its batches.
    """
    if len(actual.batches) == len(expected.batches):
        return False
    if not is_first:
        return True
    return len(actual.batches) < len(expected.batches) and expected.n - 1 not in reference.validations


def _tail(values: tuple[str, ...], count: int) -> tuple[str, ...]:
    return values[len(values) - count :] if count else ()
