"""Of the ranks on a node, one verifies a checkpoint. The others trust its note as long as the file is the same."""

import fcntl
import os
import tempfile
import threading
from pathlib import Path

import pytest

from stormproof.checkpoint import Checkpoint, Store, shared_verification
from stormproof.checkpoint.shared_verification import damage_once_per_node
from tests.support.some_checkpoints import filled, flip


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setenv("RANK", "0")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return filled(tmp_path / "checkpoints", [10]).checkpoints()[0]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that were really verified."""
    verified: list[str] = []
    real = shared_verification.damage_of

    def counting(checkpoint: Checkpoint) -> str | None:
        verified.append(checkpoint.name)
        return real(checkpoint)

    monkeypatch.setattr(shared_verification, "damage_of", counting)
    return verified


def notes(checkpoint: Checkpoint) -> list[Path]:
    return list((checkpoint.path.parents[1] / "temporary" / f"stormproof-{os.getuid()}").iterdir())


def test_a_second_rank_reads_nothing(checkpoint: Checkpoint, reads: list[str]):
    assert [damage_once_per_node(checkpoint) for _ in range(3)] == [None, None, None]
    assert len(reads) == 1


def test_finding_the_newest_checkpoint_verifies_it_once(checkpoint: Checkpoint, reads: list[str]):
    store = Store(checkpoint.path.parent)
    assert store.latest() == store.latest() == checkpoint
    assert len(reads) == 1


def test_a_process_without_a_launcher_verifies_for_itself(
    checkpoint: Checkpoint, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    damage_once_per_node(checkpoint)
    monkeypatch.delenv("RANK")
    damage_once_per_node(checkpoint)
    assert len(reads) == 2


def test_a_rank_waits_for_the_one_that_is_verifying(checkpoint: Checkpoint, reads: list[str]):
    damage_once_per_node(checkpoint)
    note = notes(checkpoint)[0]
    verified = note.read_bytes()
    with note.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.truncate()
        results: list[str | None] = []
        other = threading.Thread(target=lambda: results.append(damage_once_per_node(checkpoint)))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        held.write(verified)
    other.join(10)
    assert (results, len(reads)) == ([None], 1)


def test_damage_after_the_verification_is_found_even_with_the_old_time(checkpoint: Checkpoint):
    assert damage_once_per_node(checkpoint) is None
    about = checkpoint.path.stat()
    flip(checkpoint.path)
    os.utime(checkpoint.path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert damage_once_per_node(checkpoint) == "its content was changed after it was committed"


def test_every_rank_finds_damage(checkpoint: Checkpoint, reads: list[str]):
    flip(checkpoint.path)
    said = {damage_once_per_node(checkpoint) for _ in range(2)}
    assert (said, len(reads)) == ({"its content was changed after it was committed"}, 2)


def test_a_file_that_is_gone_is_told(checkpoint: Checkpoint):
    damage_once_per_node(checkpoint)
    checkpoint.path.unlink()
    assert damage_once_per_node(checkpoint) == "its file is gone"


@pytest.mark.parametrize("seconds", [-301, 60])
def test_a_note_that_is_old_or_of_the_future_does_not_count(seconds: int, checkpoint: Checkpoint, reads: list[str]):
    damage_once_per_node(checkpoint)
    note = notes(checkpoint)[0]
    os.utime(note, (note.stat().st_mtime + seconds,) * 2)
    damage_once_per_node(checkpoint)
    assert len(reads) == 2


@pytest.mark.parametrize("content", [b"", b"[", b"\xff", b"null", b"[1]"])
def test_a_note_that_is_cut_off_or_says_something_else_does_not_count(
    content: bytes, checkpoint: Checkpoint, reads: list[str]
):
    damage_once_per_node(checkpoint)
    notes(checkpoint)[0].write_bytes(content)
    damage_once_per_node(checkpoint)
    assert len(reads) == 2


def test_notes_that_other_users_could_write_are_not_read(checkpoint: Checkpoint, reads: list[str]):
    damage_once_per_node(checkpoint)
    notes(checkpoint)[0].parent.chmod(0o777)
    damage_once_per_node(checkpoint)
    assert len(reads) == 2


def test_old_notes_are_removed(checkpoint: Checkpoint):
    damage_once_per_node(checkpoint)
    old = notes(checkpoint)[0].with_name("old")
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    damage_once_per_node(checkpoint)
    assert not old.exists()


def test_without_a_folder_for_temporary_files_every_rank_verifies(
    checkpoint: Checkpoint, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(checkpoint.path))
    assert [damage_once_per_node(checkpoint) for _ in range(2)] == [None, None]
    assert len(reads) == 2
