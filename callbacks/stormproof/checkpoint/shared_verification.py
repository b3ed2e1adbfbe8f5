"""Verifies a checkpoint once for all ranks of a node."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import stat
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from stormproof.checkpoint.content import damage_of
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.ranks import is_launched

MAX_AGE_SECONDS = 300.0


def damage_once_per_node(checkpoint: Checkpoint) -> str | None:
    """Returns the same as :func:`damage_of`, but of the ranks on a node only one reads the file.

    The others wait until it has finished. If the checkpoint is good, they trust its note, a file in a folder for
    temporary files that only this user can write to. The note is valid for 5 minutes, and only while the checkpoint's
    device, inode, size and times of modification and change stay the same.

    A process that no launcher started verifies for itself. So does every rank if the checkpoint is bad or if the note
    cannot be written.

    Args:
        checkpoint: The manifest's content.

    Raises:
        OSError: If the checkpoint cannot be read.
    """
    if not is_launched():
        return damage_of(checkpoint)
    with ExitStack() as stack:
        try:
            note = stack.enter_context(_open_note(checkpoint.path))
            fcntl.flock(note, fcntl.LOCK_EX)
            before = _identity(checkpoint)
        except OSError:
            return damage_of(checkpoint)
        if _is_valid(note, before):
            return None
        problem = damage_of(checkpoint)
        if problem is None:
            _write(note, before)
        return problem


def _open_note(path: Path) -> BinaryIO:
    folder = Path(tempfile.gettempdir(), f"stormproof-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    about = os.lstat(folder)
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by other users")
    _remove_old_notes(folder)
    name = hashlib.sha256(f"{socket.gethostname()}\n{path.resolve()}".encode()).hexdigest()
    return (folder / name).open("a+b")


def _remove_old_notes(folder: Path) -> None:
    for note in folder.iterdir():
        if time.time() - note.stat().st_mtime > MAX_AGE_SECONDS:
            note.unlink(missing_ok=True)


def _identity(checkpoint: Checkpoint) -> list[object]:
    about = os.lstat(checkpoint.path)
    file = [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    return [checkpoint.sha256, checkpoint.bytes, checkpoint.finite, *file]


def _is_valid(note: BinaryIO, identity: list[object]) -> bool:
    note.seek(0)
    try:
        verified = json.loads(note.read())
    except ValueError:
        return False
    age = time.time() - os.fstat(note.fileno()).st_mtime
    return verified == identity and 0 <= age < MAX_AGE_SECONDS


def _write(note: BinaryIO, identity: list[object]) -> None:
    try:
        note.truncate(0)
        note.write(json.dumps(identity).encode())
        note.flush()
    except OSError:
        pass  # the next rank verifies for itself
