"""Whether a training gets anywhere: against the best constant prediction, and against its own beginning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.confidence_interval import interval
from stormproof.health.record import Comparison, Record

PAIRS = 8
"""Batches compared with a constant before anything is said."""
STEPS = 30
"""Steps before which no training is called one that gets nowhere."""
NO_BETTER = 0.95
"""The share of a constant's loss down to which a loss is no better (Schoelkopf's skill score, 1 - this)."""
ABOUT = 1.05
"""The share of a constant's loss up to which a loss that is noisy may be as good."""
UNSURE = 0.05
"""The share of a constant's loss by which a loss must surely not be better, to be called no better."""
EARLY_PART, AT_LEAST = 0.25, 100
"""The part of a training, or where that has no end the steps, before which it is early."""
UNDONE = 0.9
"""The share of a constant's loss below which a training gets somewhere after all."""
KNOWS = 0.001
"""The share of a loss by which that of other samples' targets is larger where predictions know of their own."""


@dataclass(frozen=True)
class AgainstConstant:
    """The recent losses beside those of the best constant prediction on the same batches.

    Attributes:
        loss: their mean.
        constant: the mean of the constant's.
        better_by: the mean of how much lower they are.
        error: its standard error.
    """

    loss: float
    constant: float
    better_by: float
    error: float


def against_constant(record: Record) -> AgainstConstant | None:
    """What is known of that; None with too few batches."""
    pairs = [each for each in record.comparisons if each.constant is not None][-PAIRS:]
    if len(pairs) < PAIRS:
        return None
    constants = [each.constant for each in pairs if each.constant is not None]
    losses = [each.loss for each in pairs]
    mean, error = interval([constant - loss for constant, loss in zip(constants, losses, strict=True)])
    return AgainstConstant(fmean(losses), fmean(constants), mean, error)


def has_learned(record: Record) -> bool | None:
    """Whether the training gets anywhere; None while that is not known."""
    if not record.one_loss or record.step < STEPS or len(record.first) < 5 or len(record.recent) < STEPS:
        return None
    against = against_constant(record)
    if against is not None:
        above_zero = against.constant > 0  # a likelihood's logarithm has no such shares
        surely = against.better_by > 3 * against.error or (above_zero and against.loss < NO_BETTER * against.constant)
        close = above_zero and against.loss < ABOUT * against.constant
        return surely or (close and (_knows_its_targets(record) or _is_below(record, against.constant)))
    begin, recent = record.first[:5], [loss for _, loss in record.recent][-STEPS // 2 :]
    if not all(map(math.isfinite, (*begin, *recent))):
        return False
    fall = fmean(begin) - fmean(recent)
    noise = math.hypot(interval(begin)[1], interval(recent)[1])
    return fall > 3 * noise or fall > 0.2 * abs(fmean(begin))


def _is_below(record: Record, constant: float) -> bool:
    """Whether the last losses of all batches are below ``constant`` for sure."""
    mean, error = interval([loss for _, loss in record.recent][-STEPS:])
    return constant - mean > 3 * error


def _knows_its_targets(record: Record) -> bool:
    """Whether the predictions fit their own targets better than those of others, for sure."""
    gaps = [each.permuted - each.loss for each in record.comparisons if each.permuted is not None][-PAIRS:]
    if len(gaps) < PAIRS:
        return False
    mean, error = interval(gaps)
    return mean > max(3 * error, KNOWS * abs(fmean(each.loss for each in record.comparisons[-PAIRS:])))


def is_clearly_better(record: Record) -> bool:
    """Whether the loss is below a constant's for sure, and by a tenth: what was said against that is past."""
    against = against_constant(record)
    if against is None or against.loss > UNDONE * against.constant or against.better_by <= 3 * against.error:
        return False
    return not record.validations or record.validations[-1].loss < UNDONE * against.constant  # it is not by heart


def is_falling(record: Record) -> bool:
    """Whether the loss is going down: of the last two thirds of the batches, or passes of a validation, for sure."""
    passes = [each for each in record.validations if each.losses][-2:]
    if len(passes) == 2 and passes[0].is_above(passes[1]):
        return True
    thirds = _thirds(record)
    if thirds is None:
        return False
    (before, error), (now, other) = thirds
    against = against_constant(record)
    on_its_way = against is not None and against.loss > ABOUT * against.constant  # it has the mean to learn first
    return before - now > (1 if on_its_way else 2) * math.hypot(error, other)


def expected_at_the_end(record: Record) -> float | None:
    """The loss at the end of the training, if it went on falling as it did in the last third of the batches."""
    thirds = _thirds(record)
    if thirds is None or record.planned is None:
        return None
    (before, _), (now, _) = thirds
    third = record.step / 3 if len(record.recent) < 512 else 170
    return now - (before - now) * max(record.planned - record.step, 0) / third


def _thirds(record: Record) -> tuple[tuple[float, float], tuple[float, float]] | None:
    losses = [loss for _, loss in record.recent if math.isfinite(loss)]
    third = len(losses) // 3
    return None if third < 5 else (interval(losses[-2 * third : -third]), interval(losses[-third:]))


def has_risen(record: Record) -> bool:
    """Whether the loss is far above where it began, or was before it broke."""
    begin, recent = record.first[:3], [loss for _, loss in record.recent]
    if not record.one_loss or len(begin) < 3 or begin[0] <= 0:
        return False
    finite = [loss for loss in recent if math.isfinite(loss)]
    if len(finite) < len(recent):
        return max(finite, default=0.0) > 10 * begin[0]
    if median(recent[-4:]) < 0.5 * max(recent):
        return False  # it comes down again
    rise = median(recent[-8:]) / max(begin[0], min(begin))
    return (record.step >= 20 and rise > 1.5) or (record.step >= 8 and rise > 5)


def find_no_better_than_constant(record: Record) -> Iterator[Finding]:
    """The loss is no lower than a constant's after a whole epoch."""
    against = against_constant(record)
    if has_learned(record) is not False or against is None or not is_late(record):
        return
    at_the_end = record.planned is not None and record.step >= record.planned
    if is_falling(record) and not (at_the_end and record.classifies):
        return  # a regression may be on its way to the mean of its targets
    if against.better_by + 2 * against.error > UNSURE * against.constant:
        return  # it may be better yet
    yield Finding(
        Problem.NO_BETTER_THAN_CONSTANT,
        Severity.WARNING,
        "",
        0,
        record.step,
        {"loss": against.loss, "loss_of_the_best_constant": against.constant},
        "fit 10 samples first: if that fails too, look at the loss, the last layer and the learning rate; if it does "
        "not, at whether inputs and targets belong together",
    )


def find_unrelated_targets(record: Record) -> Iterator[Finding]:
    """The predictions fit other samples' targets as well as their own, although they differ from sample to sample."""
    fresh = [each for each in record.comparisons if each.permuted is not None and each.step >= 10]
    unseen = [each for each in fresh if each.epoch == 0]  # later samples may be known by heart
    fresh = unseen if len(unseen) >= PAIRS else fresh[:PAIRS]
    if len(fresh) < PAIRS or has_learned(record) is not False or record.epoch < 1 or is_falling(record):
        return
    if record.related is not False:
        return
    mean, error = interval([each.permuted - each.loss for each in fresh[-2 * PAIRS :] if each.permuted is not None])
    spreads = [facts.spread for probe in record.probes[-5:] for facts in probe.predictions if facts.spread is not None]
    if mean > 2 * error or not spreads or median(spreads) < 1e-2 or update_ratio(record) < 1e-5:
        return
    yield Finding(
        Problem.TARGETS_UNRELATED_TO_INPUTS,
        Severity.WARNING,
        "target",
        0,
        record.step,
        {"loss": fmean(each.loss for each in fresh), "loss_with_other_targets": _mean_permuted(fresh)},
        "compare some inputs with their targets by eye: were they shuffled, sorted or joined apart from each other?",
    )


def update_ratio(record: Record) -> float:
    """How large the first measured updates were, relative to the weights; 0 if none was measured."""
    ratios = update_ratios(record)
    return median(ratios[:3]) if ratios else 0.0


def update_ratios(record: Record) -> list[float]:
    """How large the measured updates were, relative to the weights."""
    ratios = [each.updates.get("total") for each in record.gradients]
    return [ratio.value for ratio in ratios if ratio is not None and math.isfinite(ratio.value)]


def is_late(record: Record) -> bool:
    """Whether it is time to judge a training as a whole: 300 steps, or two epochs that are a good part of it."""
    enough = AT_LEAST if record.planned is None else EARLY_PART * record.planned
    ended = record.planned is not None and record.step >= record.planned
    return record.step >= 300 or ended or (record.epoch >= 2 and record.step >= enough)


def _mean_permuted(comparisons: Sequence[Comparison]) -> float:
    return fmean(each.permuted for each in comparisons if each.permuted is not None)
