"""Each rule speaks where it should, and is silent where something else is the matter."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from stormproof.finding import Finding, Severity
from stormproof.gradients.noise_scale import NoiseEstimate
from stormproof.health.observations.gradients import OptimizerWithoutGradient
from stormproof.health.observations.losses import ValidationPass
from stormproof.health.observations.non_finite import NonFiniteOrigin
from stormproof.health.observations.optimizers import ParameterGroup
from stormproof.health.observations.predictions import (
    ActivationCall,
    BroadcastMismatch,
    Comparison,
    LayerCall,
    TracedStep,
)
from stormproof.health.observations.ranks import RankComputeTimes
from stormproof.health.record import TOPICS, Record
from stormproof.health.rule import NotEnoughEvidence
from stormproof.health.rules import (
    batch_norm_statistics_lag,
    batch_size_inefficient,
    broadcast_mismatch,
    data_starvation,
    dead_units,
    default_rules,
    degenerate_targets,
    exploding_gradients,
    gradients_not_cleared,
    in_two_optimizers,
    input_badly_scaled,
    learning_rate_too_high,
    learning_rate_too_low,
    learning_rate_zero,
    loss_input_mismatch,
    loss_spike,
    no_better_than_constant,
    no_gradient,
    non_finite,
    not_in_optimizer,
    output_ignores_input,
    overfitting,
    plateau,
    replicas_diverged,
    saturated_units,
    slow_rank,
    targets_unrelated_to_inputs,
    unreachable_targets,
    vanishing_gradients,
    weights_unchanged,
)
from stormproof.units.unit_activity import UnitActivity
from tests.stormproof.health.rules.records import (
    falling_losses,
    make_input_stats,
    make_measurement,
    make_prediction_stats,
    make_record,
    oscillating_losses,
)

Rule = Callable[[Record], Iterator[Finding | NotEnoughEvidence]]


def _findings(rule: Rule, record: Record) -> list[Finding]:
    return [result for result in rule(record) if isinstance(result, Finding)]


def make_unit_record(dead: int, dead_from_start: int = 0, count: int = 1000, exact: bool = False) -> UnitActivity:
    return UnitActivity("a", 100, dead, {}, count, exact, None, 3, dead_from_start, "stable", None, 20)


def make_traces(count: int = 5, **changes: Any) -> list[TracedStep]:
    return [TracedStep(5 * number, predictions=(make_prediction_stats(**changes),)) for number in range(count)]


def make_rate(lr: float, first: float, most: float, zero_since: int | None = None) -> list[ParameterGroup]:
    return [ParameterGroup(0, "optimizer 0", lr, first, most, most, zero_since)]


def make_times(*ranks: list[float]) -> RankComputeTimes:
    """Returns compute times of ranks for batches of 40 ms."""
    return RankComputeTimes(tuple(f"host{rank}" for rank in range(len(ranks))), tuple(map(tuple, ranks)), 0.04)


def make_passes(*losses: float, size: float = 0.02) -> list[ValidationPass]:
    """Returns validation passes after each epoch, in which the batches deviate from the loss by ``size``."""
    return [
        ValidationPass(40 * number, tuple(oscillating_losses(loss, 12, size)), loss, 1.0 / number)
        for number, loss in enumerate(losses, start=1)
    ]


LEARNING_LOSSES, FLAT_LOSSES = falling_losses(1.5, 0.5, 120), oscillating_losses(1.42, 120)
DEEP = {"stats": {0: dict.fromkeys("abcde", (1.0, 0.0))}, "layer_order": list("abcde")}
SHRINKS = [
    make_measurement(step, {name: 10.0 ** (2 * number - 9) for number, name in enumerate("abcde")}) for step in (1, 10)
]
GROWS = [
    make_measurement(step, {name: 10.0 ** (3 - number) for number, name in enumerate("abcde")}) for step in (1, 10)
]

REPORTED: dict[str, tuple[Rule, Record]] = {
    "a zero rate": (learning_rate_zero.check, make_record(FLAT_LOSSES[:25], groups=make_rate(0, 0, 0, 0))),
    "a rate that fell to zero": (
        learning_rate_zero.check, make_record(FLAT_LOSSES, groups=make_rate(0, 0.1, 0.1, 60))),
    "a loss that rises with large updates": (
        learning_rate_too_high.check, make_record(falling_losses(1.5, 9.0, 30), ratio=0.4),
    ),
    "updates that get nowhere": (learning_rate_too_low.check, make_record(FLAT_LOSSES[:25], ratio=1e-6)),
    "no better than a constant": (no_better_than_constant.check, make_record(FLAT_LOSSES)),
    "a gradient that "
    "shrinks": (vanishing_gradients.check, make_record(FLAT_LOSSES, measurements=SHRINKS, **DEEP)),
    "a gradient that shrinks less, where the first layer stays where it is": (
        vanishing_gradients.check,
        make_record(FLAT_LOSSES, measurements=[
            make_measurement(step, {name: 10.0 ** (number / 2 - 3) for number, name in enumerate("abcde")}, ratio=1e-5)
            for step in (1, 10)], **DEEP),
    ),
    "a gradient that "
    "grows": (exploding_gradients.check, make_record(FLAT_LOSSES, measurements=GROWS, **DEEP)),
    "a layer that is "
    "dead": (dead_units.check, make_record(LEARNING_LOSSES, activity={"net.1": make_unit_record(100)})),
    "a layer of which no unit fires, in few samples": (
        dead_units.check, make_record(LEARNING_LOSSES, activity={"net.1": make_unit_record(100,
        count=40)}),
    ),
    "a layer that dies": (
        dead_units.check, make_record(FLAT_LOSSES, activity={"net.1": make_unit_record(60, dead_from_start=5)})),
    "a layer that was mostly dead before the loss fell": (
        dead_units.check, make_record(LEARNING_LOSSES, activity={"net.1": make_unit_record(85, dead_from_start=80)})),
    "probabilities for "
    "logits": (loss_input_mismatch.check, make_record(LEARNING_LOSSES, traces=make_traces(sums_to_one=True))),
    "logits for logarithms": (
        loss_input_mismatch.check,
        make_record(LEARNING_LOSSES, traces=make_traces(loss="nll_loss", loss_input="log-probabilities")),
    ),
    "a sigmoid before its loss": (
        loss_input_mismatch.check,
        make_record(LEARNING_LOSSES, traces=make_traces(
            loss="binary_cross_entropy_with_logits", producer="sigmoid", low=0.1, high=0.9, outputs=1)),
    ),
    "a sigmoid of a sigmoid": (
        loss_input_mismatch.check,
        make_record(FLAT_LOSSES, traces=make_traces(
            loss="binary_cross_entropy", loss_input="probabilities", producer="sigmoid of sigmoid", outputs=1)),
    ),
    "rates for logarithms of rates": (
        loss_input_mismatch.check,
        make_record(LEARNING_LOSSES, traces=make_traces(
            loss="poisson_nll_loss", loss_input="log-rates", bounded_by="softplus", lower_bound=0.0, outputs=1)),
    ),
    "probabilities for the CTC loss": (
        loss_input_mismatch.check,
        make_record(LEARNING_LOSSES, traces=make_traces(
            loss="ctc_loss", loss_input="log-probabilities", sums_to_one=True)),
    ),
    "targets of zero for a loss of pairs": (
        loss_input_mismatch.check,
        make_record(LEARNING_LOSSES, traces=make_traces(
            loss="cosine_embedding_loss", loss_input="scores", target_high=1.0)),
    ),
    "several classes per sample": (
        loss_input_mismatch.check, make_record(LEARNING_LOSSES, traces=make_traces(are_targets_multi_hot=True)),
    ),
    "an optimizer without a gradient": (
        no_gradient.check,
        make_record(
            LEARNING_LOSSES, reached_layers={"b"},
            optimizers_without_gradient=[OptimizerWithoutGradient(("a",), 5)]),
    ),
    "a layer with a gradient of zero": (
        no_gradient.check,
        make_record(
            LEARNING_LOSSES, reached_layers={"b"}, steps_with_zero_gradient={"a": 8},
            measurements=[make_measurement(118, {"a": 0.0, "b": 1.0})]),
    ),
    "gradients of zero everywhere": (
        no_gradient.check, make_record(FLAT_LOSSES[:20], steps_with_zero_gradient={"a": 8, "b": 8}),
    ),
    "targets out of reach": (
        unreachable_targets.check, make_record(LEARNING_LOSSES, traces=make_traces(producer="relu",
        unreachable_share=0.4)),
    ),
    "one softmax unit": (
        unreachable_targets.check, make_record(LEARNING_LOSSES, traces=make_traces(producer="softmax", low=1.0,
        high=1.0)),
    ),
    "one output for all": (output_ignores_input.check, make_record(FLAT_LOSSES, traces=make_traces(8, spread=0.0))),
    "a column against a row": (
        broadcast_mismatch.check, make_record(LEARNING_LOSSES, traces=[TracedStep(0,
        broadcast_mismatches=(BroadcastMismatch("sub", (8, 1), (8,)),))]),
    ),
    "one class": (degenerate_targets.check, make_record(FLAT_LOSSES, identical_targets=300)),
    "a large input that harms": (
        input_badly_scaled.check, make_record(FLAT_LOSSES, input_stats=make_input_stats(mean=100.0, rms=120.0,
        largest_scale=60.0)),
    ),
    "waiting": (data_starvation.check, make_record(LEARNING_LOSSES, batch_waits=[(0.05, 0.01)] * 30)),
    "a slow rank": (slow_rank.check, make_record(LEARNING_LOSSES, compute_times=make_times([0.02] * 40,
    [0.01] * 40, [0.012] * 40))),
    "a saturated layer": (
        saturated_units.check,
        make_record(FLAT_LOSSES, traces=[TracedStep(step, activation_calls=(ActivationCall("a", "tanh",
        0.9),)) for step in (0, 4, 9)]),
    ),
    "a cut": (no_gradient.check, make_record(LEARNING_LOSSES, detached_layers={"a": "detach"})),
    "kept gradients": (gradients_not_cleared.check, make_record(LEARNING_LOSSES, retained_steps={0: (7, 7)})),
    "a parameter that is "
    "forgotten": (not_in_optimizer.check, make_record(LEARNING_LOSSES, unoptimized_entries={"a": 12})),
    "a layer in a list": (not_in_optimizer.check, make_record(LEARNING_LOSSES, unregistered_entries=12)),
    "a parameter twice": (in_two_optimizers.check, make_record(LEARNING_LOSSES, duplicated_layers=["a"])),
    "weights that stay": (
        weights_unchanged.check,
        make_record(LEARNING_LOSSES, reached_layers={"a"}, stats={step: {"a": (1.0, 0.5), "b": (step,
        0.0)} for step in range(6)}),
    ),
    "a loss that jumped and "
    "stayed": (loss_spike.check, make_record([*oscillating_losses(1.0, 60), *oscillating_losses(8.0, 30)])),
    "a loss that jumped beyond all before, for once": (
        loss_spike.check, make_record([*oscillating_losses(1.0, 60), 90.0, *oscillating_losses(1.0, 40)]),
    ),
    "a validation loss of few batches that keeps rising": (
        overfitting.check,
        make_record(LEARNING_LOSSES, validations=[
            ValidationPass(40 * number, (loss, loss, 1.6 * loss, 0.5 * loss), loss, 1.0 / number)
            for number, loss in enumerate((1.0, 1.3, 1.6, 1.9, 2.2, 2.5), start=1)
        ]),
    ),
    "a warm-up that does not get anywhere": (
        learning_rate_too_low.check,
        make_record(FLAT_LOSSES, groups=[ParameterGroup(0, "optimizer 0", 1e-5, 1e-6, 1e-5, 1e-2, None)]),
    ),
    "a rising validation": (
        overfitting.check,
        make_record(LEARNING_LOSSES, validations=make_passes(1.0, 1.2, 1.4)),
    ),
    "a rising validation whose training loss fell late": (
        overfitting.check,
        make_record(LEARNING_LOSSES, validations=[
            ValidationPass(40 * number, tuple(oscillating_losses(loss, 12)), loss, training)
            for number, (loss, training) in enumerate(((1.0, 0.9), (1.2, 1.1), (1.4, 1.5), (1.6, 0.3)), start=1)
        ]),
    ),
    "a NaN": (non_finite.check, make_record(LEARNING_LOSSES, non_finite=NonFiniteOrigin(3, 3,
    "output of "
    "log", "a", in_data=False))),
    "ranks that differ": (replicas_diverged.check, make_record(LEARNING_LOSSES, weight_difference=1e-3)),
    "unrelated targets": (
        targets_unrelated_to_inputs.check,
        make_record(FLAT_LOSSES, targets_depend_on_inputs=False, comparisons=[
            Comparison(step, 0, FLAT_LOSSES[step], 1.4, FLAT_LOSSES[step] + 0.01 * (-1) ** step) for step in range(10,
            40, 3)]),
    ),
}  # fmt: skip

NOT_REPORTED: dict[str, tuple[Rule, Record]] = {
    "a warm-up from zero": (learning_rate_zero.check, make_record(LEARNING_LOSSES[:15], groups=make_rate(0,
    0, 0, 0))),
    "a schedule's last "
    "steps": (learning_rate_zero.check, make_record(LEARNING_LOSSES, groups=make_rate(0, 0.1, 0.1, 112))),
    "large updates that learn": (learning_rate_too_high.check, make_record(LEARNING_LOSSES, ratio=0.4)),
    "a rise that the input explains": (
        learning_rate_too_high.check,
        make_record(falling_losses(1.5, 9.0, 30), ratio=0.4, input_stats=make_input_stats(rms=200.0)),
    ),
    "small updates that learn": (learning_rate_too_low.check, make_record(LEARNING_LOSSES, ratio=1e-6)),
    "small updates of a warm-up": (
        learning_rate_too_low.check, make_record(FLAT_LOSSES[:25], ratio=1e-6, groups=make_rate(0.1, 0.0, 0.1)),
    ),
    "most of a layer died while the loss falls": (
        dead_units.check, make_record(LEARNING_LOSSES, activity={"net.1": make_unit_record(85, dead_from_start=5)})),
    "some units that died early in the run": (
        dead_units.check,
        make_record(FLAT_LOSSES[:40], planned_steps=400, activity={"net.1": make_unit_record(60, dead_from_start=5)})),
    "a layer with a gradient of zero early in the run": (
        no_gradient.check,
        make_record(LEARNING_LOSSES[:40], reached_layers={"b"}, steps_with_zero_gradient={"a": 8}),
    ),
    "a layer with a gradient of zero in the first half of the run": (
        no_gradient.check,
        make_record(
            LEARNING_LOSSES, reached_layers={"b"}, steps_with_zero_gradient={"a": 8}, planned_steps=300,
            measurements=[make_measurement(118, {"a": 0.0, "b": 1.0})]),
    ),
    "a layer with a gradient of zero in few traced steps that has one at the end": (
        no_gradient.check,
        make_record(
            LEARNING_LOSSES, reached_layers={"b"}, steps_with_zero_gradient={"a": 8},
            measurements=[make_measurement(118, {"a": 0.1, "b": 1.0})]),
    ),
    "an optimizer whose phase starts later": (
        no_gradient.check,
        make_record(
            LEARNING_LOSSES, reached_layers={"b"}, planned_steps=300,
            optimizers_without_gradient=[OptimizerWithoutGradient(("a",), 9)]),
    ),
    "gradients of zero before a dead layer": (
        no_gradient.check,
        make_record(
            LEARNING_LOSSES, reached_layers={"b"}, steps_with_zero_gradient={"a": 8},
            activity={"net.1": make_unit_record(100)}),
    ),
    "an optimizer without a gradient in its first steps": (
        no_gradient.check,
        make_record(
            LEARNING_LOSSES, reached_layers={"b"},
            optimizers_without_gradient=[OptimizerWithoutGradient(("a",), 4)]),
    ),
    "rates for a loss of rates": (
        loss_input_mismatch.check,
        make_record(LEARNING_LOSSES, traces=make_traces(
            loss="poisson_nll_loss", loss_input="rates", bounded_by="softplus", lower_bound=0.0, outputs=1)),
    ),
    "targets of both signs for a loss of pairs": (
        loss_input_mismatch.check,
        make_record(LEARNING_LOSSES, traces=make_traces(
            loss="cosine_embedding_loss", loss_input="scores", target_low=-1.0, target_high=1.0)),
    ),
    "a weak signal that validation shows": (
        no_better_than_constant.check,
        make_record(FLAT_LOSSES, validations=[
            ValidationPass(40 * number, tuple(loss + 0.01 * batch for batch in range(6)), loss, 1.4, 100)
            for number, loss in ((1, 1.39), (2, 1.37))]),
    ),
    "recent losses below the losses of the last traced batches": (
        no_better_than_constant.check,
        make_record([*FLAT_LOSSES[:60], *oscillating_losses(1.2, 60)], comparisons=[
            Comparison(step, 0, FLAT_LOSSES[step], 1.4, FLAT_LOSSES[step]) for step in range(0, 56, 4)]),
    ),
    "better than a constant": (no_better_than_constant.check, make_record(LEARNING_LOSSES)),
    "a bit better, for sure": (no_better_than_constant.check, make_record(oscillating_losses(1.36, 120))),
    "on its way": (no_better_than_constant.check, make_record(falling_losses(9.0, 1.5, 90))),
    "one epoch": (no_better_than_constant.check, make_record(FLAT_LOSSES[:45])),
    "two epochs of many": (no_better_than_constant.check, make_record(FLAT_LOSSES[:90], planned_steps=1000)),
    "a likelihood that is better, below zero": (
        no_better_than_constant.check, make_record(falling_losses(-2.0, -8.0, 120), constant=-5.0),
    ),
    "a network that was good already": (
        learning_rate_too_low.check, make_record(oscillating_losses(0.2, 120), ratio=1e-6, constant=1.4),
    ),
    "a loss far above a constant's that comes down": (
        learning_rate_too_high.check, make_record(falling_losses(9.0, 2.0, 60), ratio=0.4),
    ),
    "the same output from the first step": (
        learning_rate_too_high.check, make_record(FLAT_LOSSES, ratio=0.4, traces=make_traces(8, spread=0.0)),
    ),
    "a group whose turn comes": (
        learning_rate_zero.check,
        make_record(LEARNING_LOSSES[:60], groups=[*make_rate(0.0, 0.0, 0.0, 0), ParameterGroup(0, "group "
        "1", 0.1, 0.1, 0.1, 0.1, None)]),
    ),
    "a shrinking gradient that "
    "learns": (vanishing_gradients.check, make_record(LEARNING_LOSSES, measurements=SHRINKS, **DEEP)),
    "a growing gradient that "
    "learns": (exploding_gradients.check, make_record(LEARNING_LOSSES, measurements=GROWS, **DEEP)),
    "units that rest in few inputs": (
        dead_units.check,
        make_record(LEARNING_LOSSES, activity={"net.1": make_unit_record(90, count=40)}),
    ),
    "units that few inputs let seem dead in a warm-up": (
        learning_rate_too_high.check,
        make_record(FLAT_LOSSES, activity={"net.1": make_unit_record(60, dead_from_start=5, count=100)},
        groups=make_rate(0.1, 0.01,
        0.1)),
    ),
    "some dead units": (dead_units.check, make_record(LEARNING_LOSSES,
    activity={"net.1": make_unit_record(30,
    dead_from_start=20)})),
    "units that get the same for all": (
        dead_units.check,
        make_record(FLAT_LOSSES, activity={"net.1": make_unit_record(100)}, traces=[
            TracedStep(0, layer_calls=(LayerCall("a", 0.0),))]),
    ),
    "logits": (loss_input_mismatch.check, make_record(LEARNING_LOSSES)),
    "logits that happen to lie between 0 and 1": (
        loss_input_mismatch.check,
        make_record(LEARNING_LOSSES, traces=make_traces(loss="binary_cross_entropy_with_logits", low=0.1, high=0.9,
        outputs=1)),
    ),
    "a target now and then out of reach": (
        unreachable_targets.check, make_record(LEARNING_LOSSES, traces=make_traces(producer="relu",
        unreachable_share=0.01)),
    ),
    "outputs that differ": (output_ignores_input.check, make_record(FLAT_LOSSES, traces=make_traces(8))),
    "one class in a few "
    "samples": (degenerate_targets.check, make_record(LEARNING_LOSSES[:8], identical_targets=64)),
    "classes that differ": (degenerate_targets.check, make_record(LEARNING_LOSSES, identical_targets=None)),
    "a large input that does no harm": (
        input_badly_scaled.check, make_record(LEARNING_LOSSES, input_stats=make_input_stats(mean=100.0, rms=120.0,
        largest_scale=60.0)),
    ),
    "a large input into a norm": (
        input_badly_scaled.check, make_record(FLAT_LOSSES, input_stats=make_input_stats(rms=120.0, is_normalized=True)),
    ),
    "a pause now and then": (
        slow_rank.check, make_record(LEARNING_LOSSES, compute_times=make_times([*[0.01] * 30, *[0.3] * 10],
        [0.01] * 40)),
    ),
    "ranks that take turns": (
        slow_rank.check, make_record(LEARNING_LOSSES, compute_times=make_times([0.02, 0.01] * 20, [0.01,
        0.02] * 20)),
    ),
    "a slow rank that costs little": (
        slow_rank.check, make_record(LEARNING_LOSSES, compute_times=make_times([0.0102] * 40, [0.01] * 40)),
    ),
    "a rank that is slower by next to nothing": (
        slow_rank.check,
        make_record(LEARNING_LOSSES, compute_times=RankComputeTimes(("a", "b"), ((0.0025,) * 40, (0.001,) * 40),
        step_seconds=0.004)),
    ),
    "a slow rank in few batches": (
        slow_rank.check, make_record(LEARNING_LOSSES, compute_times=make_times([0.02] * 20, [0.01] * 20)),
    ),
    "a rank that does not "
    "know": (slow_rank.check, make_record(LEARNING_LOSSES, compute_times=make_times([], []))),
    "a wait now and then": (data_starvation.check, make_record(LEARNING_LOSSES, batch_waits=[*[(0.001, 0.01)] * 27,
    *[(0.3, 0.01)] * 3])),
    "a last sigmoid that is sure": (
        saturated_units.check,
        make_record(LEARNING_LOSSES, traces=[
            TracedStep(step, activation_calls=(ActivationCall("head", "sigmoid", 0.9),),
                  predictions=(make_prediction_stats(producer="sigmoid"),)) for step in (0, 4, 9)]),
    ),
    "gradients that were kept "
    "once": (gradients_not_cleared.check, make_record(LEARNING_LOSSES, retained_steps={0: (1, 7)})),
    "weights of two optimizers that take turns": (
        weights_unchanged.check,
        make_record(LEARNING_LOSSES[:30], reached_layers={"a"}, stats={step: {"a": (1.0,
        0.5)} for step in range(6)},
               groups=[*make_rate(0.1, 0.1, 0.1), ParameterGroup(1, "optimizer 1", 0.1, 0.1, 0.1, 0.1, None)]),
    ),
    "a loss that jumped and came "
    "back": (loss_spike.check, make_record([*oscillating_losses(1.0, 60), 9.0, 8.0, *oscillating_losses(1.0,
    40)])),
    "a loss of next to nothing that jumps": (
        loss_spike.check,
        make_record([*falling_losses(1.5, 0.001, 60), *oscillating_losses(1e-6, 60, size=1e-7), 1e-3,
        *oscillating_losses(1e-6, 40, size=1e-7)]),
    ),
    "a validation that wavers": (
        overfitting.check,
        make_record(LEARNING_LOSSES, validations=make_passes(1.0, 1.01, 1.0, size=0.4)),
    ),
    "a validation that fluctuates from epoch to epoch": (
        overfitting.check,
        make_record(LEARNING_LOSSES, validations=make_passes(
            1.0, 1.3, 1.1, 1.4, 1.15, 1.35, 1.1, 1.45, 1.3, 1.4, size=0.01)),
    ),
    "a validation that recovers": (
        overfitting.check,
        make_record(LEARNING_LOSSES, validations=make_passes(1.0, 1.5, 1.2)),
    ),
    "large inputs while the loss falls": (
        input_badly_scaled.check,
        make_record(falling_losses(4.0, 1.5, 40), input_stats=make_input_stats(rms=20.0)),
    ),
    "a loss near the constant loss after large first updates": (
        learning_rate_too_high.check,
        make_record(FLAT_LOSSES[:35], planned_steps=1000, measurements=[
            make_measurement(step, {"a": 1.0}, ratio) for step, ratio in ((1, 0.4), (2, 0.05), (3, 0.05), (10, 0.05))]),
    ),
    "a first loss that no learning rate could lower": (
        learning_rate_too_high.check,
        make_record(
            falling_losses(1e4, 9e5, 30), constant=1.0, measurements=[make_measurement(1, {"a": 1e4}, 0.4)] * 3,
            stats={0: {"a": (1.0, 0.0)}}, layer_order=["a"]),
    ),
    "a training loss that falls with the validation loss": (
        overfitting.check,
        make_record(LEARNING_LOSSES, validations=[
            ValidationPass(40 * number, tuple(oscillating_losses(loss, 12)), loss, loss) for number,
            loss in enumerate((1.0, 0.8, 0.6))]),
    ),
    "targets that depend on the inputs": (
        targets_unrelated_to_inputs.check, make_record(FLAT_LOSSES, targets_depend_on_inputs=True)),
    "several losses": (no_better_than_constant.check, make_record(FLAT_LOSSES, have_one_backward=False)),
}  # fmt: skip


RESTS = [*falling_losses(1.5, 0.6, 40), *oscillating_losses(0.6, 200)]
NO_PLATEAU: dict[str, Record] = {
    "it still falls": make_record(falling_losses(1.5, 0.6, 240)),
    "it is as good as nothing": make_record([*falling_losses(1.5, 0.05, 40), *oscillating_losses(0.05, 200)]),
    "the rate has faded": make_record(RESTS, groups=make_rate(0.001, 0.1, 0.1)),
    "it never fell": make_record(oscillating_losses(1.42, 240)),
    "it rests for a short time": make_record([*falling_losses(1.5, 0.6, 100), *oscillating_losses(0.6, 100)]),
    "it is early": make_record(RESTS[:60]),
}


def test_a_plateau_has_severity_info():
    (finding,) = _findings(plateau.check, make_record(RESTS))
    assert (finding.severity, finding.since_step) == (Severity.INFO, 60)
    assert finding.evidence == {
        "loss": pytest.approx(0.6), "loss_then": pytest.approx(0.6), "loss_of_the_best_constant": pytest.approx(1.4),
    }  # fmt: skip


@pytest.mark.parametrize("case", NO_PLATEAU)
def test_it_is_no_plateau(case: str):
    assert _findings(plateau.check, NO_PLATEAU[case]) == []


@pytest.mark.parametrize("case", REPORTED)
def test_a_fault_is_reported(case: str):
    rule, record_fields = REPORTED[case]
    (finding,) = _findings(rule, record_fields)
    assert finding.severity != Severity.INFO
    assert finding.evidence
    assert finding.advice[0].isupper()
    assert finding.advice.endswith(".")
    words = finding.problem.replace("_", " ")
    assert not finding.description.startswith(f"{words} since step")  # a template fits the evidence


@pytest.mark.parametrize("case", NOT_REPORTED)
def test_a_healthy_record_has_no_findings(case: str):
    rule, record_fields = NOT_REPORTED[case]
    assert [finding for finding in _findings(rule, record_fields) if finding.severity != Severity.INFO] == []


@pytest.mark.parametrize(
    ("loader", "workers", "advice"),
    [
        ("DataLoader", 0, "Use DataLoader(num_workers=4, pin_memory=True, persistent_workers=True), or preprocess"),
        ("DataLoader", 8, "Raise num_workers above 8 if cores are idle, or preprocess"),
        ("Stream", None, "Preprocess the data once and cache it, or replace Stream by a DataLoader"),
    ],
)
def test_the_advice_against_waiting_fits_the_loader(loader: str, workers: int | None, advice: str):
    (finding,) = _findings(
        data_starvation.check,
        make_record(LEARNING_LOSSES, batch_waits=[(0.05, 0.01)] * 30, loader_name=loader, num_workers=workers),
    )
    assert finding.where == loader
    assert finding.advice.startswith(advice)


UNITS = {"net.1": make_unit_record(60)}
FAR = [TracedStep(step, norm_distances={"a": 1.5}) for step in (10, 20, 30)]
NEAR = [TracedStep(step, norm_distances={"a": 0.1}) for step in (10, 20, 30)]


@pytest.mark.parametrize(
    ("lagging", "traces", "is_obsolete"),
    [
        (None, [], False),  # nothing is known yet
        ({}, [], True),
        (UNITS, NEAR, False),
        (None, NEAR, True),
        (None, NEAR[:2], False),
        ({}, FAR, False),
    ],
)
def test_the_statistics_of_batch_norm_are_current_once_all_that_is_known_is_close(
    lagging: Any, traces: list[TracedStep], is_obsolete: bool
):
    record = make_record(LEARNING_LOSSES, lagging=lagging, traces=traces)
    assert batch_norm_statistics_lag.statistics_are_current(record) is is_obsolete


def test_identical_targets_are_withdrawn_only_after_a_traced_step_of_the_attempt():
    resumed = make_record(LEARNING_LOSSES, identical_targets=None, traces=[])
    assert not degenerate_targets.targets_differ(resumed)
    assert degenerate_targets.targets_differ(make_record(LEARNING_LOSSES, identical_targets=None))


def test_other_terms_of_a_loss_are_left_out_of_the_comparison():
    losses = oscillating_losses(1.2, 120)
    comparisons = [Comparison(step, 0, 1.42, 1.4, 1.42, losses[step] - 1.42) for step in range(0, 56, 4)]
    (finding,) = _findings(no_better_than_constant.check, make_record(losses, comparisons=comparisons))
    assert finding.evidence == {"loss": pytest.approx(1.42), "loss_of_the_best_constant": pytest.approx(1.4)}


JUMPED = [*oscillating_losses(1.0, 60), *oscillating_losses(9.0, 8)]
CONSTANT_TRACES = [TracedStep(step, predictions=(make_prediction_stats(spread=1e-6),)) for step in (50, 60)]
SATURATED_TRACES = [
    TracedStep(step, activation_calls=(ActivationCall("a", "tanh", share),))
    for step, share in ((0, 0.1), (10, 0.1), (20, 0.9))
]
GROWN = [make_measurement(step, {"a": norm}) for step, norm in ((1, 1.0), (10, 1.0), (20, 500.0))]
LACKING: dict[str, tuple[Rule, Record, str]] = {
    "no unit in both modes": (
        batch_norm_statistics_lag.check, Record(), "units measured in training and in a validation pass"),
    "no trace": (broadcast_mismatch.check, Record(), "a traced step"),
    "no trace of the graph": (no_gradient.check, Record(), "a traced step"),
    "few batches": (data_starvation.check, make_record([], batch_waits=[(0.1, 0.1)] * 3), "20 timed batches (has 3)"),
    "no activation": (dead_units.check, make_record(LEARNING_LOSSES), "measured outputs of activations"),
    "few targets": (
        degenerate_targets.check, make_record([], identical_targets=8),
        "two different targets, or 256 identical ones (has 8)"),
    "no gradient": (exploding_gradients.check, Record(), "a loss, a measured gradient and a traced step"),
    "few checked steps": (
        gradients_not_cleared.check, make_record([], retained_steps={0: (0, 2)}), "5 steps of optimizer 0 (has 2)"),
    "no inputs": (input_badly_scaled.check, Record(), "a traced step whose first layer has numeric inputs"),
    "no update": (learning_rate_too_high.check, Record(), "a loss and a measured update"),
    "no end": (
        learning_rate_too_low.check, make_record(FLAT_LOSSES, planned_steps=None),
        "a planned number of steps: set max_epochs or max_steps of the Trainer"),
    "few steps": (
        learning_rate_too_low.check, make_record(FLAT_LOSSES[:9]), "20 steps (has 9)"),
    "an unknown loss": (loss_input_mismatch.check, Record(), "2 traced steps with a known loss"),
    "an unknown loss of targets": (unreachable_targets.check, Record(), "2 traced steps with a known loss"),
    "no predictions": (output_ignores_input.check, Record(), "a traced step with a known loss"),
    "few losses": (loss_spike.check, make_record(FLAT_LOSSES[:20]), "33 batches (has 20)"),
    "few comparisons": (
        no_better_than_constant.check, make_record(FLAT_LOSSES[:8]), "8 traced steps with a known loss (has 2)"),
    "no comparisons in many steps": (
        no_better_than_constant.check,
        make_record(FLAT_LOSSES, comparisons=[], traces=[TracedStep(step) for step in range(8)]),
        "a known loss with different targets: return preds and target from training_step, or set `loss`"),
    "an early step": (
        no_better_than_constant.check, make_record(FLAT_LOSSES[:40], epoch=0),
        "300 steps, or two epochs and a quarter of the planned steps"),
    "one validation": (
        overfitting.check, make_record(FLAT_LOSSES, validations=[ValidationPass(9, (1.0,), 1.0, 1.0)]),
        "3 validation passes with a loss (has 1)"),
    "few validation samples": (
        overfitting.check, make_record(FLAT_LOSSES, validations=[ValidationPass(9, (1.0,), 1.0, 1.0, 4)] * 3),
        "30 validation samples (has 4)"),
    "an early plateau": (
        plateau.check, make_record(oscillating_losses(1.0, 130), epoch=1, planned_steps=400),
        "300 steps, or two epochs and a quarter of the planned steps"),
    "few batches of a plateau": (plateau.check, make_record(FLAT_LOSSES[:60]), "120 batches (has 60)"),
    "no measured update": (
        learning_rate_too_low.check, make_record(FLAT_LOSSES, measurements=[]), "a measured update"),
    "weights without a gradient": (weights_unchanged.check, make_record(FLAT_LOSSES), "a gradient"),
    "few traced weights": (
        weights_unchanged.check, make_record(FLAT_LOSSES, reached_layers={"a"}), "5 traced steps (has 0)"),
    "few traces": (
        saturated_units.check, make_record([], traces=make_traces(2)), "5 steps, including 3 traced ones"),
    "few batches of ranks": (
        slow_rank.check, make_record([], compute_times=make_times([0.1] * 3, [0.2] * 3)),
        "30 timed batches on all ranks (has 3)"),
    "an unknown dependence": (
        targets_unrelated_to_inputs.check, make_record(FLAT_LOSSES),
        "more samples to test whether the targets depend on the inputs"),
    "the first epoch": (
        targets_unrelated_to_inputs.check,
        make_record(FLAT_LOSSES, targets_depend_on_inputs=False, epoch=0), "a finished epoch"),
    "one gradient": (
        vanishing_gradients.check, make_record([], measurements=SHRINKS[:1]), "2 measured gradients (has 1)"),
    "few steps of weights": (
        weights_unchanged.check, make_record(FLAT_LOSSES[:9], reached_layers={"a"}),
        "20 steps with a gradient (has 9)"),
}  # fmt: skip
SUSPICIOUS: dict[str, tuple[Rule, Record, str]] = {
    "a loss that has just jumped": (
        loss_spike.check, make_record(JUMPED), "20 batches since the loss rose (has 8)"),
    "a rate that has just become zero": (
        learning_rate_zero.check, make_record(FLAT_LOSSES[:105], groups=make_rate(0, 0.1, 0.1, 100)),
        "20 steps with a learning rate of 0 (has 5)"),
    "predictions that have just become equal": (
        output_ignores_input.check, make_record(FLAT_LOSSES, traces=[*make_traces(), *CONSTANT_TRACES]),
        "4 traced steps with identical predictions (has 2)"),
    "units that have just saturated": (
        saturated_units.check, make_record(FLAT_LOSSES, traces=SATURATED_TRACES),
        "3 consecutive traced steps with saturated units"),
    "a gradient that has just exploded": (
        exploding_gradients.check, make_record(FLAT_LOSSES, measurements=GROWN),
        "a second large gradient norm in succession"),
    "units that are dead in few samples": (
        dead_units.check, make_record(FLAT_LOSSES, activity={"net.1": make_unit_record(90, count=40)}),
        "200 inputs of net.1 (has 40)"),
}  # fmt: skip


def make_noisy_record(scale: float, count: int = 10, steps: int = 300) -> Record:
    """Returns a record of steps of 64 samples with a noise scale."""
    norms = make_measurement(1, {"a": 1.0})
    measurement = replace(norms, noise=NoiseEstimate(variance=scale, signal=1.0), batch_size=64)
    return make_record(oscillating_losses(1.0, steps), measurements=[measurement] * count)


@pytest.mark.parametrize(("scale", "advice"), [(650.0, "Larger batches reduce"), (6.0, "Batches of about 6")])
def test_a_batch_far_from_the_noise_scale_has_severity_info(scale: float, advice: str):
    (finding,) = _findings(batch_size_inefficient.check, make_noisy_record(scale))
    assert (finding.severity, finding.evidence) == (Severity.INFO, {"batch_size": 64.0, "noise_scale": scale})
    assert finding.advice.startswith(advice)


@pytest.mark.parametrize("scale", [630.0, 6.5, -3.0])
def test_a_batch_near_the_noise_scale_has_no_finding(scale: float):
    assert list(batch_size_inefficient.check(make_noisy_record(scale))) == []


def test_a_smaller_last_batch_does_not_affect_the_noise_scale():
    record = make_noisy_record(650.0)
    usual = record.gradients.measurements[0]
    small = replace(usual, batch_size=4, noise=NoiseEstimate(variance=-1e6, signal=1e3))
    (finding,) = _findings(
        batch_size_inefficient.check,
        replace(record, gradients=replace(record.gradients, measurements=[*[usual] * 10, small])),
    )
    assert finding.evidence == {"batch_size": 64.0, "noise_scale": 650.0}


@pytest.mark.parametrize(("count", "steps"), [(9, 300), (10, 70)])
def test_the_noise_scale_is_judged_late_and_from_ten_steps(count: int, steps: int):
    (result,) = batch_size_inefficient.check(make_noisy_record(1e4, count, steps))
    assert isinstance(result, NotEnoughEvidence)
    assert result.missing.startswith(f"10 estimates of the noise scale (has {count})")


@pytest.mark.parametrize("case", [*LACKING, *SUSPICIOUS])
def test_a_rule_that_cannot_judge_says_what_is_missing(case: str):
    rule, record, missing = {**LACKING, **SUSPICIOUS}[case]
    assert list(rule(record)) == [NotEnoughEvidence(missing, is_likely=case in SUSPICIOUS)]


@pytest.mark.parametrize("case", [*REPORTED, *NOT_REPORTED, *LACKING, *SUSPICIOUS])
def test_a_rule_reads_only_the_topics_that_it_needs(case: str):
    rule, record, *_ = {**REPORTED, **NOT_REPORTED, **LACKING, **SUSPICIOUS}[case]
    (default_rule,) = (candidate for candidate in default_rules() if candidate.check is rule)
    is_obsolete = default_rule.is_obsolete or (lambda _: False)
    for topic in TOPICS - default_rule.needs:
        reduced_record = replace(record, **{topic: getattr(Record(), topic)})
        assert list(rule(reduced_record)) == list(rule(record)), topic
        assert is_obsolete(reduced_record) == is_obsolete(record), topic
