"""The folder in memory keeps the newest copy of one attempt."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stormproof.checkpoint import Attempt, Checkpoint, CommitInfo, Store
from stormproof.checkpoint.tiers.memory_folder import MAX_AGE_SECONDS, MemoryFolder, name_folder
from stormproof.errors import DamagedError
from tests.support.checkpoint_files import flip_bit, state_writer
from tests.support.sharded_checkpoints import make_sharded_store

LOCATION = "/runs/mine/checkpoints"


def make_folder(attempt: int = 1, location: str = LOCATION) -> MemoryFolder:
    folder = MemoryFolder(name_folder(location, Attempt(attempt, 0, 1000.0 + attempt)))
    folder.prepare()
    return folder


def commit(folder: MemoryFolder, step: int, size: int = 1) -> Any:
    return folder.commit(state_writer(step), size, CommitInfo(step=step, epoch=0, world_size=1), 1)


def list_files(folder: MemoryFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


@pytest.mark.usefixtures("memory")
def test_a_commit_replaces_the_previous_copy():
    folder = make_folder()
    commit(folder, 5)
    commit(folder, 7)
    assert list_files(folder) == ["000002-step-7.ckpt", "000002-step-7.json"]
    newest = MemoryFolder(name_folder(LOCATION, Attempt(1, 0, 1001.0))).find_newest()
    assert newest is not None
    assert newest.step == 7


@pytest.mark.usefixtures("memory")
def test_a_commit_that_fails_keeps_the_previous_copy():
    folder = make_folder()
    commit(folder, 5)

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        folder.commit(fail, 1, CommitInfo(step=7, epoch=0, world_size=1), 1)
    assert list_files(folder) == ["000001-step-5.ckpt", "000001-step-5.json"]


@pytest.mark.usefixtures("memory")
def test_a_damaged_copy_is_not_found():
    folder = make_folder()
    flip_bit(commit(folder, 5).path)
    assert folder.find_newest() is None


@pytest.mark.usefixtures("memory")
def test_a_copy_without_a_manifest_is_not_found():
    folder = make_folder()
    commit(folder, 5).manifest_path.unlink()
    assert folder.find_newest() is None


@pytest.mark.usefixtures("memory")
def test_a_missing_folder_has_no_copy():
    assert MemoryFolder(name_folder(LOCATION, Attempt(3, 0, 1.0))).find_newest() is None


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    ("has_previous", "free", "fits"),
    [(False, 199, False), (False, 200, True), (True, 100, True), (True, 99, False)],
)
def test_the_first_copy_requires_room_for_two(
    has_previous: bool, free: int, fits: bool, monkeypatch: pytest.MonkeyPatch
):
    folder = make_folder()
    if has_previous:
        commit(folder, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if fits:
        assert commit(folder, 7, size=100).step == 7
        return
    with pytest.raises(OSError, match="0 MB are free"):
        commit(folder, 7, size=100)


def test_a_new_attempt_frees_the_memory_of_earlier_ones_and_of_abandoned_runs(memory: Path):
    first, other, abandoned = make_folder(), make_folder(location="/runs/other"), make_folder(location="/runs/old")
    for folder in (first, other, abandoned):
        commit(folder, 5)
    os.utime(abandoned.path.parent, (0, abandoned.path.parent.stat().st_mtime - MAX_AGE_SECONDS - 60))
    second = make_folder(2)
    assert [folder.path.exists() for folder in (first, other, abandoned, second)] == [False, True, False, True]


def test_a_folder_of_another_run_that_disappears_does_not_prevent_copies(memory: Path, monkeypatch: pytest.MonkeyPatch):
    make_folder(location="/runs/other")
    folders = [*memory.glob("*/*")]
    shutil.rmtree(folders[0])
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(folders if path.parent == memory else ()))
    assert make_folder().path.exists()


def test_a_folder_that_was_deleted_is_created_again_for_this_user_only(memory: Path):
    folder = make_folder()
    (root,) = memory.iterdir()
    shutil.rmtree(root)
    previous_mask = os.umask(0o002)
    try:
        commit(folder, 5)
    finally:
        os.umask(previous_mask)
    assert root.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("memory")
def test_a_cleared_folder_numbers_later_copies_higher():
    folder = make_folder()
    commit(folder, 5)
    folder.clear()
    assert not folder.path.exists()
    assert commit(folder, 3).sequence == 2


@pytest.mark.usefixtures("memory")
def test_a_copy_from_another_node_is_stored_with_its_manifest():
    source, target = make_folder(), make_folder(location="/other/node")
    copy = commit(source, 5)
    target.receive(copy.path.name, *source.read(copy))
    stored = target.find_newest()
    assert stored is not None
    assert (stored.digest, stored.sequence) == (copy.digest, copy.sequence)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("part", ["name", "manifest", "content"])
def test_a_copy_that_was_damaged_in_transit_is_refused_and_the_previous_one_stays(part: str):
    source, target = make_folder(), make_folder(location="/other/node")
    previous = commit(source, 5)
    target.receive(previous.path.name, *source.read(previous))
    copy = commit(source, 7)
    manifest, chunks = source.read(copy)
    content = b"".join(chunks)
    name = "../000009-step-7.ckpt" if part == "name" else copy.path.name
    manifest = manifest.replace(b'"step": 7', b'"step": 8') if part == "manifest" else manifest
    content = content[:-1] + b"?" if part == "content" else content
    with pytest.raises(DamagedError, match=r"damaged in transit|is not the name"):
        target.receive(name, manifest, [content])
    assert list_files(target) == ["000001-step-5.ckpt", "000001-step-5.json"]


def copy_shards(folder: MemoryFolder, step: int, shards: Store, *, size: int = 1) -> Any:
    """Copies the files of the only checkpoint of ``shards`` to ``folder``, as a copy of ``step``."""
    (checkpoint,) = shards.read_checkpoints()

    def write(name: str) -> Any:
        folder.make_room(name, size)
        for file, stored in checkpoint.stored_files.items():
            chunks = shards.storage.get(file)
            folder.receive_file(f"{name}/{file.partition('/')[2]}", stored.digest, chunks)
        return checkpoint.files

    def add_manifest(copy: Checkpoint, manifest: bytes) -> None:
        folder.add_manifest(copy, manifest)

    return folder.commit_sharded(write, add_manifest, CommitInfo(step=step, epoch=0, world_size=1), 1)


@pytest.fixture
def shards(tmp_path: Path) -> Store:
    return make_sharded_store(tmp_path / "checkpoints", [10])


@pytest.mark.usefixtures("memory")
def test_a_sharded_copy_replaces_the_copy_before_the_previous_one(shards: Store):
    folder = make_folder()
    for step in (5, 7):
        copy_shards(folder, step, shards)
    assert folder.find_newest() == folder.store.read_checkpoints()[-1]
    assert [copy.step for copy in folder.store.read_checkpoints()] == [5, 7]
    folder.make_room("000003-step-9.ckpt", 1)
    assert list_files(folder) == ["000002-step-7.ckpt", "000002-step-7.json", "000003-step-9.ckpt"]
    folder.make_room("000004-step-11.ckpt", 1)  # the previous one was not completed
    assert list_files(folder) == ["000002-step-7.ckpt", "000002-step-7.json", "000004-step-11.ckpt"]


@pytest.mark.usefixtures("memory")
def test_the_first_sharded_copy_requires_room_for_two(shards: Store, monkeypatch: pytest.MonkeyPatch):
    folder = make_folder()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=150))
    with pytest.raises(OSError, match="0 MB are free"):
        copy_shards(folder, 5, shards, size=100)
    copy_shards(folder, 5, shards)
    copy_shards(folder, 7, shards, size=100)


@pytest.mark.usefixtures("memory")
def test_a_file_that_another_process_renames_meanwhile_does_not_prevent_a_copy(monkeypatch: pytest.MonkeyPatch):
    folder = make_folder()
    stat = Path.stat

    def stat_after_renaming(path: Path, **options: Any) -> os.stat_result:
        if path.suffix == ".tmp":
            path.rename(path.with_suffix(""))
        return stat(path, **options)

    (folder.path / "000001-step-5.ckpt").mkdir()
    (folder.path / "000001-step-5.ckpt" / "__0_0.distcp.tmp").write_bytes(b"content")
    monkeypatch.setattr(Path, "stat", stat_after_renaming)
    folder.make_room("000001-step-5.ckpt", 1)


@pytest.mark.usefixtures("memory")
def test_a_copy_that_cannot_be_deleted_is_an_error(monkeypatch: pytest.MonkeyPatch):
    folder = make_folder()
    commit(folder, 5)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(OSError, match="still contains a copy"):
        folder.clear()


@pytest.mark.usefixtures("memory")
def test_files_that_other_processes_have_written_reduce_the_required_room(monkeypatch: pytest.MonkeyPatch):
    folder = make_folder()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=150))
    with pytest.raises(OSError, match="0 MB are free"):
        folder.make_room("000001-step-5.ckpt", 100)
    (folder.path / "000001-step-5.ckpt" / "__0_0.distcp").write_bytes(bytes(50))
    folder.make_room("000001-step-5.ckpt", 100)


@pytest.mark.usefixtures("memory")
def test_a_file_that_was_damaged_in_transit_or_has_a_path_outside_the_folder_is_refused():
    folder = make_folder()
    for name in ("000001-step-5.ckpt/__0_0.distcp", "../000001-step-5.ckpt/meta.pt", "000001-step-5.ckpt/../../a"):
        with pytest.raises(DamagedError, match=r"damaged in transit|is not the name"):
            folder.receive_file(name, "sha256:00", [b"content"])
    assert [path for path in folder.path.parent.rglob("*") if path.is_file()] == []
