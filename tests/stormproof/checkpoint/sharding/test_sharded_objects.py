"""Sharded checkpoints in an object store, as the store and as the mirror of a folder."""

from pathlib import Path

import pytest
import torch
from obstore.store import MemoryStore

from stormproof.checkpoint import Checkpoint, Retention, Store
from stormproof.checkpoint.sharding.shard_reader import load_full
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.checkpoint.tiers.download import download_newest
from stormproof.checkpoint.tiers.uploader import Uploader
from stormproof.errors import DamagedError
from tests.support.checkpoint_files import file_names, flip_bit
from tests.support.object_stores import flip_object_bit, object_names
from tests.support.sharded_checkpoints import commit_shards, make_sharded_state, make_sharded_store
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [*LIGHTNING_WARNING_FILTERS, pytest.mark.usefixtures("node")]

FILES = [".metadata", "__0_0.distcp", "meta.pt"]


@pytest.fixture(params=["memory", "s3"])
def storage(request: pytest.FixtureRequest) -> ObjectStorage:
    if request.param == "memory":
        return ObjectStorage("s3://bucket/run", store=MemoryStore(), retry_seconds=0.1)
    return ObjectStorage(request.getfixturevalue("s3_url"), retry_seconds=5)


def _assert_holds(path: Path, step: int) -> None:
    weight = load_full(path)["state_dict"]["weight"]
    assert torch.equal(weight, make_sharded_state(step)["state_dict"]["weight"])


def _shard_names(storage: ObjectStorage, checkpoint: Checkpoint) -> list[str]:
    return sorted(entry.name for entry in storage.list(checkpoint.path.name))


def test_a_sharded_checkpoint_is_committed_found_and_copied_to_the_node(storage: ObjectStorage, node: Path):
    store = make_sharded_store(storage)
    resolution = store.resolve(fetch=True)
    newest = resolution.chosen_checkpoint
    assert newest is not None
    assert _shard_names(storage, newest) == FILES
    path = store.fetch(newest)
    _assert_holds(path, 30)
    store.catalog.discard_copy(newest)
    assert not path.exists()
    assert not [*node.rglob("*.distcp")]


def test_retention_deletes_all_its_objects(storage: ObjectStorage):
    store = make_sharded_store(storage)
    (deleted,) = store.apply_retention(Retention())
    assert _shard_names(storage, deleted) == []
    assert not [name for name in object_names(storage) if name.startswith(deleted.name)]


@pytest.mark.parametrize("fetch", [False, True])
@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_in_any_object_sends_the_run_to_the_checkpoint_before(
    file: str, fetch: bool, storage: ObjectStorage
):
    store = make_sharded_store(storage)
    newest = store.read_checkpoints()[-1]
    flip_object_bit(storage, f"{newest.path.name}/{file}")
    resolution = store.resolve(fetch=fetch)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 20
    assert resolution.bad_checkpoints[0].reason == "its content has changed since it was committed"
    with pytest.raises(DamagedError):
        store.fetch(newest)


def test_a_missing_object_is_named(storage: ObjectStorage):
    store = make_sharded_store(storage)
    newest = store.read_checkpoints()[-1]
    storage.delete([f"{newest.path.name}/meta.pt"])
    assert store.verify(newest) == "its file meta.pt is missing"


def test_what_a_killed_commit_left_over_is_deleted_at_the_next_start(storage: ObjectStorage):
    store = make_sharded_store(storage)
    storage.put_if_absent("000004-step-40.ckpt/__0_0.distcp", b"half")
    assert store.resolve().leftover_files == ["000004-step-40.ckpt"]
    store.begin_attempt(store.resolve())
    assert storage.list("000004-step-40.ckpt") == []
    assert commit_shards(store, 50, attempt=2).sequence == 5


def test_a_mirror_contains_the_newest_and_an_empty_folder_gets_it_back(storage: ObjectStorage, tmp_path: Path):
    local = make_sharded_store(tmp_path / "local")
    Uploader(local, storage, Retention()).close(30)
    (copy,) = Store(storage).read_checkpoints()
    assert _shard_names(storage, copy) == FILES
    empty = Store(tmp_path / "empty")
    downloaded = download_newest(empty, storage, empty.resolve(), None)
    assert downloaded is not None
    assert downloaded.name == "000003-step-30"
    assert sorted(file_names(downloaded.path)) == FILES
    _assert_holds(downloaded.path, 30)
    assert empty.latest_checkpoint() == downloaded


def test_a_damaged_checkpoint_is_not_copied_to_the_mirror(storage: ObjectStorage, tmp_path: Path):
    local = make_sharded_store(tmp_path / "local")
    flip_bit(local.read_checkpoints()[-1].path / "__0_0.distcp")
    with (
        pytest.warns(match=r"has changed since it was committed\. It is not copied\."),
        pytest.warns(match="The newest checkpoint is not in the mirror"),
    ):
        Uploader(local, storage, Retention()).close(30)
    assert Store(storage).read_checkpoints() == []
