"""Whether the optimizers hold what is to be trained, and move it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.observers.learning_rates import ZERO_LR_SHARE
from stormproof.health.record import Record
from stormproof.health.rules.dead_units import DIED_SHARE, MIN_INPUTS
from stormproof.health.rules.outputs import is_constant_from_start
from stormproof.health.rules.progress import (
    NO_BETTER_SHARE,
    constant_baseline,
    extrapolate_final_loss,
    has_learned,
    has_risen,
    is_falling,
    is_late,
    update_ratios,
)
from stormproof.lightning.layer_names import join_names

LARGE_UPDATE, HUGE_UPDATE = 0.1, 0.3
"""Updates relative to the weights: a loss that rises with the first, or does not fall with the second, is told why."""
SMALL_UPDATE = 1e-3
"""Updates relative to the weights with which a loss that falls too slowly could fall faster."""
MIN_WEIGHT_CHANGE = 0.01
"""By so much of their size weights have to be able to change over a training, for it to be one."""
MIN_REMAINING_SHARE = 0.1
"""The share of a training, at its end, over which schedules let the rate fade."""
IMPROVED_SHARE, BLOW_UP_FACTOR = 0.3, 10.0
"""A loss that has fallen by this share of what it was is on its way, if it was never so many times the first one."""
MIN_UNCHANGED_STEPS = 5
"""Steps at whose beginnings weights were the same, not to have changed."""
MIN_ZERO_STEPS = 20
"""Steps with a learning rate of zero that no schedule means."""


def check_not_in_optimizer(record: Record) -> Iterator[Finding]:
    """Parameters get a gradient and are in no optimizer."""
    if record.unregistered_entries:
        yield Finding(
            Problem.NOT_IN_OPTIMIZER,
            Severity.CRITICAL,
            "parameters of no submodule",
            0,
            record.step,
            {"parameters": float(record.unregistered_entries)},
            "hold layers in nn.ModuleList or nn.ModuleDict rather than in a list or a dict: self.parameters() does not "
            "see them there",
        )
    if not record.unoptimized_entries:
        return
    foreign_note = (
        f"; the optimizer holds {record.foreign_parameters} that are none of the module's"
        if record.foreign_parameters
        else ""
    )
    yield Finding(
        Problem.NOT_IN_OPTIMIZER,
        Severity.CRITICAL if record.foreign_parameters else Severity.WARNING,
        join_names(record.unoptimized_entries),
        0,
        record.step,
        {
            "parameters": float(sum(record.unoptimized_entries.values())),
            "strangers_in_the_optimizer": float(record.foreign_parameters),
        },
        "give the optimizer self.parameters(), after the last layer was made or replaced; what is meant to stay as it "
        f"is takes requires_grad_(False){foreign_note}",
    )


def check_in_two_optimizers(record: Record) -> Iterator[Finding]:
    """Parameters are in two optimizers, or twice in one."""
    if record.duplicated_layers:
        yield Finding(
            Problem.IN_TWO_OPTIMIZERS,
            Severity.WARNING,
            join_names(record.duplicated_layers),
            0,
            record.step,
            {"layers": float(len(record.duplicated_layers))},
            "give each parameter to one optimizer, once",
        )


def check_zero_learning_rate(record: Record) -> Iterator[Finding]:
    """A group's learning rate is zero, from the start or for long."""
    for group in record.groups:
        if group.zero_since is None:
            continue
        zero_steps = record.step - group.zero_since
        remaining_share = (
            1.0 if record.planned_steps is None else (record.planned_steps - group.zero_since) / record.planned_steps
        )
        may_start_later = len(record.groups) > 1 and group.max_lr == 0 and not is_late(record)  # its turn may come
        if zero_steps >= MIN_ZERO_STEPS and remaining_share > MIN_REMAINING_SHARE and not may_start_later:
            yield Finding(
                Problem.LEARNING_RATE_ZERO,
                Severity.CRITICAL if len(record.groups) == 1 else Severity.WARNING,
                group.name,
                group.zero_since,
                record.step,
                {"lr": group.lr, "steps": float(zero_steps)},
                "set lr above 0 in configure_optimizers; a scheduler by the step takes {'scheduler': …, 'interval': "
                "'step'}, and T_max or total_steps in the same unit",
            )


def check_high_learning_rate(record: Record) -> Iterator[Finding]:
    """The loss rises, or stays, or units die, with updates that are large beside the weights."""
    ratios = update_ratios(record)
    if record.has_badly_scaled_inputs or not ratios or not record.recent_losses:
        return
    first_ratio, largest_ratio = max(ratios[:3]), max(ratios)
    has_died = any(
        activity.units >= 4
        and activity.inputs >= MIN_INPUTS
        and activity.dead - activity.dead_from_start > DIED_SHARE * activity.units
        for activity in record.unit_activity.values()
    )
    is_warming_up = any(group.is_rising for group in record.groups)
    loss_rises = has_risen(record)
    has_recovered = record.loss_fell_by(IMPROVED_SHARE) and max(record.first_losses) < BLOW_UP_FACTOR * abs(
        record.first_losses[0]
    )
    lacks_progress = has_learned(record) is False and not is_falling(record)
    if is_constant_from_start(record) or not (
        (loss_rises and largest_ratio > LARGE_UPDATE)
        or (lacks_progress and first_ratio > HUGE_UPDATE and not has_recovered)
        or (has_died and (largest_ratio > HUGE_UPDATE or is_warming_up) and not record.loss_fell_by(0.1))
        or (has_died and lacks_progress and largest_ratio > LARGE_UPDATE)
    ):
        return
    yield Finding(
        Problem.LEARNING_RATE_TOO_HIGH,
        Severity.CRITICAL,
        record.groups[0].name if len(record.groups) == 1 else "",
        0,
        record.step,
        {
            "update_relative_to_weights": largest_ratio,
            "first_loss": fmean(record.first_losses[:5]),
            "loss": record.recent_losses[-1][1],
        },
        "divide lr by 10, until the first steps lower the loss",
    )


def check_low_learning_rate(record: Record) -> Iterator[Finding]:
    """Over the whole training, the weights cannot change by a hundredth of their size, and the loss does not fall."""
    ratio = max(update_ratios(record), default=0.0)
    baseline = constant_baseline(record)
    if any(group.is_rising for group in record.groups):
        yield from _check_slow_warm_up(record)
        return
    if baseline is not None and baseline.loss < NO_BETTER_SHARE * baseline.constant_loss:
        return  # what is good already is trained on
    if (
        record.step < MIN_ZERO_STEPS
        or not record.has_single_loss
        or ratio <= 0
        or not record.planned_steps
        or not record.groups
    ):
        return
    if any(group.zero_since is not None for group in record.groups) or record.loss_fell_by(0.1):
        return
    final_loss = extrapolate_final_loss(record)
    is_slow = (
        is_late(record)
        and ratio < SMALL_UPDATE
        and has_learned(record) is False
        and record.targets_depend_on_inputs is not False
    )
    if final_loss is not None and baseline is not None:
        is_slow = is_slow and final_loss > NO_BETTER_SHARE * baseline.constant_loss
    if ratio * record.planned_steps >= MIN_WEIGHT_CHANGE and not is_slow:
        return
    yield Finding(
        Problem.LEARNING_RATE_TOO_LOW,
        Severity.WARNING,
        record.groups[0].name if len(record.groups) == 1 else "",
        0,
        record.step,
        {"lr": record.groups[0].lr, "update_relative_to_weights": ratio, "steps": float(record.planned_steps)},
        "multiply lr by 10, until the loss falls from epoch to epoch",
    )


def _check_slow_warm_up(record: Record) -> Iterator[Finding]:
    """Half of the training is over, and a learning rate is next to nothing beside what it warms up to."""
    for group in record.groups:
        is_cold = group.is_rising and group.lr < MIN_WEIGHT_CHANGE * group.base_lr
        if is_cold and record.planned_steps and record.step >= record.planned_steps / 2 and is_late(record):
            yield Finding(
                Problem.LEARNING_RATE_TOO_LOW,
                Severity.WARNING,
                group.name,
                0,
                record.step,
                {"lr": group.lr, "warms_up_to": group.base_lr, "steps": float(record.planned_steps)},
                "warm up over fewer steps; a scheduler by the step takes {'scheduler': …, 'interval': 'step'}",
            )
            return


def check_unchanged_weights(record: Record) -> Iterator[Finding]:
    """A layer gets a gradient, its learning rate is not zero, and at the beginning of each step it is what it was."""
    if record.step - record.first_gradient_step < MIN_ZERO_STEPS:
        return
    weights = [layers for step, layers in record.weight_stats.items() if step >= record.first_gradient_step]
    if len(weights) < MIN_UNCHANGED_STEPS or any(entry.zero_since is not None for entry in record.groups):
        return
    if len({entry.optimizer for entry in record.groups}) > 1 and record.epoch < 1:
        return  # they may take turns
    has_late_start = any(group.initial_lr <= ZERO_LR_SHARE * group.max_lr for group in record.groups)
    if has_late_start and record.epoch < 2:
        return  # one that began with nothing has not had its turn for long
    recent_weights = weights[-MIN_UNCHANGED_STEPS:] if has_late_start else weights
    unchanged_layers = [
        layer
        for layer, stats in recent_weights[-1].items()
        if layer in record.layers_with_gradient and all(entry.get(layer) == stats for entry in recent_weights)
    ]
    if unchanged_layers:
        yield Finding(
            Problem.WEIGHTS_UNCHANGED,
            Severity.WARNING,
            join_names(unchanged_layers),
            0,
            record.step,
            {"layers": float(len(unchanged_layers)), "of": float(len(recent_weights[-1])), "steps": float(record.step)},
            "is its optimizer stepped, are the weights set back, or are the updates below their precision (16 bits)?",
        )
