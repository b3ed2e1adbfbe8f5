"""Steps that are measured, and the share of the time that a budget allows."""

import pytest

from stormproof import DeadNeuronDetector, GradientNormMonitor, TrainingHealth
from stormproof.probe.budget import FIRST_STEPS, INTERVALS, Budget, Cadence


def _due_steps(cadence: Cadence, steps: int) -> list[int]:
    return [step for step in range(steps) if cadence.is_due(step, step - 1)]


def _train(budget: Budget, costs: dict[str, float], steps: int = 20, step_seconds: float = 0.01) -> None:
    for _ in range(steps):
        for name, cost in costs.items():
            budget.cadences[name].step_cost += cost
        budget.end_step(step_seconds + sum(costs.values()))


def test_a_fixed_interval_measures_the_first_step_and_each_multiple():
    assert _due_steps(Cadence(10), 31) == [0, 9, 19, 29]


def test_a_budget_measures_all_first_steps():
    assert _due_steps(Cadence(None), 41) == [*range(FIRST_STEPS), 29, 39]


def test_steps_that_were_skipped_do_not_hide_a_due_one():
    assert [step for step in (0, 3, 6, 9, 12) if Cadence(5).is_due(step, step - 3)] == [0, 6, 9]


def test_extra_steps_are_measured_after_a_suspicion_and_repaid_later():
    cadence = Cadence(None)
    cadence.interval = 50
    due = []
    for step in range(500):  # the regular steps 149, 249, 349, 449 and 549 are left out
        if step in {10, 110, 115, 200}:
            # no effect in the first steps, and until the extra steps after step 109 are offset
            cadence.request_extra_steps()
        due += [step] if cadence.is_due(step, step - 1) else []
    assert due[FIRST_STEPS:] == [
        49, 99, 110, 111, 114, 119, 129, 199, 299, 399, 499,
    ]  # fmt: skip


def test_extra_steps_are_offset_within_ten_intervals():
    cadence, due = Cadence(None, default_interval=50), 0
    for step in range(2099):
        if step == 100:
            cadence.request_extra_steps()
        due += cadence.is_due(step, step - 1)
    assert due == FIRST_STEPS + 41


def test_each_optimizer_has_its_own_extra_steps():
    cadence, due = Cadence(None, default_interval=50), []
    for step in range(600):
        if step == 305:
            cadence.request_extra_steps()
        cadence.is_due(step, step - 1, 0)
        if step % 10 == 0 and cadence.is_due(step // 10, step // 10 - 1, 1):
            due.append(step // 10)
    assert due[FIRST_STEPS:] == [31, 32, 35, 40, 50]


def test_extra_steps_are_not_missed_if_a_batch_takes_several():
    cadence = Cadence(None, default_interval=50)
    for step in range(0, 60, 3):
        cadence.is_due(step, step - 3)
    cadence.request_extra_steps()
    assert [step for step in range(60, 90, 3) if cadence.is_due(step, step - 3)] == [60, 63, 69, 78]


@pytest.mark.parametrize(("every_n_steps", "interval"), [(50, 50), (None, 10)])
def test_a_fixed_or_a_short_interval_has_no_extra_steps(every_n_steps: int | None, interval: int):
    cadence = Cadence(every_n_steps, default_interval=interval)
    _due_steps(cadence, 101)
    cadence.request_extra_steps()
    due_steps = [step for step in range(101, 151) if cadence.is_due(step, step - 1)]
    assert due_steps == [step for step in range(101, 151) if (step + 1) % interval == 0]


@pytest.mark.parametrize(
    ("cost", "interval"), [(0.00005, 1), (0.00011, 2), (0.00099, 10), (0.0021, 50), (0.09, 1000), (10.0, 1000)]
)
def test_the_interval_is_the_smallest_that_keeps_the_budget(cost: float, interval: int):
    budget = Budget()
    budget.add("gradients", Cadence(None), 0.01)
    _train(budget, {"gradients": cost})
    assert budget.choose_intervals() == [interval]


def test_several_quantities_share_the_smallest_budget():
    budget = Budget()
    budget.add("gradients", Cadence(None), 0.02)
    budget.add("units", Cadence(None), 0.01)
    budget.add("traces", Cadence(None), None)
    _train(budget, {"gradients": 0.0006, "units": 0.00013})
    assert budget.fraction == 0.01
    assert budget.choose_intervals() == [20, 5, 10]


def test_one_callback_sets_the_budget_of_all():
    budget = Budget()
    assert budget.fraction == 0.01
    budget.add("gradients", Cadence(None), 0.05)
    budget.add("units", Cadence(None), None)
    assert budget.fraction == 0.05


def test_a_fixed_interval_is_not_part_of_the_budget():
    budget = Budget()
    fixed = budget.add("units", Cadence(10), None)
    assert (fixed.interval, budget.cadences, budget.fraction) == (10, {}, 0.01)


def test_a_callback_with_a_fixed_interval_can_set_the_budget_of_the_others():
    budget = Budget()
    budget.add("gradients", Cadence(10), 0.05)
    assert budget.fraction == 0.05


def test_two_callbacks_of_the_same_kind_have_their_own_intervals():
    budget = Budget()
    for _ in range(2):
        budget.add("gradients", Cadence(None), None)
    assert [*budget.cadences] == ["gradients", "gradients_1"]


def test_the_cost_of_a_quantity_that_slows_the_step_is_the_difference_to_other_steps():
    budget = Budget()
    cadence = budget.add("traces", Cadence(None), 0.01)
    _train(budget, {})
    cadence.slows_step = True
    budget.end_step(0.014)
    assert cadence.cost == pytest.approx(0.004)
    assert budget.choose_intervals() == [50]
    assert budget.overhead == pytest.approx(0.004 / (20 * 0.01 + 0.014))


def test_a_single_slow_step_does_not_change_the_interval():
    budget = Budget()
    budget.add("gradients", Cadence(None), 0.01)
    _train(budget, {"gradients": 0.00099}, steps=10)
    _train(budget, {"gradients": 0.5}, steps=1, step_seconds=60.0)
    _train(budget, {"gradients": 0.00099}, steps=10)
    assert budget.choose_intervals() == [10]


def test_an_unknown_cost_keeps_the_interval():
    budget = Budget()
    budget.add("units", Cadence(None, default_interval=10), 0.01)
    assert budget.choose_intervals() == [10]
    _train(budget, {})
    assert budget.choose_intervals() == [10]
    assert 10 in INTERVALS


@pytest.mark.parametrize("callback", [GradientNormMonitor, DeadNeuronDetector, TrainingHealth])
@pytest.mark.parametrize("budget", [0.0, -0.01, 1.5, float("nan")])
def test_a_budget_out_of_range_is_refused(callback: type, budget: float):
    with pytest.raises(ValueError, match=f"`budget` must be above 0 and at most 1 or None, got {budget}"):
        callback(budget=budget)
