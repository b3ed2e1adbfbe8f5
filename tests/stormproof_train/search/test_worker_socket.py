"""The line between a worker and its run."""

import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from stormproof_train.search.worker_socket import Reply, WorkerClient, WorkerServer
from tests.support.forked_command import FORKSERVER_CONTEXT

PRUNE_REASON = {"verdict": "continue", "reason": ""}


def ask_and_continue(address: str, connection: Connection) -> None:
    """A run: it asks, and then trains until somebody ends it."""
    connection.send(WorkerClient(address).ask({"kind": "begin", "step": 3}))
    signal.pause()


def ask_and_disconnect(address: str, connection: Connection) -> None:
    """A run that comes to its end, and has nothing to fear of its line."""
    end = WorkerClient(address)
    answers = [end.ask({"step": step}) for step in range(3)]
    end.close()
    connection.send(answers)


def serve_until(target: Any, answer: Any, until: Any) -> tuple[list[Mapping[str, Any]], Any, int | None]:
    """What a run asked, what it told in the end, and its exit code; the worker goes when ``until`` says so."""
    worker, questions = WorkerServer(), []
    receiver, sender = FORKSERVER_CONTEXT.Pipe(duplex=False)
    run = FORKSERVER_CONTEXT.Process(target=target, args=(worker.address, sender))
    run.start()

    def noted(message: Mapping[str, Any]) -> Reply:
        questions.append(message)
        return answer(message)

    worker.serve(noted, lambda: run.is_alive() and not until(questions))
    worker.close()
    assert not Path(worker.address).parent.exists()
    run.join(20)
    assert receiver.poll(), "the run never had an answer"
    return questions, receiver.recv(), run.exitcode


def test_a_run_is_answered_and_may_hang_up():
    questions, answers, code = serve_until(
        ask_and_disconnect, lambda message: {**PRUNE_REASON, "seen": message["step"]}, lambda _: False
    )
    assert questions == [{"step": 0}, {"step": 1}, {"step": 2}]
    assert answers == [{**PRUNE_REASON, "seen": step} for step in range(3)]
    assert code == 0


def test_a_run_whose_worker_goes_is_told_to_end_as_by_sigterm():
    questions, answers, code = serve_until(ask_and_continue, lambda _: PRUNE_REASON, bool)
    assert questions == [{"kind": "begin", "step": 3}]
    assert answers == PRUNE_REASON
    assert code == -signal.SIGTERM


def test_a_run_that_asks_nobody_is_to_pause(monkeypatch: pytest.MonkeyPatch):
    preempted_attempts = threading.Event()
    monkeypatch.setattr("stormproof_train.search.worker_socket.os.kill", lambda *_: preempted_attempts.set())
    worker = WorkerServer()
    run = WorkerClient(worker.address)
    worker.close()
    assert run.ask({"step": 1}) == {"verdict": "pause", "reason": "the worker of its search is gone"}
    assert preempted_attempts.wait(20)
    run.close()


def test_there_is_no_line_to_nobody(tmp_path: Path):
    with pytest.raises(OSError, match="No such file"):
        WorkerClient(str(tmp_path / "line"))
