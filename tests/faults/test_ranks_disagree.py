"""Ranks that would go on from different states stop, all of them, with the code that asks to be started again."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stormproof import CheckpointRecovery, checkpoint_recovery
from stormproof.checkpoint import Resolution, Store
from stormproof.testing import FaultInjector
from tests.support.cases import mark_cases
from tests.support.drill import assert_same, attempt, uninterrupted
from tests.support.training import IN_STEP, Cell, train

TWO = Cell(ranks=2)


def _is_second() -> bool:
    return os.environ.get("LOCAL_RANK") == "1"


def in_a_folder_of_its_own(cell: Cell, folder: Path, **options: Any) -> Any:
    """Each rank sees another disk."""
    checkpoint_recovery.agree_on_folder = partial(checkpoint_recovery.agree_on_folder, patience=0.5)
    return train(cell, folder / f"disk{os.environ['LOCAL_RANK']}", **options)


def where_the_second_finds_nothing(cell: Cell, folder: Path, **options: Any) -> Any:
    if _is_second():
        Store.resolve = lambda self, *, thorough=False: Resolution(None)
    return train(cell, folder, **options)


def where_the_second_finds_an_older_one(cell: Cell, folder: Path, **options: Any) -> Any:
    if _is_second():
        found = Store(folder / "checkpoints").resolve()
        Store.resolve = lambda self, *, thorough=False: Resolution(found.older[0])
    return train(cell, folder, **options)


def where_the_second_passes_nothing_on(cell: Cell, folder: Path, **options: Any) -> Any:
    if _is_second():
        CheckpointRecovery.latest_checkpoint = lambda self, start_over=False: None
    return train(cell, folder, **options)


def where_the_second_passes_an_older_one_on(cell: Cell, folder: Path, **options: Any) -> Any:
    if _is_second():
        older = Store(folder / "checkpoints").resolve().older[0]
        CheckpointRecovery.latest_checkpoint = lambda self, start_over=False: str(older.path)
    return train(cell, folder, **options)


def checkpoints(folder: Path) -> dict[str, bytes]:
    """Every checkpoint and manifest below ``folder``, by name."""
    files = [file for kind in ("*.ckpt", "*.json") for file in folder.rglob(kind) if file.name != "lease.json"]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.slow
def test_two_ranks_that_see_different_folders_stop(tmp_path: Path):
    done = attempt(TWO, tmp_path, function=in_a_folder_of_its_own)
    assert done.exit_codes == (75, 75), done.output
    assert f"rank 1: {tmp_path}/disk1/checkpoints is not the folder that rank 0 writes to" in done.output
    assert checkpoints(tmp_path) == {}


@pytest.mark.slow
def test_two_ranks_that_see_different_folders_with_checkpoints_stop(tmp_path: Path):
    assert attempt(Cell(), tmp_path / "disk0").results
    before = checkpoints(tmp_path)
    done = attempt(TWO, tmp_path, function=in_a_folder_of_its_own)
    assert done.exit_codes == (75, 75), done.output
    assert "the ranks do not agree on the newest good checkpoint" in done.output
    assert checkpoints(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "sentence"),
    mark_cases(
        [
            (where_the_second_finds_nothing, "the newest good checkpoint (rank 0: 000007-step-6.ckpt"),
            (where_the_second_finds_an_older_one, "the newest good checkpoint (rank 0: 000007-step-6.ckpt"),
            (where_the_second_passes_nothing_on, "the state they loaded (rank 0: epoch 0, step 6"),
            (where_the_second_passes_an_older_one_on, "the state they loaded (rank 0: epoch 0, step 6"),
        ],
        [(where_the_second_passes_an_older_one_on, "the state they loaded (rank 0: epoch 0, step 6")],
    ),
)
def test_ranks_that_resolve_differently_stop_and_the_next_start_is_exact(function: Any, sentence: str, tmp_path: Path):
    assert attempt(TWO, tmp_path, lambda: FaultInjector().stop("on_train_batch_start", 6, 0), recovery=IN_STEP).killed
    before = checkpoints(tmp_path)
    done = attempt(TWO, tmp_path, function=function)
    assert done.exit_codes == (75, 75), done.output
    assert f"the ranks do not agree on {sentence}" in done.output
    assert checkpoints(tmp_path) == before
    assert_same(attempt(TWO, tmp_path), uninterrupted(TWO))
