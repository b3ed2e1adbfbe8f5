"""Who works on what, and that a claim ends with its worker."""

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from stormproof_train.search.claims import Claims
from tests.support.forked_command import FORKS


def claims_and_waits(folder: Path, told: Connection) -> None:
    told.send(Claims(folder).take("trial-0000"))
    signal.pause()


def test_a_claim_is_one_workers_until_it_is_given_back(tmp_path: Path):
    mine, others = Claims(tmp_path), Claims(tmp_path)
    assert mine.take("trial-0000")
    assert not others.take("trial-0000")
    assert others.take("trial-0001")
    assert mine.is_taken("trial-0000")
    mine.give_back("trial-0000")
    assert not mine.is_taken("trial-0000")
    assert others.take("trial-0000")
    others.give_back("trial-0000")
    others.give_back("trial-0001")


def test_the_claim_of_a_worker_that_is_killed_is_free(tmp_path: Path):
    hear, told = FORKS.Pipe(duplex=False)
    worker = FORKS.Process(target=claims_and_waits, args=(tmp_path, told))
    worker.start()
    assert hear.recv() is True
    claims = Claims(tmp_path)
    assert not claims.take("trial-0000")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert claims.take("trial-0000")
    claims.give_back("trial-0000")
