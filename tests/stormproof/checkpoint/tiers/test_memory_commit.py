"""Copies in memory are committed if they are newer than the newest checkpoint."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from stormproof.checkpoint import Store
from stormproof.checkpoint.tiers import memory_folder
from stormproof.checkpoint.tiers.memory_commit import commit_from_any_node, commit_from_this_node
from stormproof.checkpoint.tiers.memory_folder import MemoryFolder, name_last_folder
from stormproof.errors import FolderTakenError
from tests.support.checkpoint_files import flip_bit, make_store
from tests.support.sharded_checkpoints import make_sharded_store

pytestmark = pytest.mark.usefixtures("memory")


def make_copies(store: Store, folder: Path, steps: Sequence[int]) -> MemoryFolder:
    """Puts sharded copies into the memory of this node."""
    copies = MemoryFolder(name_last_folder(store))
    copies.prepare()
    for path in make_sharded_store(folder, steps).folder.glob("0*"):
        shutil.move(path, copies.path)
    return copies


@pytest.mark.parametrize(("is_damaged", "expected_steps"), [(False, [15, 20]), (True, [15])])
def test_if_the_newest_copy_is_damaged_no_copy_older_than_the_newest_checkpoint_is_committed(
    is_damaged: bool, expected_steps: list[int], tmp_path: Path
):
    store = make_store(tmp_path / "checkpoints", [15])
    folder = make_copies(store, tmp_path / "copies", [10, 20])
    if is_damaged:
        flip_bit(folder.path / "000002-step-20.ckpt" / "__0_0.distcp")
    assert commit_from_this_node(store, store.resolve().chosen_checkpoint) is not is_damaged
    assert [checkpoint.step for checkpoint in store.read_checkpoints()] == expected_steps


def test_a_process_does_not_wait_forever_for_another_one_that_commits_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = make_store(tmp_path / "checkpoints", [15])
    folder = make_copies(store, tmp_path / "copies", [20])
    monkeypatch.setattr(memory_folder, "LOCK_TIMEOUT_SECONDS", 0.1)
    with folder.lock():
        assert not commit_from_this_node(store, store.resolve().chosen_checkpoint)


def test_a_run_whose_storage_another_run_owns_keeps_the_copy_and_does_not_begin(tmp_path: Path):
    store = make_store(tmp_path / "checkpoints", [15])
    folder = make_copies(store, tmp_path / "copies", [20])
    lease = store.acquire_lease()
    with pytest.raises(FolderTakenError):
        commit_from_any_node(store, store.resolve(), store.resolve, rank=0, local_rank=0)
    lease.release()
    assert folder.find_newest() is not None
    resolution = commit_from_any_node(store, store.resolve(), store.resolve, rank=0, local_rank=0)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 20
