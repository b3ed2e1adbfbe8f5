"""Lease that gives one process the right to write to a folder or an object store."""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from stormproof.checkpoint.progress_file import Progress, parse_progress
from stormproof.checkpoint.storage import PosixStorage, Storage
from stormproof.checkpoint.storage.conditions import check_conditions
from stormproof.errors import FolderLostError, FolderTakenError, StormproofError
from stormproof.event_log import log_event

LEASE_NAME = "lease.json"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A lease of another host, where the process cannot be queried, expires after six missed heartbeats."""
HEARTBEAT_JOIN_SECONDS = 10.0
"""Maximum time that a release waits for a heartbeat in progress."""
POLL_SECONDS = 1.0
"""Time between two tries to acquire a lease that may expire, in seconds."""


class LeaseError(StormproofError):
    """Raised if a folder cannot be locked."""

    exit_code = 74


@dataclass(frozen=True)
class Owner:
    """The process that owns a lease.

    Attributes:
        host: Host name.
        boot_id: Identifier of the boot of the host.
        pid_namespace: PID namespace. Containers of one host may share its name, but not the process ids.
        pid: Process id.
        started: Start time of the process, in seconds since the epoch. Distinguishes processes that reuse a pid.
        token: Fencing token: a random string, new for each lease.
        start_ticks: Start time in clock ticks since boot, which clock changes do not affect. None except on Linux.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: float
    token: str
    start_ticks: int | None = None

    @classmethod
    def from_this_process(cls) -> Owner:
        """Returns an owner for this process, with a new token."""
        pid, start_time = os.getpid(), psutil.Process().create_time()
        token = secrets.token_hex(8)
        return cls(socket.gethostname(), _boot_id(), _pid_namespace(), pid, start_time, token, _start_ticks(pid))

    def is_running(self) -> bool | None:
        """Returns whether the process is running, or None if only its own machine can determine this.

        Another boot id may mean that this machine was restarted, or that another machine has the same name, for example
        a pod that moved to another node.
        """
        if (self.host, self.boot_id, self.pid_namespace) != (socket.gethostname(), _boot_id(), _pid_namespace()):
            return None
        try:
            process = psutil.Process(self.pid)
            # a killed process whose parent has not waited for it is still listed, as a zombie
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            if self.start_ticks is not None:
                return is_alive and _start_ticks(self.pid) == self.start_ticks
            return is_alive and abs(process.create_time() - self.started) < 2  # the clock may have been set meanwhile
        except psutil.NoSuchProcess:
            return False


UNKNOWN_OWNER = Owner("an unknown host", "", "", 0, 0.0, "")
"""Owner of a lease that is damaged. The lease expires after missed heartbeats."""


class Lease:
    """Exclusive right to write to a folder or an object store, stored in its ``lease.json``.

    The lease is acquired with compare-and-swap, and a heartbeat renews it every 10 s. In a folder, the heartbeat sets
    the modification time of the file. Elsewhere, it swaps the file again, with the current progress. On the same
    machine, the lease is valid while its process runs. On another machine, or after a reboot of this one, it is valid
    for 60 s after the last renewal, by the clock of the storage. :meth:`check` detects that another process took over
    the lease.

    Args:
        location: Existing folder, or a storage.
        owner: Owner of the lease. If it already owns the lease, because the response to an earlier request was lost,
            the lease is acquired again. This process if None.

    Attributes:
        owner: Owner of the lease.
        progress: Progress of this attempt, which renewals store except in a folder. Initially the previous attempt's.

    Raises:
        FolderTakenError: If another running process owns the folder or the prefix.
        LeaseError: If the folder cannot be locked.
        OSError: If the storage fails.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> lease = Lease(folder)
        >>> lease.check()  # before each commit
        >>> lease.release()
        >>> Lease.is_active(folder)
        False
    """

    def __init__(self, location: Path | Storage, owner: Owner | None = None) -> None:
        self._storage = storage = _open(location)
        self.owner = owner or Owner.from_this_process()
        self._renewals = 0
        self._lock = threading.Lock()  # taken by a renewal and by the release
        stored = _read_lease(storage)
        if stored.owner is not None and not self._owns(stored) and is_lease_valid(storage, stored.owner):
            raise _make_taken_error(storage, stored.owner)
        self.progress = stored.progress
        try:
            version = storage.compare_and_swap(LEASE_NAME, self._encode(), stored.version)
        except OSError as error:
            if error.errno != errno.ENOLCK:
                raise
            raise LeaseError(
                f"{error.filename} cannot be locked: {error.strerror}. Use a folder on a file system that supports "
                "file locks."
            ) from error
        if version is None:
            raise _make_taken_error(storage, _read_lease(storage).owner)
        self._stop_event = threading.Event()
        self._heartbeat_thread = threading.Thread(target=self._run_heartbeat, name="lease-heartbeat", daemon=True)
        self._heartbeat_thread.start()

    def check(self) -> None:
        """Checks that this process still owns the lease. Call it before each commit.

        Raises:
            FolderLostError: If another process took over, for example because this one was suspended for over 60 s.
            FileNotFoundError: If the folder is missing. It may return, for example when its file system is mounted.
            OSError: If the storage fails.
        """
        owner, folder = self.read_owner(self._storage), self._storage.folder
        if owner is not None and owner.token == self.owner.token:
            return
        if owner is None and folder is not None and not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        reason = f"process {owner.pid} on {owner.host} took it over" if owner else f"its {LEASE_NAME} was removed"
        raise FolderLostError(
            f"This process no longer owns {self._storage.location}, because {reason}. It stops writing to the "
            f"{_name_place(self._storage)}."
        )

    def release(self) -> None:
        """Releases the lease if this process still owns it. If the storage hangs, the lease expires."""
        self._stop_event.set()
        if not self._lock.acquire(timeout=HEARTBEAT_JOIN_SECONDS):  # a renewal waits for the storage
            return
        try:
            stored = _read_lease(self._storage)
            if self._owns(stored) and self._storage.folder is not None:
                self._storage.delete([LEASE_NAME])
            elif self._owns(stored):
                content = {"released": True, "token": secrets.token_hex(8)}
                self._storage.compare_and_swap(LEASE_NAME, self._encode(content), stored.version)
        finally:
            self._lock.release()
        self._heartbeat_thread.join(timeout=HEARTBEAT_JOIN_SECONDS)

    @staticmethod
    def is_active(location: Path | Storage) -> bool:
        """Returns whether there is a valid lease. Writes a probe if its owner is on another machine."""
        owner = Lease.read_owner(location)
        return owner is not None and is_lease_valid(_open(location), owner)

    @staticmethod
    def read_owner(location: Path | Storage) -> Owner | None:
        """Returns the owner of the lease, which may have expired. None without a lease."""
        try:
            return _parse_lease(_open(location).read(LEASE_NAME), None).owner
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            return UNKNOWN_OWNER

    def _run_heartbeat(self) -> None:
        while not self._stop_event.wait(HEARTBEAT_SECONDS):
            try:
                with self._lock:
                    if not self._renew():
                        return  # another process took over the lease
            except OSError:  # storage is unavailable; other hosts should notice the missed heartbeat
                continue

    def _renew(self) -> bool:
        """Renews the lease. Returns False if another process owns it."""
        stored, folder = _read_lease(self._storage), self._storage.folder
        if stored.version is None:  # the file may return, for example when its file system is mounted
            return True
        if not self._owns(stored):
            return False
        if folder is not None:  # without an fsync, which may wait for a checkpoint that is being written
            os.utime(folder / LEASE_NAME)
            return True
        self._renewals += 1
        return self._storage.compare_and_swap(LEASE_NAME, self._encode(), stored.version) is not None

    def _owns(self, stored: _StoredLease) -> bool:
        return stored.owner is not None and stored.owner.token == self.owner.token

    def _encode(self, content: Mapping[str, object] | None = None) -> bytes:
        if self._storage.folder is not None:
            return json.dumps(asdict(self.owner), indent=1).encode()
        content = content or {**asdict(self.owner), "renewals": self._renewals}  # differs in each swap
        return json.dumps({**content, "progress": self.progress and asdict(self.progress)}, indent=1).encode()


@dataclass(frozen=True)
class _StoredLease:
    """Content of a lease.

    Attributes:
        owner: Owner. None if the lease is free. :data:`UNKNOWN_OWNER` if it is damaged.
        progress: Progress of the owner. None if it is missing or implausible.
        version: Version in the storage. None without a lease.
    """

    owner: Owner | None
    progress: Progress | None
    version: str | None


def _read_lease(storage: Storage) -> _StoredLease:
    try:
        return _parse_lease(*storage.read_with_version(LEASE_NAME))
    except FileNotFoundError:
        return _StoredLease(None, None, None)
    except IsADirectoryError:
        return _StoredLease(UNKNOWN_OWNER, None, storage.stat(LEASE_NAME).version)


def _parse_lease(content: bytes, version: str | None) -> _StoredLease:
    try:
        values = {**json.loads(content)}
        if values.get("released"):
            owner = None
        else:
            field_names = {field.name for field in fields(Owner)}  # a later release may write more
            owner = Owner(**{name: value for name, value in values.items() if name in field_names})
            owner = owner if type(owner.pid) is int and 0 < owner.pid < 1 << 31 else UNKNOWN_OWNER
    except (ValueError, TypeError, RecursionError):
        return _StoredLease(UNKNOWN_OWNER, None, version)
    try:
        progress = parse_progress(values["progress"]["step"], values["progress"]["time"])
    except (KeyError, TypeError):  # no step was done, or an earlier version of stormproof wrote the lease
        progress = None
    return _StoredLease(owner, progress, version)


def acquire_when_expired(storage: Storage, owner: Owner | None = None) -> Lease:
    """Acquires a lease. If its owner is on another machine and no longer renews it, waits until it expires.

    After a node is lost, its lease stays valid for up to 60 s. Except in a folder, also checks that the storage
    supports conditional writes, without which a lease does not exclude other processes.

    Args:
        storage: Storage to write to.
        owner: As for :class:`Lease`.

    Raises:
        FolderTakenError: If the owner renews the lease, or runs on this machine.
        UnsupportedStoreError: If the storage does not support conditional writes.
    """
    version = _read_lease(storage).version
    deadline = time.monotonic() + STALE_SECONDS + HEARTBEAT_SECONDS
    has_announced = False
    while True:
        try:
            lease = Lease(storage, owner)
        except FolderTakenError:
            stored = _read_lease(storage)
            is_expiring = stored.owner is not None and not stored.owner.is_running() and stored.version == version
            if stored.owner is None or not is_expiring or time.monotonic() > deadline:
                raise
            if not has_announced:
                has_announced = True
                log_event(
                    __name__,
                    f"waiting up to {STALE_SECONDS:.0f} s until the lease of process {stored.owner.pid} on "
                    f"{stored.owner.host} for {storage.location} expires, or is renewed",
                )
            time.sleep(POLL_SECONDS)
        else:
            break
    if storage.folder is None:
        try:
            check_conditions(storage)
        except BaseException:
            lease.release()
            raise
    return lease


def is_lease_valid(storage: Storage, owner: Owner) -> bool:
    """Returns whether a lease with this owner is valid. Writes a probe if the owner is on another machine."""
    is_running = owner.is_running()
    if is_running is not None:
        return is_running
    probe = f".lease.{secrets.token_hex(8)}.tmp"  # its time of modification is the current time of the server
    storage.put_if_absent(probe, owner.token.encode())
    try:
        times = {entry.name: entry.modified for entry in storage.list()}
    finally:
        storage.delete([probe])
    # a time far in the future means that the server's clock was set back and no heartbeat followed
    return LEASE_NAME in times and abs(times[probe] - times[LEASE_NAME]) < STALE_SECONDS


def _make_taken_error(storage: Storage, owner: Owner | None) -> FolderTakenError:
    """Returns the error of a start while ``owner``, None if unknown, has a valid lease."""
    description = f"process {owner.pid} on {owner.host}" if owner else "another process"
    return FolderTakenError(
        f"{storage.location} is in use by {description}. Stop that process, wait for it to end, or use another "
        f"{_name_place(storage)}."
    )


def _name_place(storage: Storage) -> str:
    return "prefix" if storage.folder is None else "folder"


def _open(location: Path | Storage) -> Storage:
    return PosixStorage(location) if isinstance(location, Path) else location


def _pid_namespace() -> str:
    namespace_path = Path("/proc/self/ns/pid")
    return str(namespace_path.readlink()) if namespace_path.exists() else ""


def _start_ticks(pid: int) -> int | None:
    """Returns when a process started, in clock ticks since boot. None if there is no such process, or not on Linux."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # field 22 (proc_pid_stat(5)); field 2 is in parentheses


def _boot_id() -> str:
    """Returns an identifier that changes with each boot of this machine."""
    boot_id_path = Path("/proc/sys/kernel/random/boot_id")
    return boot_id_path.read_text().strip() if boot_id_path.exists() else str(round(psutil.boot_time()))
