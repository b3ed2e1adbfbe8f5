"""Finds another callback of the same trainer."""

from __future__ import annotations

from typing import TypeVar

import pytorch_lightning as pl

from stormproof.errors import NotResumableError
from stormproof.lightning import internals

C = TypeVar("C", bound=pl.Callback)


def find_callback(trainer: pl.Trainer, callback_type: type[C]) -> C | None:
    """Returns the trainer's first callback that is an instance of ``callback_type``, or None."""
    return next((callback for callback in internals.callbacks(trainer) if isinstance(callback, callback_type)), None)


def require_single(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Raises NotResumableError if the trainer has another callback of the same type.

    Lightning checks this for callbacks with a state.
    """
    kind = type(callback)
    count = sum(type(other) is kind for other in internals.callbacks(trainer))
    if count > 1:
        raise NotResumableError(f"The trainer has {count} callbacks of type {kind.__name__}. Keep one of them.")
