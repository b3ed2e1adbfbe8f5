"""One attempt owns the folder: a second is told, and one that lost it writes no more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from stormproof.testing import FaultInjector
from tests.faults.test_ranks_disagree import checkpoints
from tests.support.drill import Outcome, assert_same, attempt, uninterrupted
from tests.support.training import IN_STEP, Cell, train


class Meanwhile(pl.Callback):
    """Does something before the batch after ``step``, on rank 0; the training stands still until it is done."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self._step, self._action = step, action

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self._step and trainer.is_global_zero:
            self._action()


def second_attempt(run: Path, **options: Any) -> Outcome:
    """Another attempt at the run in ``run``, by another process, which speaks into a folder of its own."""
    return attempt(
        Cell(), run.parent / "second", function=lambda cell, _, **given: train(cell, run, **given), **options
    )


@pytest.mark.slow
def test_a_second_attempt_is_told_who_is_at_work(tmp_path: Path):
    told = tmp_path / "told"

    def try_too() -> None:
        done = second_attempt(tmp_path / "run")
        told.write_text(f"{done.exit_codes} {os.getpid()} {os.uname().nodename} {done.output}")

    first = attempt(Cell(), tmp_path / "run", lambda: Meanwhile(3, try_too))
    code, pid, host, output = told.read_text().split(" ", 3)
    assert code == "(2,)"
    assert f"is in use by process {pid} on {host}: stop it, wait for it, or use another folder" in output
    assert_same(first, uninterrupted(Cell()))


@pytest.mark.slow
def test_an_attempt_that_lost_its_folder_commits_no_more(tmp_path: Path):
    run = tmp_path / "run"

    def take_over() -> None:
        (run / "checkpoints" / "lease.json").unlink()  # as if its heartbeat had been away for too long
        second = second_attempt(run, faults=lambda: FaultInjector().stop(at="on_train_batch_start", step=9))
        assert second.killed, second.output
        (tmp_path / "taken").write_text(repr(checkpoints(run / "checkpoints")))

    first = attempt(Cell(), run, lambda: Meanwhile(3, take_over), recovery=IN_STEP)
    assert first.exit_codes == (74,), first.output
    assert "now belongs to process" in first.output
    assert "this attempt writes no more to it" in first.output
    assert repr(checkpoints(run / "checkpoints")) == (tmp_path / "taken").read_text()
    assert_same(attempt(Cell(), run), uninterrupted(Cell()))
