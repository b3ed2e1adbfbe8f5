from itertools import pairwise
from statistics import fmean

import pytest

from stormproof.preemption import SyncSchedule


def synced_steps(paces: list[float]) -> list[int]:
    """Where ranks meet whose k-th step, or what is counted as one, takes ``paces[k]`` seconds."""
    schedule, steps, last = SyncSchedule(), [], 0
    for step in range(1, len(paces) + 1):
        if schedule.is_due(step):
            schedule.record_sync(step, fmean(paces[last:step]))
            steps.append(step)
            last = step
    return steps


@pytest.mark.parametrize(("seconds", "between"), [(0.001, 50), (0.02, 50), (0.1, 10), (0.4, 2), (3.0, 1), (0.0, 50)])
def test_ranks_meet_about_once_a_second_and_at_each_step_that_is_longer(seconds: float, between: int):
    places = synced_steps([seconds] * 300)
    assert places[:2] == [1, 2 if seconds > 1 else 3]
    assert {later - before for before, later in pairwise(places[5:])} == {between}


@pytest.mark.parametrize("slow", [0.3, 3.0, 30.0])
def test_what_was_no_step_lets_no_more_than_two_slow_ones_pass(slow: float):
    assert synced_steps([0.001, *[slow] * 9])[:2] == [1, 3]


def test_from_a_beginning_on_they_meet_at_the_first_step():
    meetings = SyncSchedule()
    meetings.record_sync(40, 0.001)
    assert not meetings.is_due(41)
    meetings.reset()
    assert meetings.is_due(1)
    meetings.record_sync(1, 0.001)
    assert [step for step in range(2, 5) if meetings.is_due(step)] == [3, 4]
