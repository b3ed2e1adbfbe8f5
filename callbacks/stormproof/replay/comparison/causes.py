"""Finds the components that explain a difference: they differ, and all that they depend on is equal."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from stormproof.replay.comparison.history import History
from stormproof.replay.comparison.step_difference import StepDifference
from stormproof.replay.comparison.variables import (
    VariableKind,
    VariableKinds,
    is_attribute,
    is_variable,
    was_reset,
)

GENERATORS = ("rng/python", "rng/numpy", "rng/torch", "rng/cuda")
"""Global random number generators."""
DATA_ORDER = ("data/count", "data/indices", "data/batches")
CAUSAL_ORDER = (
    "frozen", "mode", "hyperparameters", "scheduler", "learning_rate", "scaler", "before/parameters",
    "before/optimizer", "before/averaged", "before/buffers", "data/count", "data/indices", "rng/workers",
    "data/batches", "rng/generators", *GENERATORS, "buffers", "variables", "loss", "gradients", "parameters",
    "optimizer", "averaged",
)  # fmt: skip
"""Component kinds, causes before their effects. ``before/…`` is the state before the step."""
RANDOM_EFFECTS = frozenset((*DATA_ORDER, "rng/workers", "buffers", "loss", "gradients", "parameters", "optimizer"))
"""Kinds that depend on random numbers."""
COMPUTED = frozenset({"data/batches", "loss", "gradients", "parameters"})
"""Kinds that a variable of the program may change."""

_RANDOM = (*GENERATORS, "rng/generators", "rng/workers")
_FORWARD = ("before/parameters", "before/averaged", "before/buffers", "mode", *DATA_ORDER, *_RANDOM)
_INPUTS = ("before/parameters", "before/optimizer", "frozen", "mode", "hyperparameters", "learning_rate")
_RESULTS = (*_INPUTS, *_FORWARD, "scaler", "buffers", "loss", "gradients")
PARENTS: dict[str, tuple[str, ...]] = {
    "learning_rate": ("scheduler", "before/optimizer"),  # a part of the state of the optimizer
    "hyperparameters": ("before/optimizer",),
    "rng/workers": ("data/count", "data/indices"),
    "data/batches": ("data/count", "data/indices", "rng/generators", "rng/workers"),
    "buffers": _FORWARD,
    "loss": (*_FORWARD, "scaler", "buffers"),
    "gradients": (*_FORWARD, "frozen", "scaler", "buffers", "loss"),
    "parameters": _RESULTS,
    "optimizer": _RESULTS,
    "averaged": (*_RESULTS, "parameters"),
}
"""Kinds that a kind depends on at the same step. A difference of one of them explains it."""


@dataclass(frozen=True, slots=True)
class Causes:
    """Explanation of the first differing step.

    Attributes:
        first: The component that was not restored.
        others: Other components that were not restored.
    """

    first: str
    others: tuple[str, ...] = ()


def kind_of(component: str) -> str:
    """Returns the kind of a component: its name without the class or variable."""
    head, _, rest = component.partition("/")
    if head == "before":
        return f"before/{kind_of(rest)}"
    if is_variable(component):
        return "variables"
    if rest.startswith("generators/"):
        return "rng/generators"
    return head if head in {"optimizer", "scheduler"} else component


def causal_position(component: str) -> int:
    """Returns the position of a component in :data:`CAUSAL_ORDER`."""
    kind = kind_of(component)
    return CAUSAL_ORDER.index(kind) if kind in CAUSAL_ORDER else len(CAUSAL_ORDER)


def find_causes(
    reference: History,
    restarted: History,
    offset: int,
    difference: StepDifference,
    ignored: frozenset[str] = frozenset(),
) -> Causes:
    """Returns the components that explain a difference.

    Args:
        reference: The uninterrupted run.
        restarted: The restarted process.
        offset: Number of steps before the first step of the restarted process.
        difference: The first difference that matters.
        ignored: Components that differ between two uninterrupted runs.
    """
    evidence = _Evidence(reference, restarted, offset, difference, ignored, VariableKinds(reference))
    names = set(difference.components)
    variables = {name for name in names if is_variable(name)}
    names = evidence.with_inputs(names - variables)
    names -= evidence.explained_generators(names)
    kinds = {kind_of(name) for name in names}
    causes = [name for name in names if kinds.isdisjoint(_parents(name, evidence, names))]
    stateful = evidence.restorable(variables, only_variables=not names)
    is_inferred = evidence.has_no_batches() and "data/batches" in names  # batches that are not recorded
    if stateful and not is_inferred and {kind_of(name) for name in causes} <= COMPUTED and not evidence.is_shifted():
        causes, stateful = stateful, []  # the program computes the others from a variable
    causes.sort(key=lambda name: _order(name, evidence))
    only = kind_of(causes[0]) if len(causes) == 1 else ""
    is_unexplained = only in {"loss", "gradients", "parameters"} or (only == "data/batches" and is_inferred)
    if is_unexplained and not stateful:
        causes = evidence.kept_variables(with_large=only in {"loss", "data/batches"}) or causes
    if not causes:
        causes = sorted(stateful or variables or difference.components)
        stateful = []
    rest = [name for name in stateful if name not in causes and not evidence.is_local_counter(name)]
    return Causes(causes[0], (*causes[1:], *rest))


def _parents(name: str, evidence: _Evidence, names: Collection[str]) -> Iterable[str]:
    kind = kind_of(name)
    if kind in {"data/indices", "rng/workers"} and evidence.starts_epoch():
        return (*PARENTS.get(kind, ()), *GENERATORS)
    if kind == "data/batches" and not evidence.is_shifted() and "data/indices" not in names:
        return (*PARENTS[kind], *GENERATORS)  # random numbers of the data set in the main process
    return PARENTS.get(kind, ())


def _order(name: str, evidence: _Evidence) -> tuple[int, str]:
    kind = kind_of(name)
    if kind in GENERATORS and not evidence.changes(name):
        return len(CAUSAL_ORDER), name
    return causal_position(name), name


def _is_kept(name: str, kinds: VariableKinds) -> bool:
    """Returns whether a variable may be state of the program, and not a running sum of an epoch."""
    if kinds[name] is VariableKind.RESULT:
        return is_attribute(name) or kinds.is_large(name)
    return kinds[name] is VariableKind.STATE


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Facts of both runs that decide which of two components is the cause."""

    reference: History
    restarted: History
    offset: int
    difference: StepDifference
    ignored: frozenset[str]
    kinds: VariableKinds

    def explained_generators(self, names: Collection[str]) -> set[str]:
        """Returns the generators that are not a cause: unused ones, and ones whose difference others explain.

        If no differing component depends on random numbers, all generators are returned.

        A new iterator of a loader draws random numbers, so a generator that was restored differs after the data
        position was lost. A generator that has a state of another step of the uninterrupted run was not restored.
        """
        generators = {name for name in names if kind_of(name) in {*GENERATORS, "rng/generators"}}
        rest = set(names) - generators
        if not rest:
            return set()
        if RANDOM_EFFECTS.isdisjoint(map(kind_of, rest)):
            return generators
        unused = {name for name in generators if not self.changes(name)}
        position_is_lost = not rest.isdisjoint({"data/indices", "data/count", "rng/workers"}) or (
            "data/batches" in rest and self.is_shifted()
        )
        if self.starts_epoch() or not position_is_lost:
            return unused
        return {name for name in generators if name in unused or not self.is_state_of_other_step(name)}

    def has_no_batches(self) -> bool:
        """Returns whether the program fetches its batches without a loader, so that they are not recorded."""
        return not any(step.batches or "data/batches" in step.components for step in self.reference.steps)

    def with_inputs(self, names: set[str]) -> set[str]:
        """Adds batches that are not recorded if both the loss and statistics of activations show that they differ."""
        if self.has_no_batches() and {"buffers", "loss"} <= names and "before/buffers" not in names:
            return names | {"data/batches"}
        return names

    def starts_epoch(self) -> bool:
        """Returns whether an epoch starts before this step, so that its order and seeds are drawn."""
        return self.difference.step - 1 in self.reference.epochs

    def is_shifted(self) -> bool:
        """Returns whether the differing batches are batches of other steps of the uninterrupted run."""
        position = self.difference.step - self.offset - 1
        if position >= len(self.restarted.steps):
            return False
        actual, expected = self.restarted.steps[position], self.reference.steps[self.difference.step - 1]
        wanted = set(actual.batches) - set(expected.batches)
        known = {batch for step in self.reference.steps for batch in step.batches}
        return bool(wanted & known)

    def changes(self, name: str) -> bool:
        """Returns whether a component changes in the uninterrupted run."""
        values = {step.components[name] for step in self.reference.steps if name in step.components}
        return len(values) > 1

    def is_state_of_other_step(self, name: str) -> bool:
        """Returns whether a restarted component has a value of another step of the uninterrupted run."""
        value = self.restarted.steps[0].components.get(name)
        return (
            any(step.components.get(name) == value for step in self.reference.steps if step.n != self.offset + 1)
            and self.reference.steps[self.offset].components.get(name) != value
        )

    def is_local_counter(self, name: str) -> bool:
        """Returns whether a variable is a counter of a loop, which often starts again without an effect."""
        return self.kinds[name] is VariableKind.COUNTER and not is_attribute(name)

    def kept_variables(self, *, with_large: bool) -> list[str]:
        """Returns the variables that differ before the first forward pass, small ones that change rarely first.

        They explain a difference that nothing else explains. Such a variable is a position in a list, an order that is
        shuffled in place, or a hidden state. If it was restored, it equals its value after the previous step. If it is
        assigned before the forward pass, such as the batch, it equals its value after the current step.

        Args:
            with_large: Whether to include variables with many elements, such as a batch. With gradient accumulation,
                the first batch of a step is not the recorded one, which is the last.
        """
        if self.difference.step != self.offset + 1 or not self.restarted.before:
            return []
        kinds = self.kinds
        steps = self.reference.steps[max(self.offset - 1, 0) : self.offset + 1]
        names = list[str]()
        for name, value in self.restarted.before[0].components.items():
            expected = {step.components[name] for step in steps if name in step.components}
            if not is_variable(name) or name in self.ignored or not _is_kept(name, kinds):
                continue
            if expected and value not in expected and (with_large or not kinds.is_large(name)):
                names.append(name)
        return sorted(
            names,
            key=lambda name: (kinds.is_large(name), kinds[name] is VariableKind.RESULT, not is_attribute(name), name),
        )

    def restorable(self, variables: Collection[str], *, only_variables: bool) -> list[str]:
        """Returns the differing variables that a checkpoint should contain.

        Args:
            variables: Variables that differ.
            only_variables: Whether nothing else differs.
        """
        kinds = {name: self.kinds[name] for name in sorted(variables)}
        if only_variables:
            wanted = [name for name, kind in kinds.items() if kind in {VariableKind.STATE, VariableKind.RESULT}]
            return sorted(wanted, key=lambda name: (kinds[name] is not VariableKind.STATE, name))
        first = self.offset + 1
        return [
            name
            for name, kind in kinds.items()
            if kind in {VariableKind.STATE, VariableKind.COUNTER}
            and was_reset(self.reference, self.restarted, name, first)
        ]
