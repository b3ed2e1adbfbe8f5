"""Lease that gives one process the right to write to an object store."""

from __future__ import annotations

import json
import secrets
import threading
import time
from dataclasses import asdict

from stormproof.checkpoint.lease import (
    HEARTBEAT_JOIN_SECONDS,
    HEARTBEAT_SECONDS,
    STALE_SECONDS,
    LeaseError,
    Owner,
    parse_owner,
)
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.errors import FolderLostError, FolderTakenError
from stormproof.event_log import log_event
from stormproof.long_waits import long_wait

LEASE_NAME = "lease.json"
POLL_SECONDS = 1.0
_FREE = {"released": True}


class ObjectLease:
    """Exclusive right to write to an object store, stored in its ``lease.json``.

    The object is only written with a compare-and-swap. A heartbeat every 10 s renews it. On the same machine, the lease
    is valid while its process runs. On another machine, it is valid for 60 s after the last renewal. Times are measured
    by the clock of the object store.

    Args:
        storage: Object store.

    Raises:
        FolderTakenError: If another running process owns the prefix.
        LeaseError: If the lease cannot be read.
        OSError: If the object store fails.

    Example:
        >>> from obstore.store import MemoryStore
        >>> storage = ObjectStorage("s3://bucket/run", store=MemoryStore())
        >>> lease = ObjectLease(storage)
        >>> lease.check()  # before each commit
        >>> lease.release()
        >>> ObjectLease.is_active(storage)
        False
    """

    def __init__(self, storage: ObjectStorage) -> None:
        self._storage = storage
        self.owner = Owner.from_this_process()
        self._renewals = 0
        self._lock = threading.Lock()  # of the version, which the heartbeat and a release change
        current_owner, version = _read_lease(storage)
        if current_owner is not None and _is_valid(storage, current_owner):
            raise _make_taken_error(storage, current_owner)
        self._version = storage.compare_and_swap(LEASE_NAME, self._encode(), version)
        if self._version is None:
            raise _make_taken_error(storage, self.read_owner(storage))
        self._stop_event = threading.Event()
        self._heartbeat_thread = threading.Thread(target=self._run_heartbeat, name="lease-heartbeat", daemon=True)
        self._heartbeat_thread.start()

    def check(self) -> None:
        """Checks that this process still owns the prefix. Call it before each commit.

        Raises:
            FolderLostError: If another process took over, for example because this one was suspended for over 60 s.
            OSError: If the object store fails.
        """
        current_owner = self.read_owner(self._storage)
        if current_owner is None or current_owner.token != self.owner.token:
            reason = (
                f"process {current_owner.pid} on {current_owner.host} took it over"
                if current_owner
                else "its lease.json was removed"
            )
            raise FolderLostError(
                f"This process no longer owns {self._storage.location}, because {reason}. It stops writing to it."
            )

    def release(self) -> None:
        """Releases the lease if this process still owns it."""
        self._stop_event.set()
        self._heartbeat_thread.join(timeout=HEARTBEAT_JOIN_SECONDS)  # a heartbeat hangs if storage does
        with self._lock:
            content = {**_FREE, "token": secrets.token_hex(8)}
            if self._refresh_version():
                self._storage.compare_and_swap(LEASE_NAME, json.dumps(content).encode(), self._version)

    @staticmethod
    def is_active(storage: ObjectStorage) -> bool:
        """Returns whether the prefix has a valid lease. Writes a probe if the owner is on another machine."""
        owner = ObjectLease.read_owner(storage)
        return owner is not None and _is_valid(storage, owner)

    @staticmethod
    def read_owner(storage: ObjectStorage) -> Owner | None:
        """Returns the owner of the lease, which may have expired. None if the prefix is free.

        Raises:
            LeaseError: If the lease cannot be read.
        """
        return _read_lease(storage)[0]

    def _run_heartbeat(self) -> None:
        while not self._stop_event.wait(HEARTBEAT_SECONDS):
            try:
                with self._lock:
                    if not self._renew():
                        return  # another process took over the lease
            except (OSError, LeaseError):  # the object store is unavailable; other hosts notice the missed heartbeat
                continue

    def _renew(self) -> bool:
        """Renews the lease. Returns False if another process owns it."""
        if not self._refresh_version():
            return False
        self._renewals += 1
        self._version = self._storage.compare_and_swap(LEASE_NAME, self._encode(), self._version)
        return self._version is not None

    def _refresh_version(self) -> bool:
        """Reads the version, which a renewal with a lost response has changed. Returns False if the lease is lost."""
        current_owner, self._version = _read_lease(self._storage)
        return current_owner is not None and current_owner.token == self.owner.token

    def _encode(self) -> bytes:
        return json.dumps({**asdict(self.owner), "renewals": self._renewals}, indent=1).encode()


def acquire_when_expired(storage: ObjectStorage) -> ObjectLease:
    """Acquires the lease. Waits until it expires if its owner is on another machine and has stopped to renew it.

    A node that was lost leaves a lease that is valid for another 60 s.

    Raises:
        FolderTakenError: If the owner renews the lease, or runs on this machine.
    """
    _, version = _read_lease(storage)
    deadline = time.monotonic() + STALE_SECONDS + HEARTBEAT_SECONDS
    has_announced = False
    while True:
        try:
            return ObjectLease(storage)
        except FolderTakenError:
            owner, current_version = _read_lease(storage)
            is_renewed = current_version != version
            if owner is None or owner.is_running() or is_renewed or time.monotonic() > deadline:
                raise
            if not has_announced:
                has_announced = True
                log_event(
                    __name__,
                    f"waiting up to {STALE_SECONDS:.0f} s until the lease of process {owner.pid} on {owner.host} for "
                    f"{storage.location} expires, or is renewed",
                )
        with long_wait("a lease of the mirror"):
            time.sleep(POLL_SECONDS)


def _read_lease(storage: ObjectStorage) -> tuple[Owner | None, str | None]:
    """Returns the owner, None if the prefix is free, and the version of the lease, None if there is none.

    Raises:
        LeaseError: If the lease cannot be read.
    """
    try:
        content, version = storage.read_with_version(LEASE_NAME)
    except FileNotFoundError:
        return None, None
    try:
        is_free = json.loads(content).get("released")
    except (ValueError, AttributeError) as error:
        raise LeaseError(
            f"{storage.locate(LEASE_NAME)} is not a valid lease ({error}). Remove it if no other process writes to the "
            "prefix."
        ) from error
    return None if is_free else parse_owner(content, storage.locate(LEASE_NAME)), version


def _is_valid(storage: ObjectStorage, owner: Owner) -> bool:
    is_running = owner.is_running()
    if is_running is not None:
        return is_running
    probe = f".lease.{secrets.token_hex(8)}.tmp"  # its time of modification is the current time of the object store
    storage.put_if_absent(probe, owner.token.encode())
    try:
        return abs(storage.head(probe).modified - storage.head(LEASE_NAME).modified) < STALE_SECONDS
    except FileNotFoundError:  # the lease was removed
        return False
    finally:
        storage.delete([probe])


def _make_taken_error(storage: ObjectStorage, owner: Owner | None) -> FolderTakenError:
    description = f"process {owner.pid} on {owner.host}" if owner else "another process"
    return FolderTakenError(
        f"{storage.location} is in use by {description}. Stop that process, wait for it to end, or use another prefix."
    )
