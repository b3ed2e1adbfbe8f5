"""Runs the batch hooks of adjacent callbacks in a single call from Lightning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, groupby
from typing import Any

import pytorch_lightning as pl

BATCH_HOOKS = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end", "on_validation_batch_start", "on_validation_batch_end",
)  # fmt: skip
"""Hooks of training and validation batches."""


class Dispatcher:
    """Calls the same hook of several callbacks.

    Args:
        functions: Bound hooks in the order of the callbacks.
    """

    def __init__(self, functions: Sequence[Callable[..., None]]) -> None:
        self._functions = tuple(functions)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Calls all hooks."""
        for function in self._functions:
            function(*args, **kwargs)


def dispatch_batch_hooks(
    callbacks: Sequence[pl.Callback], is_included: Callable[[pl.Callback], bool]
) -> Callable[[], None]:
    """Makes the first callback of each group of adjacent included callbacks run the batch hooks of the whole group.

    Lightning takes about 2 µs to call a hook, even if the callback does not override it, but skips attributes that are
    not callable. Therefore, these hooks of the other callbacks are set to None on the instance. The order of all calls
    is unchanged.

    Args:
        callbacks: All callbacks of a trainer.
        is_included: Returns whether the hooks of a callback may be changed.

    Returns:
        Function that undoes this.
    """
    groups = [list(neighbors) for included, neighbors in groupby(callbacks, is_included) if included]
    for callback in chain(*groups):  # left over if a run ended without its end hooks
        for name in BATCH_HOOKS:
            if is_dispatched(name, vars(callback).get(name, callback)):
                delattr(callback, name)
    changed = [(callback, name, vars(callback).get(name)) for callback in chain(*groups) for name in BATCH_HOOKS]
    for group in groups:
        for name in BATCH_HOOKS:
            functions = [getattr(callback, name) for callback in group if _overrides(callback, name)]
            for callback in group:
                setattr(callback, name, None)
            if functions:
                setattr(group[0], name, Dispatcher(functions))
    return lambda: _restore_attributes(changed)


def is_dispatched(name: str, value: object) -> bool:
    """Returns whether ``value`` was set by :func:`dispatch_batch_hooks` as the attribute ``name`` of a callback."""
    return name in BATCH_HOOKS and (value is None or isinstance(value, Dispatcher))


def _overrides(callback: pl.Callback, name: str) -> bool:
    """Returns whether a callback overrides a hook, in its class or as an attribute of the instance."""
    instance_attribute = vars(callback).get(name)
    return instance_attribute is not None or getattr(type(callback), name) is not getattr(pl.Callback, name)


def _restore_attributes(attributes: Sequence[tuple[pl.Callback, str, Any]]) -> None:
    """Restores attributes of callbacks, unless they were changed since."""
    for callback, name, value in attributes:
        if is_dispatched(name, vars(callback).get(name, callback)):
            if value is None:
                delattr(callback, name)
            else:
                setattr(callback, name, value)
