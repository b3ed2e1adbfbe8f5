"""Finds another callback of the same trainer."""

from __future__ import annotations

from typing import TypeVar

import pytorch_lightning as pl

from stormproof.lightning import internals

C = TypeVar("C", bound=pl.Callback)


def find_callback(trainer: pl.Trainer, callback_type: type[C]) -> C | None:
    """Returns the trainer's first callback that is an instance of ``callback_type``, or None."""
    return next((callback for callback in internals.callbacks(trainer) if isinstance(callback, callback_type)), None)
