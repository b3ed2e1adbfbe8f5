"""A folder of checkpoints in which nothing that was committed is lost."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, cast

from stormproof.checkpoint import commit_log
from stormproof.checkpoint.atomic import atomic_write, fsync_folder, make_folder
from stormproof.checkpoint.fault_points import reached
from stormproof.checkpoint.file_names import LOG, sequence_in, stem_of
from stormproof.checkpoint.hashing_file import HashingFile
from stormproof.checkpoint.manifest import Checkpoint, CommitInfo, LogMark, encode
from stormproof.checkpoint.quarantine import move_aside
from stormproof.checkpoint.resolution import Resolution, manifests, resolve, what_is_there
from stormproof.checkpoint.retention import Retention, to_delete
from stormproof.checkpoint.verification import damage_of, problem_with
from stormproof.checkpoint.versions import versions
from stormproof.errors import DamagedError, NoGoodCheckpointError, RanksDisagreeError, StorageError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
Fence = Callable[[], object]
"""Raises if this attempt no longer owns the folder, as :meth:`stormproof.checkpoint.Lease.check` does."""


@dataclass(frozen=True)
class Attempt:
    """One start of the run: its number from 1, the step it went on from, when (seconds since the epoch)."""

    number: int
    step: int
    time: float


class Store:
    """Commits checkpoints to a folder, finds the newest good one, and deletes what is no longer kept.

    Anybody may read. Only one process may call :meth:`begin_attempt`, :meth:`commit` and :meth:`retain`: the rank that
    holds the folder's lease.

    Args:
        folder: the folder of checkpoints; it need not be there yet.

    Raises:
        ValueError: if ``folder`` is the address of an object store.

    Example:
        >>> import tempfile, torch
        >>> store = Store(tempfile.mkdtemp())
        >>> store.latest() is None
        True
        >>> attempt = store.begin_attempt(store.resolve())
        >>> def save(file):
        ...     torch.save({"weight": torch.ones(2)}, file)
        >>> _ = store.commit(save, CommitInfo(step=10, epoch=0, world_size=1), attempt=attempt)
        >>> store.latest().path.name
        '000001-step-10.ckpt'
    """

    def __init__(self, folder: Path | str) -> None:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
            raise ValueError(
                f"{folder} is no folder of this machine: checkpoints go to a path of a mounted file system"
            )
        self.folder = Path(folder)

    def resolve(self, *, thorough: bool = False) -> Resolution:
        """Finds the newest good checkpoint and classifies all else; changes nothing.

        Args:
            thorough: verify the content of every checkpoint, not only down to the newest good one.
        """
        return resolve(self.folder, thorough=thorough)

    def latest(self, *, start_over: bool = False) -> Checkpoint | None:
        """The newest good checkpoint, verified; None on a first start.

        Args:
            start_over: None, rather than an error, where every checkpoint is bad or lost.

        Raises:
            NoGoodCheckpointError: if there are checkpoints and none is good.
            StorageError: If no checkpoint is good and at least one cannot be read.
        """
        return self.choose(self.resolve(), start_over=start_over)

    def choose(self, resolution: Resolution, *, start_over: bool = False) -> Checkpoint | None:
        """As :meth:`latest`, from a resolution that is at hand.

        Raises:
            NoGoodCheckpointError: if there are checkpoints and none is good.
            StorageError: If no checkpoint is good and at least one cannot be read.
        """
        unreadable = [f"{bad.name}: {bad.reason}" for bad in resolution.bad if bad.is_unreadable]
        if resolution.chosen is None and unreadable and not start_over:
            raise StorageError(
                f"{self.folder} has no good checkpoint, and {len(unreadable)} cannot be read ({unreadable[0]}): start "
                "again when the storage is available"
            )
        gone = [f"{bad.name}: {bad.reason}" for bad in resolution.bad] + [f"{name}: lost" for name in resolution.lost]
        if resolution.chosen is None and gone and not start_over:
            raise NoGoodCheckpointError(
                f"{self.folder} has no good checkpoint ({'; '.join(gone[:3])}{'; …' if len(gone) > 3 else ''})"
            )
        return resolution.chosen

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints whose manifest is whole, oldest first; their content is not read."""
        return manifests(self.folder)

    def attempts(self) -> list[Attempt]:
        """The starts of the run, as the log knows them."""
        return [Attempt(event["number"], event["step"], event["time"]) for event in self._events("attempt")]

    def verify(self, checkpoint: Checkpoint) -> str | None:
        """Why the checkpoint must not be resumed from; None if it is good."""
        return problem_with(checkpoint)

    def read_back(self, checkpoint: Checkpoint) -> None:
        """Loads again what was just committed.

        Raises:
            DamagedError: if it is not what was written.
            OSError: If it cannot be read.
        """
        problem = damage_of(checkpoint)
        if problem is not None:
            raise DamagedError(f"{checkpoint.path} was just committed and is bad: {problem}; nothing older was deleted")

    def begin_attempt(self, resolution: Resolution, *, step: int | None = None) -> int:
        """Cleans up and writes down a new attempt; makes the folder.

        Damaged checkpoints move to ``quarantine/``, and leftovers of our own go. Foreign files, and checkpoints that
        storage fails to read, are not touched.

        Args:
            resolution: of this folder, as it still is.
            step: the step the attempt goes on from; that of the chosen checkpoint by default.

        Returns:
            The attempt's number, from 1.

        Raises:
            RanksDisagreeError: if somebody committed here since ``resolution`` was made.
        """
        make_folder(self.folder)
        if resolution.seen != what_is_there(self.folder):
            raise RanksDisagreeError(f"{self.folder} changed while this attempt began: start it again")
        damaged = [bad for bad in resolution.bad if not bad.is_unreadable]
        known = {event["name"] for event in self._events("committed")}
        behind = [checkpoint.name for checkpoint in self.checkpoints() if checkpoint.name not in known]
        number = 1 + max([0, *(a.number for a in self.attempts()), *(c.attempt for c in self.checkpoints())])
        begun = resolution.chosen.step if step is None and resolution.chosen else step or 0
        self._append(
            *({"event": "committed", "name": name} for name in behind),
            *({"event": "lost", "name": name} for name in resolution.lost),
            *({"event": "quarantined", "name": bad.name, "reason": bad.reason} for bad in damaged),
            {"event": "attempt", "number": number, "step": begun, "removed": list(resolution.leftovers)},
        )
        for bad in damaged:
            move_aside(self.folder, bad.name)
        for name in resolution.leftovers:
            (self.folder / name).unlink(missing_ok=True)
        fsync_folder(self.folder)
        return number

    def commit(
        self,
        write: Callable[[BinaryIO], object],
        info: CommitInfo,
        *,
        attempt: int,
        fence: Fence | None = None,
    ) -> Checkpoint:
        """Commits what ``write`` writes: when this returns, it survives a power cut.

        The checkpoint, then its manifest, are written under a temporary name in the same folder, fsynced and renamed,
        and the folder is fsynced; then a line is added to the log. The manifest makes it a checkpoint: whatever
        happens before it is there leaves the folder as it was.

        Args:
            write: takes a binary file, open for writing, and writes the checkpoint, as ``torch.save`` does.
            info: Description of the checkpoint. A score that is not finite counts as none.
            attempt: what :meth:`begin_attempt` returned; 0 where no attempt wrote it.
            fence: called before each rename; what it raises ends the commit.

        Raises:
            OSError: if the folder cannot be written or the disk is full.
        """
        reached("commit begins")
        sequence = self._next_sequence()
        path = self.folder / f"{stem_of(sequence, info.step)}.ckpt"
        manifest = path.with_suffix(".json")
        passed: set[str] = set()
        try:
            sha256, length = self._write(path, write, _at("checkpoint", fence, passed))
            score = None if info.score is None or not isfinite(info.score) else float(info.score)
            checkpoint = Checkpoint(
                **vars(replace(info, score=score)),
                path=path,
                sequence=sequence,
                attempt=attempt,
                sha256=sha256,
                bytes=length,
                versions=versions(),
                time=time.time(),
            )
            log = LogMark.of(commit_log.read_log(self.folder / LOG).content)
            with atomic_write(manifest, _at("manifest", fence, passed)) as file:
                file.write(encode(checkpoint, log))
        except BaseException:
            # a file under this name that we did not put there is that of an attempt which took the folder over
            if "checkpoint renamed" in passed and "manifest renamed" not in passed:
                path.unlink(missing_ok=True)
            raise
        try:
            self._append({"event": "committed", "name": checkpoint.name})
        except OSError:  # it is committed all the same, and the next attempt writes the line
            return checkpoint
        reached("log appended")
        return checkpoint

    def set_aside(self, checkpoints: Sequence[Checkpoint], reason: str, *, fence: Fence | None = None) -> None:
        """Moves checkpoints to ``quarantine/``: good ones, which nothing is to go on from.

        Args:
            checkpoints: of this folder.
            reason: in words, for the log.
            fence: called before anything is moved; what it raises leaves all as it is.
        """
        if fence is not None:
            fence()
        self._append(*({"event": "quarantined", "name": each.name, "reason": reason} for each in checkpoints))
        for each in checkpoints:
            move_aside(self.folder, each.name)
        fsync_folder(self.folder)

    def retain(self, policy: Retention, *, fence: Fence | None = None) -> list[Checkpoint]:
        """Deletes what ``policy`` does not keep, once the newest checkpoint is read back and good.

        Args:
            policy: what to keep.
            fence: called before anything is deleted; what it raises leaves all as it is.

        Returns:
            What was deleted, oldest first.

        Raises:
            DamagedError: if the newest is not what was written; nothing is deleted then.
        """
        return self._delete(to_delete(self.checkpoints(), policy), fence)

    def make_room(self, policy: Retention, *, fence: Fence | None = None) -> list[Checkpoint]:
        """Deletes, on a full disk, what :meth:`retain` would, and of the last ones all but the newest that is good.

        Args:
            policy: what to keep else.
            fence: as of :meth:`retain`.

        Returns:
            What was deleted, oldest first.

        Raises:
            DamagedError: if the newest is not what was written; nothing is deleted then.
        """
        return self._delete(to_delete(self.checkpoints(), policy, keep_last=1), fence)

    def _delete(self, doomed: Sequence[Checkpoint], fence: Fence | None) -> list[Checkpoint]:
        newest = next((checkpoint for checkpoint in reversed(self.checkpoints()) if checkpoint.finite), None)
        if not doomed or newest is None:  # None if the manifests have become unreadable
            return []
        self.read_back(newest)
        if fence is not None:
            fence()
        self._log_deletion(doomed)
        reached("pruning")
        for checkpoint in doomed:
            self._unlink(checkpoint)
        fsync_folder(self.folder)
        reached("pruned")
        return list(doomed)

    def _log_deletion(self, doomed: Sequence[Checkpoint]) -> None:
        """Logs deletions before they happen. If the disk is full, deletes one checkpoint to make room for the log."""
        events = [{"event": "deleted", "name": checkpoint.name} for checkpoint in doomed]
        try:
            self._append(*events)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            self._unlink(doomed[0])
            self._append(*events)

    def _unlink(self, checkpoint: Checkpoint) -> None:
        checkpoint.manifest.unlink(missing_ok=True)
        reached("manifest pruned")
        checkpoint.path.unlink(missing_ok=True)

    def _write(self, path: Path, write: Callable[[BinaryIO], object], at: Callable[[str], None]) -> tuple[str, int]:
        with atomic_write(path, at) as file:
            hashing = HashingFile(file, lambda: reached("checkpoint half written"))
            try:
                write(cast("BinaryIO", hashing))
            except Exception:
                if hashing.failure is not None:
                    raise hashing.failure from None
                raise
            return hashing.sha256, hashing.length

    def _next_sequence(self) -> int:
        """One more than any that was ever used here: names are not used twice."""
        names = [path.name for path in self.folder.iterdir()]
        for event in self._events("committed", "deleted", "quarantined", "lost", "attempt"):
            names += event["removed"] if event["event"] == "attempt" else [f"{event['name']}.ckpt"]
        return 1 + max(map(sequence_in, names), default=0)

    def _events(self, *kinds: str) -> list[Mapping[str, Any]]:
        return [event for event in commit_log.read_log(self.folder / LOG).events if event["event"] in kinds]

    def _append(self, *events: Mapping[str, Any]) -> None:
        if events:
            commit_log.append(self.folder / LOG, [{**event, "time": time.time()} for event in events])


def _at(file: str, fence: Fence | None, passed: set[str]) -> Callable[[str], None]:
    """Notes and reports each stage of writing ``file``, and asks the fence just before its rename."""

    def at(stage: str) -> None:
        passed.add(f"{file} {stage}")
        reached(f"{file} {stage}")
        if stage == "synced" and fence is not None:
            fence()

    return at
