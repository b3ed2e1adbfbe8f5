"""A sharded checkpoint is committed, found, kept, deleted and refused like one in a file."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from stormproof.checkpoint import SHARD_POINTS, Retention, Store, observe_fault_points
from stormproof.checkpoint.manifest import LogPrefix, decode_manifest, encode_manifest
from stormproof.checkpoint.sharding.shard_reader import load_full
from stormproof.checkpoint.sharding.shard_writer import ShardWriter
from stormproof.errors import DamagedError, FolderTakenError, NotResumableError
from tests.support.checkpoint_files import commit_checkpoint, file_names, flip_bit, forge_manifest
from tests.support.sharded_checkpoints import commit_shards, make_sharded_state, make_sharded_store

FILES = [".metadata", "__0_0.distcp", "meta.pt"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_sharded_store(tmp_path / "checkpoints")


def test_the_manifest_names_all_files_and_their_hashes(store: Store):
    newest = store.latest_checkpoint()
    assert newest is not None
    assert newest.files is not None
    assert sorted(newest.files) == FILES == sorted(file_names(newest.path))
    assert {name: file.bytes for name, file in newest.files.items()} == {
        name: (newest.path / name).stat().st_size for name in FILES
    }
    assert newest.bytes == sum(file.bytes for file in newest.files.values())


def test_what_was_saved_is_what_is_loaded(store: Store):
    checkpoint = load_full(store.read_checkpoints()[-1].path)
    state = make_sharded_state(30)
    assert torch.equal(checkpoint["state_dict"]["weight"], state["state_dict"]["weight"])
    (optimizer,) = checkpoint["optimizer_states"]
    assert optimizer["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1]}]
    assert torch.equal(optimizer["state"][1]["exp_avg"], state["optimizer_0"]["state"]["weight"]["exp_avg"])
    assert (checkpoint["global_step"], checkpoint["epoch"]) == (30, 0)


def test_torch_loads_a_sharded_checkpoint(store: Store):
    target = {"state_dict": {"weight": torch.zeros(40)}}
    with pytest.warns(match="assuming the intent is to load in a single process"):
        dcp.load(target, checkpoint_id=store.read_checkpoints()[-1].path)
    assert torch.equal(target["state_dict"]["weight"], make_sharded_state(30)["state_dict"]["weight"])


def test_retention_deletes_folders(store: Store):
    assert [checkpoint.step for checkpoint in store.apply_retention(Retention())] == [10]
    assert not [name for name in file_names(store.folder) if name.startswith("000001")]


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_in_any_file_sends_the_run_to_the_checkpoint_before(file: str, store: Store):
    newest = store.read_checkpoints()[-1]
    flip_bit(newest.path / file)
    resolution = store.resolve()
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 20
    assert resolution.bad_checkpoints[0].reason == "its content has changed since it was committed"
    store.begin_attempt(resolution)
    assert file_names(store.folder / "quarantine") == {f"{newest.name}.ckpt", f"{newest.name}.json"}


@pytest.mark.parametrize("file", FILES)
def test_a_missing_or_short_file_is_named(file: str, store: Store):
    newest = store.read_checkpoints()[-1]
    os.truncate(newest.path / file, 7)
    assert f"{file} has 7 bytes but was committed with " in str(store.verify(newest))
    (newest.path / file).unlink()
    assert store.verify(newest) == f"its file {file} is missing"


def test_a_folder_that_is_missing_or_a_link_is_refused(store: Store, tmp_path: Path):
    newest = store.read_checkpoints()[-1]
    newest.path.rename(tmp_path / "elsewhere")
    assert store.verify(newest) == "its folder is missing"
    newest.path.symlink_to(tmp_path / "elsewhere")
    assert store.verify(newest) == "it is not a folder"


def test_the_newest_is_verified_before_an_older_one_is_deleted(store: Store):
    flip_bit(store.read_checkpoints()[-1].path / "__0_0.distcp")
    with pytest.raises(DamagedError, match="No older checkpoint was deleted"):
        store.apply_retention(Retention())
    assert len(store.read_checkpoints()) == 3


def test_what_a_kill_left_over_is_deleted_at_the_next_start(store: Store):
    folder = store.folder / "000004-step-40.ckpt"
    folder.mkdir()
    for name in (".metadata", "__0_0.distcp", ".__1_0.distcp.0123abcd.tmp"):
        (folder / name).write_bytes(b"half")
    assert store.resolve().leftover_files == ["000004-step-40.ckpt"]
    store.begin_attempt(store.resolve())
    assert not folder.exists()
    assert commit_shards(store, 50).sequence == 5


def test_a_folder_with_other_files_is_not_ours(store: Store):
    folder = store.folder / "000004-step-40.ckpt"
    folder.mkdir()
    (folder / "notes.txt").touch()
    store.begin_attempt(store.resolve())
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("point", SHARD_POINTS)
def test_an_error_at_any_point_leaves_nothing_and_the_next_commit_works(point: str, store: Store):
    before, shards = file_names(store.folder), ShardWriter(store.storage, 0)

    def fail(reached: str) -> None:
        if reached == point:
            raise OSError(5, "Input/output error")

    with observe_fault_points(fail), pytest.raises(OSError, match="Input/output error"):
        commit_shards(store, 40, shards=shards)
    if point == "folder created":
        assert file_names(store.folder) - before <= {"000004-step-40.ckpt"}
    else:
        assert file_names(store.folder) == before
    assert commit_shards(store, 50, shards=shards).step == 50
    assert store.resolve().chosen_checkpoint == store.read_checkpoints()[-1]


def test_a_lost_lease_cancels_the_commit(store: Store):
    def fence() -> None:
        raise FolderTakenError("another process owns the folder")

    before = file_names(store.folder)
    with pytest.raises(FolderTakenError):
        commit_shards(store, 40, fence=fence)
    assert file_names(store.folder) == before


def test_files_and_folders_may_follow_each_other(store: Store):
    commit_checkpoint(store, 40)
    commit_shards(store, 50)
    resolution = store.resolve(verify_all=True)
    assert [checkpoint.step for checkpoint in resolution.older_checkpoints] == [40, 30, 20, 10]
    assert not resolution.bad_checkpoints


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"../meta.pt": [1, "sha256:00"]},
        {"meta.pt": [1]},
        {"meta.pt": ["1", "sha256:00"]},
        {"notes.txt": [1, "a:0"]},
        3,
    ],
)
def test_a_forged_list_of_files_is_refused(files: object, store: Store):
    newest = store.read_checkpoints()[-1]
    with pytest.raises(ValueError, match=r"its manifest"):
        decode_manifest(forge_manifest(newest, files=files), newest.path)


def test_an_unknown_hash_of_a_file_asks_for_an_update(store: Store):
    newest = store.read_checkpoints()[-1]
    with pytest.raises(NotResumableError, match="the hash algorithm 'xxh4'"):
        decode_manifest(forge_manifest(newest, files={"meta.pt": [1, "xxh4:00"]}), newest.path)


def test_a_manifest_of_a_sharded_checkpoint_is_read_as_it_was_written(store: Store):
    newest = store.read_checkpoints()[-1]
    log = LogPrefix.from_content(b"")
    assert decode_manifest(encode_manifest(newest, log), newest.path) == (newest, log)
    in_a_file = dataclasses.replace(newest, files=None)
    assert decode_manifest(encode_manifest(in_a_file, log), newest.path)[0].files is None
