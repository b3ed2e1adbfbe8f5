"""Lease that gives one process the right to write to an object store."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stormproof.checkpoint.lease import (
    HEARTBEAT_JOIN_SECONDS,
    HEARTBEAT_SECONDS,
    LEASE_NAME,
    Owner,
    check_owner,
    is_lease_valid,
    make_taken_error,
    parse_owner,
    wait_until_expired,
)
from stormproof.checkpoint.progress_file import Progress, parse_progress
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.checkpoint.storage.conditions import check_conditions


class LeaseProgress:
    """Progress of an attempt. Each renewal of the lease saves it.

    Args:
        previous: Progress of the previous attempt. None if it is missing or implausible.

    Attributes:
        previous: Progress of the previous attempt.
        newest: Progress of this attempt, or else of the previous one.
    """

    def __init__(self, previous: Progress | None) -> None:
        self.previous = self.newest = previous

    def write(self, step: int) -> None:
        """Records the number of optimizer steps done. The next renewal stores it."""
        self.newest = Progress(step, time.time())

    def close(self) -> None:
        """Does nothing, because the release of the lease stores the progress."""


class ObjectLease:
    """Exclusive right to write to an object store, stored in its ``lease.json``.

    The object is written only with compare-and-swap. A heartbeat every 10 s renews it, and stores the progress. On
    the same machine, the lease is valid while its process runs. On another machine, it is valid for 60 s after the last
    renewal. Times are measured by the clock of the object store.

    Args:
        storage: Object store.
        owner: Owner of the lease. If it already owns the lease, because the response to an earlier request was lost,
            the lease is acquired again. This process if None.

    Raises:
        FolderTakenError: If another running process owns the prefix.
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

    def __init__(self, storage: ObjectStorage, owner: Owner | None = None) -> None:
        self._storage = storage
        self.owner = owner or Owner.from_this_process()
        self._renewals = 0
        self._lock = threading.Lock()  # of the version, which the heartbeat and a release change
        content, version = _read_content(storage)
        current_owner = _parse_owner(content)
        is_owned = current_owner is not None and current_owner.token == self.owner.token
        if current_owner is not None and not is_owned and is_lease_valid(storage, current_owner):
            raise make_taken_error(storage.location, current_owner, "prefix")
        self._progress = LeaseProgress(_parse_progress(content))
        self._version = storage.compare_and_swap(LEASE_NAME, self._encode(self._describe()), version)
        if self._version is None:
            raise make_taken_error(storage.location, self.read_owner(storage), "prefix")
        self._stop_event = threading.Event()
        self._heartbeat_thread = threading.Thread(target=self._run_heartbeat, name="lease-heartbeat", daemon=True)
        self._heartbeat_thread.start()

    def check(self) -> None:
        """Checks that this process still owns the prefix. Call it before each commit.

        Raises:
            FolderLostError: If another process took over, for example because this one was suspended for over 60 s.
            OSError: If the object store fails.
        """
        check_owner(self.owner, self.read_owner(self._storage), self._storage.location, "the prefix")

    def open_progress(self) -> LeaseProgress:
        """Returns the record of the progress of the run."""
        return self._progress

    def release(self) -> None:
        """Releases the lease if this process still owns it. If the object store hangs, the lease expires."""
        self._stop_event.set()
        if not self._lock.acquire(timeout=HEARTBEAT_JOIN_SECONDS):  # the heartbeat waits for the object store
            return
        try:
            content = {"released": True, "token": secrets.token_hex(8)}
            if self._refresh_version():
                self._storage.compare_and_swap(LEASE_NAME, self._encode(content), self._version)
        finally:
            self._lock.release()
        self._heartbeat_thread.join(timeout=HEARTBEAT_JOIN_SECONDS)

    @staticmethod
    def is_active(storage: ObjectStorage) -> bool:
        """Returns whether the prefix has a valid lease. Writes a probe if the owner is on another machine."""
        owner = ObjectLease.read_owner(storage)
        return owner is not None and is_lease_valid(storage, owner)

    @staticmethod
    def read_owner(storage: ObjectStorage) -> Owner | None:
        """Returns the owner of the lease, which may have expired. None if the prefix is free."""
        return _read_lease(storage)[0]

    def _run_heartbeat(self) -> None:
        while not self._stop_event.wait(HEARTBEAT_SECONDS):
            try:
                with self._lock:
                    if not self._renew():
                        return  # another process took over the lease
            except OSError:  # the object store is unavailable; other hosts notice the missed heartbeat
                continue

    def _renew(self) -> bool:
        """Renews the lease. Returns False if another process owns it."""
        if not self._refresh_version():
            return False
        self._renewals += 1
        self._version = self._storage.compare_and_swap(LEASE_NAME, self._encode(self._describe()), self._version)
        return self._version is not None

    def _refresh_version(self) -> bool:
        """Reads the version, which a renewal with a lost response has changed. Returns False if the lease is lost."""
        current_owner, self._version = _read_lease(self._storage)
        return current_owner is not None and current_owner.token == self.owner.token

    def _describe(self) -> dict[str, object]:
        return {**asdict(self.owner), "renewals": self._renewals}

    def _encode(self, content: Mapping[str, object]) -> bytes:
        newest = self._progress.newest
        return json.dumps({**content, "progress": newest and asdict(newest)}, indent=1).encode()


def acquire_when_expired(storage: ObjectStorage, owner: Owner | None = None) -> ObjectLease:
    """Acquires the lease like :func:`wait_until_expired`.

    Also checks that the object store supports conditional writes, without which a lease does not exclude other
    processes.

    Raises:
        FolderTakenError: If the owner renews the lease, or runs on this machine.
        UnsupportedStoreError: If the object store does not support conditional writes.
    """
    lease = wait_until_expired(lambda: ObjectLease(storage, owner), lambda: _read_lease(storage), storage.location)
    try:
        check_conditions(storage)
    except BaseException:
        lease.release()
        raise
    return lease


def _read_lease(storage: ObjectStorage) -> tuple[Owner | None, str | None]:
    """Returns the owner (None if the prefix is free) and the version of the lease (None without a lease)."""
    content, version = _read_content(storage)
    return _parse_owner(content), version


def _read_content(storage: ObjectStorage) -> tuple[dict[str, Any], str | None]:
    """Returns the content (empty without a lease) and the version of the lease."""
    try:
        content, version = storage.read_with_version(LEASE_NAME)
    except FileNotFoundError:
        return {}, None
    try:
        return {**json.loads(content)}, version
    except (ValueError, TypeError, RecursionError):
        return {"is_damaged": True}, version


def _parse_owner(content: Mapping[str, Any]) -> Owner | None:
    is_free = not content or content.get("released")
    return None if is_free else parse_owner(json.dumps(content).encode())


def _parse_progress(content: Mapping[str, Any]) -> Progress | None:
    try:
        return parse_progress(content["progress"]["step"], content["progress"]["time"])
    except (KeyError, TypeError):  # no step was done, or an earlier version of stormproof wrote the lease
        return None
