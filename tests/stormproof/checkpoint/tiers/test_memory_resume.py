"""A run that is killed resumes from the copy in memory, to the last bit, if the copy is newer than storage."""

import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import pytorch_lightning as pl

from stormproof import CheckpointRecovery, PreemptedExit, Preemption
from stormproof.checkpoint import CommitInfo, Store
from stormproof.checkpoint.tiers import memory_copier, memory_folder
from stormproof.checkpoint.tiers.memory_commit import commit_from_this_node
from stormproof.checkpoint.tiers.memory_tier import MemoryTier
from stormproof.checkpoint.tiers.tier import Fit, Ranks
from stormproof.divergence.rollback import roll_back
from stormproof.errors import DivergedError
from stormproof.lightning.find_callback import find_callback
from stormproof.testing import FaultInjector
from tests.support.checkpoint_files import flip_bit, make_store, state_writer
from tests.support.exact_resume_training import Cell
from tests.support.forked_attempts import Outcome, assert_bitwise_equal, run_attempt, train_uninterrupted
from tests.support.object_stores import in_clean_process
from tests.support.recovery_fits import checkpoint_steps, fit_with_recovery

SELDOM = Cell(every_n_train_steps=1000)
ONE_EPOCH = Cell(every_n_train_steps=1000, epochs=1)
TWO_RANKS = Cell(every_n_train_steps=1000, ranks=2)

pytestmark = pytest.mark.usefixtures("memory", "copies_often")


def find_copier(recovery: CheckpointRecovery) -> memory_copier.MemoryCopier | None:
    return next(tier.copier for tier in recovery.tiers if isinstance(tier, MemoryTier)) if recovery.tiers else None


class KillAfterCopy(pl.Callback):
    """Kills all ranks at a step. Waits for each checkpoint and each copy, so that the previous step is copied."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        recovery = find_callback(trainer, CheckpointRecovery)
        assert recovery is not None
        writer = recovery.save_coordinator.writer
        if writer is not None:
            writer.wait_until_free()
        if (copier := find_copier(recovery)) is not None:
            copier.wait(20)
        if trainer.global_step == self.step:
            trainer.strategy.barrier()
            os.kill(os.getpid(), signal.SIGKILL)


class SeparateNodes(KillAfterCopy):
    """Makes each rank a node with its own memory."""

    def __init__(self, memory: Path, step: int) -> None:
        super().__init__(step)
        rank = int(os.environ["LOCAL_RANK"])
        memory_folder.SHARED_MEMORY = memory / f"node{rank}"
        memory_folder.SHARED_MEMORY.mkdir(exist_ok=True)
        pl.Trainer.node_rank = rank  # type: ignore[assignment,method-assign]  # in a fork
        pl.Trainer.local_rank = 0  # type: ignore[assignment,method-assign]


def run(cell: Cell, folder: Path, faults: Callable[[], pl.Callback] | None = None, **recovery: Any) -> Outcome:
    return run_attempt(cell, folder, faults, recovery={"memory_tier": True, **recovery})


def read_start_steps(folder: Path) -> list[int]:
    """Returns the step from which each attempt resumed."""
    return [attempt.step for attempt in Store(folder / "checkpoints").read_attempts()]


@pytest.mark.parametrize(
    ("cell", "kill_steps"),
    [(ONE_EPOCH, [7]), pytest.param(SELDOM, [7, 16, 32], marks=pytest.mark.slow)],
    ids=["one epoch", "three epochs"],
)
def test_a_killed_run_resumes_from_the_copy_in_memory_bit_for_bit(
    cell: Cell, kill_steps: list[int], tmp_path: Path, memory: Path
):
    for step in kill_steps:
        assert run(cell, tmp_path, partial(KillAfterCopy, step)).was_killed
    assert_bitwise_equal(run(cell, tmp_path), train_uninterrupted(cell))
    assert read_start_steps(tmp_path) == [0, *(step - 1 for step in kill_steps)]
    assert [*memory.glob("*/*")] == []


@pytest.mark.slow
def test_two_ranks_resume_from_the_copy_in_memory_bit_for_bit(tmp_path: Path):
    assert run(TWO_RANKS, tmp_path, partial(KillAfterCopy, 13)).was_killed
    assert_bitwise_equal(run(TWO_RANKS, tmp_path), train_uninterrupted(TWO_RANKS))
    assert read_start_steps(tmp_path) == [0, 10]


@pytest.mark.slow
@pytest.mark.parametrize("lost_node", [0, 1])
def test_a_run_that_lost_a_node_resumes_from_the_memory_of_the_other_one(lost_node: int, tmp_path: Path, memory: Path):
    nodes = partial(SeparateNodes, memory)
    assert run(TWO_RANKS, tmp_path, partial(nodes, 13)).was_killed
    assert len([*memory.glob("node*/*/*/*/*.ckpt")]) == 2
    shutil.rmtree(memory / f"node{lost_node}")
    assert_bitwise_equal(run(TWO_RANKS, tmp_path, partial(nodes, 0)), train_uninterrupted(TWO_RANKS))
    assert read_start_steps(tmp_path) == [0, 10]
    assert [*memory.glob("node*/*/*")] == []


@pytest.mark.slow
@in_clean_process
def test_a_copy_is_committed_to_an_object_store(s3_url: str, tmp_path: Path):
    assert run(SELDOM, tmp_path, partial(KillAfterCopy, 7), dirpath=s3_url).was_killed
    outcome = run(SELDOM, tmp_path, dirpath=s3_url)
    assert_bitwise_equal(outcome, train_uninterrupted(SELDOM))
    assert [attempt.step for attempt in Store(s3_url).read_attempts()] == [0, 6]


def kill_and_change_memory(folder: Path, memory: Path, change: Callable[[Path], object]) -> Outcome:
    """Kills a run after a copy of step 14, changes the copy, and runs to the end."""
    assert run(SELDOM, folder, partial(KillAfterCopy, 15)).was_killed
    (copy,) = memory.glob("*/*/*/*.ckpt")
    change(copy)
    return run(SELDOM, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [flip_bit, Path.unlink, lambda copy: copy.with_suffix(".json").unlink()], ids=["bit", "file", "manifest"]
)
def test_a_bad_copy_is_ignored_and_the_run_resumes_from_storage(
    change: Callable[[Path], object], tmp_path: Path, memory: Path
):
    outcome = kill_and_change_memory(tmp_path, memory, change)
    assert_bitwise_equal(outcome, train_uninterrupted(SELDOM))
    assert read_start_steps(tmp_path) == [0, 0]


@pytest.mark.slow
def test_a_copy_that_is_older_than_the_newest_checkpoint_is_ignored(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
):
    is_due = iter([True])  # only the first copy
    monkeypatch.setattr(memory_copier.MemoryCopier, "is_due", lambda *_: next(is_due, False))
    cell = Cell(every_n_train_steps=5)
    assert run(cell, tmp_path, partial(KillAfterCopy, 17)).was_killed
    assert [copy.name for copy in memory.glob("*/*/*/*.ckpt")] == ["000001-step-1.ckpt"]
    assert_bitwise_equal(run(cell, tmp_path), train_uninterrupted(cell))
    assert read_start_steps(tmp_path) == [0, 15]


@pytest.mark.slow
def test_the_copy_of_an_earlier_attempt_is_ignored(tmp_path: Path):
    assert run(SELDOM, tmp_path, partial(KillAfterCopy, 15)).was_killed
    assert run(SELDOM, tmp_path, partial(KillAfterCopy, 3), memory_tier=False).was_killed  # resumes from storage
    assert run(SELDOM, tmp_path, partial(KillAfterCopy, 30)).was_killed
    assert read_start_steps(tmp_path) == [0, 0, 0]


@pytest.mark.slow
def test_the_copy_of_another_run_in_the_same_folder_is_ignored(tmp_path: Path):
    assert run(SELDOM, tmp_path, partial(KillAfterCopy, 15)).was_killed
    shutil.rmtree(tmp_path / "checkpoints")
    assert run(SELDOM, tmp_path, partial(KillAfterCopy, 1)).was_killed
    run(SELDOM, tmp_path)
    assert read_start_steps(tmp_path)[0] == 0


@pytest.mark.slow
def test_a_copy_that_cannot_be_committed_causes_a_warning_and_the_run_resumes_from_storage(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def break_copying(_: Path) -> None:
        monkeypatch.setattr("stormproof.checkpoint.checkpoint_copy.copy_verified", fail)

    outcome = kill_and_change_memory(tmp_path, memory, break_copying)
    assert "The copy of step 14 in memory cannot be committed to" in outcome.output
    assert "The run resumes from step 0" in outcome.output
    assert_bitwise_equal(outcome, train_uninterrupted(SELDOM))


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_resumes_from_the_copy(tmp_path: Path):
    assert run(SELDOM, tmp_path, partial(KillAfterCopy, 7)).was_killed
    for checkpoint in (tmp_path / "checkpoints").glob("*.ckpt"):
        flip_bit(checkpoint)
    assert_bitwise_equal(run(SELDOM, tmp_path), train_uninterrupted(SELDOM))
    assert read_start_steps(tmp_path) == [0, 6]


class CommitAtStep(pl.Callback):
    """Requests a commit before the state of a step is copied, as DivergenceGuard does after a rollback."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        recovery = find_callback(trainer, CheckpointRecovery)
        assert recovery is not None
        recovery.call_before_saving(lambda trainer, _: trainer.global_step == 3)


def test_a_function_before_a_copy_can_request_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_copier.MemoryCopier, "is_due", lambda *_: True)
    assert run(ONE_EPOCH, tmp_path, CommitAtStep).results is not None
    assert [checkpoint.step for checkpoint in Store(tmp_path / "checkpoints").read_checkpoints()] == [3, 15]


def test_copies_that_cannot_be_read_are_ignored_with_a_warning(tmp_path: Path, memory: Path):
    store = make_store(tmp_path)
    store.begin_attempt(store.resolve())
    attempt = memory_folder.MemoryFolder(memory_folder.name_folder(str(tmp_path.absolute()), store.read_attempts()[-1]))
    attempt.path.parent.write_text("not a folder")
    with pytest.warns(UserWarning, match="Copies in memory cannot be read: .*Not a directory"):
        assert not commit_from_this_node(store, None)


def test_a_run_in_progress_keeps_its_copies_to_itself(tmp_path: Path):
    store = make_store(tmp_path)
    store.begin_attempt(store.resolve())
    name = memory_folder.name_folder(store.absolute_location, store.read_attempts()[-1])
    memory_folder.MemoryFolder(name).commit(state_writer(50), 1, CommitInfo(step=50, epoch=0, world_size=1), 1)
    lease = store.acquire_lease()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not commit_from_this_node(store, store.latest_checkpoint())
    lease.release()
    assert commit_from_this_node(store, store.latest_checkpoint())


class RollBackAndKill(pl.Callback):
    """Rolls back to the first checkpoint at a step, after a copy is written, and kills all ranks."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        recovery = find_callback(trainer, CheckpointRecovery)
        assert recovery is not None
        recovery.call_at_steps(self._act)

    def _act(self, trainer: Any, module: Any) -> None:
        recovery = find_callback(trainer, CheckpointRecovery)
        assert recovery is not None
        if trainer.global_step == 14:
            if (copier := find_copier(recovery)) is not None:
                copier.wait(20)
                assert copier.step is not None
            roll_back(trainer, module, recovery.store, recovery.save_coordinator, [], since_step=12, trusted_steps=[0])
            os.kill(os.getpid(), signal.SIGKILL)


def test_no_run_resumes_from_a_copy_of_diverged_weights(tmp_path: Path, memory: Path):
    assert run(SELDOM, tmp_path, RollBackAndKill).was_killed
    assert [*memory.glob("*/*/*/*")] == []


class Diverge(KillAfterCopy):
    """Ends the run as a DivergenceGuard does, after a copy is written."""

    def on_train_batch_end(self, *arguments: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        with patch.object(os, "kill", side_effect=DivergedError("diverged")):
            super().on_train_batch_end(*arguments)


def test_no_run_resumes_from_a_copy_after_divergence(tmp_path: Path, memory: Path):
    outcome = run(SELDOM, tmp_path, partial(Diverge, 7))
    assert "DivergedError: diverged" in outcome.output
    assert [*memory.glob("*/*/*/*")] == []


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*", "ignore:.*does not have many workers.*")
def test_a_preempted_run_waits_only_briefly_for_a_slow_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    may_write = threading.Event()
    waits: list[float] = []
    monkeypatch.setattr(memory_copier.MemoryCopier, "is_due", lambda tier, _: tier._job is None)
    monkeypatch.setattr(memory_folder.MemoryFolder, "commit", lambda *_: may_write.wait(20))
    monkeypatch.setattr(memory_copier.MemoryCopier, "wait", lambda _, seconds: waits.append(seconds))
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1000, memory_tier=True)
    with pytest.raises(PreemptedExit):
        fit_with_recovery(recovery, Preemption(), FaultInjector().signal(step=4))
    may_write.set()
    assert checkpoint_steps(tmp_path) == [0, 4]
    assert waits == [memory_copier.INTERRUPT_TIMEOUT_SECONDS]


def test_a_system_without_shared_memory_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_folder, "SHARED_MEMORY", tmp_path / "missing")
    with pytest.raises(ValueError, match="`memory_tier=True` requires"):
        CheckpointRecovery(tmp_path, memory_tier=True)


def test_a_folder_of_another_user_disables_the_copies_with_a_warning(tmp_path: Path, memory: Path):
    folder = memory / f"stormproof-memory-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    store = make_store(tmp_path)
    store.begin_attempt(store.resolve())
    tier, fit = MemoryTier(), Fit(store, Ranks(rank=0, local_rank=0, node_rank=0), writer=None, shard_writer=None)
    with pytest.warns(UserWarning, match="`memory_tier` is disabled: .*others can write to it"):
        tier.start(fit)
    assert tier.copier is None
