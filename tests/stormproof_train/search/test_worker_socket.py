"""The line between a worker and its run."""

import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from stormproof_train.search.worker_socket import Answer, RunsEnd, WorkersEnd
from tests.support.forked_command import FORKS

SUPPOSED = {"verdict": "go on", "reason": ""}


def asks_and_trains_on(address: str, told: Connection) -> None:
    """A run: it asks, and then trains until somebody ends it."""
    told.send(RunsEnd(address).ask({"kind": "begin", "step": 3}))
    signal.pause()


def asks_and_hangs_up(address: str, told: Connection) -> None:
    """A run that comes to its end, and has nothing to fear of its line."""
    end = RunsEnd(address)
    answers = [end.ask({"step": step}) for step in range(3)]
    end.close()
    told.send(answers)


def served(target: Any, answer: Any, until: Any) -> tuple[list[Mapping[str, Any]], Any, int | None]:
    """What a run asked, what it told in the end, and its exit code; the worker goes when ``until`` says so."""
    worker, asked = WorkersEnd(), []
    hear, told = FORKS.Pipe(duplex=False)
    run = FORKS.Process(target=target, args=(worker.address, told))
    run.start()

    def noted(message: Mapping[str, Any]) -> Answer:
        asked.append(message)
        return answer(message)

    worker.serve(noted, lambda: run.is_alive() and not until(asked))
    worker.close()
    assert not Path(worker.address).parent.exists()
    run.join(20)
    assert hear.poll(), "the run never had an answer"
    return asked, hear.recv(), run.exitcode


def test_a_run_is_answered_and_may_hang_up():
    asked, told, code = served(
        asks_and_hangs_up, lambda message: {**SUPPOSED, "seen": message["step"]}, lambda _: False
    )
    assert asked == [{"step": 0}, {"step": 1}, {"step": 2}]
    assert told == [{**SUPPOSED, "seen": step} for step in range(3)]
    assert code == 0


def test_a_run_whose_worker_goes_is_told_to_end_as_by_sigterm():
    asked, told, code = served(asks_and_trains_on, lambda _: SUPPOSED, bool)
    assert asked == [{"kind": "begin", "step": 3}]
    assert told == SUPPOSED
    assert code == -signal.SIGTERM


def test_a_run_that_asks_nobody_is_to_pause(monkeypatch: pytest.MonkeyPatch):
    told_to_end = threading.Event()
    monkeypatch.setattr("stormproof_train.search.worker_socket.os.kill", lambda *_: told_to_end.set())
    worker = WorkersEnd()
    run = RunsEnd(worker.address)
    worker.close()
    assert run.ask({"step": 1}) == {"verdict": "pause", "reason": "its search is gone"}
    assert told_to_end.wait(20)
    run.close()


def test_there_is_no_line_to_nobody(tmp_path: Path):
    with pytest.raises(OSError, match="No such file"):
        RunsEnd(str(tmp_path / "line"))
