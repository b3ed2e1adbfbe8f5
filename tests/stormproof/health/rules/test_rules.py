"""Each rule speaks where it should, and is silent where something else is the matter."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stormproof.finding import Finding, Severity
from stormproof.health.observers.rank_compute_time import OwnTimes
from stormproof.health.observers.step_trace import ActivationCall, LayerCall, Stretched
from stormproof.health.record import Broken, Comparison, Group, Probe, Record, Validated
from stormproof.health.rules import (
    autograd_graph,
    data,
    dead_units,
    gradient_flow,
    loss_spike,
    non_finite,
    optimizers,
    outputs,
    overfitting,
    plateau,
    progress,
    stragglers,
)
from stormproof.units.unit_activity import UnitActivity
from tests.stormproof.health.rules.records import facts, fall, inputs, measured, record, wave

Rule = Callable[[Record], Iterator[Finding]]


def place(dead: int, born: int = 0, count: int = 1000, exact: bool = False) -> UnitActivity:
    return UnitActivity("a", 100, dead, {}, count, exact, None, 3, born, "stable", None, 20)


def probes(count: int = 5, **changes: Any) -> list[Probe]:
    return [Probe(5 * number, predictions=(facts(**changes),)) for number in range(count)]


def rate(lr: float, first: float, most: float, zero_since: int | None = None) -> list[Group]:
    return [Group(0, "optimizer 0", lr, first, most, most, zero_since)]


def times(*ranks: list[float]) -> OwnTimes:
    """What ranks took for themselves, of batches of 40 ms."""
    return OwnTimes(tuple(f"host{rank}" for rank in range(len(ranks))), tuple(map(tuple, ranks)), 0.04)


LEARNS, STAYS = fall(1.5, 0.5, 120), wave(1.42, 120)
DEEP = {"weights": {0: dict.fromkeys("abcde", (1.0, 0.0))}, "in_order": list("abcde")}
SHRINKS = [measured(step, {name: 10.0 ** (2 * number - 9) for number, name in enumerate("abcde")}) for step in (1, 10)]
GROWS = [measured(step, {name: 10.0 ** (3 - number) for number, name in enumerate("abcde")}) for step in (1, 10)]

SPEAKS: dict[str, tuple[Rule, Record]] = {
    "a zero rate": (optimizers.find_zero_learning_rate, record(STAYS[:25], groups=rate(0, 0, 0, 0))),
    "a rate that came to nothing": (optimizers.find_zero_learning_rate, record(STAYS, groups=rate(0, 0.1, 0.1, 60))),
    "a loss that rises with large updates": (
        optimizers.find_too_high_a_learning_rate, record(fall(1.5, 9.0, 30), ratio=0.4),
    ),
    "updates that get nowhere": (optimizers.find_too_low_a_learning_rate, record(STAYS[:25], ratio=1e-6)),
    "no better than a constant": (progress.find_no_better_than_constant, record(STAYS)),
    "a gradient that shrinks": (gradient_flow.find_vanishing, record(STAYS, gradients=SHRINKS, **DEEP)),
    "a gradient that shrinks less, where the first layer stays where it is": (
        gradient_flow.find_vanishing,
        record(STAYS, gradients=[
            measured(step, {name: 10.0 ** (number / 2 - 3) for number, name in enumerate("abcde")}, ratio=1e-5)
            for step in (1, 10)], **DEEP),
    ),
    "a gradient that grows": (gradient_flow.find_exploding, record(STAYS, gradients=GROWS, **DEEP)),
    "a layer that is dead": (dead_units.find_dead_units, record(LEARNS, places={"net.1": place(100)})),
    "a layer of which no unit fires, in few samples": (
        dead_units.find_dead_units, record(LEARNS, places={"net.1": place(100, count=40)}),
    ),
    "a layer that dies": (dead_units.find_dead_units, record(LEARNS, places={"net.1": place(60, born=5)})),
    "probabilities for logits": (outputs.find_loss_input_mismatch, record(LEARNS, probes=probes(sums_to_one=True))),
    "logits for logarithms": (
        outputs.find_loss_input_mismatch,
        record(LEARNS, probes=probes(loss="nll_loss", takes="log-probabilities")),
    ),
    "a sigmoid before its loss": (
        outputs.find_loss_input_mismatch,
        record(LEARNS, probes=probes(
            loss="binary_cross_entropy_with_logits", made_by="sigmoid", low=0.1, high=0.9, outputs=1)),
    ),
    "a sigmoid of a sigmoid": (
        outputs.find_loss_input_mismatch,
        record(STAYS, probes=probes(
            loss="binary_cross_entropy", takes="probabilities", made_by="sigmoid of sigmoid", outputs=1)),
    ),
    "targets out of reach": (
        outputs.find_unreachable_targets, record(LEARNS, probes=probes(made_by="relu", unreachable=0.4)),
    ),
    "one softmax unit": (
        outputs.find_unreachable_targets, record(LEARNS, probes=probes(made_by="softmax", low=1.0, high=1.0)),
    ),
    "one output for all": (outputs.find_output_that_ignores_input, record(STAYS, probes=probes(8, spread=0.0))),
    "a column against a row": (
        outputs.find_stretched_shapes, record(LEARNS, probes=[Probe(0, stretched=(Stretched("sub", (8, 1), (8,)),))]),
    ),
    "one class": (data.find_degenerate_targets, record(STAYS, same_targets=300)),
    "a large input that harms": (
        data.find_badly_scaled_input, record(STAYS, inputs=inputs(mean=100.0, rms=120.0, largest_scale=60.0)),
    ),
    "waiting": (data.find_starvation, record(LEARNS, waits=[(0.05, 0.01)] * 30)),
    "a slow rank": (stragglers.find_slow_rank, record(LEARNS, own_times=times([0.02] * 40, [0.01] * 40, [0.012] * 40))),
    "a saturated layer": (
        dead_units.find_saturated_units,
        record(STAYS, probes=[Probe(step, activations=(ActivationCall("a", "tanh", 0.9),)) for step in (0, 4, 9)]),
    ),
    "a cut": (autograd_graph.find_no_gradient, record(LEARNS, cut={"a": "detach"})),
    "kept gradients": (autograd_graph.find_kept_gradients, record(LEARNS, kept={0: (7, 7)})),
    "a parameter that is forgotten": (optimizers.find_not_in_optimizer, record(LEARNS, unowned={"a": 12})),
    "a layer in a list": (optimizers.find_not_in_optimizer, record(LEARNS, hidden=12)),
    "a parameter twice": (optimizers.find_in_two_optimizers, record(LEARNS, twice=["a"])),
    "weights that stay": (
        optimizers.find_unchanged_weights,
        record(LEARNS, has_gradient={"a"}, weights={step: {"a": (1.0, 0.5), "b": (step, 0.0)} for step in range(6)}),
    ),
    "a loss that jumped and stayed": (loss_spike.find_spike, record([*wave(1.0, 60), *wave(8.0, 30)])),
    "a loss that jumped beyond all before, for once": (
        loss_spike.find_spike, record([*wave(1.0, 60), 90.0, *wave(1.0, 40)]),
    ),
    "a validation of few batches that goes on rising": (
        overfitting.find_overfitting,
        record(LEARNS, validations=[
            Validated(40 * number, (loss, loss, 1.6 * loss, 0.5 * loss), loss, 1.0 / number)
            for number, loss in enumerate((1.0, 1.3, 1.6, 1.9, 2.2, 2.5), start=1)
        ]),
    ),
    "a warm-up that does not get anywhere": (
        optimizers.find_too_low_a_learning_rate,
        record(STAYS, groups=[Group(0, "optimizer 0", 1e-5, 1e-6, 1e-5, 1e-2, None)]),
    ),
    "a rising validation": (
        overfitting.find_overfitting,
        record(LEARNS, validations=[
            Validated(40 * number, tuple(wave(loss, 12)), loss, 1.0 / number)
            for number, loss in enumerate((1.0, 1.2, 1.4), start=1)
        ]),
    ),
    "a rising validation whose training loss fell late": (
        overfitting.find_overfitting,
        record(LEARNS, validations=[
            Validated(40 * number, tuple(wave(loss, 12)), loss, training)
            for number, (loss, training) in enumerate(((1.0, 0.9), (1.2, 1.1), (1.4, 1.5), (1.6, 0.3)), start=1)
        ]),
    ),
    "a NaN": (non_finite.find_non_finite, record(LEARNS, broken=Broken(3, 3, "output of log", "a", in_data=False))),
    "ranks that differ": (data.find_replicas_that_differ, record(LEARNS, replicas_differ=1e-3)),
    "unrelated targets": (
        progress.find_unrelated_targets,
        record(STAYS, related=False, comparisons=[
            Comparison(step, 0, STAYS[step], 1.4, STAYS[step] + 0.01 * (-1) ** step) for step in range(10, 40, 3)]),
    ),
}  # fmt: skip

SILENT: dict[str, tuple[Rule, Record]] = {
    "a warm-up from zero": (optimizers.find_zero_learning_rate, record(LEARNS[:15], groups=rate(0, 0, 0, 0))),
    "a schedule's last steps": (optimizers.find_zero_learning_rate, record(LEARNS, groups=rate(0, 0.1, 0.1, 112))),
    "large updates that learn": (optimizers.find_too_high_a_learning_rate, record(LEARNS, ratio=0.4)),
    "a rise that the input explains": (
        optimizers.find_too_high_a_learning_rate,
        record(fall(1.5, 9.0, 30), ratio=0.4, inputs=inputs(rms=200.0)),
    ),
    "small updates that learn": (optimizers.find_too_low_a_learning_rate, record(LEARNS, ratio=1e-6)),
    "small updates of a warm-up": (
        optimizers.find_too_low_a_learning_rate, record(STAYS[:25], ratio=1e-6, groups=rate(0.1, 0.0, 0.1)),
    ),
    "better than a constant": (progress.find_no_better_than_constant, record(LEARNS)),
    "a bit better, for sure": (progress.find_no_better_than_constant, record(wave(1.36, 120))),
    "on its way": (progress.find_no_better_than_constant, record(fall(9.0, 1.5, 90))),
    "one epoch": (progress.find_no_better_than_constant, record(STAYS[:45])),
    "two epochs of many": (progress.find_no_better_than_constant, record(STAYS[:90], planned=1000)),
    "a likelihood that is better, below zero": (
        progress.find_no_better_than_constant, record(fall(-2.0, -8.0, 120), constant=-5.0),
    ),
    "a network that was good already": (
        optimizers.find_too_low_a_learning_rate, record(wave(0.2, 120), ratio=1e-6, constant=1.4),
    ),
    "a loss far above a constant's that comes down": (
        optimizers.find_too_high_a_learning_rate, record(fall(9.0, 2.0, 60), ratio=0.4),
    ),
    "the same output from the first step": (
        optimizers.find_too_high_a_learning_rate, record(STAYS, ratio=0.4, probes=probes(8, spread=0.0)),
    ),
    "a group whose turn comes": (
        optimizers.find_zero_learning_rate,
        record(LEARNS[:60], groups=[*rate(0.0, 0.0, 0.0, 0), Group(0, "group 1", 0.1, 0.1, 0.1, 0.1, None)]),
    ),
    "a shrinking gradient that learns": (gradient_flow.find_vanishing, record(LEARNS, gradients=SHRINKS, **DEEP)),
    "a growing gradient that learns": (gradient_flow.find_exploding, record(LEARNS, gradients=GROWS, **DEEP)),
    "units that rest in few inputs": (
        dead_units.find_dead_units,
        record(LEARNS, places={"net.1": place(90, count=40)}),
    ),
    "units that few inputs let seem dead in a warm-up": (
        optimizers.find_too_high_a_learning_rate,
        record(STAYS, places={"net.1": place(60, born=5, count=100)}, groups=rate(0.1, 0.01, 0.1)),
    ),
    "some dead units": (dead_units.find_dead_units, record(LEARNS, places={"net.1": place(30, born=20)})),
    "units that get the same for all": (
        dead_units.find_dead_units,
        record(STAYS, places={"net.1": place(100)}, probes=[
            Probe(0, layers=(LayerCall("a", 0.0),))]),
    ),
    "logits": (outputs.find_loss_input_mismatch, record(LEARNS)),
    "logits that happen to lie between 0 and 1": (
        outputs.find_loss_input_mismatch,
        record(LEARNS, probes=probes(loss="binary_cross_entropy_with_logits", low=0.1, high=0.9, outputs=1)),
    ),
    "a target now and then out of reach": (
        outputs.find_unreachable_targets, record(LEARNS, probes=probes(made_by="relu", unreachable=0.01)),
    ),
    "outputs that differ": (outputs.find_output_that_ignores_input, record(STAYS, probes=probes(8))),
    "one class in a few samples": (data.find_degenerate_targets, record(LEARNS[:8], same_targets=64)),
    "classes that differ": (data.find_degenerate_targets, record(LEARNS, same_targets=None)),
    "a large input that does no harm": (
        data.find_badly_scaled_input, record(LEARNS, inputs=inputs(mean=100.0, rms=120.0, largest_scale=60.0)),
    ),
    "a large input into a norm": (
        data.find_badly_scaled_input, record(STAYS, inputs=inputs(rms=120.0, normalized=True)),
    ),
    "a pause now and then": (
        stragglers.find_slow_rank, record(LEARNS, own_times=times([*[0.01] * 30, *[0.3] * 10], [0.01] * 40)),
    ),
    "ranks that take turns": (
        stragglers.find_slow_rank, record(LEARNS, own_times=times([0.02, 0.01] * 20, [0.01, 0.02] * 20)),
    ),
    "a slow rank that costs little": (
        stragglers.find_slow_rank, record(LEARNS, own_times=times([0.0102] * 40, [0.01] * 40)),
    ),
    "a rank that is slower by next to nothing": (
        stragglers.find_slow_rank,
        record(LEARNS, own_times=OwnTimes(("a", "b"), ((0.0025,) * 40, (0.001,) * 40), step=0.004)),
    ),
    "a slow rank in few batches": (
        stragglers.find_slow_rank, record(LEARNS, own_times=times([0.02] * 20, [0.01] * 20)),
    ),
    "a rank that does not know": (stragglers.find_slow_rank, record(LEARNS, own_times=times([], []))),
    "a wait now and then": (data.find_starvation, record(LEARNS, waits=[*[(0.001, 0.01)] * 27, *[(0.3, 0.01)] * 3])),
    "a last sigmoid that is sure": (
        dead_units.find_saturated_units,
        record(LEARNS, probes=[
            Probe(step, activations=(ActivationCall("head", "sigmoid", 0.9),),
                  predictions=(facts(made_by="sigmoid"),)) for step in (0, 4, 9)]),
    ),
    "gradients that were kept once": (autograd_graph.find_kept_gradients, record(LEARNS, kept={0: (1, 7)})),
    "weights of two optimizers that take turns": (
        optimizers.find_unchanged_weights,
        record(LEARNS[:30], has_gradient={"a"}, weights={step: {"a": (1.0, 0.5)} for step in range(6)},
               groups=[*rate(0.1, 0.1, 0.1), Group(1, "optimizer 1", 0.1, 0.1, 0.1, 0.1, None)]),
    ),
    "a loss that jumped and came back": (loss_spike.find_spike, record([*wave(1.0, 60), 9.0, 8.0, *wave(1.0, 40)])),
    "a loss of next to nothing that jumps": (
        loss_spike.find_spike,
        record([*fall(1.5, 0.001, 60), *wave(1e-6, 60, size=1e-7), 1e-3, *wave(1e-6, 40, size=1e-7)]),
    ),
    "a validation that wavers": (
        overfitting.find_overfitting,
        record(LEARNS, validations=[
            Validated(40 * number, tuple(wave(loss, 12, size=0.4)), loss, 1.0 / number)
            for number, loss in enumerate((1.0, 1.01, 1.0), start=1)
        ]),
    ),
    "a training that falls with its validation": (
        overfitting.find_overfitting,
        record(LEARNS, validations=[
            Validated(40 * number, tuple(wave(loss, 12)), loss, loss) for number, loss in enumerate((1.0, 0.8, 0.6))]),
    ),
    "targets that the inputs tell of": (progress.find_unrelated_targets, record(STAYS, related=True)),
    "several losses": (progress.find_no_better_than_constant, record(STAYS, one_loss=False)),
}  # fmt: skip


RESTS = [*fall(1.5, 0.6, 40), *wave(0.6, 200)]
NO_PLATEAU: dict[str, Record] = {
    "it still falls": record(fall(1.5, 0.6, 240)),
    "it is as good as nothing": record([*fall(1.5, 0.05, 40), *wave(0.05, 200)]),
    "the rate has faded": record(RESTS, groups=rate(0.001, 0.1, 0.1)),
    "it never fell": record(wave(1.42, 240)),
    "it rests for a short time": record([*fall(1.5, 0.6, 100), *wave(0.6, 100)]),
    "it is early": record(RESTS[:60]),
}


def test_a_loss_at_rest_is_told_as_what_may_be_meant_so():
    (finding,) = plateau.find_plateau(record(RESTS))
    assert (finding.severity, finding.since_step) == (Severity.INFO, 60)
    assert finding.evidence == {
        "loss": pytest.approx(0.6), "loss_then": pytest.approx(0.6), "loss_of_the_best_constant": pytest.approx(1.4),
    }  # fmt: skip


@pytest.mark.parametrize("case", NO_PLATEAU)
def test_it_is_no_plateau(case: str):
    assert list(plateau.find_plateau(NO_PLATEAU[case])) == []


@pytest.mark.parametrize("case", SPEAKS)
def test_it_is_told(case: str):
    rule, known = SPEAKS[case]
    (finding,) = rule(known)
    assert finding.severity != Severity.INFO
    assert finding.evidence
    assert finding.advice


@pytest.mark.parametrize("case", SILENT)
def test_it_is_no_fault(case: str):
    rule, known = SILENT[case]
    assert [finding for finding in rule(known) if finding.severity != Severity.INFO] == []


@pytest.mark.parametrize(
    ("loader", "workers", "advice"),
    [
        ("DataLoader", 0, "DataLoader(num_workers=4, pin_memory=True, persistent_workers=True), or prepare"),
        ("DataLoader", 8, "increase num_workers above 8 if cores are idle, or prepare"),
        ("Stream", None, "prepare the data once and cache it: Stream is not a torch DataLoader"),
    ],
)
def test_the_advice_against_waiting_fits_the_loader(loader: str, workers: int | None, advice: str):
    (finding,) = data.find_starvation(record(LEARNS, waits=[(0.05, 0.01)] * 30, loader=loader, workers=workers))
    assert finding.where == loader
    assert finding.advice.startswith(advice)
