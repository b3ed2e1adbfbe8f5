"""Copies of checkpoints in an object store: upload in the background, download into an empty folder."""

import errno
import json
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Checkpoint, Retention, Store
from stormproof.checkpoint import lease as lease_module
from stormproof.checkpoint.claims import SequenceClaims
from stormproof.checkpoint.lease import Lease, Owner
from stormproof.checkpoint.storage import ObjectStorage, OutcomeUnknownError, PosixStorage, Storage
from stormproof.checkpoint.tiers import uploader
from stormproof.checkpoint.tiers.download import download_newest
from stormproof.checkpoint.tiers.uploader import Uploader
from stormproof.errors import FolderTakenError, NotResumableError, StorageError
from tests.support.checkpoint_files import commit_checkpoint, file_names, flip_bit, make_store
from tests.support.fault_proxy import FaultProxy, choose_at_random
from tests.support.killed_training import have_equal_weights, train_and_kill
from tests.support.object_stores import S3Server, flip_object_bit, make_object_store, object_names
from tests.support.recovery_fits import BatchEndCallback, checkpoint_steps, fit_with_recovery
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS
from tests.support.waiting import wait_for

pytestmark = LIGHTNING_WARNING_FILTERS


@pytest.fixture
def storage(s3_url: str) -> ObjectStorage:
    return ObjectStorage(s3_url, retry_seconds=5)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return make_store(tmp_path / "local")


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(uploader, "FIRST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(uploader, "MAX_RETRY_SECONDS", 0.1)
    monkeypatch.setattr("stormproof.checkpoint_recovery.RETRY_SECONDS", 0.1)
    return


def _copied_steps(storage: Storage) -> list[int]:
    return [checkpoint.step for checkpoint in Store(storage).read_checkpoints()]


def _download(local: Store, storage: ObjectStorage, identity: str | None = None) -> Checkpoint | None:
    return download_newest(local, storage, local.resolve(), identity)


def test_the_newest_checkpoint_is_copied_under_its_name(local: Store, storage: ObjectStorage):
    copies = Uploader(local, storage, Retention())
    copies.close(30)
    newest = local.read_checkpoints()[-1]
    (copy,) = Store(storage).read_checkpoints()
    assert (copy.name, copy.digest, copy.step, copy.identity) == (
        newest.name, newest.digest, newest.step, newest.identity
    )  # fmt: skip
    assert storage.read(copy.path.name) == newest.path.read_bytes()
    assert not Lease.is_active(storage)


@pytest.mark.slow
def test_later_commits_follow_and_each_tier_has_its_retention(local: Store, storage: ObjectStorage):
    copies = Uploader(local, storage, Retention(keep_last=3, keep_every_n_train_steps=50))
    for step in range(40, 130, 10):
        commit_checkpoint(local, step)
        local.apply_retention(Retention())
        copies.notify()
        assert copies.wait_until_uploaded(30)
    copies.close(30)
    assert _copied_steps(storage) == [50, 100, 110, 120]
    assert [checkpoint.step for checkpoint in local.read_checkpoints()] == [110, 120]
    assert [*Store(storage).resolve(verify_all=True).lost_names] == []


def test_checkpoints_between_uploads_are_skipped_except_kept_ones(tmp_path: Path, storage: ObjectStorage):
    local = make_store(tmp_path, [10, 20, 30, 40, 50, 60])
    copies = Uploader(local, storage, Retention(keep_every_n_train_steps=20))
    assert copies.finish(30, waits_for_all=True)
    copies.close(30)
    assert _copied_steps(storage) == [20, 40, 60]


def test_an_empty_folder_gets_the_newest_copy_and_continues_its_numbers(
    local: Store, storage: ObjectStorage, tmp_path: Path
):
    Uploader(local, storage, Retention()).close(30)
    other = Store(tmp_path / "other")
    downloaded = _download(other, storage)
    assert downloaded is not None
    assert downloaded.path.read_bytes() == local.read_checkpoints()[-1].path.read_bytes()
    assert other.latest_checkpoint() == downloaded
    assert commit_checkpoint(other, 40).name == "000004-step-40"
    assert _download(other, storage) is None


def test_processes_of_a_node_download_once(local: Store, storage: ObjectStorage, tmp_path: Path):
    Uploader(local, storage, Retention()).close(30)
    other, results = Store(tmp_path / "other"), []
    threads = [threading.Thread(target=lambda: results.append(_download(other, storage))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.digest for result in results}) == 1  # all resume from it
    events = [json.loads(line)["event"] for line in (other.folder / "commits.log").read_text().splitlines()]
    assert events == ["committed"]


def test_a_damaged_checkpoint_of_the_folder_is_replaced_by_its_copy(local: Store, storage: ObjectStorage):
    Uploader(local, storage, Retention()).close(30)
    newest = local.read_checkpoints()[-1]
    flip_bit(newest.path)
    downloaded = _download(local, storage)
    assert downloaded is not None
    assert downloaded.name == newest.name
    resolution = local.resolve(verify_all=True)
    assert resolution.chosen_checkpoint == downloaded
    assert ([*resolution.bad_checkpoints], [*resolution.lost_names]) == ([], [])
    assert "000003-step-30.ckpt" in file_names(local.folder / "quarantine")
    assert local.read_rolled_back_names() == set()


def test_a_damaged_copy_is_skipped(storage: ObjectStorage, tmp_path: Path):
    make_object_store(storage, [10, 20])
    flip_object_bit(storage, "000002-step-20.ckpt")
    local = Store(tmp_path)
    with pytest.warns(UserWarning, match="Skipping a checkpoint of the mirror: .*000002-step-20.ckpt has changed"):
        downloaded = _download(local, storage)
    assert downloaded is not None
    assert downloaded.step == 10
    assert file_names(tmp_path) >= {"000001-step-10.ckpt"}
    assert not any(name.startswith("000002") for name in file_names(tmp_path))


@pytest.mark.parametrize("suffix", [".ckpt", ".json"])
def test_a_damaged_copy_of_the_newest_checkpoint_is_copied_again(suffix: str, local: Store, storage: ObjectStorage):
    Uploader(local, storage, Retention()).close(30)
    flip_object_bit(storage, f"000003-step-30{suffix}")
    Uploader(local, storage, Retention()).close(30)
    resolution = Store(storage).resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 30
    assert ([*resolution.bad_checkpoints], [*resolution.lost_names]) == ([], [])


def test_a_damaged_checkpoint_is_not_uploaded(local: Store, storage: ObjectStorage):
    newest = local.read_checkpoints()[-1]
    flip_bit(newest.path)
    with (
        pytest.warns(UserWarning, match=r"has changed since it was committed\. It is not copied\."),
        pytest.warns(UserWarning, match="The newest checkpoint is not in the mirror"),
    ):
        Uploader(local, storage, Retention()).close(30)
    assert _copied_steps(storage) == []
    assert "000003-step-30.ckpt" not in object_names(storage)


def test_a_rollback_puts_copies_into_quarantine(local: Store, storage: ObjectStorage):
    copies = Uploader(local, storage, Retention())
    assert copies.wait_until_uploaded(30, waits_for_all=True)
    local.quarantine(local.read_checkpoints()[1:], "training diverged at step 15")
    commit_checkpoint(local, 15)
    copies.notify()
    assert copies.wait_until_uploaded(30)
    copies.close(30)
    assert _copied_steps(storage) == [15]


def test_a_copy_from_which_the_folder_rolled_back_is_not_downloaded(local: Store, storage: ObjectStorage):
    Uploader(local, storage, Retention()).close(30)
    local.quarantine(local.read_checkpoints()[1:], "training diverged at step 15")  # and the process is killed
    assert _download(local, storage) is None


def test_an_upload_that_a_kill_interrupted_is_replaced_by_the_next_one(local: Store, storage: ObjectStorage):
    SequenceClaims(storage, "killed").claim(3, 30, None)
    copies = Uploader(local, storage, Retention())
    wait_for(lambda: "000003-step-30.json" in object_names(storage))  # aborted
    assert not copies.wait_until_uploaded(30)
    assert _copied_steps(storage) == []
    commit_checkpoint(local, 40)
    copies.notify()
    assert copies.wait_until_uploaded(30)
    copies.close(30)
    assert _copied_steps(storage) == [40]
    assert ([*Store(storage).resolve().bad_checkpoints], [*Store(storage).resolve().leftover_files]) == ([], [])


def test_checkpoints_after_a_damaged_copy_are_copied(local: Store, storage: ObjectStorage, tmp_path: Path):
    copies = Uploader(local, storage, Retention())
    assert copies.wait_until_uploaded(30)
    for step in (40, 50):
        commit_checkpoint(local, step)
        copies.notify()
        assert copies.wait_until_uploaded(30)
    copies.close(30)
    flip_object_bit(storage, "000005-step-50.ckpt")
    other = Store(tmp_path / "other")
    with pytest.warns(UserWarning, match="Skipping a checkpoint of the mirror"):
        downloaded = _download(other, storage)
    assert downloaded is not None
    assert downloaded.step == 40
    commit_checkpoint(other, 50)
    copies = Uploader(other, storage, Retention())
    copies.close(30)
    assert Store(storage).read_checkpoints()[-1].name == "000006-step-50"


def test_a_run_does_not_wait_long_for_failing_uploads_or_after_a_signal(
    local: Store, s3_url: str, monkeypatch: pytest.MonkeyPatch, short_delays: None
):
    monkeypatch.setattr(uploader, "MAX_FAILING_SECONDS", 0.2)
    with pytest.warns(UserWarning, match="is not up to date"):
        failing = Uploader(local, ObjectStorage("s3://no-such-bucket/run", retry_seconds=0.1), Retention())
    assert not failing.wait_until_uploaded(60)
    monkeypatch.setattr(uploader, "MAX_FAILING_SECONDS", 60.0)
    monkeypatch.setattr(uploader, "MAX_SECONDS_AFTER_SIGNAL", 0.2)
    monkeypatch.setattr(uploader, "has_signal_arrived", lambda: True)
    with pytest.warns(UserWarning, match="newest checkpoint is not in the mirror"):
        failing.close(60)


def test_a_mirror_that_another_job_took_over_is_not_written_to(
    local: Store, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
):
    copies = Uploader(local, storage, Retention())
    assert copies.wait_until_uploaded(30)
    monkeypatch.setattr(Owner, "is_running", lambda self: False)
    lease = Lease(storage)
    commit_checkpoint(local, 40)
    copies._wake_event.set()
    with (
        pytest.warns(UserWarning, match=r"The mirror \w+://.* is no longer updated\. Training continues\. This"),
        pytest.warns(UserWarning, match="The newest checkpoint is not in the mirror"),
    ):
        copies.close(30)
    assert _copied_steps(storage) == [30]
    lease.check()
    lease.release()


def test_a_mirror_releases_the_lease_when_it_recovers_after_the_run(
    local: Store, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch, short_delays: None
):
    is_broken = threading.Event()
    is_broken.set()
    with FaultProxy(s3_server.port, lambda method, path, number: "slow down" if is_broken.is_set() else None) as proxy:
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            storage = ObjectStorage(s3_url, retry_seconds=0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copies = Uploader(local, storage, Retention())
            assert not copies.wait_until_uploaded(0.2)
        is_broken.clear()
        assert copies.wait_until_uploaded(30)
        copies.close(30)
    assert _copied_steps(ObjectStorage(s3_url)) == [30]
    assert not Lease.is_active(ObjectStorage(s3_url))


def test_a_mirror_recognizes_its_lease_after_a_lost_response(
    local: Store, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch, short_delays: None
):
    swap, failures = ObjectStorage.compare_and_swap, [OutcomeUnknownError(errno.EHOSTUNREACH, "the response is lost")]

    def lose_first_response(self: ObjectStorage, name: str, content: bytes, version: str | None) -> str | None:
        result = swap(self, name, content, version)
        if failures:
            raise failures.pop()
        return result

    monkeypatch.setattr(ObjectStorage, "compare_and_swap", lose_first_response)
    with pytest.warns(UserWarning, match="is not up to date: the response is lost"):
        copies = Uploader(local, storage, Retention())
    assert copies.wait_until_uploaded(30)
    copies.close(30)
    assert not Lease.is_active(storage)


def test_a_mirror_that_fails_at_the_start_waits_for_the_lease_of_a_lost_node(
    local: Store, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch, short_delays: None
):
    monkeypatch.setattr(lease_module, "POLL_SECONDS", 0.05)
    lost = Lease(ObjectStorage(s3_url))
    lost._stop_event.set()  # no renewal
    monkeypatch.setattr(Owner, "is_running", lambda self: None)  # on another machine
    with FaultProxy(s3_server.port, lambda method, path, number: "slow down" if number < 3 else None) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.warns(UserWarning, match="is not up to date"):
            copies = Uploader(local, ObjectStorage(s3_url, retry_seconds=0.01), Retention())
        wait_for(lambda: any(".lease." in path for _, path in proxy.requests))  # checks the age of the lease
        assert not copies.wait_until_uploaded(0)
        monkeypatch.setattr(lease_module, "STALE_SECONDS", 0.0)
        assert copies.wait_until_uploaded(30)
        copies.close(30)


@pytest.mark.usefixtures("s3_server")
def test_a_run_that_waited_for_its_uploads_does_not_wait_again(
    local: Store, s3_url: str, monkeypatch: pytest.MonkeyPatch, short_delays: None
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="is not up to date"):
        copies = Uploader(local, ObjectStorage(s3_url, retry_seconds=0.01), Retention())
    assert not copies.finish(0.2)
    start = time.monotonic()
    with pytest.warns(UserWarning, match="newest checkpoint is not in the mirror"):
        copies.close(60)
    assert time.monotonic() - start < 5


def test_a_full_disk_is_not_a_failure_of_the_mirror(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_object_store(storage)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("stormproof.checkpoint.checkpoint_copy.copy_verified", fail)
    with pytest.raises(StorageError, match=rf"cannot be copied to {tmp_path}: No space left on device\. Fix the cause"):
        _download(Store(tmp_path), storage)


def test_a_release_gives_up_on_a_hanging_renewal(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease_module, "HEARTBEAT_JOIN_SECONDS", 0.1)
    lease = Lease(storage)
    with lease._lock:
        lease.release()
    assert Lease.is_active(storage)
    lease.release()
    assert not Lease.is_active(storage)


def test_a_copy_of_another_run_is_refused(storage: ObjectStorage, tmp_path: Path):
    store = make_object_store(storage, [])
    commit_checkpoint(store, 10, identity="other")
    with pytest.raises(NotResumableError, match=r"belongs to another run \(its identity is other, not mine\)"):
        _download(Store(tmp_path), storage, "mine")
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_second_job_is_refused(local: Store, storage: ObjectStorage, s3_url: str, tmp_path: Path):
    copies = Uploader(local, storage, Retention())
    assert copies.wait_until_uploaded(30)
    recovery = CheckpointRecovery(tmp_path / "other disk", mirror=s3_url)
    with pytest.raises(FolderTakenError, match=f"{s3_url} is in use by process {os.getpid()}"):
        fit_with_recovery(recovery)
    copies.close(30)


@pytest.mark.usefixtures("s3_server")
def test_an_unreachable_mirror_stops_only_a_start_that_needs_it(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage = ObjectStorage(s3_url, retry_seconds=0.1)
    monkeypatch.setattr("stormproof.checkpoint.read_retry.READ_RETRY_DELAYS", ())
    with pytest.raises(StorageError, match=r"cannot be read: the object store cannot be reached.*has no checkpoint"):
        _download(Store(tmp_path / "empty"), storage)
    with pytest.warns(UserWarning, match="The run resumes from 000003-step-30.ckpt, which may be older"):
        assert _download(make_store(tmp_path / "full"), storage) is None


@pytest.mark.parametrize("keep_last", [0, 1])
def test_the_mirror_keeps_at_least_two(keep_last: int, tmp_path: Path, s3_url: str):
    with pytest.raises(ValueError, match=f"`mirror_keep_last` must be at least 2, .* got {keep_last}"):
        CheckpointRecovery(tmp_path, mirror=s3_url, mirror_keep_last=keep_last)


def test_a_mirror_must_be_a_supported_url(tmp_path: Path):
    with pytest.raises(ValueError, match="hdfs://host/run is not the URL of a supported object store"):
        CheckpointRecovery(tmp_path, mirror="hdfs://host/run")


@pytest.mark.slow
def test_a_fit_is_mirrored_and_resumes_on_another_disk(s3_url: str, storage: ObjectStorage, tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path / "a", every_n_train_steps=2, mirror=s3_url))
    assert _copied_steps(storage)[-1] == 6
    recovery = CheckpointRecovery(tmp_path / "b", every_n_train_steps=2, mirror=s3_url)
    trainer = fit_with_recovery(recovery, max_epochs=2)
    assert recovery.resumed_from is not None
    assert recovery.resumed_from.step == 6
    assert trainer.global_step == 12
    assert _copied_steps(storage)[-1] == 12
    assert not Lease.is_active(storage)


def test_a_storage_replaces_the_folder_and_the_url_of_the_mirror(tmp_path: Path):
    disk, copies = PosixStorage(tmp_path / "disk"), PosixStorage(tmp_path / "copies")
    fit_with_recovery(CheckpointRecovery(disk, every_n_train_steps=2, mirror=copies))
    assert _copied_steps(copies)[-1] == 6
    shutil.rmtree(tmp_path / "disk")
    recovery = CheckpointRecovery(disk, every_n_train_steps=2, mirror=copies)
    trainer = fit_with_recovery(recovery, max_epochs=2)
    assert recovery.resumed_from is not None
    assert recovery.resumed_from.step == 6
    assert trainer.global_step == 12


@pytest.mark.slow
def test_faults_of_the_mirror_do_not_stop_training(
    s3_server: S3Server,
    s3_url: str,
    storage: ObjectStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    short_delays: None,
):
    with FaultProxy(s3_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)

        def inject_faults(step: int) -> None:
            if step == 1:
                proxy.choose = choose_at_random(0, 0.4)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recovery = CheckpointRecovery(tmp_path / "a", every_n_train_steps=1, mirror=s3_url)
            fit_with_recovery(recovery, BatchEndCallback(inject_faults), max_epochs=2)
        assert len(proxy.faults) > 5
    assert checkpoint_steps(tmp_path / "a")[-1] == 12
    resolution = Store(storage).resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 12
    assert ([*resolution.bad_checkpoints], [*resolution.lost_names]) == ([], [])


@pytest.mark.usefixtures("s3_server")
def test_a_mirror_that_fails_warns_once_and_is_reported_at_the_end(
    local: Store, s3_url: str, monkeypatch: pytest.MonkeyPatch, short_delays: None
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        copies = Uploader(local, ObjectStorage(s3_url, retry_seconds=0.01), Retention())
        copies.close(1.0)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert messages[0].startswith(f"The mirror {s3_url} is not up to date: the object store cannot be reached")
    assert messages[1].startswith(f"The newest checkpoint is not in the mirror {s3_url} (the object store cannot be")


@pytest.mark.drill
@pytest.mark.parametrize(
    ("number", "ranks"),
    [(signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 2)],
    ids=["SIGKILL", "SIGTERM", "SIGKILL, two ranks"],
)
def test_a_node_without_its_disk_resumes_bit_for_bit(
    number: signal.Signals, ranks: int, s3_server: S3Server, s3_url: str, storage: ObjectStorage, tmp_path: Path
):
    for name in ("reference", "node"):
        (tmp_path / name).mkdir()
    train = partial(train_and_kill, server=s3_server, ranks=ranks)
    assert train(tmp_path / "reference", checkpoints=str(tmp_path / "reference" / "checkpoints")) == 0
    node, disk = tmp_path / "node", tmp_path / "node" / "checkpoints"
    code = -signal.SIGKILL if number == signal.SIGKILL else 75
    for kill_step in (5, 13, 20) if ranks == 1 else (5, 9):
        assert train(node, checkpoints=str(disk), mirror=s3_url, kill_step=kill_step, number=number) == code
        saved_step = (kill_step - 1) // 2 * 2 if number == signal.SIGKILL else kill_step
        assert _copied_steps(storage)[-1] == saved_step
        shutil.rmtree(disk)
    assert train(node, checkpoints=str(disk), mirror=s3_url) == 0
    assert have_equal_weights(node, tmp_path / "reference")


@pytest.mark.drill
def test_a_run_exits_before_it_is_killed_although_its_mirror_hangs(s3_server: S3Server, s3_url: str, tmp_path: Path):
    with FaultProxy(s3_server.port, lambda method, path, number: "half close" if "-step-6" in path else None) as proxy:
        status = train_and_kill(
            tmp_path, s3_server, str(tmp_path / "checkpoints"),
            mirror=s3_url, kill_step=6, number=signal.SIGTERM, grace_seconds=10, endpoint=proxy.endpoint,
        )  # fmt: skip
    seconds = time.time() - (tmp_path / "weights.pt.signal").stat().st_mtime
    assert status == 75
    assert 5 < seconds < 10
