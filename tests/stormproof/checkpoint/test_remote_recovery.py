"""Runs whose checkpoints are in an object store, without a folder."""

import copy
import errno
import os
import pickle
import signal
import threading
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof import CheckpointRecovery, DivergenceGuard, resumable
from stormproof.checkpoint import Store, once_per_node
from stormproof.checkpoint.lease import LEASE_NAME, Lease
from stormproof.checkpoint.progress_file import Progress
from stormproof.checkpoint.storage import ObjectStorage, conditions
from stormproof.checkpoint.storage.conditions import UnsupportedStoreError
from stormproof.errors import DamagedError, FolderTakenError, NoGoodCheckpointError, StorageError
from tests.stormproof.divergence.diverging_fits import STEPS, fit_with_guard, spike_at
from tests.support.fault_proxy import FaultProxy, choose_at_random
from tests.support.killed_training import have_equal_weights, train_and_kill
from tests.support.object_stores import S3Server, flip_object_bit, make_object_store, overwrite
from tests.support.recovery_fits import fit_with_recovery
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, RegressionModule, make_loader, make_module, make_trainer

pytestmark = [*LIGHTNING_WARNING_FILTERS, pytest.mark.usefixtures("node")]


@pytest.fixture
def storage(s3_url: str) -> ObjectStorage:
    return ObjectStorage(s3_url, retry_seconds=5)


def _copies(node: Path) -> list[Path]:
    return [path for path in node.rglob("*.ckpt*") if path.is_file()]


def _steps(storage: ObjectStorage) -> list[int]:
    return [checkpoint.step for checkpoint in Store(storage).read_checkpoints()]


def test_a_fit_resumes_from_the_object_store_and_leaves_no_copy(s3_url: str, storage: ObjectStorage, node: Path):
    fit_with_recovery(CheckpointRecovery(s3_url, every_n_train_steps=2))
    assert _steps(storage) == [4, 6]
    recovery = CheckpointRecovery(s3_url, every_n_train_steps=2)
    trainer = fit_with_recovery(recovery, max_epochs=2)
    assert recovery.resumed_from is not None
    assert recovery.resumed_from.step == 6
    assert trainer.global_step == 12
    assert _steps(storage) == [10, 12]
    assert recovery.last_logged["recovery/restarts"] == 1
    assert recovery.last_logged["recovery/lost_steps"] == 0
    assert not Lease.is_active(storage)
    assert _copies(node) == []


def test_the_weights_equal_those_of_a_run_with_a_folder(s3_url: str, tmp_path: Path):
    in_folder = fit_with_recovery(CheckpointRecovery(tmp_path / "checkpoints"), max_epochs=2)
    fit_with_recovery(CheckpointRecovery(s3_url))
    resumed = fit_with_recovery(CheckpointRecovery(s3_url), max_epochs=2)
    expected, weights = in_folder.lightning_module.state_dict(), resumed.lightning_module.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_processes_of_a_node_download_once(s3_url: str, storage: ObjectStorage, s3_server: S3Server, node: Path):
    newest = make_object_store(storage).read_checkpoints()[-1]
    with FaultProxy(s3_server.port) as proxy:
        environment = {**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint}
        os.environ.update(environment)
        paths: list[str | None] = []
        recoveries = [CheckpointRecovery(s3_url) for _ in range(4)]
        threads = [
            threading.Thread(target=lambda recovery=recovery: paths.append(recovery.latest_checkpoint()))
            for recovery in recoveries
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reads = [path for method, path in proxy.requests if method == "GET" and path.endswith(newest.path.name)]
    assert len({*paths}) == 1
    assert len(reads) == 1
    assert Path(str(paths[0])).read_bytes() == storage.read(newest.path.name)


def test_a_damaged_object_is_skipped_and_then_quarantined(s3_url: str, storage: ObjectStorage):
    newest = make_object_store(storage).read_checkpoints()[-1]
    flip_object_bit(storage, newest.path.name)
    recovery = CheckpointRecovery(s3_url)
    with pytest.warns(UserWarning, match=rf"Skipping checkpoint {s3_url}/{newest.name}\.ckpt: its content has changed"):
        path = recovery.latest_checkpoint()
    assert path is not None
    assert path.endswith("-step-20.ckpt")
    with pytest.raises(DamagedError, match="cannot be used: its content has changed since it was committed"):
        recovery.store.fetch(newest)


def test_an_object_store_with_bad_checkpoints_only_stops_the_start(s3_url: str, storage: ObjectStorage):
    for checkpoint in make_object_store(storage).read_checkpoints():
        flip_object_bit(storage, checkpoint.path.name)
    with pytest.raises(NoGoodCheckpointError, match=rf"{s3_url} has no good checkpoint"):
        CheckpointRecovery(s3_url).latest_checkpoint()
    with pytest.warns(UserWarning, match="Skipping checkpoint"):
        assert CheckpointRecovery(s3_url).latest_checkpoint(start_over=True) is None


def test_a_damaged_copy_is_downloaded_again(s3_url: str, storage: ObjectStorage):
    newest = make_object_store(storage).read_checkpoints()[-1]
    path = Path(str(CheckpointRecovery(s3_url).latest_checkpoint()))
    path.write_bytes(b"another content")
    assert CheckpointRecovery(s3_url).latest_checkpoint() == str(path)
    assert path.read_bytes() == storage.read(newest.path.name)


def test_an_old_copy_is_deleted(s3_url: str, storage: ObjectStorage, node: Path, monkeypatch: pytest.MonkeyPatch):
    store = make_object_store(storage)
    store.fetch(store.read_checkpoints()[0])
    monkeypatch.setattr(once_per_node, "MAX_COPY_AGE_SECONDS", -1.0)
    store.fetch(store.read_checkpoints()[1])
    assert [path.name for path in _copies(node)] == ["000002-step-20.ckpt"]


def test_a_full_temporary_folder_selects_no_older_checkpoint(
    s3_url: str, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
):
    make_object_store(storage)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(once_per_node, "copy_verified", fail)
    with pytest.raises(
        StorageError,
        match=r"cannot be copied to .*: No space left on device\. Set TMPDIR to a folder with room for \d+ bytes",
    ):
        CheckpointRecovery(s3_url).latest_checkpoint(start_over=True)


def test_a_bucket_that_does_not_exist_stops_the_start(s3_url: str):
    url = f"{s3_url.rpartition('/')[0]}-missing/run"
    with pytest.raises(StorageError, match=f"{url} cannot be read: the bucket does not exist; create it"):
        CheckpointRecovery(url).latest_checkpoint()


@pytest.mark.slow
def test_denied_credentials_stop_the_start(s3_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch):
    with FaultProxy(s3_server.port, lambda method, path, number: "deny") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(StorageError, match=f"{s3_url} cannot be read: the credentials are missing or rejected"):
            CheckpointRecovery(s3_url).latest_checkpoint()


@pytest.mark.parametrize("problem", ["an existing object was overwritten", "an object was replaced although it had"])
def test_a_store_that_ignores_conditions_is_refused(
    problem: str, s3_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
):
    def create(storage: ObjectStorage, name: str) -> None:
        storage.put_if_absent(name, b"")

    with FaultProxy(s3_server.port, lambda method, path, number: "ignore conditions") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        if problem.startswith("an object was replaced"):
            monkeypatch.setattr(conditions, "find_create_problem", create)
        with pytest.raises(UnsupportedStoreError, match=rf"{s3_url} does not support conditional writes \({problem}"):
            fit_with_recovery(CheckpointRecovery(s3_url))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_refused_and_does_not_hang(s3_url: str, storage: ObjectStorage):
    make_object_store(storage)
    child = os.fork()
    if child == 0:
        try:
            storage.list()
        except StorageError as error:
            os._exit(0 if "in a process that was forked" in str(error) else 2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_best_checkpoint_keeps_its_copy_during_a_fit(s3_url: str, storage: ObjectStorage):
    fit_with_recovery(CheckpointRecovery(s3_url, monitor="val/loss"), val_check_interval=3)
    recovery = CheckpointRecovery(s3_url, monitor="val/loss")
    best = recovery.best_checkpoint()
    fit_with_recovery(recovery, max_epochs=2)
    assert best is not None
    assert Path(best).exists()


def test_a_copy_that_was_deleted_before_the_fit_is_downloaded_again(s3_url: str, storage: ObjectStorage):
    fit_with_recovery(CheckpointRecovery(s3_url))
    recovery = CheckpointRecovery(s3_url)
    path = recovery.latest_checkpoint()
    Path(str(path)).unlink()
    trainer = make_trainer(pl, callbacks=[recovery], max_epochs=2)
    trainer.fit(make_module(pl, RegressionModule), resumable(make_loader()), ckpt_path=path)
    assert trainer.global_step == 12


def test_an_incomplete_copy_of_another_prefix_is_deleted(
    s3_url: str, storage: ObjectStorage, node: Path, monkeypatch: pytest.MonkeyPatch
):
    store = make_object_store(storage)
    store.fetch(store.read_checkpoints()[0])
    (folder,) = {path.parent.parent for path in _copies(node)}
    (folder / "other").mkdir()
    (folder / "other" / "000001-step-1.partial").write_bytes(b"of a killed process")
    monkeypatch.setattr(once_per_node, "MAX_COPY_AGE_SECONDS", -1.0)
    store.fetch(store.read_checkpoints()[1])
    assert not (folder / "other" / "000001-step-1.partial").exists()


def test_a_percent_sign_in_a_prefix_is_kept(storage: ObjectStorage):
    encoded, other = (ObjectStorage(f"{storage.location}/{name}") for name in ("a%20b", "a b"))
    encoded.put_if_absent("x", b"1")
    assert [entry.name for entry in encoded.list()] == ["x"]
    assert other.list() == []


def test_a_password_in_a_url_is_not_in_the_message():
    with pytest.raises(ValueError, match=r"s3://\*\*\*@bucket") as caught:
        CheckpointRecovery("s3://KEY:SECRET@bucket/run")
    assert "SECRET" not in str(caught.value)


def test_a_second_job_is_refused(s3_url: str, storage: ObjectStorage):
    make_object_store(storage)
    lease = Lease(storage)
    with pytest.raises(FolderTakenError, match=f"{s3_url} is in use by process {os.getpid()}"):
        fit_with_recovery(CheckpointRecovery(s3_url))
    lease.release()


def test_the_progress_of_a_killed_attempt_is_in_its_lease(storage: ObjectStorage):
    lease = Lease(storage)
    lease.progress = Progress(7, time.time())
    assert lease._renew()
    lease._stop_event.set()  # as after a kill: the lease is not released
    overwrite(storage, LEASE_NAME, storage.read(LEASE_NAME).replace(b'"pid": ', b'"pid": 9'))
    next_lease = Lease(storage)
    previous = next_lease.progress
    next_lease.release()
    assert previous is not None
    assert previous.step == 7


@pytest.mark.parametrize("progress", ['{"step": -1, "time": 1}', "3", '{"step": "x", "time": 1}', "null"])
def test_an_implausible_progress_is_ignored(progress: str, storage: ObjectStorage):
    overwrite(storage, LEASE_NAME, f'{{"released": true, "progress": {progress}}}'.encode())
    lease = Lease(storage)
    assert lease.progress is None
    lease.release()


@pytest.mark.filterwarnings("ignore:step .*")
def test_a_rollback_loads_from_the_object_store(s3_url: str, node: Path):
    guard = DivergenceGuard()
    with pytest.warns(match="step 45: rolled back to the weights of step 32"):
        trainer = fit_with_guard(s3_url, guard, spike_at(43, 44, 45))
    assert (guard.rollbacks, trainer.global_step) == (1, STEPS)
    assert _copies(node) == []


def test_a_copy_of_the_callback_uses_the_same_object_store(s3_url: str):
    recovery = CheckpointRecovery(s3_url)
    for other in (copy.deepcopy(recovery), pickle.loads(pickle.dumps(recovery))):
        assert other.store.location == s3_url
        assert other.latest_checkpoint() is None


@pytest.mark.slow
def test_faults_of_the_object_store_do_not_stop_training(
    s3_url: str, storage: ObjectStorage, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
):
    with FaultProxy(s3_server.port, choose_at_random(0, 0.1)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = fit_with_recovery(CheckpointRecovery(s3_url, every_n_train_steps=1), max_epochs=2)
        assert len(proxy.faults) > 20
    assert trainer.global_step == 12
    resolution = Store(storage).resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 12
    assert ([*resolution.bad_checkpoints], [*resolution.lost_names]) == ([], [])


@pytest.mark.drill
@pytest.mark.parametrize(
    ("number", "ranks"),
    [(signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 2)],
    ids=["SIGKILL", "SIGTERM", "SIGKILL, two ranks"],
)
def test_a_run_without_a_disk_resumes_bit_for_bit(
    number: signal.Signals, ranks: int, s3_server: S3Server, s3_url: str, storage: ObjectStorage, tmp_path: Path
):
    train = partial(train_and_kill, server=s3_server, ranks=ranks)
    (tmp_path / "reference").mkdir()
    assert train(tmp_path / "reference", checkpoints=str(tmp_path / "reference" / "checkpoints")) == 0
    code = -signal.SIGKILL if number == signal.SIGKILL else 75
    for kill_step in (5, 20) if (number, ranks) == (signal.SIGKILL, 1) else (9,):
        node = tmp_path / f"node-{kill_step}"
        node.mkdir()
        assert train(node, checkpoints=s3_url, kill_step=kill_step, number=number) == code
        assert _steps(storage)[-1] == ((kill_step - 1) // 2 * 2 if number == signal.SIGKILL else kill_step)
    last = tmp_path / "last"
    last.mkdir()
    assert train(last, checkpoints=s3_url) == 0
    assert have_equal_weights(last, tmp_path / "reference")
    assert _copies(last) == []
