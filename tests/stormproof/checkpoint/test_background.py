import threading
import time

import pytest

from stormproof.checkpoint.background import Background


def test_the_program_goes_on_beside_a_job():
    gate, done = threading.Event(), []
    background = Background("test")
    background.start(lambda: (gate.wait(), done.append(1)))
    assert background.busy
    assert not background.wait(0.01)
    assert done == []
    gate.set()
    assert background.wait()
    assert (background.busy, done) == (False, [1])


def test_what_a_job_raises_is_told_once_and_not_before_it_has_ended():
    gate = threading.Event()

    def job() -> None:
        gate.wait()
        raise ValueError("broken")

    background = Background("test")
    background.start(job)
    assert background.failure() is None
    gate.set()
    background.wait()
    failure = background.failure()
    assert isinstance(failure, ValueError)
    assert background.failure() is None


def test_a_failure_is_that_of_the_last_job():
    background = Background("test")
    background.start(lambda: 1 / 0)
    background.wait()
    background.start(lambda: None)
    background.wait()
    assert background.failure() is None


def test_one_job_at_a_time():
    gate = threading.Event()
    background = Background("test")
    background.start(gate.wait)
    with pytest.raises(AssertionError):
        background.start(lambda: None)
    gate.set()
    background.wait()


def test_nothing_to_wait_for():
    began = time.monotonic()
    assert Background("test").wait()
    assert time.monotonic() - began < 1
