"""Tests whether the file system of a folder supports the operations of a commit."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from stormproof.checkpoint import Retention
from stormproof.checkpoint.atomic import fsync_folder
from stormproof.checkpoint.storage import is_url
from stormproof.checkpoint.storage.url import normalize_url
from stormproof.cli.doctor.risk import Risk


def file_system_risks(folder: Path) -> list[Risk]:
    """Returns risks of the file system of ``folder``: unsupported operations and too little space.

    Creates files in a temporary subfolder and deletes it.
    """
    return [*_temporary_folder_risks(folder), *_operation_risks(folder), *_free_space_risks(folder)]


def address_risks(address: str) -> list[Risk]:
    """Returns a risk if ``address`` is a URL that is invalid or has an unsupported scheme.

    Example:
        >>> [risk.summary for risk in address_risks("hdfs://host/run")], address_risks("s3://bucket/run")
        (['the URL cannot be used'], [])
    """
    try:
        if is_url(address):
            normalize_url(address)
    except ValueError as error:
        advice = "save to a folder, or to an object store with s3://, gs:// or az://"
        reason = f"checkpoints cannot be saved there: {error}"
        return [Risk("the URL cannot be used", address, reason, advice)]
    return []


def _temporary_folder_risks(folder: Path) -> Iterator[Risk]:
    try:
        temporary_folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Risk(
            "there is no folder for temporary files",
            str(error),
            "Lightning's ModelCheckpoint writes temporary files and cannot save without (CheckpointRecovery can)",
            "set TMPDIR to a writable folder",
        )
        return
    if temporary_folder.stat().st_dev != folder.stat().st_dev:
        yield Risk(
            "temporary files are on another file system",
            f"{temporary_folder} (TMPDIR), for {folder}",
            "Lightning's ModelCheckpoint writes to TMPDIR and then copies over the old file; a kill in between leaves "
            "a truncated checkpoint instead of a good one (CheckpointRecovery writes to the folder itself)",
            "save with CheckpointRecovery, or set TMPDIR to a folder on the same file system",
        )


def _operation_risks(folder: Path) -> Iterator[Risk]:
    try:
        trial_folder = Path(tempfile.mkdtemp(prefix=".doctor.", dir=folder))
    except OSError as error:
        yield Risk(
            "the folder is not writable",
            str(folder),
            f"checkpoints cannot be saved there: {error.strerror}",
            "change its owner or mode, or use another folder",
        )
        return
    try:
        for summary, reason, check in _CHECKS:
            problem = _run_check(check, trial_folder)
            if problem is not None:
                advice = "keep checkpoints on another file system, such as a local disk"
                yield Risk(summary, f"{folder}: {problem}", reason, advice)
    finally:
        shutil.rmtree(trial_folder)


def _run_check(check: Callable[[Path], str | None], trial_folder: Path) -> str | None:
    """Runs a check and returns its problem, or None."""
    try:
        return check(trial_folder)
    except (OSError, NotImplementedError) as error:
        return str(error)


def _check_fsync(trial_folder: Path) -> str | None:
    with (trial_folder / "synced").open("wb") as file:
        file.write(b"content")
        file.flush()
        os.fsync(file.fileno())
    fsync_folder(trial_folder)
    return None


def _check_rename(trial_folder: Path) -> str | None:
    old, new = trial_folder / "old", trial_folder / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    new.replace(old)
    return None if old.read_bytes() == b"new" and not new.exists() else "a renamed file did not replace the old one"


def _check_lock(trial_folder: Path) -> str | None:
    with filelock.FileLock(trial_folder / "lock"):
        try:
            with filelock.FileLock(trial_folder / "lock", timeout=0):
                return "two locks of one file were acquired at once"
        except filelock.Timeout:
            return None


_CHECKS = (
    ("fsync does not work", "a checkpoint that was reported as saved may be lost in a power failure", _check_fsync),
    ("a rename does not replace a file", "a kill while saving may leave no complete file", _check_rename),
    (
        "files cannot be locked",
        "two runs may write to the folder at the same time and delete each other's files",
        _check_lock,
    ),
)


def _free_space_risks(folder: Path) -> Iterator[Risk]:
    sizes = [file.stat().st_size for file in folder.glob("*.ckpt") if file.is_file()]
    checkpoint_count = Retention().keep_last + 1  # a new checkpoint is complete before an old one is deleted
    free_bytes = shutil.disk_usage(folder).free
    if sizes and free_bytes < checkpoint_count * max(sizes):
        yield Risk(
            f"{free_bytes / 1e9:.2f} GB are free, and the largest checkpoint has {max(sizes) / 1e9:.2f} GB",
            str(folder),
            f"the file system must have space for {checkpoint_count} checkpoints, because a new one is complete before "
            "an old one is deleted; on a full disk, the run stops at its next save",
            "free space, keep fewer checkpoints, or use another file system",
        )
