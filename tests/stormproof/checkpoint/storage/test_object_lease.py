import threading
import time
from contextlib import suppress

import pytest
from obstore.store import MemoryStore

from stormproof.checkpoint import Store
from stormproof.checkpoint import lease as lease_module
from stormproof.checkpoint.lease import Lease, Owner
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.errors import FolderLostError, FolderTakenError
from tests.support.checkpoint_files import commit_checkpoint
from tests.support.object_stores import overwrite
from tests.support.waiting import wait_for


@pytest.fixture(params=["memory", "s3"])
def storage(request: pytest.FixtureRequest) -> ObjectStorage:
    if request.param == "memory":
        return ObjectStorage("s3://bucket/run", store=MemoryStore(), retry_seconds=0.1)
    return ObjectStorage(request.getfixturevalue("s3_url"), retry_seconds=5)


def test_a_prefix_has_one_owner_until_it_is_released(storage: ObjectStorage):
    lease = Lease(storage)
    lease.check()
    assert Lease.is_active(storage)
    with pytest.raises(FolderTakenError, match=f"{storage.location} is in use by process {lease.owner.pid}"):
        Lease(storage)
    lease.release()
    assert not Lease.is_active(storage)
    assert Lease.read_owner(storage) is None
    second = Lease(storage)
    with pytest.raises(FolderLostError, match="took it over"):
        lease.check()
    lease.release()  # it is the other's now
    second.check()
    second.release()


def test_the_owner_of_another_host_expires_by_the_clock_of_the_server(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
):
    lease = Lease(storage)
    monkeypatch.setattr(Owner, "is_running", lambda self: None)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert Lease.is_active(storage)
    with pytest.raises(FolderTakenError):
        Lease(storage)
    monkeypatch.setattr(lease_module, "STALE_SECONDS", -1.0)
    assert not Lease.is_active(storage)
    second = Lease(storage)
    with pytest.raises(FolderLostError):
        lease.check()
    for each in (lease, second):
        each.release()
    assert {entry.name for entry in storage.list()} == {"lease.json"}  # no probe is left


def test_a_start_waits_until_the_lease_of_a_lost_node_expires(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch):
    lost = Lease(storage)
    lost._stop_event.set()
    monkeypatch.setattr(Owner, "is_running", lambda self: None)
    monkeypatch.setattr(lease_module, "POLL_SECONDS", 0.01)
    threading.Timer(0.2, lambda: monkeypatch.setattr(lease_module, "STALE_SECONDS", -1.0)).start()
    lease = lease_module.acquire_when_expired(storage)
    lease.check()
    lease.release()


def test_a_start_fails_as_soon_as_the_owner_on_another_node_renews_its_lease(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.1)
    lease = Lease(storage)
    monkeypatch.setattr(Owner, "is_running", lambda self: None)
    monkeypatch.setattr(lease_module, "POLL_SECONDS", 0.01)
    with pytest.raises(FolderTakenError, match=f"process {lease.owner.pid}"):
        lease_module.acquire_when_expired(storage)
    lease.check()
    lease.release()


def test_the_heartbeat_renews_the_lease_and_stops_when_it_is_lost(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.02)
    lease = Lease(storage)
    first = storage.read("lease.json")
    wait_for(lambda: storage.read("lease.json") != first)
    lease.check()
    monkeypatch.setattr(Owner, "is_running", lambda self: False)
    second = _acquire(storage)
    wait_for(lambda: not lease._heartbeat_thread.is_alive())
    with pytest.raises(FolderLostError, match="took it over"):
        lease.check()
    second.release()


def _acquire(storage: ObjectStorage) -> Lease:
    """Acquires a lease whose owner renews it. A renewal may be faster than the swap."""
    for _ in range(100):
        with suppress(FolderTakenError):
            return Lease(storage)
    raise TimeoutError


def test_a_lost_lease_ends_the_heartbeat(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.02)
    lease = Lease(storage)
    overwrite(storage, "lease.json", b'{"released": true}')
    wait_for(lambda: not lease._heartbeat_thread.is_alive())
    with pytest.raises(FolderLostError, match=r"its lease\.json was removed"):
        lease.check()


def test_one_of_many_processes_takes_over_a_stale_lease(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch):
    for _ in range(5):
        Lease(storage)  # its process ended
        with monkeypatch.context() as patch:
            patch.setattr(Owner, "is_running", lambda self: False)
            leases = _acquire_together(storage)
        assert len(leases) == 1
        leases[0].check()
        leases[0].release()


def _acquire_together(storage: ObjectStorage) -> list[Lease]:
    """Four threads have all seen the stale lease before the first one takes it over."""
    barrier, leases = threading.Barrier(4), []
    is_valid = lease_module.is_lease_valid

    def wait_then_return(storage: ObjectStorage, owner: Owner) -> bool:
        result = is_valid(storage, owner)
        barrier.wait()
        return result

    def acquire() -> None:
        with suppress(FolderTakenError):
            leases.append(Lease(storage))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_module, "is_lease_valid", wait_then_return)
        threads = [threading.Thread(target=acquire) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return leases


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b'{"pid": "x"}'])
def test_a_damaged_lease_expires(content: bytes, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch):
    overwrite(storage, "lease.json", content)
    with pytest.raises(FolderTakenError, match="on an unknown host"):
        Lease(storage)
    monkeypatch.setattr(lease_module, "STALE_SECONDS", -1.0)
    lease = lease_module.acquire_when_expired(storage)
    lease.check()
    lease.release()


def test_two_stores_that_take_the_prefix_from_each_other_lose_nothing(storage: ObjectStorage):
    """Each store loses the lease when the other one starts. All commits remain."""
    committed: list[str] = []
    leases: list[Lease] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Owner, "is_running", lambda self: False)
        for _ in range(4):
            leases.append(Lease(storage))
            store = Store(storage)
            attempt = store.begin_attempt(store.resolve())
            step = 10 * len(leases)
            committed.append(commit_checkpoint(store, step, attempt=attempt, fence=leases[-1].check).name)
            for old in leases[:-1]:
                with pytest.raises(FolderLostError):
                    commit_checkpoint(store, 1000, fence=old.check)
    for lease in leases:
        lease.release()
    resolution = Store(storage).resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    names = [resolution.chosen_checkpoint.name, *(checkpoint.name for checkpoint in resolution.older_checkpoints)]
    assert sorted(names) == sorted(committed)
    assert ([*resolution.bad_checkpoints], [*resolution.lost_names]) == ([], [])
