"""A search is compared with random search only if it differs from it and has enough random trials."""

from typing import Any

import pytest

from stormproof_train.search.results import estimate_random_search
from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import State, TrialRecord


def _records(complete: int, pruned: int = 0) -> list[TrialRecord]:
    states: list[State] = ["complete"] * complete + ["pruned"] * pruned
    return [
        TrialRecord(
            number, state, {}, [1.0 + number] if state == "complete" else None, {1 / 3: 2.0 + number},
            {"steps": 90 if state == "complete" else 30},
        )
        for number, state in enumerate(states)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "records"),
    [
        ({"sampler": "random"}, _records(4)),
        ({"sampler": "random"}, _records(40)),
        ({"sampler": "grid"}, _records(40)),
        ({"sampler": "tpe"}, _records(10)),
        ({"sampler": "random"}, _records(4, pruned=4)),
        ({"sampler": "tpe", "sampler_arguments": {"n_startup_trials": 5}}, _records(40)),
        ({"sampler": "tpe", "objectives": ["val/loss", "parameters"]}, _records(40)),
    ],
    ids=["four", "only random", "grid", "not yet learned", "few pruned", "few random", "two objectives"],
)
def test_some_searches_have_no_estimate_of_random_search(settings: dict[str, Any], records: list[TrialRecord]):
    assert estimate_random_search(records, Settings(**settings)) is None


@pytest.mark.parametrize(
    ("settings", "records", "pool"),
    [
        ({"sampler": "tpe"}, _records(40), 10),
        ({"sampler": "random"}, _records(10, pruned=20), 30),
        ({"sampler": "tpe"}, _records(5, pruned=20), 10),
    ],
    ids=["learned", "stopped early", "both"],
)
def test_a_search_that_learned_or_stopped_trials_early_is_compared(
    settings: dict[str, Any], records: list[TrialRecord], pool: int
):
    result = estimate_random_search(records, Settings(**settings))
    assert result is not None
    assert result["pool"] == pool
