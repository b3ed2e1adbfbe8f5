import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from stormproof.checkpoint import Checkpoint, CommitInfo, Store, read_retry
from stormproof.checkpoint.load_check import find_load_problem
from stormproof.checkpoint.storage import PosixStorage
from stormproof.checkpoint.verification import read_manifest
from tests.support.checkpoint_files import commit_checkpoint, flip_bit, make_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "checkpoints", [10])


@pytest.fixture
def checkpoint(store: Store) -> Checkpoint:
    return store.read_checkpoints()[0]


def test_a_checkpoint_as_it_was_committed_is_good(store: Store, checkpoint: Checkpoint):
    assert store.verify(checkpoint) is None
    assert read_manifest(store.storage, checkpoint.name)[0] == checkpoint


def test_every_flipped_byte_is_found(store: Store, checkpoint: Checkpoint):
    content = checkpoint.path.read_bytes()
    for offset in [*range(0, len(content), 37), len(content) - 1]:
        flip_bit(checkpoint.path, offset)
        assert store.verify(checkpoint) == "its content has changed since it was committed"
        flip_bit(checkpoint.path, offset)
    assert store.verify(checkpoint) is None


def _append_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path, 100), "it has 100 bytes but was committed with "),
        (lambda path: os.truncate(path, 0), "it has 0 bytes but was committed with "),
        (_append_byte, " bytes but was committed with "),
        (Path.unlink, "its file is missing"),
        (_replace_by_folder, "it is not a regular file"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "its content has changed"),
    ],
    ids=["cut", "emptied", "grown", "gone", "folder", "zeroes"],
)
def test_a_file_that_is_not_what_was_committed_is_told(
    damage: Callable[[Path], object], reason: str, store: Store, checkpoint: Checkpoint
):
    damage(checkpoint.path)
    assert reason in str(store.verify(checkpoint))


def test_an_error_of_the_disk_is_told(store: Store, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(PosixStorage, "get", failing)
    assert store.verify(checkpoint) == "it cannot be read: Input/output error"


class _Crafted:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_crafted_pickle_is_refused_and_none_of_its_code_runs(store: Store, tmp_path: Path):
    marker = tmp_path / "made"
    store.commit(
        lambda file: torch.save({"state_dict": {}, "hook": _Crafted(marker)}, file),
        CommitInfo(step=20, epoch=0, world_size=1),
        attempt=1,
    )
    resolution = store.resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 10
    (bad,) = resolution.bad_checkpoints
    assert bad.reason == (
        f"torch.load(weights_only=True) refuses it: it contains {os.mkdir.__module__}.mkdir, which is code and not data"
    )
    assert not marker.exists()
    torch.load(store.folder / "000002-step-20.ckpt", weights_only=False)
    assert marker.exists()  # it would have run


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda path: torch.save({"share": Fraction(1, 2)}, path), "it contains fractions.Fraction, which is code"),
        (lambda path: path.write_bytes(pickle.dumps({})), "it is not a complete zip archive"),
        (lambda path: path.write_bytes(b""), "it is not a complete zip archive"),
        (lambda path: torch.save({}, path, _use_new_zipfile_serialization=False), "it is not a complete zip archive"),
    ],
    ids=["type", "bare pickle", "empty", "old format"],
)
def test_why_torch_does_not_load_a_file_is_one_line(content: Callable[[Path], object], reason: str, tmp_path: Path):
    path = tmp_path / "file.ckpt"
    content(path)
    problem = find_load_problem(path)
    assert problem is not None
    assert reason in problem
    assert "\n" not in problem


def test_a_warning_raised_as_an_error_is_not_reported_as_damage(
    store: Store, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    def warn(*_: object, **__: object) -> None:
        raise UserWarning("slow for large checkpoints")

    monkeypatch.setattr(torch, "load", warn)
    with pytest.raises(UserWarning, match="slow"):
        store.verify(checkpoint)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RuntimeError("unable to mmap 320 bytes from file <a.ckpt>: Cannot allocate memory (12)"), errno.ENOMEM),
        (RuntimeError("unable to open file <a.ckpt> in read-only mode: Too many open files (24)"), errno.EMFILE),
        (MemoryError(), errno.ENOMEM),
    ],
    ids=["memory to map", "file descriptors", "memory"],
)
def test_a_process_that_lacks_memory_or_descriptors_does_not_call_a_file_damaged(
    error: Exception, number: int, store: Store, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(read_retry, "READ_RETRY_DELAYS", ())
    with pytest.raises(OSError, match=os.strerror(number)):
        store.catalog.find_damage(checkpoint)


@pytest.mark.slow
def test_too_little_address_space_is_not_damage(store: Store):
    """torch's real message, in a process of its own."""
    info = CommitInfo(step=40, epoch=0, world_size=1)
    store.commit(lambda file: torch.save(torch.ones(20_000_000), file), info, attempt=1)
    code = (
        "import resource, sys, torch; from stormproof.checkpoint import Store; from pathlib import Path\n"
        "size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 40 * 2**20, resource.RLIM_INFINITY))\n"
        "found = Store(sys.argv[1]).resolve(); bad = found.bad_checkpoints[0]\n"
        "print(found.chosen_checkpoint.step, bad.is_unreadable, bad.reason)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(store.folder)], capture_output=True, text=True, check=True)
    assert result.stdout == "10 True it cannot be read: Cannot allocate memory\n"


def test_what_is_not_finite_is_not_resumed_from(store: Store):
    commit_checkpoint(store, 20, finite=False)
    assert store.verify(store.read_checkpoints()[1]) == "it contains numbers that are not finite"


def test_content_is_only_loaded_once_its_hash_is_right(
    store: Store, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    loads = []
    monkeypatch.setattr(torch, "load", lambda *_, **options: loads.append(options))
    assert store.verify(checkpoint) is None
    assert [options["weights_only"] for options in loads] == [True]
    flip_bit(checkpoint.path)
    assert store.verify(checkpoint) is not None
    assert len(loads) == 1
