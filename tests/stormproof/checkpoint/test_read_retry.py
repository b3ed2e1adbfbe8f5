"""Storage that fails says nothing about a checkpoint: nothing is moved or deleted, and it is read again."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins.io import torch_io

from stormproof import CheckpointRecovery
from stormproof.checkpoint import CommitInfo, Retention, Store, commit_log, read_retry
from stormproof.divergence import rollback
from stormproof.errors import StorageError
from stormproof.resume import sharded_state
from tests.support.checkpoint_files import commit_checkpoint, make_store
from tests.support.recovery_fits import checkpoint_steps, fit_with_recovery
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = LIGHTNING_WARNING_FILTERS
Fails = Callable[..., AbstractContextManager[list[str]]]


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_retry, "READ_RETRY_DELAYS", (0.0, 0.0))


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Makes reads of files whose name ends in ``suffix`` fail, from the ``first`` to the ``last``."""
    real: Any = Path.open

    @contextmanager
    def failing(suffix: str, first: int = 1, last: int = 10**9) -> Any:
        reads: list[str] = []

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode == "rb" and path.name.endswith(suffix):
                reads.append(path.name)
                if first <= len(reads) <= last:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return real(path, mode, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opened)
            yield reads

    return failing


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, os.strerror(errno.EIO)), FileNotFoundError()], ids=["EIO", "gone"]
)
def test_a_failed_read_by_lightning_is_retried(error: OSError, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=2))
    load, calls = torch_io.pl_load, []
    monkeypatch.setattr(sharded_state, "is_mappable", lambda _: False)

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise error
        return load(*args, **kwargs)

    monkeypatch.setattr(torch_io, "pl_load", fails_once)
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=2), max_epochs=2)
    assert (len(calls), checkpoint_steps(tmp_path)) == (2, [10, 12])


@pytest.mark.parametrize("suffix", [".ckpt", ".json"])
@pytest.mark.parametrize("first", [1, 2, 3, 5, 8])
def test_one_failed_read_changes_nothing_of_a_run(suffix: str, first: int, fails: Fails, tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=2))
    with fails(suffix, first, first):
        fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=2), max_epochs=2)
    assert checkpoint_steps(tmp_path) == [10, 12]
    assert not (tmp_path / "quarantine").exists()


@pytest.mark.parametrize("suffix", ["-30.ckpt", "-30.json"])
def test_the_newest_that_cannot_be_read_is_passed_over_and_stays(suffix: str, fails: Fails, tmp_path: Path):
    store = make_store(tmp_path)
    with fails(suffix) as reads:
        resolution = store.resolve()
        assert len(reads) == 3
        store.begin_attempt(resolution)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 20
    assert [(bad.name, bad.is_unreadable) for bad in resolution.bad_checkpoints] == [("000003-step-30", True)]
    assert "cannot be read: Input/output error" in resolution.bad_checkpoints[0].reason
    assert store.latest_checkpoint() == store.read_checkpoints()[-1]
    assert commit_checkpoint(store, 21).name == "000004-step-21"


def test_a_start_is_refused_if_no_checkpoint_is_readable(fails: Fails, tmp_path: Path):
    store = make_store(tmp_path)
    with (
        fails(".ckpt"),
        pytest.raises(StorageError, match=r"no good checkpoint, and 3 cannot be read .*storage is available"),
    ):
        store.latest_checkpoint()
    with fails(".ckpt"):
        assert store.latest_checkpoint(start_over=True) is None
    assert store.latest_checkpoint() == store.read_checkpoints()[-1]


@pytest.mark.parametrize("suffix", [".ckpt", ".json"])
def test_nothing_is_deleted_if_the_newest_checkpoint_cannot_be_verified(suffix: str, fails: Fails, tmp_path: Path):
    store = make_store(tmp_path)
    with fails(suffix):
        try:
            assert store.apply_retention(Retention(keep_last=2)) == []
        except OSError as error:
            assert error.errno == errno.EIO  # noqa: PT017 (a folder without a manifest has nothing to delete)
    assert checkpoint_steps(tmp_path) == [10, 20, 30]


def test_storage_that_goes_away_between_two_lists_deletes_nothing(fails: Fails, tmp_path: Path):
    store = make_store(tmp_path)
    with fails(".json", first=4):
        assert store.apply_retention(Retention(keep_last=2)) == []
    assert checkpoint_steps(tmp_path) == [10, 20, 30]


def test_a_disk_without_room_for_the_log_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, append = make_store(tmp_path), commit_log.append

    def fill(log: Any, *arguments: Any) -> None:
        if (tmp_path / "000001-step-10.ckpt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(log, *arguments)

    monkeypatch.setattr(commit_log, "append", fill)
    assert [checkpoint.step for checkpoint in store.free_disk_space(Retention(keep_last=2))] == [10, 20]
    resolution = Store(tmp_path).resolve()
    assert resolution.chosen_checkpoint is not None
    assert (
        resolution.chosen_checkpoint.step,
        list(resolution.lost_names),
        list(resolution.bad_checkpoints),
        resolution.log_problems,
    ) == (
        30,
        [],
        [],
        [],
    )


def test_a_folder_that_cannot_be_listed_once_is_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, listed, failures = make_store(tmp_path), Path.iterdir, [OSError(errno.ESTALE, os.strerror(errno.ESTALE))]

    def fail_once(path: Path) -> Any:
        if failures:
            raise failures.pop()
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", fail_once)
    assert [checkpoint.step for checkpoint in store.read_checkpoints()] == [10, 20, 30]


def test_a_rollback_reads_its_checkpoint_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(tmp_path)
    attempt = store.begin_attempt(store.resolve())
    info = CommitInfo(step=1, epoch=0, world_size=1)
    checkpoint = store.commit(lambda file: torch.save({"stormproof": {"id": "abc"}}, file), info, attempt=attempt)
    load, failures = torch.load, [OSError(errno.EIO, os.strerror(errno.EIO))]

    def fail_once(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", fail_once)
    assert rollback._load_checkpoint(store, checkpoint)[0]["stormproof"] == {"id": "abc"}
