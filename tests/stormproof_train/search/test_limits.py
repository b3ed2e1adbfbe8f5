"""How long a search goes on, and that its workers do not end each other's work."""

from stormproof_train.search.pruner import describe_exhausted_limit, increase_limits
from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import TrialRecord


def test_a_limit_only_grows():
    first = increase_limits(None, Settings(trials=10, max_steps=900, max_hours=2.0), 50)
    assert first == {"trials": 10, "max_steps": 900, "max_hours": 2.0, "max_gpu_hours": None}
    assert increase_limits(first, Settings(trials=5, max_steps=100, max_hours=1.0), 50) == first
    assert increase_limits(first, Settings(trials=20, max_hours=3.0), 50) == {
        "trials": 20, "max_steps": None, "max_hours": 3.0, "max_gpu_hours": None,
    }  # fmt: skip


def test_a_search_that_is_told_no_number_takes_what_it_is_for():
    assert increase_limits(None, Settings(), 12)["trials"] == 12


def test_a_budget_is_used_up_by_all_trials_together():
    records = [
        TrialRecord(number, "complete", {}, [0.1], {}, {"steps": 40, "gpu_seconds": 1800.0}) for number in range(3)
    ]
    limits = increase_limits(None, Settings(max_steps=121, max_gpu_hours=2.0, max_hours=1.0), 50)
    assert describe_exhausted_limit(limits, records, hours=0.9) is None
    assert describe_exhausted_limit(limits, records, hours=1.0) == "search.max_hours=1 is reached"
    assert (
        describe_exhausted_limit({**limits, "max_steps": 120}, records, hours=0.0) == "search.max_steps=120 is reached"
    )
    assert (
        describe_exhausted_limit({**limits, "max_gpu_hours": 1.5}, records, hours=0.0)
        == "search.max_gpu_hours=1.5 is reached"
    )
