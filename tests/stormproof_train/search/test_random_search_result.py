"""A search is compared with random search only if it differs from it and has enough random trials."""

from typing import Any

import pytest

from stormproof_train.search.results import random_search_result
from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import Record, State


def _records(complete: int, pruned: int = 0) -> list[Record]:
    states: list[State] = ["complete"] * complete + ["pruned"] * pruned
    return [
        Record(
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
def test_some_searches_have_no_estimate_of_random_search(settings: dict[str, Any], records: list[Record]):
    assert random_search_result(records, Settings(**settings)) is None


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
    settings: dict[str, Any], records: list[Record], pool: int
):
    found = random_search_result(records, Settings(**settings))
    assert found is not None
    assert found["pool"] == pool
