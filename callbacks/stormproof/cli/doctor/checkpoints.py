"""Checks a folder of checkpoints for risks of data loss at the next start or crash."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from stormproof.checkpoint import Lease, Resolution, Store
from stormproof.checkpoint.lease import LeaseError
from stormproof.checkpoint.object_lease import ObjectLease
from stormproof.checkpoint.storage import AnyStorage, ObjectStorage, as_storage
from stormproof.cli.doctor.risk import Risk


def checkpoint_risks(source: Path | ObjectStorage) -> list[Risk]:
    """Reads every checkpoint of a folder or an object store and returns the risks. Changes no checkpoint.

    Args:
        source: Existing folder of checkpoints, or object store.
    """
    storage = as_storage(source)
    resolution = Store(source).resolve(verify_all=True)
    lease, is_alive = _lease_risks(source, storage.locate("lease.json"))
    return [
        *lease,
        *_damaged_checkpoint_risks(storage, resolution),
        *_single_checkpoint_risks(storage, resolution),
        *_commit_log_risks(storage, resolution),
        *_foreign_file_risks(storage, resolution.foreign_files),
        *([] if is_alive else _leftover_risks(storage, resolution)),
    ]


def _lease_risks(source: Path | ObjectStorage, location: str) -> tuple[list[Risk], bool]:
    """Returns the risks of the lease, and whether its owner is running."""
    try:
        if isinstance(source, ObjectStorage):
            owner, is_alive = ObjectLease.read_owner(source), ObjectLease.is_active(source)
        else:
            owner, is_alive = Lease.read_owner(source), Lease.is_active(source)
    except LeaseError as error:
        reason = "no run can start in this folder while the file exists"
        return [Risk("the lease is not readable", location, reason, str(error))], False
    if owner is None:
        return [], False
    owner_description = f"process {owner.pid} on {owner.host}"
    if is_alive:
        reason = (
            "files that are copied, moved or removed now may be incomplete or needed by the run; a second start is "
            "refused"
        )
        return [Risk(f"in use by running {owner_description}", location, reason, "wait for that run or stop it")], True
    reason = "that run was killed: all steps after its newest checkpoint are lost"
    return [
        Risk(f"a stale lease of {owner_description}", location, reason, "restart the run, which takes over the folder")
    ], False


def _damaged_checkpoint_risks(storage: AnyStorage, resolution: Resolution) -> Iterator[Risk]:
    advice = "restore a copy; otherwise the next start moves it to quarantine/ and resumes from an older checkpoint"
    if resolution.chosen_checkpoint is None:
        advice = "restore a copy: there is no good checkpoint, and the next start is refused"
    for bad_checkpoint in resolution.bad_checkpoints:
        yield Risk(
            "a checkpoint is damaged", storage.locate(f"{bad_checkpoint.name}.ckpt"), bad_checkpoint.reason, advice
        )
    for name in resolution.lost_names:
        reason = "it was committed, but its files are missing: another program or user removed them"
        yield Risk("a checkpoint is lost", storage.locate(f"{name}.ckpt"), reason, advice)


def _single_checkpoint_risks(storage: AnyStorage, resolution: Resolution) -> Iterator[Risk]:
    if resolution.chosen_checkpoint is not None and not resolution.older_checkpoints:
        yield Risk(
            "there is only one good checkpoint",
            storage.locate(resolution.chosen_checkpoint.path.name),
            "if it is damaged, there is no older checkpoint to resume from",
            "let the run commit another checkpoint, or copy the file and its .json to another disk",
        )


def _commit_log_risks(storage: AnyStorage, resolution: Resolution) -> Iterator[Risk]:
    if resolution.log_problems:
        yield Risk(
            "the commit log is damaged",
            storage.locate("log" if isinstance(storage, ObjectStorage) else "commits.log"),
            f"{'; '.join(resolution.log_problems)}; without the log, a lost checkpoint is not detected",
            "check the disk and other programs that write to the folder; the next commit starts a new log",
        )


def _foreign_file_risks(storage: AnyStorage, foreign_files: Sequence[str]) -> Iterator[Risk]:
    lightning_names = [name for name in foreign_files if re.fullmatch(r"last(-v\d+)?\.ckpt", name)]
    other_names = [name for name in foreign_files if name not in lightning_names]
    if lightning_names:
        yield Risk(
            f"{_format_names(lightning_names)}: saved by Lightning's ModelCheckpoint",
            storage.location,
            "ckpt_path='last' resumes from the newest file by date, even if it is truncated, and starts at step 0 if "
            "no file exists",
            f"pass ckpt_path=recovery.latest_checkpoint(); to resume from this file: "
            f"{_adopt_command(storage, lightning_names[0])}",
        )
    if other_names:
        yield Risk(
            f"{_format_names(other_names)}: not committed by CheckpointRecovery",
            storage.location,
            "the file cannot be verified, and the next start does not resume from it",
            f"to resume from it: {_adopt_command(storage, other_names[0])}; otherwise move it to another folder",
        )


def _leftover_risks(storage: AnyStorage, resolution: Resolution) -> Iterator[Risk]:
    entries = storage.list()
    leftover_names = {
        *resolution.leftover_files,
        *(entry.name for entry in entries if re.fullmatch(r"\.lease.*\.tmp", entry.name)),
    }
    if leftover_names:
        size = sum(entry.size for entry in entries if entry.name in leftover_names)
        yield Risk(
            f"{_format_names(sorted(leftover_names))}: {size:,} bytes left over from a killed run",
            storage.location,
            "these files use space that the next checkpoint may need",
            "delete them; the next start deletes left-over checkpoint files",
        )


def _adopt_command(storage: AnyStorage, name: str) -> str:
    if isinstance(storage, ObjectStorage):
        return f"download it and run stormproof adopt {shlex.quote(name)} --into {shlex.quote(storage.location)}"
    return f"stormproof adopt {shlex.quote(storage.locate(name))}"


def _format_names(names: Sequence[str]) -> str:
    remainder = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{remainder}"
