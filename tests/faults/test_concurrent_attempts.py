"""One attempt owns the folder: a second is told, and one that lost it writes no more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from stormproof.testing import FaultInjector
from tests.faults.test_ranks_disagree import checkpoint_names
from tests.support.exact_resume_training import SYNC_SAVE, Cell, train
from tests.support.forked_attempts import Outcome, assert_bitwise_equal, run_attempt, train_uninterrupted


class RunDuringTraining(pl.Callback):
    """Does something before the batch after ``step``, on rank 0; the training stands still until it is done."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self._step, self._action = step, action

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self._step and trainer.is_global_zero:
            self._action()


def run_second_attempt(run: Path, **options: Any) -> Outcome:
    """Another attempt at the run in ``run``, by another process, which speaks into a folder of its own."""
    return run_attempt(
        Cell(),
        run.parent / "second",
        function=lambda cell, _, **train_options: train(cell, run, **train_options),
        **options,
    )


@pytest.mark.slow
def test_a_second_attempt_is_told_who_is_at_work(tmp_path: Path):
    message_file = tmp_path / "told"

    def try_too() -> None:
        outcome = run_second_attempt(tmp_path / "run")
        message_file.write_text(f"{outcome.exit_codes} {os.getpid()} {os.uname().nodename} {outcome.output}")

    first = run_attempt(Cell(), tmp_path / "run", lambda: RunDuringTraining(3, try_too))
    code, pid, host, output = message_file.read_text().split(" ", 3)
    assert code == "(2,)"
    assert (
        f"is in use by process {pid} on {host}. Stop that process, wait for it to end, or use another folder." in output
    )
    assert_bitwise_equal(first, train_uninterrupted(Cell()))


@pytest.mark.slow
def test_an_attempt_that_lost_its_folder_commits_no_more(tmp_path: Path):
    run = tmp_path / "run"

    def take_over() -> None:
        (run / "checkpoints" / "lease.json").unlink()  # as if its heartbeat had been away for too long
        second = run_second_attempt(run, faults=lambda: FaultInjector().stop(at="on_train_batch_start", step=9))
        assert second.was_killed, second.output
        (tmp_path / "taken").write_text(repr(checkpoint_names(run / "checkpoints")))

    first = run_attempt(Cell(), run, lambda: RunDuringTraining(3, take_over), recovery=SYNC_SAVE)
    assert first.exit_codes == (74,), first.output
    assert "took it over" in first.output
    assert "It stops writing to the folder." in first.output
    assert repr(checkpoint_names(run / "checkpoints")) == (tmp_path / "taken").read_text()
    assert_bitwise_equal(run_attempt(Cell(), run), train_uninterrupted(Cell()))
