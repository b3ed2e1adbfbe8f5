"""Lease that gives one process the right to write to an object store."""

from __future__ import annotations

import json
import secrets
import threading
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

LEASE_NAME = "lease.json"
_FREE = {"released": True}


class ObjectLease:
    """Exclusive right to write to an object store, stored in its ``lease.json``.

    The object is only written with a compare-and-swap. A heartbeat every 10 s renews it. On the same machine, the lease
    is valid while its process runs. On another machine, it is valid for 60 s after the last renewal. The clock of the
    object store counts.

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
        version = _find_version(storage)  # before the content is read: a later change makes the swap fail
        holder = self.read_owner(storage)
        if holder is not None and _is_valid(storage, holder):
            raise _make_taken_error(storage, holder)
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
        holder = self.read_owner(self._storage)
        if holder is None or holder.token != self.owner.token:
            reason = f"process {holder.pid} on {holder.host} took it over" if holder else "its lease.json was removed"
            raise FolderLostError(
                f"This process no longer owns {self._storage.location}, because {reason}. It stops writing to it."
            )

    def release(self) -> None:
        """Frees the prefix if this process still owns it."""
        self._stop_event.set()
        self._heartbeat_thread.join(timeout=HEARTBEAT_JOIN_SECONDS)  # a heartbeat hangs if storage does
        with self._lock:
            content = {**_FREE, "token": secrets.token_hex(8)}
            if self._refresh_version():
                self._storage.compare_and_swap(LEASE_NAME, json.dumps(content).encode(), self._version)

    @staticmethod
    def is_active(storage: ObjectStorage) -> bool:
        """Returns whether the prefix has a valid lease. Writes a probe if the owner is on another machine."""
        holder = ObjectLease.read_owner(storage)
        return holder is not None and _is_valid(storage, holder)

    @staticmethod
    def read_owner(storage: ObjectStorage) -> Owner | None:
        """Returns the owner of the lease, which may have expired. None if the prefix is free.

        Raises:
            LeaseError: If the lease cannot be read.
        """
        try:
            content = storage.read(LEASE_NAME)
        except FileNotFoundError:
            return None
        try:
            if json.loads(content).get("released"):
                return None
        except (ValueError, AttributeError) as error:
            raise LeaseError(
                f"{storage.locate(LEASE_NAME)} is not a valid lease ({error}). Remove it if no other process writes to "
                "the prefix."
            ) from error
        return parse_owner(content, storage.locate(LEASE_NAME))

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
        """Reads the version, which a renewal with a lost answer has changed. Returns False if the lease is lost."""
        version, holder = _find_version(self._storage), self.read_owner(self._storage)
        self._version = version
        return holder is not None and holder.token == self.owner.token

    def _encode(self) -> bytes:
        return json.dumps({**asdict(self.owner), "renewals": self._renewals}, indent=1).encode()


def _find_version(storage: ObjectStorage) -> str | None:
    return next((entry.version for entry in storage.list() if entry.name == LEASE_NAME), None)


def _is_valid(storage: ObjectStorage, holder: Owner) -> bool:
    is_running = holder.is_running()
    if is_running is not None:
        return is_running
    probe = f".lease.{secrets.token_hex(8)}.tmp"  # its time of modification is the current time of the object store
    storage.put_if_absent(probe, holder.token.encode())
    try:
        times = {entry.name: entry.modified for entry in storage.list()}
        return LEASE_NAME in times and abs(times[probe] - times[LEASE_NAME]) < STALE_SECONDS
    finally:
        storage.delete([probe])


def _make_taken_error(storage: ObjectStorage, holder: Owner | None) -> FolderTakenError:
    owner = f"process {holder.pid} on {holder.host}" if holder else "another process"
    return FolderTakenError(
        f"{storage.location} is in use by {owner}. Stop that process, wait for it to end, or use another prefix."
    )
