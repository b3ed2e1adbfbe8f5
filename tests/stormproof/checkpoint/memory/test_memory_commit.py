"""Only copies that are newer than the newest checkpoint are committed."""

import shutil
from pathlib import Path

import pytest

from stormproof.checkpoint.memory.memory_commit import commit_from_this_node
from stormproof.checkpoint.memory.memory_folder import MemoryFolder, name_last_folder
from tests.support.checkpoint_files import flip_bit, make_store
from tests.support.sharded_checkpoints import make_sharded_store


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(("is_damaged", "expected_steps"), [(False, [15, 20]), (True, [15])])
def test_a_damaged_copy_does_not_lead_to_one_that_is_older_than_the_newest_checkpoint(
    is_damaged: bool, expected_steps: list[int], tmp_path: Path
):
    store = make_store(tmp_path / "checkpoints", [15])
    folder = MemoryFolder(name_last_folder(store))
    folder.prepare()
    for path in make_sharded_store(tmp_path / "copies", [10, 20]).folder.glob("0*"):
        shutil.move(path, folder.path)
    if is_damaged:
        flip_bit(folder.path / "000002-step-20.ckpt" / "__0_0.distcp")
    assert commit_from_this_node(store, store.resolve().chosen_checkpoint) is not is_damaged
    assert [checkpoint.step for checkpoint in store.read_checkpoints()] == expected_steps
