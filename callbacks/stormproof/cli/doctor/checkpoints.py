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
    found = Store(folder).resolve(thorough=True)
    lease, alive = _lease(folder)
    return [
        *lease,
        *_damaged(folder, found),
        *_alone(found),
        *_log(folder, found),
        *_foreign(folder, found.foreign),
        *([] if alive else _left_over(folder, found)),
    ]


def _lease(folder: Path) -> tuple[list[Risk], bool]:
    """What there is to say of the lease, and whether its owner lives."""
    where = str(folder / "lease.json")
    try:
        owner = Lease.owner_of(folder)
        alive = Lease.is_held(folder)
    except LeaseError as error:
        why = "no run can begin here while it lies there"
        return [Risk("the lease is not readable", where, why, str(error))], False
    if owner is None:
        return [], False
    who = f"process {owner.pid} on {owner.host}"
    if alive:
        why = "what is copied, moved or removed there now may be half of what the run needs; a second start is refused"
        return [Risk(f"in use by {who}, which lives", where, why, "wait for that run, or stop it")], True
    why = "that run was killed: what it did after its newest checkpoint is lost unless it is started again"
    return [Risk(f"a stale lease, of {who}", where, why, "start the run again: it takes the folder over")], False


def _damaged(folder: Path, found: Resolution) -> Iterator[Risk]:
    advice = "put a copy back; else the next start moves it to quarantine/ and goes on from an older one"
    if found.chosen is None:
        advice = "put a copy back: there is no good one to go on from, and a start is refused"
    for bad in found.bad:
        yield Risk("a checkpoint is damaged", str(folder / f"{bad.name}.ckpt"), bad.reason, advice)
    for name in found.lost:
        why = "it was committed, and its files are gone: nothing of ours removed them"
        yield Risk("a checkpoint is lost", str(folder / f"{name}.ckpt"), why, advice)


def _alone(found: Resolution) -> Iterator[Risk]:
    if found.chosen is not None and not found.older:
        yield Risk(
            "there is one good checkpoint, and no other",
            str(found.chosen.path),
            "if it is damaged there is nothing to go back to",
            "let the run commit once more, or copy the file and its .json to another disk",
        )


def _log(folder: Path, found: Resolution) -> Iterator[Risk]:
    if found.log_damage:
        yield Risk(
            "the log of commits is damaged",
            str(folder / "commits.log"),
            f"{'; '.join(found.log_damage)}; without it a checkpoint that was lost looks as if it had never been",
            "find out what writes there or what ails the disk; the next commit starts afresh",
        )


def _foreign(folder: Path, foreign: Sequence[str]) -> Iterator[Risk]:
    last = [name for name in foreign if re.fullmatch(r"last(-v\d+)?\.ckpt", name)]
    others = [name for name in foreign if name not in last]
    if last:
        yield Risk(
            f"{_some(last)}: saved by Lightning itself",
            str(folder),
            "ckpt_path='last' takes the newest by its date, torn or not, and begins at step 0 if there is none",
            f"pass ckpt_path=recovery.latest_checkpoint(); to go on from it: {_adoption(folder / last[0])}",
        )
    if others:
        yield Risk(
            f"{_some(others)}: not committed here",
            str(folder),
            "nothing tells whether such a file is whole, and the next start does not go on from it",
            f"to go on from one: {_adoption(folder / others[0])}; else move it away",
        )


def _left_over(folder: Path, found: Resolution) -> Iterator[Risk]:
    ours = {*found.leftovers, *(path.name for path in folder.glob(".lease*.tmp"))}
    if ours:
        size = sum((folder / name).lstat().st_size for name in ours)
        yield Risk(
            f"{_some(sorted(ours))}, {size:,} bytes, left over from a kill",
            str(folder),
            "they take the room that the next checkpoint needs",
            "the next start removes those of checkpoints; nobody needs any of them",
        )


def _adoption(path: Path) -> str:
    return f"stormproof adopt {shlex.quote(str(path))}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}"
