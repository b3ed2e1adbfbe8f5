"""Lease that gives one process the right to write to a folder."""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

import filelock
import psutil

from stormproof.checkpoint.atomic import atomic_write
from stormproof.checkpoint.progress_file import PROGRESS_FILE_NAME, ProgressFile
from stormproof.checkpoint.read_retry import retry_read
from stormproof.checkpoint.storage import PosixStorage, Storage
from stormproof.errors import FolderLostError, FolderTakenError, StormproofError
from stormproof.event_log import log_event

T = TypeVar("T")
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
    """Exclusive right to write to a folder, stored in its ``lease.json`` and renewed by a heartbeat.

    A heartbeat every 10 s updates the file's modification time. On the same machine, a lease is valid while its process
    runs. On another machine, or after a reboot of this one, it is valid for 60 s after its last heartbeat. The clock of
    the file server counts. :meth:`check` detects that another process took over the lease.

    Args:
        folder: Existing folder.

    Raises:
        FolderTakenError: If another running process owns the folder.
        LeaseError: If the folder cannot be locked.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> lease = Lease(folder)
        >>> lease.check()  # before each commit
        >>> lease.release()
        >>> Lease.is_active(folder)
        False
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEASE_NAME
        self.owner = Owner.from_this_process()
        try:
            with filelock.FileLock(folder / ".lease.lock", timeout=10):
                holder = _read_owner(self.path)
                if holder is not None and is_lease_valid(PosixStorage(folder), holder):
                    raise make_taken_error(str(folder), holder, "folder")
                with atomic_write(self.path) as file:
                    file.write(json.dumps(asdict(self.owner), indent=1).encode())
        except (filelock.Timeout, NotImplementedError) as error:
            raise LeaseError(
                f"{folder} cannot be locked: {error}. Use a folder on a file system that supports file locks."
            ) from error
        self._stop_event = threading.Event()
        self._heartbeat_thread = threading.Thread(target=self._run_heartbeat, name="lease-heartbeat", daemon=True)
        self._heartbeat_thread.start()

    def check(self) -> None:
        """Checks that this process still owns the folder. Call it before each commit.

        Raises:
            FolderLostError: If another process took over, for example because this one was suspended for over 60 s.
            FileNotFoundError: If the folder is missing. It may return, for example when its file system is mounted.
        """
        holder = _read_owner(self.path)
        if holder is None and not self.path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path.parent))
        check_owner(self.owner, holder, f"{self.path.parent}", "the folder")

    def open_progress(self) -> ProgressFile:
        """Opens the record of the progress of the run."""
        return ProgressFile(self.path.with_name(PROGRESS_FILE_NAME))

    def release(self) -> None:
        """Removes the lease if this process still owns it."""
        self._stop_event.set()
        self._heartbeat_thread.join(timeout=HEARTBEAT_JOIN_SECONDS)  # a heartbeat hangs if storage does
        holder = _read_owner(self.path)
        if holder is not None and holder.token == self.owner.token:
            self.path.unlink(missing_ok=True)

    @staticmethod
    def is_active(folder: Path) -> bool:
        """Returns whether the folder has a valid lease."""
        holder = Lease.read_owner(folder)
        return holder is not None and is_lease_valid(PosixStorage(folder), holder)

    @staticmethod
    def read_owner(folder: Path) -> Owner | None:
        """Returns the owner of the folder's lease, which may have expired. None if the folder has no lease."""
        return _read_owner(folder / LEASE_NAME)

    def _run_heartbeat(self) -> None:
        while not self._stop_event.wait(HEARTBEAT_SECONDS):
            try:
                holder = _read_owner(self.path)
                if holder is not None and holder.token != self.owner.token:
                    return  # another process took over the lease
                os.utime(self.path)
            except OSError:  # storage is unavailable; other hosts should notice the missed heartbeat
                continue


def _read_owner(path: Path) -> Owner | None:
    try:
        return parse_owner(retry_read(path.read_bytes))
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        return UNKNOWN_OWNER


def parse_owner(content: bytes) -> Owner:
    """Returns the owner that a lease names. :data:`UNKNOWN_OWNER` if the content is damaged."""
    try:
        values = json.loads(content)
        field_names = {field.name for field in fields(Owner)}  # a later release may write more
        owner = Owner(**{name: value for name, value in values.items() if name in field_names})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return UNKNOWN_OWNER
    return owner if type(owner.pid) is int and 0 < owner.pid < 1 << 31 else UNKNOWN_OWNER


def wait_until_expired(acquire: Callable[[], T], read: Callable[[], tuple[Owner | None, object]], location: str) -> T:
    """Acquires a lease. If its owner is on another machine and no longer renews it, waits until it expires.

    After a node is lost, its lease stays valid for up to 60 s. ``read`` returns the owner, and a value that a renewal
    changes.

    Raises:
        FolderTakenError: If the owner renews the lease, or runs on this machine.
    """
    _, version = read()
    deadline = time.monotonic() + STALE_SECONDS + HEARTBEAT_SECONDS
    has_announced = False
    while True:
        try:
            return acquire()
        except FolderTakenError:
            owner, current_version = read()
            if owner is None or owner.is_running() or current_version != version or time.monotonic() > deadline:
                raise
            if not has_announced:
                has_announced = True
                log_event(
                    __name__,
                    f"waiting up to {STALE_SECONDS:.0f} s until the lease of process {owner.pid} on {owner.host} for "
                    f"{location} expires, or is renewed",
                )
            time.sleep(POLL_SECONDS)


def check_owner(owner: Owner, current_owner: Owner | None, location: str, place: str) -> None:
    """Raises FolderLostError if ``current_owner``, None without a lease, is another process than ``owner``."""
    if current_owner is None or current_owner.token != owner.token:
        reason = (
            f"process {current_owner.pid} on {current_owner.host} took it over"
            if current_owner
            else "its lease.json was removed"
        )
        raise FolderLostError(f"This process no longer owns {location}, because {reason}. It stops writing to {place}.")


def make_taken_error(location: str, owner: Owner | None, place: str) -> FolderTakenError:
    """Returns the error of a start while ``owner``, None if unknown, has a valid lease."""
    description = f"process {owner.pid} on {owner.host}" if owner else "another process"
    return FolderTakenError(
        f"{location} is in use by {description}. Stop that process, wait for it to end, or use another {place}."
    )


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
