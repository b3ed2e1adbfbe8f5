"""Forks of a job of several ranks, which must not catch a thread of gloo at Python's lock."""

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stormproof import CheckpointRecovery, Preemption
from stormproof.distributed import fork_safety
from tests.support.recovery_fits import fit_with_recovery
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = LIGHTNING_WARNING_FILTERS
OLD = pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python 3.12 needs no care here")


def _seconds_of_a_fork(world_size: int, box: Any) -> None:
    fork_safety.world_size = lambda: world_size
    fork_safety.THREAD_WAIT_SECONDS = 0.5
    fork_safety.make_forks_safe()
    fork_safety.make_forks_safe()
    start = time.monotonic()
    child = multiprocessing.get_context("fork").Process(target=lambda: None)
    child.start()
    box.put(time.monotonic() - start)
    child.join()


def _in_a_process(world_size: int) -> float:
    context = multiprocessing.get_context("fork")  # what is registered for forks stays so: not in this process
    box = context.SimpleQueue()
    process = context.Process(target=_seconds_of_a_fork, args=(world_size, box))
    process.start()
    process.join()
    return box.get()


@pytest.mark.slow
@OLD
def test_a_fork_among_several_ranks_lets_the_threads_of_gloo_arrive_first():
    assert _in_a_process(2) >= 0.5


def test_a_fork_of_a_single_rank_waits_for_nothing():
    assert _in_a_process(1) < 0.5


@pytest.mark.parametrize("asks", ["resumable_loader", "checkpoint_recovery", "preemption"])
def test_whatever_talks_among_ranks_or_forks_asks_for_it(asks: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    calls: list[str] = []
    monkeypatch.setattr(f"stormproof.{asks}.make_forks_safe", lambda: calls.append(asks))
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=100), Preemption())
    assert calls
