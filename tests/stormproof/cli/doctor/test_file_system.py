import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest

from stormproof.cli.doctor import Risk, file_system_risks
from tests.support.checkpoint_files import file_names, make_store


@pytest.fixture(autouse=True)
def temporary_files_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.getbasetemp()))


def _check_one(folder: Path) -> Risk:
    (risk,) = file_system_risks(folder)
    return risk


def test_a_good_file_system_is_left_as_it_was(tmp_path: Path):
    make_store(tmp_path)
    before = file_names(tmp_path)
    assert file_system_risks(tmp_path) == []
    assert file_names(tmp_path) == before


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev,
    reason="there is one file system only",
)
def test_temporary_files_on_another_file_system_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    risk = _check_one(tmp_path)
    assert risk.summary == "temporary files are on another file system"
    assert risk.location == f"/dev/shm (TMPDIR), for {tmp_path}"


def test_no_folder_for_temporary_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert _check_one(tmp_path).summary == "there is no folder for temporary files"


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(**_: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    risk = _check_one(tmp_path)
    assert risk.summary == "the folder is not writable"
    assert "Read-only file system" in risk.reason


def test_an_fsync_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    risk = _check_one(tmp_path)
    assert risk.summary == "fsync does not work"
    assert risk.location == f"{tmp_path}: [Errno 22] Invalid argument"
    assert not list(tmp_path.iterdir())


def test_a_rename_that_copies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "replace", shutil.copy)
    assert _check_one(tmp_path).summary == "a rename does not replace a file"


class _NoLock:
    """What a file system gives that says yes to every lock."""

    def __init__(self, path: Path, timeout: float = -1) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _refusing(path: Path, timeout: float = -1) -> None:
    raise NotImplementedError("FileSystem does not appear to support flock")


@pytest.mark.parametrize(
    ("lock", "problem"), [(_NoLock, "two locks of one file were acquired at once"), (_refusing, "FileSystem does not")]
)
def test_locks_that_do_not_lock_are_told(lock: object, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filelock, "FileLock", lock)
    risk = _check_one(tmp_path)
    assert risk.summary == "files cannot be locked"
    assert problem in risk.location


@pytest.mark.parametrize(("room", "told"), [(3.01, False), (2.99, True), (0, True)])
def test_room_for_less_than_three_of_the_largest_is_told(
    room: float, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_store(tmp_path)
    (tmp_path / "last.ckpt").write_bytes(bytes(50_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=int(room * 50_000_000)))
    risks = file_system_risks(tmp_path)
    assert bool(risks) is told
    assert all(risk.summary.endswith("GB are free, and the largest checkpoint has 0.05 GB") for risk in risks)


def test_a_folder_without_checkpoints_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    assert file_system_risks(tmp_path) == []
