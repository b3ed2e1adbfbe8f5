"""Every file with a checkpoint can be lost or damaged at any moment without an effect on a resume."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Store, lease
from stormproof.checkpoint.claims import SequenceClaims
from stormproof.checkpoint.folder_ownership import FolderOwnership
from stormproof.checkpoint.lease import LEASE_NAME, Lease
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.errors import FolderLostError
from tests.support.checkpoint_files import commit_checkpoint, make_store
from tests.support.object_stores import make_object_store, overwrite
from tests.support.recovery_fits import checkpoint_steps, fit_with_recovery
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = LIGHTNING_WARNING_FILTERS

FILES = (
    "lease.json",
    ".lease.lock",
    "commits.log",
    "reached",
    ".mirror.lock",
    ".swap.lock",
    "quarantine",
    "000001-step-10.json",
    "000001-step-10.ckpt",
    "000002-step-20.json",
    ".000004-step-40.ckpt.0123abcd.tmp",
    ".lease.json.0123abcd.tmp",
)
CONTENTS = {"empty": b"", "garbage": os.urandom(500), "another type": b'[1, {"n": "x"}]', "an object": b"{}"}


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if path.is_file() else b"")


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": _delete,
    "truncated": _truncate,
    "a folder": lambda path: (_delete(path), path.mkdir(), (path / "note").touch()),
    **{name: _write(content) for name, content in CONTENTS.items()},
}


def _make_killed_run(folder: Path) -> Store:
    store = make_store(folder)
    (folder / LEASE_NAME).write_text("{}")
    return store


def _resume(store: Store) -> FolderOwnership:
    resolution = store.resolve()
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 30
    return FolderOwnership(store, resolution)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_run_resumes_whatever_happened_to_a_file(
    file: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stormproof.checkpoint.read_retry.READ_RETRY_DELAYS", (0.0, 0.0))
    monkeypatch.setattr(lease, "STALE_SECONDS", -1.0)  # the lease of the killed run has expired
    store = _make_killed_run(tmp_path)
    DAMAGES[damage](tmp_path / file)
    ownership = _resume(store)
    ownership.record_progress(31)
    commit_checkpoint(store, 40, attempt=ownership.attempt, fence=ownership.fence)
    ownership.release()
    resolution = Store(tmp_path).resolve()
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 40


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize(
    "name",
    ["lease.json", "log/00000001.jsonl", "log/00000004.jsonl", "claims/000003.json", "quarantine/000001-step-10.json",
     "quarantine/notes", "000001-step-10.json", "000002-step-20.ckpt", ".probe.0123.tmp"],
)  # fmt: skip
def test_a_run_resumes_whatever_happened_to_an_object(name: str, content: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", -1.0)
    storage = ObjectStorage("s3://bucket/run", store=MemoryStore(), retry_seconds=0.1)
    store = make_object_store(storage)
    SequenceClaims(storage, "killed").claim(3, 30, None)
    overwrite(storage, name, content)
    ownership = _resume(store)
    commit_checkpoint(store, 40, attempt=ownership.attempt, fence=ownership.fence)
    ownership.release()
    resolution = Store(storage).resolve()
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 40
    assert not Lease.is_active(storage)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lease_that_is_lost_during_a_run_is_acquired_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stormproof.checkpoint.read_retry.READ_RETRY_DELAYS", (0.0, 0.0))
    monkeypatch.setattr(lease, "STALE_SECONDS", -1.0)
    store = make_store(tmp_path)
    ownership = FolderOwnership(store, store.resolve())
    DAMAGES[damage](tmp_path / LEASE_NAME)
    ownership.fence()
    assert lease.Lease.is_active(tmp_path)
    ownership.release()


def test_a_lost_lease_is_not_acquired_again_after_another_attempt(tmp_path: Path):
    store = make_store(tmp_path)
    first = FolderOwnership(store, store.resolve())
    (tmp_path / LEASE_NAME).unlink()
    FolderOwnership(store, store.resolve()).release()
    with pytest.raises(FolderLostError, match=r"its lease\.json was removed"):
        first.fence()
    first.release()


def test_a_process_that_was_taken_over_reports_this_and_no_damage(tmp_path: Path):
    store = make_store(tmp_path)
    first = FolderOwnership(store, store.resolve())
    newest = store.read_checkpoints()[-1]
    (tmp_path / LEASE_NAME).unlink()
    second = FolderOwnership(store, store.resolve())
    newest.path.unlink()  # as the other attempt would do
    with pytest.raises(FolderLostError, match="took it over"):
        store.read_back(newest, fence=first.fence)
    second.release()
    first.release()


def test_a_lease_that_cannot_be_seen_for_a_moment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = make_store(tmp_path)
    ownership = FolderOwnership(store, store.resolve())
    read, failures = Path.read_bytes, [FileNotFoundError()]

    def fail_once(path: Path) -> bytes:
        if path.name == LEASE_NAME and failures:
            raise failures.pop()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail_once)
    ownership.fence()
    assert not failures
    ownership.release()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_fit_ends_normally_though_a_file_is_damaged_meanwhile(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease, "STALE_SECONDS", -1.0)
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=2))
    for name in ("commits.log", "reached"):
        DAMAGES[damage](tmp_path / name)
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=2), max_epochs=2)
    assert checkpoint_steps(tmp_path) == [10, 12]
