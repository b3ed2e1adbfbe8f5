"""Optuna's samplers: what each proposes, and that it is the same from the same trials."""

import random
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from stormproof_train.errors import UserError
from stormproof_train.search.samplers import check_sampler, count_random_trials, create_sampler
from stormproof_train.search.settings import SamplerName, Settings
from stormproof_train.search.trials import TrialStore
from tests.stormproof_train.search.trial_storage import SPACE, in_memory_trials, proposed_params, stored_trials

FEW = {"tpe": {"n_startup_trials": 3}, "gp": {"n_startup_trials": 3}, "cmaes": {"n_startup_trials": 3}}
"""Draws at random for so few only, so that the others are proposed from what the trials have come to."""
NAMES = [name for name in get_args(SamplerName) if name != "grid"]


def run_search(name: Any, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Parameters of the first trials, of which each comes to a value that depends on them."""
    trials = in_memory_trials(sampler=name, seed=seed, sampler_arguments=FEW.get(name))
    return [_asked_and_told(trials) for _ in range(count)]


def _asked_and_told(trials: TrialStore) -> dict[str, Any]:
    record = trials.ask()
    trials.finish(record.number, "complete", [abs(record.params["optimizer.lr"] - 0.01)])
    return proposed_params(record)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_proposes_what_is_in_the_space_and_the_same_from_the_same_seed_and_trials(name: str):
    proposals = run_search(name, 7)
    assert {params["activation"] for params in proposals} <= {"relu", "elu"}
    assert all(1e-4 <= params["optimizer.lr"] <= 1e-1 for params in proposals)
    assert all(("activation.alpha" in params) is (params["activation"] == "elu") for params in proposals)
    assert all(0.5 <= params.get("activation.alpha", 1.0) <= 2.0 for params in proposals)
    assert len({params["optimizer.lr"] for params in proposals}) == 7
    random.seed(1)  # nothing of this process matters
    np.random.seed(1)  # noqa: NPY002 (that of Optuna, were there one)
    assert run_search(name, 6) == proposals[:6]
    assert run_search(name, 2, seed=1) != proposals[:2]


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "tpe"])
def test_several_objectives_are_searched_at_once(name: Any):
    trials = in_memory_trials(sampler=name, objectives=["val/loss", "parameters"])
    for _ in range(4):
        record = trials.ask()
        trials.finish(record.number, "complete", [record.params["optimizer.lr"], -record.params["optimizer.lr"]])
    assert trials.pareto_front() == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_sampler_learns_which_trials_keep_to_the_constraints():
    """Small rates are better and forbidden; the next ones are among those that are allowed."""
    trials = in_memory_trials(constraints="parameters<=0", sampler_arguments={"n_startup_trials": 16})
    for _ in range(24):
        record = trials.ask()
        trials.note(record.number, measured={"parameters": 0.01 - record.params["optimizer.lr"]})
        trials.finish(record.number, "complete", [record.params["optimizer.lr"]])
    forbidden = [record.params["optimizer.lr"] < 0.01 for record in trials.records()]
    assert sum(forbidden[:16]) > 6
    assert sum(forbidden[16:]) <= 3  # of 8, where all that counts for is small


def test_a_grid_takes_every_combination_once_in_order():
    combinations = [{"activation": "relu", "optimizer.lr": 0.01}, {"activation": "relu", "optimizer.lr": 0.02}]
    trials = in_memory_trials(sampler="grid")
    for combination in combinations:
        trials.enqueue(combination)
    assert [proposed_params(trials.ask()) for _ in combinations] == combinations
    assert [combination.state for combination in trials.records()] == ["running", "running"]


def test_an_argument_that_the_sampler_does_not_take_is_one_sentence():
    settings = Settings(sampler_arguments={"n_startup_trails": 3})
    with pytest.raises(UserError, match=r"^search\.sampler_arguments.* did you mean n_startup_trials\?"):
        create_sampler(settings, 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(sampler="random"), None),
        (Settings(sampler="qmc"), None),
        (Settings(), 10),
        (Settings(sampler_arguments={"n_startup_trials": 4}), 4),
        (Settings(sampler="nsga2"), 50),
        (Settings(sampler="cmaes"), 1),
    ],
    ids=lambda value: getattr(value, "sampler", str(value)),
)
def test_it_is_known_how_many_trials_were_drawn_at_random(settings: Settings, expected: int | None):
    assert count_random_trials(settings) == expected


@pytest.mark.slow
def test_what_is_proposed_does_not_depend_on_who_proposed_the_ones_before(tmp_path: Path):
    arguments = {"sampler_arguments": FEW["tpe"]}
    in_turn = [_asked_and_told(stored_trials(tmp_path, **arguments)) for _ in range(6)]
    assert in_turn == run_search("tpe", 6)


def test_an_argument_that_a_sampler_cannot_work_with_is_one_sentence():
    check_sampler(Settings(sampler_arguments={"n_startup_trials": 3}), SPACE)
    with pytest.raises(UserError, match=r"^search\.sampler_arguments=\{'n_startup_trials': 'x'\}: "):
        check_sampler(Settings(sampler_arguments={"n_startup_trials": "x"}), SPACE)
