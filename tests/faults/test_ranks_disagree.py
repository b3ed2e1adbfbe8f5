"""Ranks that would go on from different states stop, all of them, with the code that asks to be started again."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Resolution, Store
from stormproof.resume import save_coordinator
from stormproof.testing import FaultInjector
from tests.support.cases import mark_cases
from tests.support.exact_resume_training import SYNC_SAVE, Cell, train
from tests.support.forked_attempts import assert_bitwise_equal, run_attempt, train_uninterrupted

TWO_RANKS = Cell(ranks=2)


def _is_rank_one() -> bool:
    return os.environ.get("LOCAL_RANK") == "1"


def use_own_folder(cell: Cell, folder: Path, **options: Any) -> Any:
    """Each rank sees another disk."""
    save_coordinator.verify_shared_store = partial(save_coordinator.verify_shared_store, timeout_seconds=0.5)
    return train(cell, folder / f"disk{os.environ['LOCAL_RANK']}", **options)


def hide_checkpoints(cell: Cell, folder: Path, **options: Any) -> Any:
    if _is_rank_one():
        Store.resolve = lambda self, **_: Resolution(None)
    return train(cell, folder, **options)


def show_older_checkpoint(cell: Cell, folder: Path, **options: Any) -> Any:
    if _is_rank_one():
        resolution = Store(folder / "checkpoints").resolve()
        Store.resolve = lambda self, **_: Resolution(resolution.older_checkpoints[0])
    return train(cell, folder, **options)


def drop_resume_path(cell: Cell, folder: Path, **options: Any) -> Any:
    if _is_rank_one():
        CheckpointRecovery.latest_checkpoint = lambda self, start_over=False: None
    return train(cell, folder, **options)


def pass_older_checkpoint(cell: Cell, folder: Path, **options: Any) -> Any:
    if _is_rank_one():
        older = Store(folder / "checkpoints").resolve().older_checkpoints[0]
        CheckpointRecovery.latest_checkpoint = lambda self, start_over=False: str(older.path)
    return train(cell, folder, **options)


def checkpoint_names(folder: Path) -> dict[str, bytes]:
    """Every checkpoint and manifest below ``folder``, by name."""
    files = [file for kind in ("*.ckpt", "*.json") for file in folder.rglob(kind) if file.name != "lease.json"]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.slow
def test_two_ranks_that_see_different_folders_stop(tmp_path: Path):
    outcome = run_attempt(TWO_RANKS, tmp_path, function=use_own_folder)
    assert outcome.exit_codes == (75, 75), outcome.output
    assert f"the folder that rank 0 writes to (rank 1: {tmp_path}/disk1/checkpoints)" in outcome.output
    assert checkpoint_names(tmp_path) == {}


@pytest.mark.slow
def test_two_ranks_that_see_different_folders_with_checkpoints_stop(tmp_path: Path):
    assert run_attempt(Cell(), tmp_path / "disk0").results
    before = checkpoint_names(tmp_path)
    outcome = run_attempt(TWO_RANKS, tmp_path, function=use_own_folder)
    assert outcome.exit_codes == (75, 75), outcome.output
    assert "The ranks do not agree on the newest good checkpoint" in outcome.output
    assert checkpoint_names(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "sentence"),
    mark_cases(
        [
            (hide_checkpoints, "the newest good checkpoint (rank 0: 000007-step-6.ckpt"),
            (show_older_checkpoint, "the newest good checkpoint (rank 0: 000007-step-6.ckpt"),
            (drop_resume_path, "the loaded state (rank 0: epoch 0, step 6"),
            (pass_older_checkpoint, "the loaded state (rank 0: epoch 0, step 6"),
        ],
        [(pass_older_checkpoint, "the loaded state (rank 0: epoch 0, step 6")],
    ),
)
def test_ranks_that_resolve_differently_stop_and_the_next_start_is_exact(function: Any, sentence: str, tmp_path: Path):
    assert run_attempt(
        TWO_RANKS, tmp_path, lambda: FaultInjector().stop("on_train_batch_start", 6, 0), recovery=SYNC_SAVE
    ).was_killed
    before = checkpoint_names(tmp_path)
    outcome = run_attempt(TWO_RANKS, tmp_path, function=function)
    assert outcome.exit_codes == (75, 75), outcome.output
    assert f"The ranks do not agree on {sentence}" in outcome.output
    assert checkpoint_names(tmp_path) == before
    assert_bitwise_equal(run_attempt(TWO_RANKS, tmp_path), train_uninterrupted(TWO_RANKS))
