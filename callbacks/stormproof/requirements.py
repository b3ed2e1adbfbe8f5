"""What a training must be like, so that its state can be taken and set back."""

from __future__ import annotations

import pytorch_lightning as pl

from stormproof import exact_state, lightning_internals
from stormproof.errors import NotResumableError
from stormproof.resumable_loader import inexact

PLAIN_STRATEGIES = {"SingleDeviceStrategy", "DDPStrategy"}
"""Those that keep the whole state on every rank, and one file a checkpoint."""


def refuse_strategy(trainer: pl.Trainer) -> None:
    """Raises NotResumableError for a strategy that spreads the state over the ranks."""
    name = type(trainer.strategy).__name__
    if name not in PLAIN_STRATEGIES:
        raise NotResumableError(
            f"CheckpointRecovery keeps one file a checkpoint, and {name} does not: use one of "
            f"{', '.join(sorted(PLAIN_STRATEGIES))}"
        )


def refuse_loop(trainer: pl.Trainer) -> None:
    """Raises NotResumableError for a training in which there is no place between two batches."""
    if lightning_internals.step_fetches_itself(trainer):
        raise NotResumableError(
            "training_step takes dataloader_iter: CheckpointRecovery needs Lightning to fetch the batches"
        )


def doubts(trainer: pl.Trainer) -> list[str]:
    """Why a resume of this training will not be exact, one reason each; empty if it will."""
    return [reason for loader in exact_state.train_loaders(trainer) for reason in inexact(loader)]
