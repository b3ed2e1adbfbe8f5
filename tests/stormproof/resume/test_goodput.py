import pytest

from stormproof.resume.goodput import Goodput


def test_before_training_begins_nothing_counts():
    assert Goodput(now=0.0).ratio(now=50.0) == 0.0


def test_what_lies_before_the_first_step_is_lost():
    time = Goodput(now=0.0)
    time.start(now=25.0)
    assert time.ratio(now=100.0) == 0.75


def test_a_clock_that_stands_still_is_no_error():
    time = Goodput(now=5.0)
    time.start(now=5.0)
    assert time.ratio(now=5.0) == 0.0


def test_each_attempt_loses_what_it_did_after_its_last_checkpoint():
    first = Goodput(now=0.0)
    first.start(now=10.0)
    second = Goodput(now=100.0)  # the first was killed, its last checkpoint is of 60
    second.load_state_dict(first.state_dict(now=60.0))
    assert second.ratio(now=100.0) == 0.5
    second.start(now=110.0)
    third = Goodput(now=200.0)
    third.load_state_dict(second.state_dict(now=160.0))
    third.start(now=200.0)
    assert third.ratio(now=200.0) == 0.5  # 50 and 50 of 200
    assert third.ratio(now=300.0) == pytest.approx(200 / 300)


def test_time_between_two_trainings_of_one_process_is_lost_and_the_first_is_not():
    time = Goodput(now=0.0)
    time.start(now=0.0)
    time.stop(now=40.0)
    assert time.ratio(now=50.0) == 0.8
    time.start(now=60.0)
    assert time.ratio(now=100.0) == 0.8


def test_the_end_of_a_training_that_did_not_begin_changes_nothing():
    time = Goodput(now=0.0)
    time.stop(now=40.0)
    assert time.ratio(now=50.0) == 0.0


def test_its_state_is_plain_numbers():
    time = Goodput(now=1.0)
    time.start(now=2.0)
    assert time.state_dict(now=5.0) == {"began": 1.0, "counted": 3.0}
