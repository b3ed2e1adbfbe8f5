"""Loading a checkpoint without a run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stormproof.checkpoint import Store, load_checkpoint
from stormproof.errors import DamagedError
from tests.support.checkpoint_files import flip_bit, make_store
from tests.support.sharded_checkpoints import make_sharded_store


@pytest.mark.parametrize("make", [make_store, make_sharded_store])
def test_files_and_folders_are_loaded_as_one_dict(make: Callable[[Path], Store], tmp_path: Path):
    newest = make(tmp_path).read_checkpoints()[-1]
    checkpoint = load_checkpoint(str(newest.path))
    assert checkpoint["global_step"] == 30
    assert torch.equal(checkpoint["state_dict"]["weight"], torch.arange(40.0) + 30)


@pytest.mark.parametrize("file", ["__0_0.distcp", "meta.pt", ".metadata"])
def test_a_changed_file_is_found_by_its_hash(file: str, tmp_path: Path):
    newest = make_sharded_store(tmp_path).read_checkpoints()[-1]
    flip_bit(newest.path / file)
    with pytest.raises(DamagedError, match="a checkpoint: its content has changed since it was committed"):
        load_checkpoint(newest.path)


def test_a_folder_without_its_manifest_is_loaded_and_damage_that_torch_finds_is_one_sentence(tmp_path: Path):
    newest = make_sharded_store(tmp_path / "run").read_checkpoints()[-1]
    copy = tmp_path / "copy.ckpt"
    shutil.copytree(newest.path, copy)
    assert load_checkpoint(copy)["global_step"] == 30
    shard = copy / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(DamagedError, match=r"copy\.ckpt is damaged or not a checkpoint: "):
        load_checkpoint(copy)
    (copy / ".metadata").unlink()
    with pytest.raises(DamagedError, match=r"it has no file \.metadata"):
        load_checkpoint(copy)


def test_the_folder_of_a_run_is_no_checkpoint(tmp_path: Path):
    make_store(tmp_path)
    with pytest.raises(DamagedError, match="it has no file"):
        load_checkpoint(tmp_path)
