"""Which process may write to a folder."""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import filelock
import psutil

from stormproof.checkpoint.atomic import atomic_write
from stormproof.checkpoint.read_retry import retry_read
from stormproof.errors import FolderLostError, FolderTakenError, StormproofError

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""On another host nobody can ask the process itself; six missed heartbeats mean that it is gone."""
HEARTBEAT_JOIN_SECONDS = 10.0
"""How long a release waits for a heartbeat that is under way."""


class LeaseError(StormproofError):
    """A folder that cannot be locked, or whose lease is not readable."""

    exit_code = 74


@dataclass(frozen=True)
class Owner:
    """The process that holds a lease."""

    host: str
    boot_id: str
    pid_namespace: str  # containers of one machine may share its name, and not their process numbers
    pid: int
    started: float  # of the process, seconds since the epoch: a pid is used again, a pid with its start is not
    token: str
    start_ticks: int | None = None  # start time in clock ticks since boot (Linux only), unaffected by clock changes

    @classmethod
    def from_this_process(cls) -> Owner:
        """This process, with a fresh token."""
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
            # a killed process that nobody has waited for is still listed, as a zombie
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            if self.start_ticks is not None:
                return is_alive and _start_ticks(self.pid) == self.start_ticks
            return is_alive and abs(process.create_time() - self.started) < 2  # the clock may have been set meanwhile
        except psutil.NoSuchProcess:
            return False


class Lease:
    """Ownership of a folder, kept in its ``lease.json`` and renewed by a heartbeat, which is that file's mtime.

    On the same machine, an old lease is valid while its process runs. On another machine, or after a restart of this
    one, it is valid for 60 s after its last heartbeat, by the clock of the file server. :meth:`check` detects a lease
    that was taken over.

    Args:
        folder: a folder that exists.

    Raises:
        FolderTakenError: if another process that still lives holds it.
        LeaseError: if the folder cannot be locked, or its lease is not readable.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> lease = Lease(folder)
        >>> lease.check()  # before anything is committed
        >>> lease.release()
        >>> Lease.is_held(folder)
        False
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lease.json"
        self.owner = Owner.from_this_process()
        try:
            with filelock.FileLock(folder / ".lease.lock", timeout=10):
                holder = _read_owner(self.path)
                if holder is not None and _is_lease_valid(self.path, holder):
                    raise FolderTakenError(
                        f"{folder} is in use by process {holder.pid} on {holder.host}: stop it, wait for it, or use "
                        "another folder"
                    )
                with atomic_write(self.path) as file:
                    file.write(json.dumps(asdict(self.owner), indent=1).encode())
        except (filelock.Timeout, NotImplementedError) as error:
            raise LeaseError(
                f"the folder {folder} cannot be locked: {error}; use one where files can be locked"
            ) from error
        self._stop_event = threading.Event()
        self._heartbeat_thread = threading.Thread(target=self._run_heartbeat, name="lease-heartbeat", daemon=True)
        self._heartbeat_thread.start()

    def check(self) -> None:
        """Asks before anything is committed whether this attempt still owns the folder.

        Raises:
            FolderLostError: if another attempt took over, as after a suspension longer than the heartbeat allows.
            FileNotFoundError: if the folder is gone: it may come back, as a file system that was unmounted does.
        """
        holder = _read_owner(self.path)
        if holder is None and not self.path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path.parent))
        if holder is None or holder.token != self.owner.token:
            new_owner = f"process {holder.pid} on {holder.host}" if holder else "somebody who removed its lease"
            raise FolderLostError(f"{self.path.parent} now belongs to {new_owner}; this attempt writes no more to it")

    def release(self) -> None:
        """Gives the folder back, if it is still this attempt's."""
        self._stop_event.set()
        self._heartbeat_thread.join(timeout=HEARTBEAT_JOIN_SECONDS)  # it may hang where storage does
        holder = _read_owner(self.path)
        if holder is not None and holder.token == self.owner.token:
            self.path.unlink(missing_ok=True)

    @staticmethod
    def is_held(folder: Path) -> bool:
        """Whether an attempt that still lives holds the folder's lease."""
        path = folder / "lease.json"
        holder = _read_owner(path)
        return holder is not None and _is_lease_valid(path, holder)

    @staticmethod
    def read_owner(folder: Path) -> Owner | None:
        """Who the folder's lease names, alive or not; None if there is no lease.

        Raises:
            LeaseError: if it is not readable.
        """
        return _read_owner(folder / "lease.json")

    def _run_heartbeat(self) -> None:
        while not self._stop_event.wait(HEARTBEAT_SECONDS):
            try:
                holder = _read_owner(self.path)
                if holder is not None and holder.token != self.owner.token:
                    return  # taken over: another's lease is not ours to renew
                os.utime(self.path)
            except (OSError, LeaseError):  # the folder is away for now: a missed beat, which others should see
                continue


def _read_owner(path: Path) -> Owner | None:
    try:
        content = json.loads(retry_read(path.read_bytes))
        field_names = {field.name for field in fields(Owner)}  # a later release may write more
        return Owner(**{name: value for name, value in content.items() if name in field_names})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        raise LeaseError(f"{path} is no lease of ours ({error}); remove it if no other process writes there") from error


def _is_lease_valid(path: Path, holder: Owner) -> bool:
    is_running = holder.is_running()
    if is_running is not None:
        return is_running
    probe = path.with_name(f".lease.{secrets.token_hex(8)}.tmp")  # its mtime is now, by the file server's clock
    probe.touch()
    try:
        # far in the future: the server's clock was set back, and there was no heartbeat since
        return abs(probe.stat().st_mtime - path.stat().st_mtime) < STALE_SECONDS
    except FileNotFoundError:  # released in between
        return False
    finally:
        probe.unlink()


def _pid_namespace() -> str:
    namespace_path = Path("/proc/self/ns/pid")
    return str(namespace_path.readlink()) if namespace_path.exists() else ""


def _start_ticks(pid: int) -> int | None:
    """Returns when a process started, in clock ticks since boot. None if there is no such process, or not on Linux."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # field 22; the name in parentheses is the second


def _boot_id() -> str:
    """Tells one start of this machine from the next."""
    boot_id_path = Path("/proc/sys/kernel/random/boot_id")
    return boot_id_path.read_text().strip() if boot_id_path.exists() else str(round(psutil.boot_time()))
