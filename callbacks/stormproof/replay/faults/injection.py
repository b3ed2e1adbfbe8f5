"""Injects a fault into a command that is stopped at the planned event."""

from __future__ import annotations

import os
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from stormproof.replay.command_run import POLL_SECONDS, CommandRun
from stormproof.replay.faults.fault import Fault, FaultKind
from stormproof.replay.pause import PausedProcess

FULL_DEVICE = Path("/dev/full")
"""Device on which every write fails because no space is left."""
SAVE_SECONDS = 10.0
"""Maximum time until a save ends after the fault."""

RANK_SECONDS = 60.0
"""Maximum time for a launcher to end or restart the other ranks."""
AFTER_FULL_DISK_SECONDS = 0.5
"""Time for the command to react to the failed save before it is killed."""


def inject(run: CommandRun, fault: Fault, paused: PausedProcess, grace_seconds: float) -> bool:
    """Injects a fault that ends the command. Returns False if this system cannot inject it.

    All processes of the command are stopped at the start, and killed at the end.
    """
    if paused.pid not in {process.pid for process in run.processes()}:  # its number in another PID namespace
        run.kill()
        return False
    if fault.kind is FaultKind.TERM:
        run.process.send_signal(signal.SIGTERM)
        _continue(run, grace_seconds)
    elif fault.kind is FaultKind.RANK:
        psutil.Process(paused.pid).kill()
        _continue(run, max(grace_seconds, RANK_SECONDS))
    elif fault.kind is FaultKind.MID_SAVE:
        return _kill_while_writing(run, fault, paused)
    elif fault.kind is FaultKind.FULL_DISK:
        return _fill_disk(run, paused)
    run.kill()
    return True


def tear(path: Path) -> bool:
    """Truncates a checkpoint file, or the largest file of a checkpoint folder, to half of its size."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if not files:
        return False
    largest = max(files, key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    return True


def _continue(run: CommandRun, seconds: float) -> None:
    """Continues the command for a time, or until it ends."""
    run.signal_all(signal.SIGCONT)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not run.has_ended():
        time.sleep(POLL_SECONDS)


def _kill_while_writing(run: CommandRun, fault: Fault, paused: PausedProcess) -> bool:
    """Ends the process at the write that reaches the size limit. It can run no code after it, as with SIGKILL."""
    try:
        hard = resource.prlimit(paused.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(paused.pid, resource.RLIMIT_FSIZE, (fault.size_limit, hard))
    except (AttributeError, OSError):  # not Linux, or not permitted
        run.kill()
        return False
    run.signal_all(signal.SIGCONT)
    deadline = time.monotonic() + SAVE_SECONDS
    while time.monotonic() < deadline and _is_running(paused.pid):
        time.sleep(0.001)
    run.kill()
    return True


def _fill_disk(run: CommandRun, paused: PausedProcess) -> bool:
    """Lets every write to the checkpoint fail with ENOSPC, and kills the command soon after the save."""
    path = Path(paused.path)
    if not FULL_DEVICE.exists() or path.is_dir() or not path.parent.is_dir():
        run.kill()
        return False
    path.unlink(missing_ok=True)  # opening the file for writing would truncate it, too
    path.symlink_to(FULL_DEVICE)
    size = _ledger_size(run)
    run.signal_all(signal.SIGCONT)
    deadline = time.monotonic() + SAVE_SECONDS
    while time.monotonic() < deadline and not run.has_ended():
        if _ledger_size(run) > size:  # the save or a step has ended
            break
        time.sleep(POLL_SECONDS)
    _continue(run, AFTER_FULL_DISK_SECONDS)
    run.kill()
    for link in run.work.rglob("*"):
        if link.is_symlink() and link.readlink() == FULL_DEVICE:
            link.unlink()
            link.touch()
    return True


def _ledger_size(run: CommandRun) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(run.ledger))


def _is_running(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
