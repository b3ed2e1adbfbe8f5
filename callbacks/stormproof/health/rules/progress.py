"""Whether a training gets anywhere: against the best constant prediction, and against its own beginning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.confidence_interval import mean_and_standard_error
from stormproof.health.record import Comparison, Record

MIN_COMPARISONS = 8
"""Batches compared with a constant before anything is said."""
MIN_STEPS = 30
"""Steps before which no training is called one that gets nowhere."""
NO_BETTER_SHARE = 0.95
"""The share of a constant's loss down to which a loss is no better (Schoelkopf's skill score, 1 - this)."""
ABOUT_EQUAL_SHARE = 1.05
"""The share of a constant's loss up to which a loss that is noisy may be as good."""
UNCERTAIN_SHARE = 0.05
"""The share of a constant's loss by which a loss must surely not be better, to be called no better."""
EARLY_SHARE, MIN_LATE_STEPS = 0.25, 100
"""The part of a training, or where that has no end the steps, before which it is early."""
CLEARLY_BETTER_SHARE = 0.9
"""The share of a constant's loss below which a training gets somewhere after all."""
MIN_PERMUTED_GAP = 0.001
"""The share of a loss by which that of other samples' targets is larger where predictions know of their own."""


@dataclass(frozen=True)
class ConstantBaseline:
    """The recent losses beside those of the best constant prediction on the same batches.

    Attributes:
        loss: their mean.
        constant_loss: the mean of the constant's.
        improvement: the mean of how much lower they are.
        standard_error: its standard error.
    """

    loss: float
    constant_loss: float
    improvement: float
    standard_error: float


def constant_baseline(record: Record) -> ConstantBaseline | None:
    """What is known of that; None with too few batches."""
    comparisons = [comparison for comparison in record.comparisons if comparison.constant_loss is not None][
        -MIN_COMPARISONS:
    ]
    if len(comparisons) < MIN_COMPARISONS:
        return None
    constants = [comparison.constant_loss for comparison in comparisons if comparison.constant_loss is not None]
    losses = [comparison.loss for comparison in comparisons]
    mean, error = mean_and_standard_error([constant - loss for constant, loss in zip(constants, losses, strict=True)])
    return ConstantBaseline(fmean(losses), fmean(constants), mean, error)


def has_learned(record: Record) -> bool | None:
    """Whether the training gets anywhere; None while that is not known."""
    if (
        not record.has_single_loss
        or record.step < MIN_STEPS
        or len(record.first_losses) < 5
        or len(record.recent_losses) < MIN_STEPS
    ):
        return None
    baseline = constant_baseline(record)
    if baseline is not None:
        above_zero = baseline.constant_loss > 0  # a likelihood's logarithm has no such shares
        is_surely_better = baseline.improvement > 3 * baseline.standard_error or (
            above_zero and baseline.loss < NO_BETTER_SHARE * baseline.constant_loss
        )
        is_close = above_zero and baseline.loss < ABOUT_EQUAL_SHARE * baseline.constant_loss
        return is_surely_better or (
            is_close and (_fits_own_targets(record) or _is_significantly_below(record, baseline.constant_loss))
        )
    first_losses, recent_losses = record.first_losses[:5], [loss for _, loss in record.recent_losses][-MIN_STEPS // 2 :]
    if not all(map(math.isfinite, (*first_losses, *recent_losses))):
        return False
    fall = fmean(first_losses) - fmean(recent_losses)
    noise = math.hypot(mean_and_standard_error(first_losses)[1], mean_and_standard_error(recent_losses)[1])
    return fall > 3 * noise or fall > 0.2 * abs(fmean(first_losses))


def _is_significantly_below(record: Record, constant: float) -> bool:
    """Whether the last losses of all batches are below ``constant`` for sure."""
    mean, error = mean_and_standard_error([loss for _, loss in record.recent_losses][-MIN_STEPS:])
    return constant - mean > 3 * error


def _fits_own_targets(record: Record) -> bool:
    """Whether the predictions fit their own targets better than those of others, for sure."""
    gaps = [
        comparison.permuted_loss - comparison.loss
        for comparison in record.comparisons
        if comparison.permuted_loss is not None
    ][-MIN_COMPARISONS:]
    if len(gaps) < MIN_COMPARISONS:
        return False
    mean, error = mean_and_standard_error(gaps)
    return mean > max(
        3 * error,
        MIN_PERMUTED_GAP * abs(fmean(comparison.loss for comparison in record.comparisons[-MIN_COMPARISONS:])),
    )


def is_clearly_better(record: Record) -> bool:
    """Whether the loss is below a constant's for sure, and by a tenth: what was said against that is past."""
    baseline = constant_baseline(record)
    if (
        baseline is None
        or baseline.loss > CLEARLY_BETTER_SHARE * baseline.constant_loss
        or baseline.improvement <= 3 * baseline.standard_error
    ):
        return False
    return (
        not record.validations or record.validations[-1].loss < CLEARLY_BETTER_SHARE * baseline.constant_loss
    )  # it is not by heart


def is_falling(record: Record) -> bool:
    """Whether the loss is going down: of the last two thirds of the batches, or passes of a validation, for sure."""
    passes = [validation for validation in record.validations if validation.losses][-2:]
    if len(passes) == 2 and passes[0].is_above(passes[1]):
        return True
    thirds = _last_two_thirds(record)
    if thirds is None:
        return False
    (previous, previous_error), (current, current_error) = thirds
    baseline = constant_baseline(record)
    is_above_constant = (
        baseline is not None and baseline.loss > ABOUT_EQUAL_SHARE * baseline.constant_loss
    )  # it has the mean to learn first
    return previous - current > (1 if is_above_constant else 2) * math.hypot(previous_error, current_error)


def extrapolate_final_loss(record: Record) -> float | None:
    """The loss at the end of the training, if it went on falling as it did in the last third of the batches."""
    thirds = _last_two_thirds(record)
    if thirds is None or record.planned_steps is None:
        return None
    (previous, _), (current, _) = thirds
    third = record.step / 3 if len(record.recent_losses) < 512 else 170
    return current - (previous - current) * max(record.planned_steps - record.step, 0) / third


def _last_two_thirds(record: Record) -> tuple[tuple[float, float], tuple[float, float]] | None:
    losses = [loss for _, loss in record.recent_losses if math.isfinite(loss)]
    third = len(losses) // 3
    return (
        None
        if third < 5
        else (mean_and_standard_error(losses[-2 * third : -third]), mean_and_standard_error(losses[-third:]))
    )


def has_risen(record: Record) -> bool:
    """Whether the loss is far above where it began, or was before it broke."""
    first_losses, recent_losses = record.first_losses[:3], [loss for _, loss in record.recent_losses]
    if not record.has_single_loss or len(first_losses) < 3 or first_losses[0] <= 0:
        return False
    finite = [loss for loss in recent_losses if math.isfinite(loss)]
    if len(finite) < len(recent_losses):
        return max(finite, default=0.0) > 10 * first_losses[0]
    if median(recent_losses[-4:]) < 0.5 * max(recent_losses):
        return False  # it comes down again
    rise = median(recent_losses[-8:]) / max(first_losses[0], min(first_losses))
    return (record.step >= 20 and rise > 1.5) or (record.step >= 8 and rise > 5)


def check_no_better_than_constant(record: Record) -> Iterator[Finding]:
    """The loss is no lower than a constant's after a whole epoch."""
    baseline = constant_baseline(record)
    if has_learned(record) is not False or baseline is None or not is_late(record):
        return
    is_finished = record.planned_steps is not None and record.step >= record.planned_steps
    if is_falling(record) and not (is_finished and record.is_classification):
        return  # a regression may be on its way to the mean of its targets
    if baseline.improvement + 2 * baseline.standard_error > UNCERTAIN_SHARE * baseline.constant_loss:
        return  # it may be better yet
    yield Finding(
        Problem.NO_BETTER_THAN_CONSTANT,
        Severity.WARNING,
        "",
        0,
        record.step,
        {"loss": baseline.loss, "loss_of_the_best_constant": baseline.constant_loss},
        "fit 10 samples first: if that fails too, look at the loss, the last layer and the learning rate; if it does "
        "not, at whether inputs and targets belong together",
    )


def check_unrelated_targets(record: Record) -> Iterator[Finding]:
    """The predictions fit other samples' targets as well as their own, although they differ from sample to sample."""
    comparisons = [
        comparison
        for comparison in record.comparisons
        if comparison.permuted_loss is not None and comparison.step >= 10
    ]
    first_epoch_comparisons = [
        comparison for comparison in comparisons if comparison.epoch == 0
    ]  # later samples may be known by heart
    comparisons = (
        first_epoch_comparisons if len(first_epoch_comparisons) >= MIN_COMPARISONS else comparisons[:MIN_COMPARISONS]
    )
    if len(comparisons) < MIN_COMPARISONS or has_learned(record) is not False or record.epoch < 1 or is_falling(record):
        return
    if record.targets_depend_on_inputs is not False:
        return
    mean, error = mean_and_standard_error(
        [
            comparison.permuted_loss - comparison.loss
            for comparison in comparisons[-2 * MIN_COMPARISONS :]
            if comparison.permuted_loss is not None
        ]
    )
    spreads = [stats.spread for probe in record.probes[-5:] for stats in probe.predictions if stats.spread is not None]
    if mean > 2 * error or not spreads or median(spreads) < 1e-2 or update_ratio(record) < 1e-5:
        return
    yield Finding(
        Problem.TARGETS_UNRELATED_TO_INPUTS,
        Severity.WARNING,
        "target",
        0,
        record.step,
        {
            "loss": fmean(comparison.loss for comparison in comparisons),
            "loss_with_other_targets": _mean_permuted_loss(comparisons),
        },
        "compare some inputs with their targets by eye: were they shuffled, sorted or joined apart from each other?",
    )


def update_ratio(record: Record) -> float:
    """How large the first measured updates were, relative to the weights; 0 if none was measured."""
    ratios = update_ratios(record)
    return median(ratios[:3]) if ratios else 0.0


def update_ratios(record: Record) -> list[float]:
    """How large the measured updates were, relative to the weights."""
    ratios = [measurement.updates.get("total") for measurement in record.gradients]
    return [ratio.value for ratio in ratios if ratio is not None and math.isfinite(ratio.value)]


def is_late(record: Record) -> bool:
    """Whether it is time to judge a training as a whole: 300 steps, or two epochs that are a good part of it."""
    min_steps = MIN_LATE_STEPS if record.planned_steps is None else EARLY_SHARE * record.planned_steps
    is_finished = record.planned_steps is not None and record.step >= record.planned_steps
    return record.step >= 300 or is_finished or (record.epoch >= 2 and record.step >= min_steps)


def _mean_permuted_loss(comparisons: Sequence[Comparison]) -> float:
    return fmean(comparison.permuted_loss for comparison in comparisons if comparison.permuted_loss is not None)
