"""Measures of progress, compared with the best constant prediction and with the start of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from stormproof.health.confidence_interval import mean_and_standard_error
from stormproof.health.observations.predictions import Comparison
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence

MIN_COMPARISONS = 8
"""Minimum number of batches compared with a constant prediction."""
MIN_STEPS = 30
"""Minimum number of steps before a run can lack progress."""
NO_BETTER_SHARE = 0.95
"""Share of the best constant loss above which a loss is not better (1 minus the skill score)."""
ABOUT_EQUAL_SHARE = 1.05
"""Share of the best constant loss below which a noisy loss may be as good."""
LATE_RUN_REQUIREMENT = "300 steps, or two epochs and a quarter of the planned steps"
"""Evidence that rules for late runs need, see :func:`is_late`."""
EARLY_SHARE, MIN_LATE_STEPS = 0.25, 100
"""A run is early before this share of its planned steps, or before so many steps if it has no planned end."""
CLEARLY_BETTER_SHARE = 0.9
"""Share of the best constant loss below which a run has clearly made progress."""
MIN_PERMUTED_GAP = 0.001
"""Minimum difference between the loss with permuted targets and the loss, as a share of the loss, for predictions that
fit their own targets."""


@dataclass(frozen=True)
class ConstantBaseline:
    """Recent losses, compared with the best constant prediction.

    Attributes:
        loss: Mean loss.
        constant_loss: Mean loss of the best constant prediction.
        improvement: Mean difference of the two.
        standard_error: Standard error of the improvement.
    """

    loss: float
    constant_loss: float
    improvement: float
    standard_error: float


def constant_comparisons(record: Record) -> list[Comparison]:
    """Returns the comparisons with the best constant prediction."""
    return [comparison for comparison in record.predictions.comparisons if comparison.constant_loss is not None]


def constant_baseline(record: Record) -> ConstantBaseline | None:
    """Compares recent losses with the best constant prediction. Returns None with too few batches.

    Compares the last traced batches pairwise. If the loss has fallen significantly since then, compares the last 30
    losses instead, because few batches are traced late in a run. Skips this if the loss has other terms.
    """
    all_comparisons = constant_comparisons(record)
    comparisons = all_comparisons[-MIN_COMPARISONS:]
    if len(comparisons) < MIN_COMPARISONS:
        return None
    constants, losses = _constant_losses(comparisons), [comparison.loss for comparison in comparisons]
    recent_losses = [loss for _, loss in record.losses.recent][-MIN_STEPS:]
    if not has_other_terms(record) and len(recent_losses) == MIN_STEPS:
        loss, loss_error = mean_and_standard_error(recent_losses)
        traced_loss, traced_error = mean_and_standard_error(losses)
        if traced_loss - loss > 2 * math.hypot(traced_error, loss_error):
            constant, constant_error = mean_and_standard_error(_constant_losses(all_comparisons))
            return ConstantBaseline(loss, constant, constant - loss, math.hypot(constant_error, loss_error))
    mean, error = mean_and_standard_error([constant - loss for constant, loss in zip(constants, losses, strict=True)])
    return ConstantBaseline(fmean(losses), fmean(constants), mean, error)


def has_other_terms(record: Record) -> bool:
    """Returns whether the loss has terms that are not compared with a constant prediction."""
    return any(comparison.other_terms for comparison in constant_comparisons(record)[-MIN_COMPARISONS:])


def _constant_losses(comparisons: Sequence[Comparison]) -> list[float]:
    """Returns the losses of the best constant prediction."""
    return [comparison.constant_loss for comparison in comparisons if comparison.constant_loss is not None]


def missing_comparisons(record: Record, count: int) -> NotEnoughEvidence:
    """Returns the evidence missing for a comparison with a constant prediction or permuted targets.

    Args:
        record: Record of the run.
        count: Number of traced steps with such a comparison.
    """
    if count == 0 and len(record.predictions.traces) >= MIN_COMPARISONS:
        return NotEnoughEvidence(
            "a known loss with different targets: return preds and target from training_step, or set `loss`"
        )
    return NotEnoughEvidence(f"{MIN_COMPARISONS} traced steps with a known loss (has {count})")


def has_learned(record: Record) -> bool | None:
    """Returns whether the run makes progress. None if this is not known yet."""
    if (
        not record.losses.have_one_backward
        or record.step < MIN_STEPS
        or len(record.losses.first) < 5
        or len(record.losses.recent) < MIN_STEPS
    ):
        return None
    baseline = constant_baseline(record)
    if baseline is not None:
        above_zero = baseline.constant_loss > 0  # shares of a negative log-likelihood are meaningless
        is_surely_better = baseline.improvement > 3 * baseline.standard_error or (
            above_zero and baseline.loss < NO_BETTER_SHARE * baseline.constant_loss
        )
        is_close = above_zero and baseline.loss < ABOUT_EQUAL_SHARE * baseline.constant_loss
        return is_surely_better or (
            is_close and (_fits_own_targets(record) or _is_significantly_below(record, baseline.constant_loss))
        )
    first_losses, recent_losses = record.losses.first[:5], [loss for _, loss in record.losses.recent][-MIN_STEPS // 2 :]
    if not all(map(math.isfinite, (*first_losses, *recent_losses))):
        return False
    fall = fmean(first_losses) - fmean(recent_losses)
    noise = math.hypot(mean_and_standard_error(first_losses)[1], mean_and_standard_error(recent_losses)[1])
    return fall > 3 * noise or fall > 0.2 * abs(fmean(first_losses))


def _is_significantly_below(record: Record, constant: float) -> bool:
    """Returns whether the mean of the last losses is significantly below ``constant``.

    Returns False if the other terms of the loss are negative.
    """
    if any(comparison.other_terms < 0 for comparison in constant_comparisons(record)[-MIN_COMPARISONS:]):
        return False
    mean, error = mean_and_standard_error([loss for _, loss in record.losses.recent][-MIN_STEPS:])
    return constant - mean > 3 * error


def _fits_own_targets(record: Record) -> bool:
    """Returns whether the predictions fit their own targets significantly better than permuted targets."""
    gaps = [
        comparison.permuted_loss - comparison.loss
        for comparison in record.predictions.comparisons
        if comparison.permuted_loss is not None
    ][-MIN_COMPARISONS:]
    if len(gaps) < MIN_COMPARISONS:
        return False
    mean, error = mean_and_standard_error(gaps)
    mean_loss = fmean(comparison.loss for comparison in record.predictions.comparisons[-MIN_COMPARISONS:])
    return mean > max(3 * error, MIN_PERMUTED_GAP * abs(mean_loss))


def is_clearly_better(record: Record) -> bool:
    """Returns whether the loss is significantly below the best constant loss, by at least 10%.

    Earlier findings about a lack of progress are then obsolete.
    """
    baseline = constant_baseline(record)
    if (
        baseline is None
        or baseline.loss > CLEARLY_BETTER_SHARE * baseline.constant_loss
        or baseline.improvement <= 3 * baseline.standard_error
    ):
        return False
    if not record.losses.validations:  # the training data may be memorized
        return not record.losses.has_unknown_validation
    return record.losses.validations[-1].loss < CLEARLY_BETTER_SHARE * baseline.constant_loss


def is_falling(record: Record) -> bool:
    """Returns whether the loss falls significantly over the last two thirds of the batches or two validation passes."""
    passes = [validation for validation in record.losses.validations if validation.losses][-2:]
    if len(passes) == 2 and passes[0].is_above(passes[1]):
        return True
    thirds = _last_two_thirds(record)
    if thirds is None:
        return False
    (previous, previous_error), (current, current_error) = thirds
    baseline = constant_baseline(record)
    may_be_slow = baseline is not None and (
        baseline.loss > ABOUT_EQUAL_SHARE * baseline.constant_loss  # a regression learns the mean of its targets first
        or has_other_terms(record)
    )
    return previous - current > (1 if may_be_slow else 2) * math.hypot(previous_error, current_error)


def extrapolate_final_loss(record: Record) -> float | None:
    """Extrapolates the loss of the last third of the batches linearly to the end of the run."""
    thirds = _last_two_thirds(record)
    if thirds is None or record.planned_steps is None:
        return None
    (previous, _), (current, _) = thirds
    third = record.step / 3 if len(record.losses.recent) < 512 else 170
    return current - (previous - current) * max(record.planned_steps - record.step, 0) / third


def _last_two_thirds(record: Record) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Returns mean and standard error of the loss in each of the last two thirds of the batches."""
    losses = [loss for _, loss in record.losses.recent if math.isfinite(loss)]
    third = len(losses) // 3
    return (
        None
        if third < 5
        else (mean_and_standard_error(losses[-2 * third : -third]), mean_and_standard_error(losses[-third:]))
    )


def has_risen(record: Record) -> bool:
    """Returns whether the loss is far above its start, or was before it became NaN or infinite."""
    first_losses, recent_losses = record.losses.first[:3], [loss for _, loss in record.losses.recent]
    if not record.losses.have_one_backward or len(first_losses) < 3 or first_losses[0] <= 0:
        return False
    finite = [loss for loss in recent_losses if math.isfinite(loss)]
    if len(finite) < len(recent_losses):
        return max(finite, default=0.0) > 10 * first_losses[0]
    if median(recent_losses[-4:]) < 0.5 * max(recent_losses):
        return False  # the loss falls again
    rise = median(recent_losses[-8:]) / max(first_losses[0], min(first_losses))
    return (record.step >= 20 and rise > 1.5) or (record.step >= 8 and rise > 5)


def update_ratio(record: Record) -> float:
    """Returns the median update-to-weight ratio of the first three measurements. 0 without measurements."""
    ratios = update_ratios(record)
    return median(ratios[:3]) if ratios else 0.0


def update_ratios(record: Record) -> list[float]:
    """Returns all measured update-to-weight ratios that are finite."""
    ratios = [measurement.updates.get("total") for measurement in record.gradients.measurements]
    return [ratio.value for ratio in ratios if ratio is not None and math.isfinite(ratio.value)]


def is_early(record: Record) -> bool:
    """Returns whether a run is in the first quarter of its planned steps. Without a plan, in its first 100 steps."""
    return record.step < (MIN_LATE_STEPS if record.planned_steps is None else EARLY_SHARE * record.planned_steps)


def is_late(record: Record) -> bool:
    """Returns whether a run is long enough to judge: 300 steps, or two epochs and a quarter of the planned steps."""
    is_finished = record.planned_steps is not None and record.step >= record.planned_steps
    return record.step >= 300 or is_finished or (record.epoch >= 2 and not is_early(record))
