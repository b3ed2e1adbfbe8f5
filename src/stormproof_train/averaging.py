"""Exponential moving average of weights that is also used for testing checkpoints."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging


class EMA(EMAWeightAveraging):
    r"""Validates and tests an exponential moving average of the weights, based on Lightning's callback.

    .. math:: \bar\theta_t = d \bar\theta_{t-1} + (1 - d) \theta_t

    The ``state_dict`` of a checkpoint contains the average. If a checkpoint is evaluated after training, Lightning's
    callback restores the raw weights or swaps in the last average. This class evaluates the weights that were loaded.

    Args:
        decay: The decay d, in (0, 1). The average covers about 1 / (1 - d) steps.

    Raises:
        ValueError: If ``decay`` is out of range.

    References:
        Polyak & Juditsky, Acceleration of stochastic approximation by averaging, 1992.
        Tarvainen & Valpola, Mean teachers are better role models, 2017, section 2.
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"`decay` must be in (0, 1), got {decay}.")
        super().__init__(decay=decay)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swaps the average in during ``fit``."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swaps the raw weights back during ``fit``."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the state of the average when ``fit`` resumes."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
