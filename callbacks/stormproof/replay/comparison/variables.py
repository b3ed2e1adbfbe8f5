"""Classifies variables of the user's code by their values in the uninterrupted run."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from enum import Enum
from functools import cache
from itertools import pairwise

from stormproof.replay.comparison.history import History
from stormproof.replay.ledger import CALLBACK

PREFIX = "variables/"
COUNTER_SHARE = 0.5
"""Minimum share of its changes at which a counter increases by the same number."""
COUNTER_CHANGES = 0.2
"""Minimum share of steps at which a counter changes. With several optimizers, a batch index changes less often."""
_SEQUENCES = ("[", "(", "deque(")
FREQUENT_SHARE = 0.8
"""Share of steps from which on a variable counts as changing with each step."""


class VariableKind(Enum):
    """Role of a variable in a program."""

    INTERNAL = "internal"
    """A private attribute, mostly of a framework's object."""
    CONSTANT = "constant"
    """Never changes: an option, or the first step of a process."""
    COUNTER = "counter"
    """A number that changes often, mostly by the same amount."""
    STATE = "state"
    """Changes at some steps: the best loss, a patience counter, a curriculum level."""
    RESULT = "result"
    """Changes at each step: a loss, a running sum."""


def is_variable(component: str) -> bool:
    """Returns whether a component is a variable of the user's code."""
    return component.startswith(PREFIX)


def is_attribute(component: str) -> bool:
    """Returns whether a variable is an attribute of an object, by the capital letter of the name of its class."""
    return is_of_callback(component) or component.removeprefix(PREFIX)[:1].isupper()


def is_of_callback(component: str) -> bool:
    """Returns whether a variable is an attribute of a framework's callback, such as ``EarlyStopping``."""
    return component.startswith(f"{PREFIX}{CALLBACK}")


class VariableKinds:
    """Roles of the variables in an uninterrupted run. Each is determined when it is first read."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._kinds: dict[str, VariableKind] = {}

    def __getitem__(self, name: str) -> VariableKind:
        if name not in self._kinds:
            self._kinds[name] = _classify(self._history, name)
        return self._kinds[name]

    def is_metric(self, name: str) -> bool:
        """Returns whether a variable is a state of a metric of torchmetrics."""
        owner = name.rpartition(".")[0]
        return any(f"{owner}._update_count" in step.components for step in self._history.steps)

    def is_sequence(self, name: str) -> bool:
        """Returns whether a variable is a list, tuple, tensor or array, or too large for its text to be recorded."""
        texts = (step.values.get(name, "") for step in self._history.steps)
        return self.is_large(name) or any(text.startswith(_SEQUENCES) for text in texts)

    def is_large(self, name: str) -> bool:
        """Returns whether a variable has many elements, so that only its hash is recorded."""
        return not any(name in step.values for step in self._history.steps)


def was_reset(reference: History, restarted: History, name: str, step: int) -> bool:
    """Returns whether a restarted variable has a value that the uninterrupted run had at an earlier step.

    Args:
        reference: The uninterrupted run.
        restarted: The restarted process.
        name: Name of the variable.
        step: First step of the restarted process in the uninterrupted run.
    """
    value = restarted.steps[0].components.get(name)
    return any(earlier.components.get(name) == value for earlier in reference.steps[: step - 1])


def _classify(history: History, name: str) -> VariableKind:
    if name.rpartition(".")[2].startswith("_"):
        return VariableKind.INTERNAL
    hashes = [step.components[name] for step in history.steps if name in step.components]
    changes = sum(first != second for first, second in pairwise(hashes))
    if not changes:
        return VariableKind.CONSTANT
    if _is_counter(_numbers(history, name)):
        return VariableKind.COUNTER
    return VariableKind.RESULT if changes >= FREQUENT_SHARE * (len(hashes) - 1) and changes > 2 else VariableKind.STATE


def _numbers(history: History, name: str) -> list[float]:
    numbers = [_number(step.values.get(name, "")) for step in history.steps if name in step.components]
    return [number for number in numbers if number is not None]


def _is_counter(numbers: Sequence[float]) -> bool:
    steps = max(len(numbers) - 1, 1)
    increments = [second - first for first, second in pairwise(numbers) if second != first]
    if len(increments) < max(2, COUNTER_CHANGES * steps):
        return False
    usual = max(set(increments), key=increments.count)
    return usual > 0 and usual == int(usual) and increments.count(usual) > COUNTER_SHARE * len(increments)


@cache
def _number(text: str) -> float | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
