"""What, in a folder of checkpoints, would lose work at the next start or the next crash."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from stormproof.checkpoint import Lease, Resolution, Store
from stormproof.checkpoint.lease import LeaseError
from stormproof.cli.doctor.risk import Risk


def checkpoint_risks(folder: Path) -> list[Risk]:
    """Reads every checkpoint of ``folder``, and changes nothing.

    Args:
        folder: a folder of checkpoints that exists.
    """
    resolution = Store(folder).resolve(verify_all=True)
    lease, is_alive = _lease_risks(folder)
    return [
        *lease,
        *_damaged_checkpoint_risks(folder, resolution),
        *_single_checkpoint_risks(resolution),
        *_commit_log_risks(folder, resolution),
        *_foreign_file_risks(folder, resolution.foreign_files),
        *([] if is_alive else _leftover_risks(folder, resolution)),
    ]


def _lease_risks(folder: Path) -> tuple[list[Risk], bool]:
    """What there is to say of the lease, and whether its owner lives."""
    location = str(folder / "lease.json")
    try:
        owner = Lease.read_owner(folder)
        is_alive = Lease.is_active(folder)
    except LeaseError as error:
        reason = "no run can begin here while it lies there"
        return [Risk("the lease is not readable", location, reason, str(error))], False
    if owner is None:
        return [], False
    owner_description = f"process {owner.pid} on {owner.host}"
    if is_alive:
        reason = (
            "what is copied, moved or removed there now may be half of what the run needs; a second start is refused"
        )
        return [
            Risk(f"in use by {owner_description}, which lives", location, reason, "wait for that run, or stop it")
        ], True
    reason = "that run was killed: what it did after its newest checkpoint is lost unless it is started again"
    return [
        Risk(
            f"a stale lease, of {owner_description}", location, reason, "start the run again: it takes the folder over"
        )
    ], False


def _damaged_checkpoint_risks(folder: Path, resolution: Resolution) -> Iterator[Risk]:
    advice = "put a copy back; else the next start moves it to quarantine/ and goes on from an older one"
    if resolution.chosen_checkpoint is None:
        advice = "put a copy back: there is no good one to go on from, and a start is refused"
    for bad_checkpoint in resolution.bad_checkpoints:
        yield Risk(
            "a checkpoint is damaged", str(folder / f"{bad_checkpoint.name}.ckpt"), bad_checkpoint.reason, advice
        )
    for name in resolution.lost_names:
        reason = "it was committed, and its files are gone: nothing of ours removed them"
        yield Risk("a checkpoint is lost", str(folder / f"{name}.ckpt"), reason, advice)


def _single_checkpoint_risks(resolution: Resolution) -> Iterator[Risk]:
    if resolution.chosen_checkpoint is not None and not resolution.older_checkpoints:
        yield Risk(
            "there is one good checkpoint, and no other",
            str(resolution.chosen_checkpoint.path),
            "if it is damaged there is nothing to go back to",
            "let the run commit once more, or copy the file and its .json to another disk",
        )


def _commit_log_risks(folder: Path, resolution: Resolution) -> Iterator[Risk]:
    if resolution.log_problems:
        yield Risk(
            "the log of commits is damaged",
            str(folder / "commits.log"),
            f"{'; '.join(resolution.log_problems)}; without it a checkpoint that was lost looks as if it had never "
            f"been",
            "find out what writes there or what ails the disk; the next commit starts afresh",
        )


def _foreign_file_risks(folder: Path, foreign_files: Sequence[str]) -> Iterator[Risk]:
    lightning_names = [name for name in foreign_files if re.fullmatch(r"last(-v\d+)?\.ckpt", name)]
    other_names = [name for name in foreign_files if name not in lightning_names]
    if lightning_names:
        yield Risk(
            f"{_format_names(lightning_names)}: saved by Lightning itself",
            str(folder),
            "ckpt_path='last' takes the newest by its date, torn or not, and begins at step 0 if there is none",
            f"pass ckpt_path=recovery.latest_checkpoint(); to go on from it: "
            f"{_adopt_command(folder / lightning_names[0])}",
        )
    if other_names:
        yield Risk(
            f"{_format_names(other_names)}: not committed here",
            str(folder),
            "nothing tells whether such a file is whole, and the next start does not go on from it",
            f"to go on from one: {_adopt_command(folder / other_names[0])}; else move it away",
        )


def _leftover_risks(folder: Path, resolution: Resolution) -> Iterator[Risk]:
    leftover_names = {*resolution.leftover_files, *(path.name for path in folder.glob(".lease*.tmp"))}
    if leftover_names:
        size = sum((folder / name).lstat().st_size for name in leftover_names)
        yield Risk(
            f"{_format_names(sorted(leftover_names))}, {size:,} bytes, left over from a kill",
            str(folder),
            "they take the room that the next checkpoint needs",
            "the next start removes those of checkpoints; nobody needs any of them",
        )


def _adopt_command(path: Path) -> str:
    return f"stormproof adopt {shlex.quote(str(path))}"


def _format_names(names: Sequence[str]) -> str:
    remainder = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{remainder}"
