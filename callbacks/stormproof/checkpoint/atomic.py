"""A file that is either whole and on the disk, or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path | str, on_stage: Callable[[str], object] | None = None) -> Generator[BinaryIO, None, None]:
    """Opens a file for writing that appears at ``path`` only when the block ends without an error.

    The bytes go to a temporary name in the same folder (a rename is atomic only within one file system), are
    fsynced, then renamed over ``path``, and the folder is fsynced so that the rename survives a power cut. When the
    block raises, the temporary file is removed and what stood at ``path`` before stands there still. A process killed
    in between leaves a name that begins with a dot and ends in ``.tmp``.

    Args:
        path: the file to write, in a folder that exists.
        on_stage: called with "written", "synced" and "renamed" when that is done. If it raises at one of the first two,
            the file does not appear.

    Yields:
        A binary file, open for writing.

    Raises:
        OSError: if the folder cannot be written or the disk is full.

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
        temporary_path.replace(path)
    except BaseException:
        temporary_path.unlink(missing_ok=True)
        raise
    notify("renamed")
    fsync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Makes ``folder``, and what is missing above it, so that all of it survives a power cut.

    A folder that is there already may have been made a moment ago, and not be on the disk: every folder above it that
    this user may write to, and so may have changed, is fsynced too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for parent in folder.absolute().parents:
        if not os.access(parent, os.R_OK | os.W_OK):
            break
        fsync_folder(parent)


def fsync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` (what was created, renamed or removed there) survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder; there NTFS journals the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ignore_stage(stage: str) -> None:
    pass
