"""One rank per node verifies a checkpoint. The others rely on its marker file while the checkpoint is unchanged."""

import fcntl
import os
import resource
import tempfile
import threading
from pathlib import Path

import pytest

from stormproof.checkpoint import Checkpoint, Store, once_per_node
from stormproof.checkpoint.storage import PosixStorage, Storage
from tests.support.checkpoint_files import flip_bit, make_store


def verify_once_per_node(checkpoint: Checkpoint) -> str | None:
    return once_per_node.verify_once_per_node(PosixStorage(checkpoint.path.parent), checkpoint)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setenv("RANK", "0")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return make_store(tmp_path / "checkpoints", [10]).read_checkpoints()[0]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the verified checkpoints."""
    verified: list[str] = []
    real = once_per_node.find_damage

    def counting(storage: Storage, checkpoint: Checkpoint) -> str | None:
        verified.append(checkpoint.name)
        return real(storage, checkpoint)

    monkeypatch.setattr(once_per_node, "find_damage", counting)
    return verified


def markers(checkpoint: Checkpoint) -> list[Path]:
    return list((checkpoint.path.parents[1] / "temporary" / f"stormproof-{os.getuid()}").iterdir())


def test_a_second_rank_reads_nothing(checkpoint: Checkpoint, reads: list[str]):
    assert [verify_once_per_node(checkpoint) for _ in range(3)] == [None, None, None]
    assert len(reads) == 1


def test_finding_the_newest_checkpoint_verifies_it_once(checkpoint: Checkpoint, reads: list[str]):
    store = Store(checkpoint.path.parent)
    assert store.latest_checkpoint() == store.latest_checkpoint() == checkpoint
    assert len(reads) == 1


def test_a_process_without_a_launcher_verifies_for_itself_and_for_the_ranks_that_it_starts(
    checkpoint: Checkpoint, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RANK")
    assert [verify_once_per_node(checkpoint) for _ in range(2)] == [None, None]
    monkeypatch.setenv("LOCAL_RANK", "1")
    verify_once_per_node(checkpoint)
    assert len(reads) == 2


def test_a_rank_does_not_wait_forever_for_a_suspended_one(
    checkpoint: Checkpoint, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    verify_once_per_node(checkpoint)
    monkeypatch.setattr(once_per_node, "MAX_WAIT_SECONDS", 0.0)
    with markers(checkpoint)[0].open("rb") as marker_file:
        fcntl.flock(marker_file, fcntl.LOCK_EX)
        assert verify_once_per_node(checkpoint) is None
    assert len(reads) == 2


def test_a_full_disk_for_temporary_files_does_not_hide_a_good_checkpoint(checkpoint: Checkpoint, reads: list[str]):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        assert [verify_once_per_node(checkpoint) for _ in range(2)] == [None, None]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(reads) == 2


def test_a_rank_waits_for_the_one_that_is_verifying(checkpoint: Checkpoint, reads: list[str]):
    verify_once_per_node(checkpoint)
    marker = markers(checkpoint)[0]
    verified = marker.read_bytes()
    with marker.open("r+b") as marker_file:
        fcntl.flock(marker_file, fcntl.LOCK_EX)
        marker_file.truncate()
        results: list[str | None] = []
        second_thread = threading.Thread(target=lambda: results.append(verify_once_per_node(checkpoint)))
        second_thread.start()
        second_thread.join(0.2)
        assert second_thread.is_alive()
        marker_file.write(verified)
    second_thread.join(10)
    assert (results, len(reads)) == ([None], 1)


def test_damage_after_the_verification_is_found_even_with_the_old_time(checkpoint: Checkpoint):
    assert verify_once_per_node(checkpoint) is None
    about = checkpoint.path.stat()
    flip_bit(checkpoint.path)
    os.utime(checkpoint.path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert verify_once_per_node(checkpoint) == "its content has changed since it was committed"


def test_every_rank_finds_damage(checkpoint: Checkpoint, reads: list[str]):
    flip_bit(checkpoint.path)
    messages = {verify_once_per_node(checkpoint) for _ in range(2)}
    assert (messages, len(reads)) == ({"its content has changed since it was committed"}, 2)


def test_a_missing_file_is_reported(checkpoint: Checkpoint):
    verify_once_per_node(checkpoint)
    checkpoint.path.unlink()
    assert verify_once_per_node(checkpoint) == "its file is missing"


@pytest.mark.parametrize("seconds", [-301, 60])
def test_a_marker_with_an_old_or_future_time_is_ignored(seconds: int, checkpoint: Checkpoint, reads: list[str]):
    verify_once_per_node(checkpoint)
    marker = markers(checkpoint)[0]
    os.utime(marker, (marker.stat().st_mtime + seconds,) * 2)
    verify_once_per_node(checkpoint)
    assert len(reads) == 2


@pytest.mark.parametrize("content", [b"", b"[", b"\xff", b"null", b"[1]", b"[" * 200_000])
def test_an_invalid_marker_is_ignored(content: bytes, checkpoint: Checkpoint, reads: list[str]):
    verify_once_per_node(checkpoint)
    markers(checkpoint)[0].write_bytes(content)
    verify_once_per_node(checkpoint)
    assert len(reads) == 2


def test_markers_in_a_folder_that_others_can_write_to_are_ignored(checkpoint: Checkpoint, reads: list[str]):
    verify_once_per_node(checkpoint)
    markers(checkpoint)[0].parent.chmod(0o777)
    verify_once_per_node(checkpoint)
    assert len(reads) == 2


def test_old_markers_are_removed(checkpoint: Checkpoint):
    verify_once_per_node(checkpoint)
    old = markers(checkpoint)[0].with_name("old")
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    verify_once_per_node(checkpoint)
    assert not old.exists()


def test_without_a_folder_for_temporary_files_every_rank_verifies(
    checkpoint: Checkpoint, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(checkpoint.path))
    assert [verify_once_per_node(checkpoint) for _ in range(2)] == [None, None]
    assert len(reads) == 2
