"""What a search wants, and what a trial has to keep to."""

import math

import pytest

from stormproof_train.search.objectives import Objective, read_constraint, read_objective
from stormproof_train.search.settings import Settings

REFUSED = {
    "objectives=train/loss": {"objectives": "train/loss"},
    "objectives=val/beauty": {"objectives": "val/beauty"},
    "write parameters<=100000": {"constraints": "parameters<100"},
    "1e5e is no number": {"constraints": "parameters<=1e5e"},
    "objectives=size": {"constraints": "size<=3"},
    "there are several: pruner=none": {"objectives": ["val/loss", "parameters"], "pruner": "asha"},
    "final_seeds=1: one seed shows no difference": {"final_seeds": 1},
    "trials=0 should be a whole number from 1": {"trials": 0},
    "reduction=1 should be a whole number from 2": {"reduction": 1},
    "workers=True should be": {"workers": True},
    "max_hours=-1 should be above 0": {"max_hours": -1},
    "max_gpu_hours=nan should be above 0": {"max_gpu_hours": math.nan},
    "cannot be a folder's name": {"name": "a/b"},
}


@pytest.mark.parametrize(
    ("name", "higher"),
    [("val/loss", False), ("val/accuracy", True), ("val/rmse", False), ("parameters", False), ("latency", False)],
)
def test_an_objective_knows_which_way_is_better(name: str, higher: bool):
    assert read_objective(name) == Objective(name, higher)


def test_as_a_loss_the_lower_is_the_better_and_what_is_not_finite_the_worst():
    accuracy, loss = read_objective("val/accuracy"), read_objective("val/loss")
    assert accuracy.as_loss(0.9) < accuracy.as_loss(0.8)
    assert loss.as_loss(0.1) < loss.as_loss(0.2)
    assert all(
        objective.as_loss(value) == math.inf
        for objective in (accuracy, loss)
        for value in (math.nan, math.inf, -math.inf)
    )


@pytest.mark.parametrize(
    ("text", "value", "violation"),
    [("parameters<=100", 150.0, 50.0), ("parameters <= 1e2", 100.0, 0.0), ("val/accuracy>=0.9", 0.8, 0.1)],
)
def test_a_constraint_says_by_how_much_it_is_missed(text: str, value: float, violation: float):
    constraint = read_constraint(text)
    assert constraint.violation({constraint.name: value}) == pytest.approx(violation)


def test_what_was_not_measured_is_named_with_what_was():
    with pytest.raises(ValueError, match=r"val/f1 is not among what was measured \(parameters, val/loss\)"):
        read_objective("val/f1").get_value({"val/loss": 1.0, "parameters": 3})


@pytest.mark.parametrize(("told", "settings"), REFUSED.items(), ids=REFUSED)
def test_a_setting_that_cannot_be_meant_is_refused(told: str, settings: dict):
    with pytest.raises(ValueError, match=r"\w") as error:
        Settings(**settings)
    assert told in str(error.value)


def test_one_objective_stops_early_and_several_do_not():
    assert Settings().effective_pruner == "asha"
    assert Settings(objectives=["val/loss", "parameters"]).effective_pruner == "none"


def test_how_long_and_by_how_many_a_search_works_makes_no_other_one_of_it():
    same_settings = Settings(
        trials=7, workers=3, max_steps=9, max_hours=1.0, final_seeds=2, name="n", folder="f", storage="s"
    )
    assert same_settings.result_settings() == Settings().result_settings()
    assert Settings(seed=1).result_settings() != Settings().result_settings()
