"""Whether a trial goes on: what is answered to a run that asks."""

import math
from typing import Any

import pytest

from stormproof_train.search.pruner import CONTINUE, TrialPruner, increase_limits
from stormproof_train.search.settings import DEFAULT_TRIALS, Settings
from stormproof_train.search.trials import PAUSED, TrialStore
from tests.stormproof_train.search.trial_storage import in_memory_trials, unlocked_folder

LENGTH = 100
HALVES = {"pruner": "asha", "reduction": 2, "rungs": 2}
"""Rungs at a quarter and at half of a run's length."""


class PrunerSimulation:
    """A search whose runs ask, step by step."""

    def __init__(self, **settings: Any) -> None:
        self.trials: TrialStore = in_memory_trials(**settings)
        self.trials.set_shared("limits", increase_limits(None, Settings(**settings), DEFAULT_TRIALS))
        self.judge = TrialPruner(Settings(**settings), self.trials, unlocked_folder())

    def begin(self, number: int, length: float = LENGTH, **sizes: float) -> dict[str, Any]:
        while len(self.trials.records()) <= number:
            self.trials.ask()
        sizes = {"parameters": 50, **sizes}
        message = {"kind": "begin", "length": length, "sizes": sizes, "step": 0, "gpus": 0, "samples": None}
        return self.judge.handle_message(number, message)

    def validated(self, number: int, step: int, value: float, critical: tuple[str, ...] = ()) -> dict[str, Any]:
        message = {"kind": "validated", "step": step, "values": {"val/loss": value}, "critical": list(critical)}
        return self.judge.handle_message(number, message)

    def promoted(self, number: int, passed: int) -> None:
        """As a worker does it."""
        self.trials.note(number, passed=passed, **{PAUSED: False, "reason": None})


def test_a_run_that_begins_goes_on_and_its_size_is_written_down():
    search = PrunerSimulation()
    assert search.begin(0, latency=0.5) == CONTINUE
    assert search.trials.record(0).notes["measured"] == {"parameters": 50, "latency": 0.5}
    assert search.trials.record(0).notes["length"] == LENGTH


def test_a_network_that_misses_a_constraint_is_not_trained():
    search = PrunerSimulation(constraints=["parameters<=49", "val/accuracy>=0.5"])
    assert search.begin(0) == {"verdict": "prune", "reason": "parameters<=49 is violated: it is 50"}
    assert search.trials.record(0).state == "running"  # until its run has left
    assert search.trials.record(0).notes["reason"] == "parameters<=49 is violated: it is 50"


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_rungs_want_a_run_with_an_end(pruner: str):
    answer = PrunerSimulation(pruner=pruner).begin(0, length=math.inf)
    assert answer["reason"] == f"search.pruner={pruner} needs runs of finite length: set trainer.max_epochs"


def test_without_rungs_a_run_may_be_endless():
    search = PrunerSimulation(pruner="none")
    assert search.begin(0, length=math.inf) == CONTINUE
    assert search.validated(0, 10, 0.5) == CONTINUE


def test_what_is_critical_ends_a_trial_with_its_reason():
    search = PrunerSimulation(pruner="none")
    search.begin(0)
    answer = search.validated(0, 10, 0.5, critical=("no better than a constant", "all units dead"))
    assert answer == {"verdict": "prune", "reason": "critical: no better than a constant, all units dead"}
    record = search.trials.record(0)
    assert (record.state, record.notes["reason"]) == ("running", answer["reason"])
    assert record.notes["steps"] == 10


def test_at_a_rung_the_first_waits_the_better_goes_on_and_the_worse_waits():
    search = PrunerSimulation(**HALVES)
    for number, loss in enumerate((0.5, 0.4, 0.6)):
        search.begin(number)
        assert search.validated(number, 20, loss) == CONTINUE
    waits = {"verdict": "pause", "reason": "paused at rung 1 of 2"}
    assert search.validated(0, 25, 0.5) == waits
    assert search.validated(1, 25, 0.4) == CONTINUE
    assert search.validated(2, 25, 0.6) == waits
    assert [trial.state for trial in search.trials.records()] == ["paused", "running", "paused"]
    assert search.validated(1, 50, 0.3)["reason"] == "paused at rung 2 of 2"


def test_who_was_promoted_is_not_stopped_at_the_same_rung_again():
    search = PrunerSimulation(**HALVES)
    search.begin(0)
    assert search.validated(0, 25, 0.5)["verdict"] == "pause"
    search.promoted(0, passed=1)
    search.begin(0)
    assert search.validated(0, 25, 0.5) == CONTINUE
    assert search.validated(0, 30, 0.5) == CONTINUE
    assert search.validated(0, 50, 0.4)["reason"] == "paused at rung 2 of 2"


def test_a_run_that_was_killed_at_a_rung_is_stopped_there_again():
    search = PrunerSimulation(**HALVES)
    search.begin(0)
    assert search.validated(0, 25, 0.5)["verdict"] == "pause"
    search.trials.note(0, **{PAUSED: False})  # the kill came before that was written
    assert search.validated(0, 25, 0.5)["reason"] == "paused at rung 1 of 2"


def test_the_end_of_a_run_is_no_rung():
    search = PrunerSimulation(**HALVES)
    search.begin(0)
    search.promoted(0, passed=2)
    assert search.validated(0, LENGTH, 9.0) == CONTINUE
    assert search.trials.record(0).state == "running"


def test_a_loss_that_is_not_finite_waits_for_ever():
    search = PrunerSimulation(**HALVES)
    for number in range(4):
        search.begin(number)
        assert search.validated(number, 25, math.nan)["verdict"] == "pause"
    assert (
        search.judge.rungs.find_promotable(
            search.judge.trial_statuses(search.trials.records()), promote_at_least_one=True
        )
        == []
    )


def test_a_trial_that_failed_says_nothing_of_the_others():
    search = PrunerSimulation(**HALVES)
    for number, loss in enumerate((0.1, 0.5)):
        search.begin(number)
        search.validated(number, 25, loss)
    search.promoted(0, passed=0)
    search.trials.finish(0, "failed")
    assert [standing.number for standing in search.judge.trial_statuses(search.trials.records())] == [1]


def test_behind_the_median_of_the_complete_ones_a_trial_ends():
    search = PrunerSimulation(pruner="median")
    for number in range(5):
        search.begin(number)
        assert search.validated(number, 50, number / 10) == CONTINUE
        search.trials.finish(number, "complete", [number / 10])
    search.begin(5)
    assert search.validated(5, 50, 0.3) == {"verdict": "prune", "reason": "worse than the median at 50% of its length"}
    search.begin(6)
    assert search.validated(6, 50, 0.1) == CONTINUE


def test_a_budget_that_is_used_up_pauses_what_runs_but_not_at_its_end():
    search = PrunerSimulation(pruner="none", max_steps=120)
    for number in (0, 1):
        search.begin(number)
    assert search.validated(0, LENGTH, 0.5) == CONTINUE
    search.judge = TrialPruner(
        Settings(pruner="none", max_steps=120), search.trials, unlocked_folder()
    )  # of another worker
    search.begin(1)
    assert search.validated(1, 20, 0.5) == {"verdict": "pause", "reason": "search.max_steps=120 is reached"}
    assert search.judge.find_exhausted_limit(search.trials.records()) == "search.max_steps=120 is reached"


@pytest.mark.parametrize(
    ("settings", "notes", "spent"),
    [
        ({"max_gpu_hours": 1.0}, {"gpu_seconds": 3601.0}, "search.max_gpu_hours=1 is reached"),
        ({"max_gpu_hours": 1.0}, {"gpu_seconds": 3599.0}, None),
        ({"max_hours": 1.0}, {}, "search.max_hours=1 is reached"),
        ({"max_hours": 3.0}, {}, None),
        ({}, {"gpu_seconds": 1e9, "steps": 10**9}, None),
    ],
)
def test_a_budget_is_of_all_trials(settings: dict[str, Any], notes: dict[str, Any], spent: str | None):
    search = PrunerSimulation(**settings)
    search.begin(0)
    search.trials.note(0, **notes)
    search.trials.set_shared("began", 1.0 if spent else math.inf)
    assert search.judge.find_exhausted_limit(search.trials.records()) == spent


def test_of_several_objectives_no_value_on_the_way_is_kept():
    search = PrunerSimulation(objectives=["val/loss", "parameters"])
    search.begin(0)
    assert search.validated(0, 50, 0.5) == CONTINUE
    assert search.trials.record(0).curve == {}
