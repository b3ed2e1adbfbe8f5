import math

import pytest

from stormproof.checkpoint.schedule import SaveSchedule, compute_optimal_interval

OUT_OF_RANGE = [
    ({"every_n_train_steps": 0}, "`every_n_train_steps` must be .* got 0"),
    ({"every_n_train_steps": -5}, "`every_n_train_steps` must be .* got -5"),
    ({"interval_minutes": 0.0}, "`train_time_interval` must be .* got 0.0"),
    ({"interval_minutes": -1.0}, "`train_time_interval` must be .* got -1.0"),
    ({"interval_minutes": float("nan")}, "`train_time_interval` must be .* got nan"),
    ({"keep_every_n_train_steps": 0}, "`keep_every_n_train_steps` must be .* got 0"),
    ({"max_overhead": 0.0}, "`max_overhead` must be .* got 0.0"),
    ({"max_overhead": 1.0}, "`max_overhead` must be .* got 1.0"),
    ({"max_overhead": float("nan")}, "`max_overhead` must be .* got nan"),
    ({"max_overhead": 0.01, "mean_hours_between_failures": 0.0}, "`mean_hours_between_failures` must be .* got 0.0"),
    (
        {"max_overhead": 0.01, "mean_hours_between_failures": float("inf")},
        "`mean_hours_between_failures` must be .* got inf",
    ),
    ({"mean_hours_between_failures": 10.0}, "requires `max_overhead`"),
    ({"max_overhead": 0.01, "every_n_train_steps": 5}, "Remove `every_n_train_steps` and `train_time_interval`"),
    (
        {"max_overhead": 0.01, "interval_minutes": 5.0},
        "Remove `every_n_train_steps` and `train_time_interval`",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), OUT_OF_RANGE)
def test_a_number_out_of_its_range_is_named(arguments: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        SaveSchedule(**arguments)


DUE = [
    # rule, last saved at, steps at which it is due, and is not
    ({"every_n_train_steps": 10}, 0, [10, 11, 25], [1, 9]),
    ({"every_n_train_steps": 10}, 9, [10, 19, 20], [9]),
    ({"every_n_train_steps": 10}, 10, [20, 21], [10, 11, 19]),
    ({"every_n_train_steps": 10}, 15, [20, 30], [16, 19]),
    ({"every_n_train_steps": 1}, 7, [8, 9], [7]),
    ({"keep_every_n_train_steps": 100}, 0, [100, 250], [50, 99]),
    ({"every_n_train_steps": 40, "keep_every_n_train_steps": 100}, 80, [100, 120], [99]),
    ({"interval_minutes": 1.0}, 0, [], [1, 1000, 10**9]),
]


@pytest.mark.parametrize(("rule", "last", "due", "not_due"), DUE)
def test_it_is_due_at_the_first_step_at_or_after_each_multiple(rule: dict, last: int, due: list, not_due: list):
    schedule = SaveSchedule(**rule)
    schedule.record_save(last, now=0.0)
    assert [step for step in sorted(due + not_due) if schedule.is_due_by_step(step)] == sorted(due)


@pytest.mark.parametrize(
    ("rule", "seconds"),
    [
        ({"interval_minutes": 2.0}, 120.0),
        ({}, 300.0),  # 5 minutes where no rule is given
        ({"keep_every_n_train_steps": 100}, 300.0),  # what is kept for ever is no rule for the others
        ({"every_n_train_steps": 50, "interval_minutes": 0.5}, 30.0),
    ],
)
def test_it_is_due_once_the_minutes_are_over(rule: dict, seconds: float):
    schedule = SaveSchedule(**rule)
    schedule.record_save(step=0, now=1000.0)
    assert not schedule.is_due_by_clock(1000.0 + seconds - 0.01)
    assert schedule.is_due_by_clock(1000.0 + seconds)
    schedule.record_save(step=3, now=1000.0 + seconds)
    assert not schedule.is_due_by_clock(1000.0 + seconds + 1)


def test_steps_alone_need_no_clock():
    schedule = SaveSchedule(every_n_train_steps=50)
    schedule.record_save(step=0, now=0.0)
    assert not schedule.is_due_by_clock(1e9)


def test_it_has_begun_with_the_first_save_and_not_after_a_restart():
    schedule = SaveSchedule(every_n_train_steps=50)
    assert not schedule.has_saved
    schedule.record_save(step=0, now=0.0)
    assert schedule.has_saved
    schedule.reset()
    assert not schedule.has_saved


@pytest.mark.parametrize(
    ("rule", "stall", "seconds"),
    [
        ({"max_overhead": 0.01}, 0.5, 50.0),
        ({"max_overhead": 0.1}, 0.5, 5.0),
        ({"max_overhead": 0.5, "mean_hours_between_failures": 24.0}, 10.0, compute_optimal_interval(10.0, 86400.0)),
        ({"max_overhead": 0.001, "mean_hours_between_failures": 24.0}, 10.0, 10000.0),
        ({"max_overhead": 0.01, "keep_every_n_train_steps": 100}, 0.5, 50.0),
    ],
)
def test_saving_takes_no_more_than_its_share_of_the_time(rule: dict, stall: float, seconds: float):
    schedule = SaveSchedule(**rule)
    schedule.record_save(step=0, now=1000.0, stall_seconds=stall)
    assert not schedule.is_due_by_clock(1000.0 + seconds - 0.01)
    assert schedule.is_due_by_clock(1000.0 + seconds + 0.01)


def test_the_interval_follows_the_last_stall():
    schedule = SaveSchedule(max_overhead=0.01)
    schedule.record_save(step=0, now=0.0, stall_seconds=10.0)
    assert not schedule.is_due_by_clock(999.0)
    schedule.record_save(step=1, now=1000.0, stall_seconds=0.1)
    assert schedule.is_due_by_clock(1010.5)


def lost_fraction(interval: float, stall: float, between_failures: float) -> float:
    """Time over useful time where failures are a Poisson process and each costs what was done since the last save."""
    return between_failures / interval * math.expm1((interval + stall) / between_failures)


@pytest.mark.parametrize(
    ("stall", "between_failures"), [(1.0, 3600.0), (10.0, 86400.0), (60.0, 3600.0), (300.0, 3600.0)]
)
def test_the_best_interval_loses_the_least_time(stall: float, between_failures: float):
    """Against the exact cost of Daly's model, by search; his formula is within a few percent of its minimum."""
    best = compute_optimal_interval(stall, between_failures)
    grid = [between_failures * 10 ** (exponent / 200) for exponent in range(-800, 200)]
    least = min(grid, key=lambda interval: lost_fraction(interval, stall, between_failures))
    assert best == pytest.approx(least, rel=0.03)
    assert lost_fraction(best, stall, between_failures) == pytest.approx(
        lost_fraction(least, stall, between_failures), rel=1e-3
    )


def test_where_saving_takes_longer_than_a_failure_takes_to_come_the_interval_is_the_mean_between_them():
    assert compute_optimal_interval(stall_seconds=100.0, mean_seconds_between_failures=40.0) == 40.0
    assert compute_optimal_interval(stall_seconds=100.0, mean_seconds_between_failures=None) == 0.0
