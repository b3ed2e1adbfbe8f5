import pytest

from stormproof.cadence import Cadence

OUT_OF_RANGE = [
    ({"every_n_steps": 0}, "every_n_steps is 0"),
    ({"every_n_steps": -5}, "every_n_steps is -5"),
    ({"every_n_minutes": 0.0}, "every_n_minutes is 0.0"),
    ({"every_n_minutes": -1.0}, "every_n_minutes is -1.0"),
    ({"every_n_minutes": float("nan")}, "every_n_minutes is nan"),
    ({"keep_every_n_steps": 0}, "keep_every_n_steps is 0"),
]


@pytest.mark.parametrize(("arguments", "sentence"), OUT_OF_RANGE)
def test_a_number_out_of_its_range_is_named(arguments: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        Cadence(**arguments)


DUE = [
    # rule, last saved at, steps at which it is due, and is not
    ({"every_n_steps": 10}, 0, [10, 11, 25], [1, 9]),
    ({"every_n_steps": 10}, 9, [10, 19, 20], [9]),
    ({"every_n_steps": 10}, 10, [20, 21], [10, 11, 19]),
    ({"every_n_steps": 10}, 15, [20, 30], [16, 19]),
    ({"every_n_steps": 1}, 7, [8, 9], [7]),
    ({"keep_every_n_steps": 100}, 0, [100, 250], [50, 99]),
    ({"every_n_steps": 40, "keep_every_n_steps": 100}, 80, [100, 120], [99]),
    ({"every_n_minutes": 1.0}, 0, [], [1, 1000, 10**9]),
]


@pytest.mark.parametrize(("rule", "last", "due", "not_due"), DUE)
def test_it_is_due_at_the_first_step_at_or_after_each_multiple(rule: dict, last: int, due: list, not_due: list):
    cadence = Cadence(**rule)
    cadence.done(last, now=0.0)
    assert [step for step in sorted(due + not_due) if cadence.is_due_by_step(step)] == sorted(due)


@pytest.mark.parametrize(
    ("rule", "has_clock", "seconds"),
    [
        ({"every_n_minutes": 2.0}, True, 120.0),
        ({}, True, 300.0),  # 5 minutes where no rule is given
        ({"keep_every_n_steps": 100}, True, 300.0),  # what is kept for ever is no rule for the others
        ({"every_n_steps": 50, "every_n_minutes": 0.5}, True, 30.0),
    ],
)
def test_it_is_due_once_the_minutes_are_over(rule: dict, has_clock: bool, seconds: float):
    cadence = Cadence(**rule)
    cadence.done(step=0, now=1000.0)
    assert cadence.has_clock is has_clock
    assert not cadence.is_due_by_clock(1000.0 + seconds - 0.01)
    assert cadence.is_due_by_clock(1000.0 + seconds)
    cadence.done(step=3, now=1000.0 + seconds)
    assert not cadence.is_due_by_clock(1000.0 + seconds + 1)


def test_steps_alone_need_no_clock():
    cadence = Cadence(every_n_steps=50)
    cadence.done(step=0, now=0.0)
    assert not cadence.has_clock
    assert not cadence.is_due_by_clock(1e9)


def test_it_has_begun_with_the_first_save_and_not_after_a_restart():
    cadence = Cadence(every_n_steps=50)
    assert not cadence.begun
    cadence.done(step=0, now=0.0)
    assert cadence.begun
    cadence.restart()
    assert not cadence.begun
