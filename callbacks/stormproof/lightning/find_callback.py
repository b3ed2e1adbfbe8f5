"""The callbacks that stand beside another."""

from __future__ import annotations

import pytorch_lightning as pl

from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.lightning import internals


def recovery_beside(trainer: pl.Trainer) -> CheckpointRecovery | None:
    """The trainer's CheckpointRecovery; None if it has none."""
    found = (each for each in internals.callbacks(trainer) if isinstance(each, CheckpointRecovery))
    return next(found, None)
