"""Finds the step from which a restarted command resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stormproof.replay.comparison.history import History

MAX_CANDIDATES = 8
"""Number of steps with equal parameters to consider. Several steps are equal if the learning rate is 0."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Position of a restarted process in the uninterrupted run.

    Attributes:
        step: Number of steps before its first step. 0 if it started from scratch.
        loaded: Paths of the saved checkpoints that it loaded before its first step.
        loaded_step: Number of steps before the newest of them was saved. A save in the background may begin some steps
            after the state was copied, so that this is more than ``step``.
        parameters_match: Whether its parameters are those of the uninterrupted run at this step. None if unknown.
    """

    step: int
    loaded: tuple[str, ...] = ()
    loaded_step: int = 0
    parameters_match: bool | None = None


def align(reference: History, restarted: History, saved: Mapping[str, int]) -> Alignment:
    """Returns the position of a restarted process.

    The checkpoints that it loaded and the steps at which the uninterrupted run had the same parameters are candidates.
    Equal parameters decide. If no candidate has them, or several have, other components of the first step decide.

    Args:
        reference: The uninterrupted run.
        restarted: The restarted process.
        saved: Number of steps in each saved checkpoint, by path.
    """
    loaded = tuple(load.path for load in restarted.loads if _steps_of(load.path, saved) is not None)
    loaded_steps = [step for path in loaded if (step := _steps_of(path, saved)) is not None]
    if not restarted.steps:
        return Alignment(max(loaded_steps, default=0), loaded, max(loaded_steps, default=0))
    candidates = {0, *loaded_steps, *_equal_parameters(reference, restarted, loaded_steps)}
    candidates = {step for step in candidates if step < len(reference.steps)}
    step = max(candidates, key=lambda step: (*_score(reference, restarted, step), step in loaded_steps, step))
    return Alignment(step, loaded, max(loaded_steps, default=0), _parameters_match(reference, restarted, step))


def _steps_of(path: str, saved: Mapping[str, int]) -> int | None:
    """Returns the steps of a saved file, or of the newest file in a saved folder."""
    if path in saved:
        return saved[path]
    inside = [steps for name, steps in saved.items() if name.startswith(f"{path}/") or path.startswith(f"{name}/")]
    return max(inside, default=None)


def _equal_parameters(reference: History, restarted: History, loaded_steps: Iterable[int]) -> list[int]:
    if not restarted.before or "parameters" not in restarted.before[0].components:
        return []
    state = restarted.before[0]
    equal = [step.n for step in reference.steps if step.components.get("parameters") == state.components["parameters"]]
    expected = max(loaded_steps, default=len(reference.steps))
    return sorted(equal, key=lambda step: abs(step - expected))[:MAX_CANDIDATES]


def _parameters_match(reference: History, restarted: History, step: int) -> bool | None:
    if not restarted.before:
        return None
    state = restarted.before[0]
    expected = _state_before_next(reference, step).get("parameters")
    actual = state.components.get("parameters")
    return None if expected is None or actual is None else expected == actual


def _state_before_next(reference: History, step: int) -> Mapping[str, str | int]:
    """Returns the state after ``step`` of the optimizer that makes the next step, which may not be the first one."""
    following = reference.steps[min(step, len(reference.steps) - 1)]
    return reference.state_after(step, following.optimizer)


def _score(reference: History, restarted: History, step: int) -> tuple[int, int]:
    """Returns whether the parameters before a step match, and how many other components do.

    Parameters that match only the initial ones are weak evidence if a checkpoint was loaded: a program that restores
    all but the parameters has them, too. Then the other components decide.
    """
    other = 0
    if restarted.before:
        state = restarted.before[0]
        expected = _state_before_next(reference, step)
        other += sum(
            expected.get(name) == value for name, value in state.components.items() if name.startswith("optimizer/")
        )
    first, counterpart = restarted.steps[0], reference.steps[step]
    other += sum(
        counterpart.components.get(name) == value and _is_informative(reference, name, value)
        for name, value in first.components.items()
    )
    other += bool(set(first.batches) & set(counterpart.batches))
    matches = _parameters_match(reference, restarted, step)
    return (int(matches is True and (step > 0 or not restarted.loads)), other)


def _is_informative(reference: History, name: str, value: str | int) -> bool:
    """Returns whether a component changes in the uninterrupted run."""
    return any(step.components.get(name, value) != value for step in reference.steps)
