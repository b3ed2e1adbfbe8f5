"""Runs with tensor parallelism that are killed end like an uninterrupted run, and resume with other layouts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof import HangWatch, Preemption
from stormproof.checkpoint import Store, load_checkpoint
from stormproof.checkpoint.sharding.shard_reader import ShardReader
from stormproof.distributed.dtensor import to_full
from stormproof.testing import FaultInjector, flip_bit
from tests.faults.test_world_size_resume import (
    ONE_RANK,
    SAMPLES,
    TWO_RANKS,
    Steps,
    read_samples,
    train_recording_samples,
)
from tests.support.cases import mark_cases
from tests.support.exact_resume_training import SYNC_SAVE, Cell, train
from tests.support.forked_attempts import (
    Outcome,
    assert_bitwise_equal,
    kill_repeatedly,
    run_attempt,
    train_uninterrupted,
)

pytestmark = pytest.mark.slow

TENSOR_PARALLEL = Cell(sharded=True, saves_shards=True, ranks=2, tensor_parallel=2, epochs=2, samples=SAMPLES)
TWO_DIMENSIONAL = replace(TENSOR_PARALLEL, ranks=4)
CELLS = {
    "tensor parallel": TENSOR_PARALLEL,
    "two-dimensional": TWO_DIMENSIONAL,
    "two-dimensional, in one file": replace(TWO_DIMENSIONAL, saves_shards=False),
    "tensor parallel, manual": replace(TENSOR_PARALLEL, manual_optimization=True),
}
KILL_POINTS = [("on_train_batch_start", 3), ("shard half written", 6), ("on_train_batch_end", 10)]
FULLY_SHARDED = replace(TWO_RANKS, sharded=True, saves_shards=True)
ACCUMULATED = replace(TENSOR_PARALLEL, accumulate=2, epochs=3)  # with the global batch of two data-parallel ranks
FOUR_RANKS = replace(TWO_DIMENSIONAL, epochs=3)


@pytest.mark.parametrize("name", mark_cases(CELLS, ["tensor parallel", "two-dimensional"]))
def test_killed_runs_end_like_an_uninterrupted_one(name: str, tmp_path: Path):
    cell = CELLS[name]
    points = [(phase if cell.saves_shards else phase.replace("shard half written", "on_train_batch_end"), step)
              for phase, step in KILL_POINTS]  # fmt: skip
    assert_bitwise_equal(kill_repeatedly(cell, tmp_path, points), train_uninterrupted(cell))


def test_a_replicated_tensor_is_written_once_and_a_damaged_shard_is_skipped(tmp_path: Path):
    stop = partial(FaultInjector().stop, "on_train_batch_start", 5)
    assert run_attempt(TENSOR_PARALLEL, tmp_path, stop, recovery=SYNC_SAVE).was_killed
    newest = Store(tmp_path / "checkpoints").read_checkpoints()[-1]
    metadata = ShardReader.from_folder(newest.path).read_metadata()
    shards = [*newest.path.glob("*.distcp")]
    assert len(shards) == 2
    assert sum(shard.stat().st_size for shard in shards) == sum(info.length for info in metadata.storage_data.values())
    flip_bit(newest.path / "__1_0.distcp")
    outcome = run_attempt(TENSOR_PARALLEL, tmp_path)
    assert f"Skipping checkpoint {newest.path}: its content has changed" in outcome.output
    assert_bitwise_equal(outcome, train_uninterrupted(TENSOR_PARALLEL))


def test_preempted_ranks_leave_together_and_resume(tmp_path: Path):
    faults = lambda: [Preemption(), HangWatch(), FaultInjector().signal(at="on_train_batch_end", step=3)]  # noqa: E731
    outcome = run_attempt(TENSOR_PARALLEL, tmp_path, faults, function=train_with_callbacks)
    assert sorted(outcome.exit_codes) == [0, 75], outcome.output
    assert_bitwise_equal(run_attempt(TENSOR_PARALLEL, tmp_path), train_uninterrupted(TENSOR_PARALLEL))


def train_with_callbacks(cell: Cell, folder: Path, extra: Any = None, **options: Any) -> Any:
    return train(cell, folder, extra=extra[0], **options)


class StateRecorder(pl.Callback):
    """Saves weights and optimizer states before the first batch of an attempt, with all their shards."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "restored.pt"
        self.has_saved = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.has_saved:
            return
        self.has_saved = True
        (optimizer,) = trainer.optimizers
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {
            "step": trainer.global_step,
            "weights": {name: to_full(value) for name, value in pl_module.state_dict().items()},
            "optimizer": [
                {key: to_full(value) for key, value in optimizer.state[parameter].items()} for parameter in parameters
            ],
        }
        if trainer.is_global_zero:
            torch.save(state, self.path)


def train_recording_state(cell: Cell, folder: Path, extra: Any = None, **options: Any) -> Any:
    return train_recording_samples(cell, folder, [*(extra or []), StateRecorder(folder)], **options)


def run_then_kill(cell: Cell, folder: Path, kill_at: int | None) -> Outcome:
    faults = None if kill_at is None else partial(FaultInjector().stop, "on_train_batch_end", kill_at)
    outcome = run_attempt(cell, folder, faults, function=train_recording_state, recovery={**SYNC_SAVE, "keep_last": 50})
    assert outcome.was_killed == (kill_at is not None), outcome.output
    assert outcome.was_killed or outcome.results is not None, outcome.output
    return outcome


def assert_restored(folder: Path) -> None:
    """Asserts that the last attempt has restored all weights and optimizer states of its checkpoint."""
    restored = torch.load(folder / "restored.pt")
    checkpoints = Store(folder / "checkpoints").read_checkpoints()
    (path,) = [checkpoint.path for checkpoint in checkpoints if checkpoint.step == restored["step"]]
    saved = load_checkpoint(path)
    assert restored["weights"].keys() == saved["state_dict"].keys()
    for name, value in saved["state_dict"].items():
        assert torch.equal(restored["weights"][name], value), name
    saved_states = saved["optimizer_states"][0]["state"]
    assert len(restored["optimizer"]) == len(saved_states)
    for restored_state, saved_state in zip(restored["optimizer"], saved_states.values(), strict=True):
        assert restored_state.keys() == saved_state.keys()
        for key, value in saved_state.items():
            assert torch.equal(restored_state[key], value), key


@pytest.fixture(scope="module")
def whole_steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """The samples of each step of an uninterrupted run on two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    run_then_kill(TWO_RANKS, folder, None)
    return read_samples(folder)


@pytest.mark.parametrize(
    "attempts",
    [
        [(FOUR_RANKS, 2), (FULLY_SHARDED, 4), (ACCUMULATED, 6), (FOUR_RANKS, 9), (ONE_RANK, None)],
        [(ONE_RANK, 2), (FOUR_RANKS, 4), (ONE_RANK, 7), (ACCUMULATED, 9), (FULLY_SHARDED, 12), (FOUR_RANKS, None)],
    ],
    ids=["two-dimensional first", "one device first"],
)
def test_each_layout_restores_the_state_and_the_order_of_another(
    attempts: list[tuple[Cell, int | None]], whole_steps: Steps, tmp_path: Path
):
    for number, (cell, kill_at) in enumerate(attempts):
        outcome = run_then_kill(cell, tmp_path, kill_at)
        if number:
            assert_restored(tmp_path)
            assert "this resume is not exact" in outcome.output
    assert read_samples(tmp_path) == whole_steps
