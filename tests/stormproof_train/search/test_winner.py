"""Which trial wins."""

from typing import Any

from stormproof_train.search.results import is_feasible, select_winner
from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import TrialRecord


def record(number: int, *values: float, state: Any = "complete", **measured: float) -> TrialRecord:
    named = {name.replace("_", "/"): value for name, value in measured.items()}
    return TrialRecord(number, state, {}, values or None, {}, {"measured": named})


def test_the_smallest_loss_wins_and_of_two_alike_the_earlier():
    records = [record(0, 0.3), record(1, 0.1), record(2, 0.1), record(3, state="pruned"), record(4, state="failed")]
    assert select_winner(records, Settings(), []) is records[1]


def test_the_largest_accuracy_wins():
    records = [record(0, 0.3), record(1, 0.9)]
    assert select_winner(records, Settings(objectives="val/accuracy"), []) is records[1]


def test_nobody_wins_where_nobody_came_to_the_end_or_keeps_to_the_constraints():
    settings = Settings(constraints=["parameters<=100", "val/accuracy>=0.5"])
    assert select_winner([record(0, state="pruned")], Settings(), []) is None
    assert select_winner([record(0, 0.1, parameters=101, val_accuracy=0.9)], settings, []) is None


def test_a_worse_one_that_keeps_to_the_constraints_wins():
    settings = Settings(constraints="parameters<=100")
    records = [record(0, 0.1, parameters=101), record(1, 0.5, parameters=100), record(2, 0.2)]
    assert select_winner(records, settings, []) is records[1]
    assert [is_feasible(trial_record, settings) for trial_record in records] == [False, True, False]


def test_of_several_objectives_the_best_of_the_front_by_the_first_wins():
    records = [record(0, 0.1, 50.0), record(1, 0.3, 10.0), record(2, 0.05, 60.0)]
    assert select_winner(records, Settings(objectives=["val/loss", "parameters"]), [0, 1]) is records[0]
