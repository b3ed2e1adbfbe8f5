"""Monitored metric that ranks the checkpoints."""

from __future__ import annotations

import pytorch_lightning as pl

from stormproof.errors import NotResumableError


class MonitoredMetric:
    """Logged metric whose value counts only if the last validation used the current weights.

    Args:
        name: Name of the metric. Disabled if None.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name
        self._validated_step: int | None = None  # step of the last validation; weights differ at other steps

    def reset(self) -> None:
        """Forgets the last validation."""
        self._validated_step = None

    def record_validation(self, trainer: pl.Trainer) -> None:
        """Records the end of a validation. The sanity check before training does not count."""
        self._validated_step = None if trainer.sanity_checking else trainer.global_step

    def is_fresh(self, trainer: pl.Trainer) -> bool:
        """Returns whether the last validation used the current weights."""
        return self.name is not None and self._validated_step == trainer.global_step

    def value(self, trainer: pl.Trainer) -> float | None:
        """Returns the value of the metric. None if it is not fresh.

        Raises:
            NotResumableError: If the metric is not logged.
        """
        if not self.is_fresh(trainer):
            return None
        metrics = trainer.callback_metrics
        if self.name not in metrics:
            raise NotResumableError(
                f"The metric monitor={self.name} is not logged. Log it or choose one of: {', '.join(sorted(metrics))}."
            )
        return float(metrics[self.name])
