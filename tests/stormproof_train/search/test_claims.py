"""Who works on what, and that a claim ends with its worker."""

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from stormproof_train.search.work_queue import Claims
from tests.support.forked_command import FORKSERVER_CONTEXT


def claim_and_wait(folder: Path, connection: Connection) -> None:
    connection.send(Claims(folder).acquire("trial-0000"))
    signal.pause()


def test_a_claim_is_one_workers_until_it_is_given_back(tmp_path: Path):
    my_claims, other_claims = Claims(tmp_path), Claims(tmp_path)
    assert my_claims.acquire("trial-0000")
    assert not other_claims.acquire("trial-0000")
    assert other_claims.acquire("trial-0001")
    assert my_claims.is_claimed("trial-0000")
    my_claims.release("trial-0000")
    assert not my_claims.is_claimed("trial-0000")
    assert other_claims.acquire("trial-0000")
    other_claims.release("trial-0000")
    other_claims.release("trial-0001")


def test_the_claim_of_a_worker_that_is_killed_is_free(tmp_path: Path):
    receiver, sender = FORKSERVER_CONTEXT.Pipe(duplex=False)
    worker = FORKSERVER_CONTEXT.Process(target=claim_and_wait, args=(tmp_path, sender))
    worker.start()
    assert receiver.recv() is True
    claims = Claims(tmp_path)
    assert not claims.acquire("trial-0000")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert claims.acquire("trial-0000")
    claims.release("trial-0000")
