"""The metric by which checkpoints are the best."""

from __future__ import annotations

import pytorch_lightning as pl

from stormproof.errors import NotResumableError


class MonitoredMetric:
    """The value of a logged metric, as long as it is that of the weights as they are.

    Args:
        name: of the metric; None for none.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name
        self._validated_step: int | None = None  # of the last validation: at another step the weights are others

    def reset(self) -> None:
        """There has been no validation yet."""
        self._validated_step = None

    def record_validation(self, trainer: pl.Trainer) -> None:
        """A validation has ended; the sanity check before training is none."""
        self._validated_step = None if trainer.sanity_checking else trainer.global_step

    def is_fresh(self, trainer: pl.Trainer) -> bool:
        """Whether the last validation was of the weights as they are."""
        return self.name is not None and self._validated_step == trainer.global_step

    def value(self, trainer: pl.Trainer) -> float | None:
        """The metric, if it is fresh.

        Raises:
            NotResumableError: if it is not logged.
        """
        if not self.is_fresh(trainer):
            return None
        metrics = trainer.callback_metrics
        if self.name not in metrics:
            raise NotResumableError(f"monitor={self.name} is not logged; there is: {', '.join(sorted(metrics))}")
        return float(metrics[self.name])
