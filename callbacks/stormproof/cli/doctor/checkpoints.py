"""Checks a folder of checkpoints for risks of data loss at the next start or crash."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from stormproof.checkpoint import Resolution, Store
from stormproof.checkpoint.lease import STALE_SECONDS, UNKNOWN_OWNER
from stormproof.cli.adopt_command import adopt_command
from stormproof.cli.doctor.risk import Risk


def checkpoint_risks(store: Store) -> list[Risk]:
    """Reads every checkpoint of an existing folder or an object store, and returns the risks. Changes no checkpoint."""
    resolution = store.resolve(verify_all=True)
    lease, is_alive = _lease_risks(store)
    return [
        *lease,
        *_damaged_checkpoint_risks(store, resolution),
        *_single_checkpoint_risks(store, resolution),
        *_commit_log_risks(store, resolution),
        *_foreign_file_risks(store, resolution.foreign_files),
        *([] if is_alive else _leftover_risks(store, resolution)),
    ]


def _lease_risks(store: Store) -> tuple[list[Risk], bool]:
    """Returns the risks of the lease, and whether its owner is running."""
    location = store.storage.locate("lease.json")
    owner, is_alive = store.read_owner(), store.has_active_lease()
    if owner is None:
        return [], False
    if owner == UNKNOWN_OWNER:
        reason = f"the next start waits until the file is {STALE_SECONDS:.0f} s old, in case a run renews it"
        return [Risk("the lease is not readable", location, reason, "stop all runs in this folder, or wait")], is_alive
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


def _damaged_checkpoint_risks(store: Store, resolution: Resolution) -> Iterator[Risk]:
    advice = "restore a copy; otherwise the next start moves it to quarantine/ and resumes from an older checkpoint"
    if resolution.chosen_checkpoint is None:
        advice = "restore a copy: there is no good checkpoint, and the next start is refused"
    for bad_checkpoint in resolution.bad_checkpoints:
        yield Risk(
            "a checkpoint is damaged",
            store.storage.locate(f"{bad_checkpoint.name}.ckpt"),
            bad_checkpoint.reason,
            advice,
        )
    for name in resolution.lost_names:
        reason = "it was committed, but its files are missing: another program or user removed them"
        yield Risk("a checkpoint is lost", store.storage.locate(f"{name}.ckpt"), reason, advice)


def _single_checkpoint_risks(store: Store, resolution: Resolution) -> Iterator[Risk]:
    if resolution.chosen_checkpoint is not None and not resolution.older_checkpoints:
        yield Risk(
            "there is only one good checkpoint",
            store.storage.locate(resolution.chosen_checkpoint.path.name),
            "if it is damaged, there is no older checkpoint to resume from",
            "let the run commit another checkpoint, or copy the file and its .json to another disk",
        )


def _commit_log_risks(store: Store, resolution: Resolution) -> Iterator[Risk]:
    if resolution.log_problems:
        yield Risk(
            "the commit log is damaged",
            store.storage.locate(store.log_name),
            f"{'; '.join(resolution.log_problems)}; without the log, a lost checkpoint is not detected",
            "check the disk and other programs that write to the folder; the next commit starts a new log",
        )


def _foreign_file_risks(store: Store, foreign_files: Sequence[str]) -> Iterator[Risk]:
    lightning_names = [name for name in foreign_files if re.fullmatch(r"last(-v\d+)?\.ckpt", name)]
    other_names = [name for name in foreign_files if name not in lightning_names]
    if lightning_names:
        yield Risk(
            f"{_format_names(lightning_names)}: saved by Lightning's ModelCheckpoint",
            store.location,
            "ckpt_path='last' resumes from the newest file by date, even if it is truncated, and starts at step 0 if "
            "no file exists",
            f"pass ckpt_path=recovery.latest_checkpoint(); to resume from this file: "
            f"{adopt_command(store, lightning_names[0])}",
        )
    if other_names:
        yield Risk(
            f"{_format_names(other_names)}: not committed by CheckpointRecovery",
            store.location,
            "the file cannot be verified, and the next start does not resume from it",
            f"to resume from it: {adopt_command(store, other_names[0])}; otherwise move it to another folder",
        )


def _leftover_risks(store: Store, resolution: Resolution) -> Iterator[Risk]:
    entries = store.storage.list()
    leftover_names = {
        *resolution.leftover_files,
        *(entry.name for entry in entries if re.fullmatch(r"\.lease.*\.tmp", entry.name)),
    }
    if leftover_names:
        size = sum(entry.size for entry in entries if entry.name in leftover_names)
        yield Risk(
            f"{_format_names(sorted(leftover_names))}: {size:,} bytes left over from a killed run",
            store.location,
            "these files use space that the next checkpoint may need",
            "delete them; the next start deletes left-over checkpoint files",
        )


def _format_names(names: Sequence[str]) -> str:
    remainder = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{remainder}"
