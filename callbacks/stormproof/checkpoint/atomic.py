"""Writes files atomically and durably."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NO_HARD_LINKS_ERRNOS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def atomic_write(
    path: Path | str, on_stage: Callable[[str], object] | None = None, *, exclusive: bool = False
) -> Generator[BinaryIO, None, None]:
    """Opens a file for writing that appears at ``path`` only if the block ends without an error.

    The bytes are written to a temporary file in the same folder, because a rename is atomic only within one file
    system. The temporary file is fsynced and renamed to ``path``, and the folder is fsynced so that the rename survives
    a power failure. If the block raises, the temporary file is removed and an existing file at ``path`` stays
    unchanged. A killed process leaves the temporary file, whose name begins with a dot and ends in ``.tmp``.

    Args:
        path: File to write, in an existing folder.
        on_stage: Called with "written", "synced" and "renamed" after these stages. If it raises after one of the first
            two, the file does not appear.
        exclusive: Whether to raise an error, not replace the file, if ``path`` exists. Not atomic on file systems
            without hard links.

    Yields:
        A binary file, open for writing.

    Raises:
        FileExistsError: If ``exclusive``, and ``path`` exists.
        OSError: If the folder cannot be written or the disk is full.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_write(folder / "note") as file:
        ...     _ = file.write(b"whole")
        >>> (folder / "note").read_bytes()
        b'whole'
    """
    path = Path(path)
    notify = on_stage or _ignore_stage
    temporary_path = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary_path.open("xb") as file:
            yield file
            file.flush()
            notify("written")
            os.fsync(file.fileno())
        notify("synced")
        (_rename_exclusively if exclusive else Path.replace)(temporary_path, path)
    except BaseException:
        temporary_path.unlink(missing_ok=True)
        raise
    notify("renamed")
    fsync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Creates ``folder`` and its missing parents so that they survive a power failure.

    An existing folder may have been created a moment ago and not be on the disk yet. All parents that this user can
    write to are therefore fsynced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for parent in folder.absolute().parents:
        if not os.access(parent, os.R_OK | os.W_OK):
            break
        fsync_folder(parent)


def fsync_folder(folder: Path) -> None:
    """Makes changes to the names in ``folder`` (files created, renamed or removed) survive a power failure."""
    if os.name == "nt":  # Windows cannot open a folder, and NTFS journals renames
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_exclusively(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        if source.stat().st_nlink == 1:  # otherwise NFS repeated the request, because the first response was lost
            raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS_ERRNOS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.replace(target)
    with suppress(OSError):  # the next attempt deletes it, too
        source.unlink(missing_ok=True)


def _ignore_stage(stage: str) -> None:
    pass
