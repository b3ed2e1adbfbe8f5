"""Trainings that are told to end: all ranks leave at the same step, and the next start ends with the same bits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from stormproof import Preemption
from stormproof.checkpoint import Store
from stormproof.checkpoint.progress_file import read_progress
from stormproof.testing import FaultInjector
from tests.faults.test_ranks_disagree import checkpoint_names
from tests.support.exact_resume_training import Cell, StatefulModule, _loaders, train
from tests.support.forked_attempts import Outcome, assert_bitwise_equal, run_attempt, train_uninterrupted

pytestmark = pytest.mark.slow

ONE_RANK, WITH_WORKERS, TWO_RANKS = (
    Cell(every_n_train_steps=5),
    Cell(every_n_train_steps=5, workers=2),
    Cell(every_n_train_steps=5, ranks=2, workers=2),
)


def run_preempted(cell: Cell, folder: Path, faults: Any, grace_seconds: float | None = None) -> Outcome:
    return run_attempt(cell, folder, lambda: [Preemption(grace_seconds), faults()], function=train_with_both)


def train_with_both(cell: Cell, folder: Path, extra: Any = None, **options: Any) -> Any:
    return train(cell, folder, extra=extra[0] if extra else None, **options)


def checkpoint_steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in Store(folder / "checkpoints").read_checkpoints()]


def assert_same_end(cell: Cell, folder: Path) -> None:
    outcome = run_attempt(cell, folder, lambda: [Preemption()], function=train_with_both)
    assert_bitwise_equal(outcome, train_uninterrupted(cell))


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.drill
@pytest.mark.parametrize("number", SIGNALS)
def test_the_step_is_finished_and_saved(number: signal.Signals, tmp_path: Path):
    outcome = run_preempted(ONE_RANK, tmp_path, lambda: FaultInjector().signal(number, "on_before_backward", 7))
    assert outcome.exit_codes == (75,), outcome.output
    assert checkpoint_steps(tmp_path)[-1] == 8
    assert_same_end(ONE_RANK, tmp_path)


@pytest.mark.parametrize(
    ("phase", "step", "saved"),
    [
        pytest.param("on_train_epoch_start", 0, 0, marks=pytest.mark.drill),
        ("on_train_batch_start", 0, 1),
        ("on_train_batch_end", 3, 3),
        ("on_train_batch_end", 15, 15),  # of the last one of an epoch: its validation and its end come first
        pytest.param("on_train_epoch_end", 15, 15, marks=pytest.mark.drill),
        pytest.param("on_train_epoch_start", 15, 15, marks=pytest.mark.drill),
        ("on_validation_batch_start", 15, 15),
        ("checkpoint half written", 5, None),  # which may take longer than a step: training goes on until it is told
        ("on_train_end", 45, 45),
    ],
)
def test_it_may_come_at_any_moment(phase: str, step: int, saved: int | None, tmp_path: Path):
    def note(faults: Any) -> None:
        (tmp_path / "told").write_text(str(faults.trainer.global_step))

    def faults() -> FaultInjector:
        return FaultInjector().signal(at=phase, step=step, group=True)._add(note, phase, step, None)

    outcome = run_preempted(WITH_WORKERS, tmp_path, faults)
    assert outcome.exit_codes == (75,), outcome.output
    saved_step, reached_step = checkpoint_steps(tmp_path)[-1], read_progress(tmp_path / "checkpoints" / "reached")
    assert saved_step == (reached_step.step if reached_step else 0)  # whatever was trained is there
    told_step = int((tmp_path / "told").read_text())
    assert saved_step in (
        {told_step, told_step + 1} if saved is None else {saved}
    )  # the step that was under way is finished
    assert_same_end(WITH_WORKERS, tmp_path)


@pytest.mark.parametrize(
    ("phase", "step"), [("on_fit_start", 0), ("on_validation_batch_start", 0), ("on_validation_batch_start", 15)]
)
def test_a_validation_for_which_there_is_no_time_is_left(phase: str, step: int, tmp_path: Path):
    """And a sanity check, before which there is nothing to save."""
    grace = 0.001 if step else None
    outcome = run_preempted(
        WITH_WORKERS, tmp_path, lambda: FaultInjector().signal(at=phase, step=step, group=True), grace
    )
    assert outcome.exit_codes == (75,), outcome.output
    assert checkpoint_steps(tmp_path) == ([5, 10] if step else [])
    assert_same_end(WITH_WORKERS, tmp_path)


@pytest.mark.parametrize("rank", [0, 1, None])
@pytest.mark.parametrize(
    ("phase", "step"),
    [
        ("on_train_batch_start", 3),
        *(pytest.param("on_validation_batch_start", step, marks=pytest.mark.drill) for step in (8, 0)),
    ],
)
def test_two_ranks_leave_together_whichever_was_told(phase: str, step: int, rank: int | None, tmp_path: Path):
    outcome = run_preempted(
        TWO_RANKS, tmp_path, lambda: FaultInjector().signal(at=phase, step=step, rank=rank, group=True)
    )
    assert outcome.exit_codes == (75, 0), outcome.output  # Lightning would kill rank 0 if the other left with an error
    assert_same_end(TWO_RANKS, tmp_path)


def train_catching_exit(cell: Cell, folder: Path, extra: Any) -> dict[str, Any]:
    trainer = pl.Trainer(
        callbacks=extra[0],
        accelerator="cpu",
        devices=cell.ranks,
        strategy="ddp" if cell.ranks > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(ModuleWithTest(cell), _loaders(cell)[1], verbose=False)
    return {}


class ModuleWithTest(StatefulModule):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/accuracy", self.val_accuracy(self.net(batch[0]), batch[1]), sync_dist=True)


class SignalRecorder(pl.Callback):
    """Sends itself a signal in a test, on one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_test_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_rank == self.rank:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_leave_a_test_together(rank: int, tmp_path: Path):
    outcome = run_attempt(
        TWO_RANKS, tmp_path, lambda: [Preemption(), SignalRecorder(rank)], function=train_catching_exit
    )
    assert outcome.exit_codes == (75, 0), outcome.output


class Uneven(IterableDataset):
    """Of which nobody knows how long it is, and the second rank has more."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(9 if os.environ["LOCAL_RANK"] == "1" else 4):
            time.sleep(0.02)
            yield torch.ones(6)


def predict(cell: Cell, folder: Path, extra: Any) -> dict[str, Any]:
    class Predicts(StatefulModule):
        def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.net(batch)

    trainer = pl.Trainer(
        callbacks=extra[0], accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False
    )
    trainer.predict(Predicts(cell), DataLoader(Uneven(), batch_size=2), return_predictions=False)
    return {}


def test_ranks_of_which_one_has_more_batches_do_not_wait_for_each_other(tmp_path: Path):
    outcome = run_attempt(TWO_RANKS, tmp_path, lambda: [Preemption()], function=predict)
    assert outcome.exit_codes == (0, 0), outcome.output


def test_preemption_changes_no_bit(tmp_path: Path):
    assert_same_end(WITH_WORKERS, tmp_path)
    assert checkpoint_names(tmp_path)


def test_without_a_recovery_it_says_so(tmp_path: Path):
    outcome = run_attempt(
        ONE_RANK, tmp_path, lambda: [Preemption()], function=partial(train_with_both, arrange=lambda all_: all_[:-1])
    )
    assert outcome.exit_codes == (2,)
    assert "Preemption requires CheckpointRecovery: add CheckpointRecovery to the callbacks" in outcome.output


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path):
    def twice() -> FaultInjector:
        first = FaultInjector().signal(signal.SIGINT, "on_train_batch_start", 3).slow(1.1, step=3)
        return first.signal(signal.SIGINT, "on_before_backward", 3)

    outcome = run_preempted(ONE_RANK, tmp_path, twice)
    assert outcome.exit_codes == (1,), outcome.output  # Lightning's own
    assert checkpoint_steps(tmp_path) == [0]
    assert_same_end(ONE_RANK, tmp_path)
