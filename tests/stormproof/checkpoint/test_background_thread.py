import threading

import pytest

from stormproof.checkpoint.background_thread import BackgroundJob


def test_the_program_goes_on_beside_a_job():
    gate, finished = threading.Event(), []
    future = BackgroundJob(lambda: (gate.wait(), finished.append(1)), "test")
    assert not future.done()
    assert finished == []
    gate.set()
    assert future.result(timeout=30) is None
    assert finished == [1]


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)])
def test_what_a_job_raises_is_kept(error: BaseException):
    def job() -> None:
        raise error

    assert BackgroundJob(job, "test").exception(timeout=30) is error


def test_a_process_that_ends_does_not_wait_for_a_job():
    gate = threading.Event()
    BackgroundJob(gate.wait, "a job that hangs")
    (thread,) = [candidate for candidate in threading.enumerate() if candidate.name == "a job that hangs"]
    assert thread.daemon
    gate.set()
