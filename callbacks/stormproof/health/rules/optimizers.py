"""Rules for optimizers, learning rates and weight updates."""

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
"""Update-to-weight ratios that explain a loss that rises, and a loss that does not fall."""
SMALL_UPDATE = 1e-3
"""Update-to-weight ratio below which a slow loss could fall faster."""
MIN_WEIGHT_CHANGE = 0.01
"""Minimum relative change of the weights that the planned steps must allow."""
MIN_REMAINING_SHARE = 0.1
"""Share of the planned steps, at the end of a run, in which a schedule may decay the learning rate to zero."""
IMPROVED_SHARE, BLOW_UP_FACTOR = 0.3, 10.0
"""A run has recovered if its loss fell by this share and never exceeded this multiple of the first loss."""
MIN_UNCHANGED_STEPS = 5
"""Minimum number of measurements without a change of the weights."""
MIN_ZERO_STEPS = 20
"""Minimum number of steps with a learning rate of zero. Schedules have shorter pauses."""


def check_not_in_optimizer(record: Record) -> Iterator[Finding]:
    """Reports parameters that are used in training and are in no optimizer."""
    if record.unregistered_entries:
        yield Finding(
            Problem.NOT_IN_OPTIMIZER,
            Severity.CRITICAL,
            "parameters of no submodule",
            0,
            record.step,
            {"parameters": float(record.unregistered_entries)},
            "Use nn.ModuleList or nn.ModuleDict instead of a list or a dict of layers, so that self.parameters() "
            "returns their parameters.",
        )
    if not record.unoptimized_entries:
        return
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
        "Create the optimizer from self.parameters() after the last layer was created or replaced. If the layers are "
        "frozen on purpose, set requires_grad_(False).",
    )


def check_in_two_optimizers(record: Record) -> Iterator[Finding]:
    """Reports parameters in two optimizers, or twice in one."""
    if record.duplicated_layers:
        yield Finding(
            Problem.IN_TWO_OPTIMIZERS,
            Severity.WARNING,
            join_names(record.duplicated_layers),
            0,
            record.step,
            {"layers": float(len(record.duplicated_layers))},
            "Pass each parameter to one optimizer, once.",
        )


def check_zero_learning_rate(record: Record) -> Iterator[Finding]:
    """Reports parameter groups with a learning rate of zero that no schedule explains."""
    for group in record.groups:
        if group.zero_since is None:
            continue
        zero_steps = record.step - group.zero_since
        remaining_share = (
            1.0 if record.planned_steps is None else (record.planned_steps - group.zero_since) / record.planned_steps
        )
        may_start_later = (
            len(record.groups) > 1 and group.max_lr == 0 and not is_late(record)
        )  # another group may be trained first
        if zero_steps >= MIN_ZERO_STEPS and remaining_share > MIN_REMAINING_SHARE and not may_start_later:
            yield Finding(
                Problem.LEARNING_RATE_ZERO,
                Severity.CRITICAL if len(record.groups) == 1 else Severity.WARNING,
                group.name,
                group.zero_since,
                record.step,
                {"lr": group.lr, "steps": float(zero_steps)},
                "Set lr above 0 in configure_optimizers. If a scheduler steps once per batch, return {'scheduler': …, "
                "'interval': 'step'} and give T_max or total_steps in steps.",
            )


def check_high_learning_rate(record: Record) -> Iterator[Finding]:
    """Reports a loss that does not fall, or units that die, with updates that are large compared to the weights."""
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
        "Divide lr by 10 until the first steps lower the loss.",
    )


def check_low_learning_rate(record: Record) -> Iterator[Finding]:
    """Reports updates that cannot change the weights by 1% in the planned steps, or a loss that falls too slowly."""
    ratio = max(update_ratios(record), default=0.0)
    baseline = constant_baseline(record)
    if any(group.is_rising for group in record.groups):
        yield from _check_slow_warm_up(record)
        return
    if baseline is not None and baseline.loss < NO_BETTER_SHARE * baseline.constant_loss:
        return  # small updates are enough for a network that is already good
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
        "Multiply lr by 10 until the loss falls from epoch to epoch.",
    )


def _check_slow_warm_up(record: Record) -> Iterator[Finding]:
    """Reports a warm-up that has reached less than 1% of its target after half of the planned steps."""
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
                "Warm up over fewer steps. If a scheduler steps once per batch, return {'scheduler': …, 'interval': "
                "'step'}.",
            )
            return


def check_unchanged_weights(record: Record) -> Iterator[Finding]:
    """Reports layers whose weights do not change although they have a gradient and a learning rate above zero."""
    if record.step - record.first_gradient_step < MIN_ZERO_STEPS:
        return
    weights = [layers for step, layers in record.weight_stats.items() if step >= record.first_gradient_step]
    if len(weights) < MIN_UNCHANGED_STEPS or any(entry.zero_since is not None for entry in record.groups):
        return
    if len({entry.optimizer for entry in record.groups}) > 1 and record.epoch < 1:
        return  # optimizers may alternate between epochs
    has_late_start = any(group.initial_lr <= ZERO_LR_SHARE * group.max_lr for group in record.groups)
    if has_late_start and record.epoch < 2:
        return  # a group that started with a learning rate of zero may have been trained for a few steps only
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
            "Check that the optimizer steps, that nothing resets the weights, and that updates are not below the "
            "precision of 16-bit weights.",
        )
