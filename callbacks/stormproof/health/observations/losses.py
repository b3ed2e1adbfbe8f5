"""Training and validation losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from stormproof.health.confidence_interval import mean_and_standard_error


@dataclass(frozen=True)
class ValidationPass:
    """Losses of a pass over the validation data.

    Attributes:
        step: Number of optimizer steps before it.
        losses: Losses of its batches. Empty if only a metric is known.
        loss: Mean of the losses, or the metric.
        training_loss: Mean training loss since the previous pass.
        samples: Number of samples. None if unknown.
    """

    step: int
    losses: tuple[float, ...]
    loss: float
    training_loss: float | None
    samples: int | None = None

    @property
    def standard_error(self) -> float:
        """Standard error of the mean loss."""
        return mean_and_standard_error(self.losses)[1] if len(self.losses) > 1 else 0.0

    def is_above(self, other: ValidationPass, *, is_sustained: bool = False) -> bool:
        """Returns whether the losses significantly exceed those of a pass over the same batches.

        Args:
            other: Pass to compare with.
            is_sustained: Whether other passes show the same, so that a lower significance is enough.
        """
        if not self.losses:
            return self.loss > other.loss
        if len(self.losses) == len(other.losses) > 3:
            mean, error = mean_and_standard_error(
                [own_loss - other_loss for own_loss, other_loss in zip(self.losses, other.losses, strict=True)]
            )
            return mean > (3 if is_sustained or len(self.losses) > 9 else 5) * error
        return self.loss > other.loss + 3 * math.hypot(self.standard_error, other.standard_error)


@dataclass(frozen=True)
class Losses:
    """Losses of a run.

    Attributes:
        first: Losses of the first batches.
        recent: The last 512 batches, as pairs of the number of previous optimizer steps and the loss.
        have_one_backward: Whether each batch has at most one backward pass. Rules ignore the losses otherwise.
        validations: The best and the last validation passes. Unless ``validation_step`` returns the loss, a rule must
            also need ``predictions``.
        has_unknown_validation: Whether the loss of a validation pass is unknown.
    """

    first: Sequence[float] = ()
    recent: Sequence[tuple[int, float]] = ()
    have_one_backward: bool = True
    validations: Sequence[ValidationPass] = ()
    has_unknown_validation: bool = False

    def have_fallen_by(self, share: float) -> bool:
        """Returns whether the loss has fallen by more than this share of its first values."""
        recent_losses = [loss for _, loss in self.recent if math.isfinite(loss)][-10:]
        return (
            len(self.first) >= 5 and bool(recent_losses) and fmean(recent_losses) < (1 - share) * fmean(self.first[:5])
        )
