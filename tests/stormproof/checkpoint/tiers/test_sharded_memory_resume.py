"""A killed run with sharded parameters resumes bit for bit from the shards in the memory of its nodes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl

from stormproof import HangWatch, Preemption
from stormproof.checkpoint.fault_points import observe_fault_points
from stormproof.checkpoint.tiers import memory_commit, memory_folder
from stormproof.testing import FaultInjector
from tests.stormproof.checkpoint.tiers.test_memory_resume import (
    Diverge,
    KillAfterCopy,
    RollBackAndKill,
    read_start_steps,
)
from tests.stormproof.checkpoint.tiers.test_memory_resume import run as run_with_monitor
from tests.support.cases import mark_cases, vary_one_factor
from tests.support.checkpoint_files import flip_bit
from tests.support.exact_resume_training import Cell, train
from tests.support.forked_attempts import assert_bitwise_equal, run_attempt, train_uninterrupted
from tests.support.object_stores import in_clean_process

TWO_RANKS = Cell(every_n_train_steps=1000, ranks=2, sharded=True, saves_shards=True)
THREE_RANKS = replace(TWO_RANKS, ranks=3)
FOUR_RANKS = replace(TWO_RANKS, ranks=4, tensor_parallel=2)

run = partial(run_with_monitor, monitor=None)  # otherwise, the best checkpoints are saved after each epoch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("memory", "copies_often")]


class Nodes(KillAfterCopy):
    """Makes each group of ranks a node with its own memory."""

    def __init__(self, memory: Path, step: int, ranks_per_node: int = 1) -> None:
        super().__init__(step)
        node, rank = divmod(int(os.environ["LOCAL_RANK"]), ranks_per_node)
        memory_folder.SHARED_MEMORY = memory / f"node{node}"
        memory_folder.SHARED_MEMORY.mkdir(exist_ok=True)
        pl.Trainer.node_rank = node  # type: ignore[assignment,method-assign]  # in a fork
        pl.Trainer.local_rank = rank  # type: ignore[assignment,method-assign]


class KillInCopy(KillAfterCopy):
    """Kills one rank while it writes its shard of a copy, at a step or later."""

    def __init__(self, step: int, rank: int) -> None:
        super().__init__(-1)
        self.kill_step, self.rank = step, rank

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def kill(point: str) -> None:
            if (trainer.global_rank, point) == (self.rank, "shard half written") and (
                trainer.global_step >= self.kill_step
            ):
                os.kill(os.getpid(), signal.SIGKILL)

        self._observing = observe_fault_points(kill)
        self._observing.__enter__()


def list_files(memory: Path, pattern: str = "*") -> list[Path]:
    return [path for path in memory.rglob(pattern) if path.is_file()]


@pytest.mark.parametrize("cell", [TWO_RANKS, replace(TWO_RANKS, ema=True), FOUR_RANKS], ids=["2", "average", "2x2"])
def test_a_killed_run_resumes_from_the_shards_in_memory_bit_for_bit(cell: Cell, tmp_path: Path, memory: Path):
    for step in (13, 23):
        assert run(cell, tmp_path, partial(KillAfterCopy, step)).was_killed
    assert_bitwise_equal(run(cell, tmp_path), train_uninterrupted(cell))
    assert read_start_steps(tmp_path) == [0, 10, 20]
    assert list_files(memory) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_that_is_killed_while_a_rank_writes_a_copy_resumes_from_the_previous_copy(rank: int, tmp_path: Path):
    assert run(TWO_RANKS, tmp_path, partial(KillInCopy, 10, rank)).was_killed
    assert run(TWO_RANKS, tmp_path, partial(KillInCopy, 20, rank)).was_killed
    assert_bitwise_equal(run(TWO_RANKS, tmp_path), train_uninterrupted(TWO_RANKS))
    assert read_start_steps(tmp_path) == [0, 0, 10]


@pytest.mark.parametrize(("cell", "ranks_per_node"), [(TWO_RANKS, 1), (FOUR_RANKS, 2)], ids=["2", "2x2"])
@pytest.mark.parametrize("lost_node", [0, 1])
def test_a_run_that_lost_one_of_two_nodes_resumes_from_the_copy(
    cell: Cell, ranks_per_node: int, lost_node: int, tmp_path: Path, memory: Path
):
    nodes = partial(Nodes, memory, ranks_per_node=ranks_per_node)
    assert run(cell, tmp_path, partial(nodes, 13)).was_killed
    shutil.rmtree(memory / f"node{lost_node}")
    assert_bitwise_equal(run(cell, tmp_path, partial(nodes, 0)), train_uninterrupted(cell))
    assert read_start_steps(tmp_path) == [0, 10]
    assert list_files(memory) == []


@pytest.mark.parametrize("lost_node", mark_cases([0, 1, 2], [0]))
def test_the_surviving_nodes_together_have_all_shards(lost_node: int, tmp_path: Path, memory: Path):
    assert run(THREE_RANKS, tmp_path, partial(Nodes, memory, 13)).was_killed
    assert [len(list_files(memory / f"node{node}", "*.distcp")) for node in range(3)] == [2, 2, 2]
    shutil.rmtree(memory / f"node{lost_node}")
    assert_bitwise_equal(run(THREE_RANKS, tmp_path, partial(Nodes, memory, 0)), train_uninterrupted(THREE_RANKS))
    assert read_start_steps(tmp_path) == [0, 10]


def test_a_run_that_lost_two_of_three_nodes_warns_and_resumes_from_storage(tmp_path: Path, memory: Path):
    assert run(THREE_RANKS, tmp_path, partial(Nodes, memory, 13)).was_killed
    for node in (0, 1):
        shutil.rmtree(memory / f"node{node}")
    outcome = run(THREE_RANKS, tmp_path, partial(Nodes, memory, 0))
    assert outcome.output.count("The copy of step 10 in memory is damaged or incomplete.") == 1
    assert_bitwise_equal(outcome, train_uninterrupted(THREE_RANKS))
    assert read_start_steps(tmp_path) == [0, 0]


@pytest.mark.parametrize(
    ("name", "change"),
    mark_cases(
        product(["__1_0.distcp", ".metadata", "meta.pt"], [flip_bit, Path.unlink]),
        [("__1_0.distcp", flip_bit), ("meta.pt", Path.unlink)],
    ),
)
def test_a_run_with_a_bad_file_warns_and_resumes_from_storage(
    name: str, change: Callable[[Path], object], tmp_path: Path, memory: Path
):
    assert run(TWO_RANKS, tmp_path, partial(KillAfterCopy, 13)).was_killed
    (file,) = list_files(memory, name)
    change(file)
    outcome = run(TWO_RANKS, tmp_path)
    assert outcome.output.count("The copy of step 10 in memory is damaged or incomplete.") == 1
    assert_bitwise_equal(outcome, train_uninterrupted(TWO_RANKS))
    assert read_start_steps(tmp_path) == [0, 0]


def test_a_run_with_a_bad_copy_warns_and_resumes_from_the_previous_copy(tmp_path: Path, memory: Path):
    assert run(TWO_RANKS, tmp_path, partial(Nodes, memory, 23)).was_killed
    for file in memory.glob("node*/*/*/*/*-step-20.ckpt/__1_0.distcp"):
        flip_bit(file)
    outcome = run(TWO_RANKS, tmp_path, partial(Nodes, memory, 0))
    assert outcome.output.count("The copy of step 20 in memory is damaged or incomplete.") == 1
    assert_bitwise_equal(outcome, train_uninterrupted(TWO_RANKS))
    assert read_start_steps(tmp_path) == [0, 10]


def test_files_that_are_bad_on_one_node_are_taken_from_the_other_node(tmp_path: Path, memory: Path):
    assert run(TWO_RANKS, tmp_path, partial(Nodes, memory, 13)).was_killed
    for node, name in enumerate(["__0_0.distcp", "__1_0.distcp"]):
        (file,) = list_files(memory / f"node{node}", name)
        flip_bit(file)
    assert_bitwise_equal(run(TWO_RANKS, tmp_path, partial(Nodes, memory, 0)), train_uninterrupted(TWO_RANKS))
    assert read_start_steps(tmp_path) == [0, 10]


@in_clean_process
def test_shards_of_several_nodes_are_committed_to_an_object_store(s3_url: str, tmp_path: Path, memory: Path):
    nodes = partial(Nodes, memory)
    assert run(THREE_RANKS, tmp_path, partial(nodes, 13), dirpath=s3_url).was_killed
    shutil.rmtree(memory / "node0")
    outcome = run(THREE_RANKS, tmp_path, partial(nodes, 0), dirpath=s3_url)
    assert_bitwise_equal(outcome, train_uninterrupted(THREE_RANKS))
    assert "resuming from the copy of step 10 in memory" in outcome.output


class FailToWrite(Nodes):
    """Storage fails on one rank when it commits its files of a copy."""

    def __init__(self, memory: Path, rank: int) -> None:
        super().__init__(memory, 0)
        if int(os.environ["LOCAL_RANK"]) == rank:
            memory_commit.copy_shards = fail  # type: ignore[assignment]


def fail(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("rank", mark_cases([1, 2], [1]))
def test_a_rank_that_cannot_write_its_files_makes_all_ranks_resume_from_storage(
    rank: int, tmp_path: Path, memory: Path
):
    assert run(THREE_RANKS, tmp_path, partial(Nodes, memory, 13)).was_killed
    shutil.rmtree(memory / "node0")  # so that ranks 1 and 2 have the files
    outcome = run(THREE_RANKS, tmp_path, partial(FailToWrite, memory, rank))
    assert outcome.output.count("The copy of step 10 in memory cannot be committed to") == 1
    assert_bitwise_equal(outcome, train_uninterrupted(THREE_RANKS))
    assert read_start_steps(tmp_path) == [0, 0]
    assert not list((tmp_path / "checkpoints").glob("*-step-10.*"))


class FullMemory(Nodes):
    """The memory of one node is full."""

    def __init__(self, memory: Path, step: int, node: int) -> None:
        super().__init__(memory, step)
        if int(os.environ["LOCAL_RANK"]) == node:
            memory_folder.shutil.disk_usage = lambda _: SimpleNamespace(free=1)  # type: ignore[assignment,misc]


@pytest.mark.parametrize("node", mark_cases([0, 1], [1]))
def test_full_memory_on_any_node_causes_one_warning_and_training_continues(node: int, tmp_path: Path, memory: Path):
    outcome = run(TWO_RANKS, tmp_path, partial(FullMemory, memory, 0, node))
    assert outcome.output.count("The state is no longer copied to memory") == 1
    assert_bitwise_equal(outcome, train_uninterrupted(TWO_RANKS))
    assert list_files(memory) == []


class BrokenReceiver(Nodes):
    """One node cannot store the files that another node sends."""

    def __init__(self, memory: Path, step: int, node: int) -> None:
        super().__init__(memory, step)
        if int(os.environ["LOCAL_RANK"]) == node:
            memory_folder.MemoryFolder.receive_file = fail  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("node", mark_cases([0, 1], [1]))
def test_copies_that_cannot_be_sent_stay_on_the_nodes_of_their_ranks(node: int, tmp_path: Path, memory: Path):
    assert run(TWO_RANKS, tmp_path, partial(BrokenReceiver, memory, 23, node)).was_killed
    output = (tmp_path / "output0.txt").read_text()
    assert output.count("The state is no longer copied to the memory of another node: rank") == 1
    assert "No space left on device" in output
    assert_bitwise_equal(run(TWO_RANKS, tmp_path, partial(Nodes, memory, 0)), train_uninterrupted(TWO_RANKS))
    assert read_start_steps(tmp_path) == [0, 20]


def train_with_callbacks(cell: Cell, folder: Path, extra: Any = None, **options: Any) -> Any:
    return train(cell, folder, extra=extra[0], **options)


def test_preempted_ranks_stop_together_and_delete_the_copies(tmp_path: Path, memory: Path):
    faults = lambda: [Preemption(), HangWatch(), FaultInjector().signal(at="on_train_batch_end", step=15)]  # noqa: E731
    recovery = {"memory_tier": True, "monitor": None}
    outcome = run_attempt(TWO_RANKS, tmp_path, faults, function=train_with_callbacks, recovery=recovery)
    assert sorted(outcome.exit_codes) == [0, 75], outcome.output
    assert list_files(memory) == []
    assert_bitwise_equal(run(TWO_RANKS, tmp_path), train_uninterrupted(TWO_RANKS))
    assert read_start_steps(tmp_path)[1] > 10


class FailAfterCopy(KillAfterCopy):
    """Raises an error on one rank, after the copy of step 10 is written."""

    def __init__(self, rank: int, error: type[BaseException]) -> None:
        super().__init__(step=-1)
        self.rank, self.error = rank, error

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if trainer.global_step == 13 and trainer.global_rank == self.rank:
            raise self.error


@pytest.mark.parametrize(
    ("error", "rank"), vary_one_factor([RuntimeError, KeyboardInterrupt], [0, 1], KeyboardInterrupt, 1)
)
def test_a_run_that_fails_on_one_rank_ends_and_resumes_from_the_copy(
    error: type[BaseException], rank: int, tmp_path: Path
):
    start = time.monotonic()
    assert run(TWO_RANKS, tmp_path, partial(FailAfterCopy, rank, error)).results is None
    assert time.monotonic() - start < 60
    assert_bitwise_equal(run(TWO_RANKS, tmp_path), train_uninterrupted(TWO_RANKS))
    assert read_start_steps(tmp_path) == [0, 10]


def test_a_copy_with_a_nan_on_another_rank_is_not_kept(tmp_path: Path, memory: Path):
    faults = lambda: FaultInjector().nan(step=8, rank=1).kill(step=15)  # noqa: E731
    assert run(TWO_RANKS, tmp_path, faults).was_killed
    assert list_files(memory, "*.json") == []
    run(TWO_RANKS, tmp_path)
    assert read_start_steps(tmp_path) == [0, 0]


class RollBackNodesAndKill(Nodes, RollBackAndKill):
    """Rolls back on all nodes, and kills all ranks."""


def test_no_run_resumes_from_shards_of_diverged_weights(tmp_path: Path, memory: Path):
    assert run(TWO_RANKS, tmp_path, partial(RollBackNodesAndKill, memory, -1)).was_killed
    assert list_files(memory) == []


class DivergeOnNodes(Nodes, Diverge):
    """Ends the run on all nodes as a DivergenceGuard does."""


def test_no_run_resumes_from_shards_after_divergence(tmp_path: Path, memory: Path):
    outcome = run(TWO_RANKS, tmp_path, partial(DivergeOnNodes, memory, 13))
    assert outcome.output.count("DivergedError: diverged") == 2
    assert "may resume from diverged weights" not in outcome.output
    assert list_files(memory) == []


def test_the_copy_of_an_earlier_attempt_is_ignored(tmp_path: Path):
    assert run(TWO_RANKS, tmp_path, partial(KillAfterCopy, 13)).was_killed
    assert run(TWO_RANKS, tmp_path, partial(KillAfterCopy, 3), memory_tier=False).was_killed  # resumes from storage
    assert run(TWO_RANKS, tmp_path, partial(KillAfterCopy, 5)).was_killed
    assert read_start_steps(tmp_path) == [0, 0, 0]
