"""Averaged weights that stay the ones of the checkpoint that is tested."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging


class EMA(EMAWeightAveraging):
    r"""Validates and tests an exponential moving average of the weights, Lightning's.

    .. math:: \bar\theta_t = d \bar\theta_{t-1} + (1 - d) \theta_t

    A checkpoint's ``state_dict`` is the average. Where a checkpoint is evaluated after the training, Lightning's own
    callback puts the raw weights back, or swaps in the last average. Here an evaluation is of the weights it is given.

    Args:
        decay: d, in (0, 1); the average is over some 1 / (1 - d) steps.

    Raises:
        ValueError: if ``decay`` is out of its range.

    References:
        Polyak & Juditsky, Acceleration of stochastic approximation by averaging, 1992; Tarvainen & Valpola, Mean
        teachers are better role models, 2017, section 2.
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; it must be in (0, 1)")
        super().__init__(decay=decay)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swaps the average in, while it trains."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swaps the weights back, while it trains."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on averaging, where training goes on."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
