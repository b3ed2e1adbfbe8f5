from pathlib import Path

import pytest

from stormproof.health.observers import data_wait
from stormproof.health.observers.data_wait import DataWaitTimer, RunQueue


class _Clock:
    """Wall-clock time and time in the run queue, both moved by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.queued = 100.0, 7.0
        monkeypatch.setattr("stormproof.health.observers.data_wait.time.perf_counter", lambda: self.now)
        monkeypatch.setattr(RunQueue, "seconds", lambda _: self.queued)

    def move(self, seconds: float, queued: float = 0.0) -> None:
        self.now += seconds
        self.queued += queued


def test_time_in_the_run_queue_is_neither_waiting_nor_work(monkeypatch: pytest.MonkeyPatch):
    clock = _Clock(monkeypatch)
    batches = DataWaitTimer()
    batches.on_fetch_start()
    clock.move(0.5, queued=0.375)
    batches.on_batch_start()
    clock.move(0.25, queued=0.125)
    batches.on_fetch_start()
    assert list(batches.batches) == [(0.125, 0.125)]
    batches.stop()


def test_without_the_scheduler_statistics_all_of_the_wait_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(data_wait, "SCHEDSTAT", str(tmp_path / "missing"))
    queue = RunQueue()
    assert queue.seconds() == 0.0
    queue.close()


def test_time_in_the_run_queue_never_decreases():
    queue = RunQueue()
    assert 0 <= queue.seconds() <= queue.seconds()
    queue.close()
    assert queue.seconds() == 0.0
