"""Checkpoints are written behind the training; what storage does is told and outlived."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof import CheckpointRecovery, resumable
from stormproof.checkpoint import Lease, Store, async_writer, observe_fault_points
from stormproof.checkpoint.progress_file import ProgressFile
from stormproof.errors import FolderLostError, StorageError
from stormproof.testing import FaultInjector
from tests.support.recovery_fits import BatchEndCallback, checkpoint_steps
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, RowsLogger, make_loader, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


def raise_disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.ckpt")


def fit(recovery: CheckpointRecovery, *callbacks: pl.Callback, steps: int = 6, **options: Any) -> Any:
    """Six steps an epoch; the weights in the end."""
    torch.manual_seed(0)
    net = make_module()
    pl_trainer = make_trainer(callbacks=[*callbacks, recovery], max_steps=steps, max_epochs=-1, **options)
    pl_trainer.fit(net, resumable(make_loader(), seed=1), ckpt_path=recovery.latest_checkpoint())
    return net.state_dict()


def is_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def writer_thread(recovery: CheckpointRecovery) -> int:
    """The step of the checkpoint that is being written; 0 is the first."""
    assert recovery.save_coordinator.writer is not None
    return recovery.save_coordinator.writer.submitted_step or 0


def call_at_point(recovery: CheckpointRecovery, point: str, action: Callable[[int], object]) -> Any:
    """Calls ``action(step of the checkpoint)`` at a point of each commit but the first."""
    return observe_fault_points(
        lambda reached: action(writer_thread(recovery)) if reached == point and writer_thread(recovery) else None
    )


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [True, False])
def test_training_goes_on_while_a_checkpoint_is_written(asynchronous: bool, tmp_path: Path):
    """The write of step 3 ends once step 5 is done, which without it would never be."""
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=3, async_save=asynchronous)
    five, waited = threading.Event(), []
    with call_at_point(
        recovery, "checkpoint synced", lambda step: waited.append((step, five.wait(3))) if step == 3 else None
    ):
        fit(recovery, BatchEndCallback(lambda step: five.set() if step == 5 else None))
    assert waited == [(3, asynchronous)]
    assert checkpoint_steps(tmp_path) == [3, 6]


def test_a_checkpoint_is_of_the_step_at_which_it_was_taken(tmp_path: Path):
    """And not of the steps that are done while it is written."""
    recovery = CheckpointRecovery(tmp_path / "one", every_n_train_steps=3, keep_last=9)
    five = threading.Event()
    with call_at_point(recovery, "commit begins", lambda step: five.wait(30) if step == 3 else None):
        fit(recovery, BatchEndCallback(lambda step: five.set() if step == 5 else None))
    fit(CheckpointRecovery(tmp_path / "other", every_n_train_steps=3, keep_last=9, async_save=False))
    for first, second in zip(*(Store(tmp_path / name).read_checkpoints() for name in ("one", "other")), strict=True):
        states = [torch.load(name.path, weights_only=True) for name in (first, second)]
        assert is_equal(states[0]["state_dict"], states[1]["state_dict"])
        assert states[0]["global_step"] == states[1]["global_step"] == first.step


def test_one_is_written_at_a_time_and_the_next_waits_for_it(tmp_path: Path):
    order: list[tuple[str, int]] = []
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1, keep_last=9)
    watched = {"commit begins", "log appended"}
    with observe_fault_points(
        lambda point: order.append((point, writer_thread(recovery))) if point in watched else None
    ):
        fit(recovery)
    assert order == [(point, step) for step in range(7) for point in ("commit begins", "log appended")]


def test_the_stall_is_logged_at_each_checkpoint(tmp_path: Path):
    rows = RowsLogger()
    fit(CheckpointRecovery(tmp_path, every_n_train_steps=2), logger=rows, log_every_n_steps=1)
    assert rows.logged_steps("checkpoint/stall_seconds") == [0, 2, 4]  # that of the end is nobody's


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("point", ["commit begins", "checkpoint half written", "checkpoint synced", "manifest synced"])
def test_an_error_of_storage_is_told_within_a_step_and_outlived(point: str, asynchronous: bool, tmp_path: Path):
    reported_steps: list[int] = []
    recovery = CheckpointRecovery(tmp_path / "run", every_n_train_steps=2, keep_last=9, async_save=asynchronous)
    failing = FaultInjector().fail(PermissionError(errno.EACCES, "Permission denied"), at=point, step=2)
    with pytest.warns(
        UserWarning, match="The checkpoint of step 2 was not saved: Permission denied. Training continues"
    ):
        weights = fit(recovery, failing, BatchEndCallback(reported_steps.append))
    assert checkpoint_steps(tmp_path / "run") == [0, 4, 6]
    assert [file.name for file in (tmp_path / "run").glob("*.tmp")] == []
    assert is_equal(weights, fit(CheckpointRecovery(tmp_path / "other")))


def test_it_is_told_once_until_a_checkpoint_is_saved(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1)
    fails = {2, 3, 5}

    def fail(step: int) -> None:
        if step in fails:
            raise PermissionError(errno.EACCES, "Permission denied")

    with (
        call_at_point(recovery, "commit begins", fail),
        pytest.warns(UserWarning, match="Permission denied") as warning_records,
    ):
        fit(recovery)
    steps = [
        str(warning.message).split(" was not")[0]
        for warning in warning_records
        if "was not saved" in str(warning.message)
    ]
    assert steps == ["The checkpoint of step 2", "The checkpoint of step 5"]


def test_an_error_that_is_none_of_storage_ends_the_training_at_the_next_step(tmp_path: Path):
    finished_steps: list[int] = []
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=2)
    with pytest.raises(RuntimeError, match="injected fault"):
        fit(recovery, FaultInjector().fail(at="checkpoint synced", step=2), BatchEndCallback(finished_steps.append))
    assert finished_steps[-1] <= 4
    assert not Lease.is_active(tmp_path)


def test_a_full_disk_makes_room_by_letting_all_but_the_newest_go(tmp_path: Path):
    """Of those that are kept in case the newest is damaged; what is kept for ever stays."""
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1, keep_last=3, keep_every_n_train_steps=2)
    held_steps: list[list[int]] = []

    def take(step: int) -> None:
        if step == 5:
            held_steps.append(checkpoint_steps(tmp_path))
            if len(held_steps) == 1:
                raise raise_disk_full()

    with call_at_point(recovery, "checkpoint synced", take):
        fit(recovery)
    assert held_steps == [[2, 3, 4], [2, 4]]
    assert checkpoint_steps(tmp_path) == [2, 4, 5, 6]


def test_a_full_disk_with_nothing_to_let_go_is_outlived(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=3)
    with pytest.warns(UserWarning, match=r"was not saved: No space left on device \(x.ckpt\)"):
        fit(recovery, FaultInjector().fail(raise_disk_full(), at="checkpoint synced", step=3))
    assert checkpoint_steps(tmp_path) == [0, 6]


@pytest.mark.filterwarnings("ignore:Skipping checkpoint")
def test_a_newest_that_is_damaged_is_not_what_makes_room(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1)
    faults = FaultInjector().bit_flip(at="pruned", step=3).fail(raise_disk_full(), at="checkpoint synced", step=4)
    held_steps: list[list[int]] = []
    with (
        pytest.warns(UserWarning, match="was just committed but is bad: its content has changed"),
        call_at_point(recovery, "commit begins", lambda step: held_steps.append(checkpoint_steps(tmp_path))),
    ):
        fit(recovery, faults)
    assert held_steps[-2][0] == 2  # the good one stays until the next one is committed
    assert checkpoint_steps(tmp_path) == [5, 6]
    assert (tmp_path / "quarantine" / "000004-step-3.ckpt").exists()


def test_once_nothing_can_be_saved_for_too_long_training_stops_with_its_code(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1, storage_timeout=0.4 / 60)

    def fail(step: int) -> None:
        if step > 2:
            raise PermissionError(errno.EACCES, "Permission denied")

    finished_steps: list[int] = []
    slow = FaultInjector()
    for step in range(4, 100):
        slow.slow(0.08, step=step)
    with (
        call_at_point(recovery, "commit begins", fail),
        pytest.warns(UserWarning, match="was not saved"),
        pytest.raises(
            StorageError, match=r"Training stops, because no checkpoint could be saved for 0 s\. .* Permission denied"
        ),
    ):
        fit(recovery, slow, BatchEndCallback(finished_steps.append), steps=100)
    assert StorageError("").exit_code == 74
    assert finished_steps[-1] < 20
    assert checkpoint_steps(tmp_path) == [1, 2]


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_writer, "WRITE_RETRY_DELAYS", (0.01, 0.02))


@pytest.mark.usefixtures("short_delays")
def test_the_end_of_a_training_is_written_again_if_storage_fails(tmp_path: Path):
    recovery, failures = CheckpointRecovery(tmp_path, every_n_train_steps=4), [OSError(errno.EIO, "Input/output error")]

    def fail(step: int) -> None:
        if step == 6 and failures:
            raise failures.pop()

    with (
        call_at_point(recovery, "checkpoint synced", fail),
        pytest.warns(UserWarning, match=r"step 6 was not saved: .*Input/output error\. Retrying in 0\.01 s"),
    ):
        fit(recovery)
    assert checkpoint_steps(tmp_path) == [4, 6]


@pytest.mark.usefixtures("short_delays")
@pytest.mark.filterwarnings("ignore:.*Retrying in")
def test_the_end_of_a_training_that_cannot_be_saved_is_an_error(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=4)

    def fail(step: int) -> None:
        if step == 6:
            raise PermissionError(errno.EACCES, "Permission denied")

    with (
        call_at_point(recovery, "checkpoint synced", fail),
        pytest.raises(StorageError, match=r"step 6 could not be saved: .*Permission denied"),
    ):
        fit(recovery)
    assert checkpoint_steps(tmp_path) == [0, 4]
    assert not Lease.is_active(tmp_path)
    resumed = fit(CheckpointRecovery(tmp_path, every_n_train_steps=4))
    assert is_equal(resumed, fit(CheckpointRecovery(tmp_path.with_name("other"))))


def test_training_continues_while_a_write_is_repeated_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(async_writer, "PROBLEM_TIMEOUT_SECONDS", 0.01)
    is_over = threading.Event()

    def act(step: int) -> None:
        if step == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if step == 3:
            assert is_over.wait(20)  # step 5, although every step is due

    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1)
    release = BatchEndCallback(lambda step: is_over.set() if step == 5 else None)
    with call_at_point(recovery, "commit begins", act), pytest.warns(UserWarning, match="step 2 was not saved"):
        fit(recovery, release)
    assert checkpoint_steps(tmp_path)[-1] == 6


def test_a_commit_with_a_time_limit_returns_although_storage_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(async_writer, "PROBLEM_TIMEOUT_SECONDS", 0.01)
    is_over, committed_steps = threading.Event(), []

    def act(step: int) -> None:
        if step == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if step == 3:
            assert is_over.wait(20)

    def commit(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.global_step == 4:
            committed_steps.append(recovery.commit(trainer, module, seconds=0.1))
            is_over.set()

    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1)
    recovery.call_at_steps(commit)
    with (
        call_at_point(recovery, "commit begins", act),
        pytest.warns(UserWarning, match="step 2 was not saved"),
        pytest.warns(UserWarning, match=r"step 3 could not be saved in time: storage is slow or fails\."),
    ):
        fit(recovery)
    assert committed_steps == [1]
    assert checkpoint_steps(tmp_path)[-1] == 6


def test_storage_that_hangs_is_told_and_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1, keep_last=9)
    nine = threading.Event()

    def reach(step: int) -> None:
        if step == 3:  # the write of step 2 hangs; earlier writes may be slow
            monkeypatch.setattr(async_writer, "HANG_TIMEOUT_SECONDS", 0.05)
        if step == 9:
            nine.set()

    with (
        call_at_point(recovery, "checkpoint synced", lambda step: nine.wait(30) if step == 2 else None),
        pytest.warns(
            UserWarning, match="The checkpoint of step 2 is still being written, because storage is slow or hangs"
        ),
    ):
        fit(recovery, BatchEndCallback(reach), steps=12)
    saved_steps = checkpoint_steps(tmp_path)
    assert saved_steps[:3] == [0, 1, 2]
    assert saved_steps[-1] == 12
    assert not {3, 4, 5, 6, 7, 8} & set(saved_steps)


def test_a_write_that_is_slow_is_never_of_another_step_though_it_should_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recovery = CheckpointRecovery(tmp_path / "one", every_n_train_steps=1, keep_last=9, async_save=False)
    five = threading.Event()

    def reach(step: int) -> None:
        if step == 2:  # its write will hang; the write of step 1 is complete
            monkeypatch.setattr(async_writer, "HANG_TIMEOUT_SECONDS", 0.05)
        if step == 5:
            five.set()

    with (
        call_at_point(recovery, "commit begins", lambda step: five.wait(30) if step == 2 else None),
        pytest.warns(UserWarning, match="storage is slow or hangs"),
    ):
        fit(recovery, BatchEndCallback(reach))
    fit(CheckpointRecovery(tmp_path / "other", every_n_train_steps=1, keep_last=9))
    both = [tmp_path / folder / "000003-step-2.ckpt" for folder in ("one", "other")]
    assert is_equal(*(torch.load(file, weights_only=True)["state_dict"] for file in both))


def test_what_is_committed_is_saved_whatever_becomes_of_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: Store, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Store, "apply_retention", fail)
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=3)
    with pytest.warns(UserWarning, match="is saved, but older checkpoints could not be deleted"):
        fit(recovery)
    assert checkpoint_steps(tmp_path) == [0, 3, 6]


def test_a_log_that_cannot_be_written_leaves_a_checkpoint_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=3, keep_last=9)
    append = Store._append
    failed: list[str] = []

    def fail(self: Store, *events: Any, log_bytes: int | None = None) -> None:
        if events[0]["event"] == "committed" and writer_thread(recovery) == 3:
            failed.append(events[0]["name"])
            raise raise_disk_full()
        append(self, *events, log_bytes=log_bytes)

    monkeypatch.setattr(Store, "_append", fail)
    fit(recovery)
    assert failed == ["000002-step-3"]
    assert checkpoint_steps(tmp_path) == [0, 3, 6]
    assert CheckpointRecovery(tmp_path).latest_checkpoint() == str(tmp_path / "000003-step-6.ckpt")


def test_how_far_it_came_may_go_unwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: ProgressFile, step: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(ProgressFile, "write", fail)
    fit(CheckpointRecovery(tmp_path))
    assert checkpoint_steps(tmp_path) == [0, 6]


@pytest.mark.usefixtures("short_delays")
@pytest.mark.filterwarnings("ignore:.*Retrying in")
def test_a_folder_that_is_removed_is_told_of(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path / "run", every_n_train_steps=2)
    remove = BatchEndCallback(lambda step: (tmp_path / "run").rename(tmp_path / "gone") if step == 3 else None)
    with (
        pytest.warns(UserWarning, match="The checkpoint of step [24] was not saved: No such file or directory"),
        pytest.raises(StorageError, match="step 6 could not be saved"),
    ):
        fit(recovery, remove)


def test_a_folder_that_another_took_over_ends_the_training(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=2)

    def take_over(step: int) -> None:
        if step == 3:
            path = tmp_path / "lease.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "token": "another"}))

    with pytest.raises(FolderLostError):
        fit(recovery, BatchEndCallback(take_over), steps=12)


@pytest.mark.parametrize("patience", [0.0, -1.0, float("nan")])
def test_a_patience_that_is_none_is_named(patience: float, tmp_path: Path):
    with pytest.raises(ValueError, match="`storage_timeout` must be above 0, got"):
        CheckpointRecovery(tmp_path, storage_timeout=patience)
