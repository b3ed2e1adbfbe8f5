"""Commits checkpoints to a folder durably and applies the retention policy."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from stormproof.arguments import check_arguments
from stormproof.checkpoint import commit_log
from stormproof.checkpoint.atomic import fsync_folder, make_folder
from stormproof.checkpoint.catalog import Catalog
from stormproof.checkpoint.claims import Claims, NoClaims, SequenceClaims, format_claim
from stormproof.checkpoint.commit_log import FileLog, Log, NoLog, ObjectLog, make_lost_error
from stormproof.checkpoint.fault_points import reach_fault_point
from stormproof.checkpoint.file_names import (
    LOG_FILE_NAME,
    QUARANTINE_FOLDER_NAME,
    format_stem,
    is_unfinished_shard_file,
    parse_sequence,
)
from stormproof.checkpoint.hashing import StoredFile, compute_combined_digest, put_hashed
from stormproof.checkpoint.lease import LEASE_NAME, Lease, Owner, acquire_when_expired
from stormproof.checkpoint.manifest import (
    Checkpoint,
    CommitInfo,
    LogPrefix,
    collect_versions,
    encode_manifest,
)
from stormproof.checkpoint.progress_file import PROGRESS_FILE_NAME
from stormproof.checkpoint.quarantine import MarkingQuarantine, Quarantine, RenamingQuarantine, format_mark
from stormproof.checkpoint.resolution import Resolution, fingerprint, resolve
from stormproof.checkpoint.retention import Retention, select_for_deletion
from stormproof.checkpoint.storage import (
    DISK_FULL_ERRNOS,
    Fence,
    ObjectStorage,
    OutcomeUnknownError,
    PosixStorage,
    Storage,
    is_url,
)
from stormproof.checkpoint.verification import ContentCheck, describe_read_error, make_path
from stormproof.errors import DamagedError, NoGoodCheckpointError, RanksDisagreeError, StorageError
from stormproof.long_waits import long_wait

_FILE_NAMES = (LEASE_NAME, LOG_FILE_NAME, PROGRESS_FILE_NAME, ".lease.lock", ".mirror.lock")
"""Names of files that a store writes to a folder, besides checkpoints."""


@dataclass(frozen=True)
class Attempt:
    """One start of the run.

    Attributes:
        number: Number of the attempt, from 1.
        step: Step from which it resumed. 0 if it began from scratch.
        time: Start time, in seconds since the epoch.
    """

    number: int
    step: int
    time: float


@dataclass(frozen=True)
class WrittenFiles:
    """Content of a commit, with the fields of :class:`Checkpoint`."""

    digest: str
    bytes: int
    files: Mapping[str, StoredFile] | None = None

    @classmethod
    def from_shards(cls, files: Mapping[str, StoredFile]) -> WrittenFiles:
        """Returns the content of a sharded checkpoint with these files."""
        sorted_files = dict(sorted(files.items()))
        digest = compute_combined_digest(f"{file.digest} {file.bytes} {name}" for name, file in sorted_files.items())
        return cls(digest, sum(file.bytes for file in files.values()), sorted_files)


class Store:
    """Commits checkpoints to a folder or an object store, finds the newest good one, and applies a retention policy.

    Any process may read. Only the process that owns the folder's lease may call :meth:`begin_attempt`, :meth:`commit`,
    :meth:`quarantine`, :meth:`apply_retention` and :meth:`free_disk_space`.

    Folders and other storages differ only in the storage and in four policies. A folder has a log file, moves
    checkpoints to quarantine, needs no claims, and lets training load checkpoints in place.

    Args:
        folder: Folder of checkpoints, which may not exist yet, the URL of an object store, or a
            :class:`stormproof.checkpoint.storage.Storage`.
        is_volatile: Whether the checkpoints need not survive a power failure, so that there is no log. Requires a
            folder.

    Attributes:
        storage: Storage of the checkpoints.
        catalog: Lists, reads and verifies the checkpoints.

    Raises:
        ValueError: If ``folder`` is a URL with an unsupported scheme or without a valid bucket.
        MissingExtraError: If ``folder`` is a URL, and the extra ``remote`` is not installed.

    Example:
        >>> import tempfile, torch
        >>> store = Store(tempfile.mkdtemp())
        >>> store.latest_checkpoint() is None
        True
        >>> attempt = store.begin_attempt(store.resolve())
        >>> def save(file):
        ...     torch.save({"weight": torch.ones(2)}, file)
        >>> _ = store.commit(save, CommitInfo(step=10, epoch=0, world_size=1), attempt=attempt)
        >>> store.latest_checkpoint().path.name
        '000001-step-10.ckpt'
    """

    @check_arguments()
    def __init__(self, folder: Path | str | Storage, *, is_volatile: bool = False) -> None:
        self.storage = storage = open_storage(folder)
        self._log: Log
        self._claims: Claims
        self._quarantine: Quarantine
        if storage.folder is None:
            writer = secrets.token_hex(8)
            self._log, self._claims = ObjectLog(storage, writer), SequenceClaims(storage, writer)
            self._quarantine = MarkingQuarantine(storage)
        else:
            self._log = NoLog() if is_volatile else FileLog(storage.folder / LOG_FILE_NAME)
            self._claims, self._quarantine = NoClaims(), RenamingQuarantine(storage.folder)
        self.catalog = Catalog(storage, self._log, self._quarantine)
        self._min_sequence = 1

    @property
    def folder(self) -> Path:
        """Folder of checkpoints.

        Raises:
            TypeError: If the checkpoints are not in a folder.
        """
        if self.storage.folder is None:
            raise TypeError(f"{self.location} is not a folder.")
        return self.storage.folder

    @property
    def location(self) -> str:
        """Path of the folder, or URL."""
        return self.storage.location

    @property
    def absolute_location(self) -> str:
        """Absolute path of the folder without symbolic links, or URL."""
        return self.location if self.storage.folder is None else str(self.storage.folder.resolve())

    @property
    def log_name(self) -> str:
        """Name of the log in the storage."""
        return self._log.name

    def acquire_lease(self) -> Lease:
        """Acquires the right to write. Creates the folder if it does not exist.

        Raises:
            FolderTakenError: If another running process owns the folder or the prefix.
            LeaseError: If the folder cannot be locked.
        """
        self._prepare()
        with long_wait("a lease"):  # has its own timeout
            return acquire_when_expired(self.storage)

    def read_owner(self) -> Owner | None:
        """Returns the owner of the lease, which may have expired. None without a lease."""
        return Lease.read_owner(self.storage)

    def has_active_lease(self) -> bool:
        """Returns whether the lease is valid."""
        return Lease.is_active(self.storage)

    def resolve(self, *, verify_all: bool = False, fetch: bool = False) -> Resolution:
        """Finds the newest good checkpoint and classifies all other files. Modifies no file.

        Args:
            verify_all: Whether to verify the content of every checkpoint. If False, stops at the newest good one.
            fetch: Whether to verify a local copy of a checkpoint in an object store, so that :meth:`fetch` need not
                download it. Ignored with ``verify_all``.
        """
        return resolve(self.catalog, verify_all=verify_all, fetch=fetch)

    def fetch(self, checkpoint: Checkpoint) -> Path:
        """Returns the path of a file from which the checkpoint can be loaded.

        Except in a folder, this is a verified copy in the temporary folder. One process per node downloads it. Training
        deletes the copy after all ranks have loaded it. Other copies are deleted at a later download if they are older
        than a day.

        Raises:
            DamagedError: If a checkpoint that is copied is damaged.
            OSError: If it cannot be read.
            StorageError: If the copy cannot be written.
        """
        return self.catalog.fetch(checkpoint)

    def latest_checkpoint(self, *, start_over: bool = False) -> Checkpoint | None:
        """Returns the newest good checkpoint after verifying it. None if the folder has no checkpoint.

        Args:
            start_over: Whether to return None, not raise an error, if all checkpoints are bad or lost.

        Raises:
            NoGoodCheckpointError: If all checkpoints are bad or lost.
            StorageError: If no checkpoint is good and at least one cannot be read.
        """
        return self.choose_checkpoint(self.resolve(), start_over=start_over)

    def choose_checkpoint(self, resolution: Resolution, *, start_over: bool = False) -> Checkpoint | None:
        """Returns the same as :meth:`latest_checkpoint`, from an existing resolution."""
        unreadable_reasons = [
            f"{bad_checkpoint.name}: {bad_checkpoint.reason}"
            for bad_checkpoint in resolution.bad_checkpoints
            if bad_checkpoint.is_unreadable
        ]
        if resolution.chosen_checkpoint is None and unreadable_reasons and not start_over:
            raise StorageError(
                f"{self.location} has no good checkpoint, and {len(unreadable_reasons)} cannot be read "
                f"({unreadable_reasons[0]}). Restart the run when storage is available."
            )
        bad_reasons = [
            f"{bad_checkpoint.name}: {bad_checkpoint.reason}" for bad_checkpoint in resolution.bad_checkpoints
        ] + [f"{name}: lost" for name in resolution.lost_names]
        if resolution.chosen_checkpoint is None and bad_reasons and not start_over:
            raise NoGoodCheckpointError(
                f"{self.location} has no good checkpoint "
                f"({'; '.join(bad_reasons[:3])}{'; …' if len(bad_reasons) > 3 else ''})"
            )
        return resolution.chosen_checkpoint

    def read_checkpoints(self) -> list[Checkpoint]:
        """Returns the checkpoints with an intact manifest, oldest first. Does not read their content."""
        return self.catalog.read_checkpoints()

    def read_attempts(self) -> list[Attempt]:
        """Returns the attempts that the log contains, oldest first."""
        return [Attempt(event["number"], event["step"], event["time"]) for event in self._read_events("attempt")]

    def read_rolled_back_names(self) -> set[str]:
        """Returns the names of checkpoints that a rollback quarantined."""
        return {event["name"] for event in self._read_events("quarantined") if event.get("rolled_back")}

    def verify(self, checkpoint: Checkpoint) -> str | None:
        """Returns why no run may resume from the checkpoint. None if it is good."""
        try:
            return self.catalog.find_damage(checkpoint)
        except OSError as error:
            return describe_read_error(error)

    def read_back(
        self, checkpoint: Checkpoint, check_content: ContentCheck | None = None, fence: Fence | None = None
    ) -> None:
        """Verifies a checkpoint that was just committed.

        Args:
            checkpoint: The committed checkpoint.
            check_content: Compares its content with the hashes. This process reads all files if None.
            fence: Called if it is bad, because another attempt may have moved or deleted it.

        Raises:
            DamagedError: If it differs from what was written.
            OSError: If it cannot be read.
        """
        problem = self.catalog.find_damage(checkpoint, check_content)
        if problem is not None:
            if fence is not None:
                fence()
            raise DamagedError(
                f"{self.storage.locate(checkpoint.path.name)} was just committed but is bad: {problem}. "
                "Check the storage. No older checkpoint was deleted."
            )

    def reserve_sequences(self, below: int) -> None:
        """Makes later commits use the sequence number ``below`` or a higher one."""
        self._min_sequence = max(self._min_sequence, below)

    def next_sequence(self) -> int:
        """Returns a sequence number above all that the storage or its log contains, so that names are unique."""
        names, claimed = list[str](), self._claims.list()
        with suppress(FileNotFoundError):  # the folder does not exist yet
            names += [entry.name for entry in self.storage.list()]
        for event in self._read_events("committed", "deleted", "quarantined", "lost", "attempt"):
            names += event["removed"] if event["event"] == "attempt" else [f"{event['name']}.ckpt"]
        return max([self._min_sequence, *(1 + number for number in (*map(parse_sequence, names), *claimed))])

    def begin_attempt(self, resolution: Resolution, *, step: int | None = None) -> int:
        """Cleans up the folder and logs a new attempt. Creates the folder if it does not exist.

        Moves damaged checkpoints to ``quarantine/`` and deletes leftover files. Foreign files and checkpoints that
        cannot be read stay unchanged. In an object store, aborts unfinished commits of the previous owner.

        Args:
            resolution: Current resolution of this folder.
            step: Step from which the attempt resumes. The step of the chosen checkpoint if None.

        Returns:
            The number of the attempt, from 1.

        Raises:
            RanksDisagreeError: If another process committed to the folder after ``resolution`` was made.
        """
        self._prepare()
        log_bytes = len(self.catalog.read_log().content)
        aborted_files = self._claims.abort_pending()
        if resolution.fingerprint != fingerprint(self.catalog, aborted_files):
            raise RanksDisagreeError(
                f"Another process changed {self.location} while this attempt began. Restart the run."
            )
        damaged_checkpoints = [
            bad_checkpoint for bad_checkpoint in resolution.bad_checkpoints if not bad_checkpoint.is_unreadable
        ]
        logged_names = {event["name"] for event in self._read_events("committed")}
        unlogged_names = [
            checkpoint.name for checkpoint in self.read_checkpoints() if checkpoint.name not in logged_names
        ]
        number = 1 + max(
            [
                0,
                *(attempt.number for attempt in self.read_attempts()),
                *(committed_checkpoint.attempt for committed_checkpoint in self.read_checkpoints()),
            ]
        )
        start_step = resolution.chosen_checkpoint.step if step is None and resolution.chosen_checkpoint else step or 0
        self._append(
            *({"event": "committed", "name": name} for name in unlogged_names),
            *({"event": "lost", "name": name} for name in resolution.lost_names),
            *(
                {"event": "quarantined", "name": bad_checkpoint.name, "reason": bad_checkpoint.reason}
                for bad_checkpoint in damaged_checkpoints
            ),
            {"event": "attempt", "number": number, "step": start_step, "removed": list(resolution.leftover_files)},
            log_bytes=log_bytes,
        )
        self._quarantine.add(bad_checkpoint.name for bad_checkpoint in damaged_checkpoints)
        self.delete(resolution.leftover_files)
        return number

    def commit(
        self,
        write: Callable[[BinaryIO], object],
        info: CommitInfo,
        *,
        attempt: int,
        fence: Fence | None = None,
        sequence: int | None = None,
    ) -> Checkpoint:
        """Commits a checkpoint. When it returns, the checkpoint survives a power failure.

        Writes the checkpoint and then its manifest: to a temporary file in the same folder, followed by an fsync, a
        rename and an fsync of the folder. Then appends a line to the log. A checkpoint without a manifest does not
        count, so that a crash before the manifest exists leaves the earlier checkpoints valid. In an object store, the
        sequence number is claimed first, and the manifest is created only if it does not exist.

        Args:
            write: Takes a binary file, open for writing, and writes the checkpoint to it, as ``torch.save`` does.
            info: Description of the checkpoint. A score that is not finite counts as None.
            attempt: Number from :meth:`begin_attempt`. 0 if no attempt writes the checkpoint.
            fence: Called before each rename. Its exception cancels the commit.
            sequence: Sequence number of the copied checkpoint. Uses the next free number if None.

        Returns:
            The committed checkpoint.

        Raises:
            FolderLostError: If another process writes to the object store.
            OSError: If the folder cannot be written or the disk is full.
        """

        def write_file(name: str, on_stage: Callable[[str], None]) -> WrittenFiles:
            file = put_hashed(
                self.storage, f"{name}.ckpt", write, on_stage, lambda: reach_fault_point("checkpoint half written")
            )
            return WrittenFiles(file.digest, file.bytes)

        return self._commit(write_file, info, attempt=attempt, fence=fence, sequence=sequence)

    def commit_sharded(
        self,
        write: Callable[[str], Mapping[str, StoredFile]],
        info: CommitInfo,
        *,
        attempt: int,
        fence: Fence | None = None,
        sequence: int | None = None,
        publish: Callable[[Checkpoint, bytes], object] | None = None,
    ) -> Checkpoint:
        """Commits a sharded checkpoint, which is a folder of files, like :meth:`commit`.

        Creates the folder, lets ``write`` fill it, and then writes the manifest, which contains the hashes of all
        files. A folder without a manifest is ignored. ``write`` takes the name of the folder, and returns the files in
        it after they are durable. Other processes may write some of them. ``publish``, if it is not None, takes the
        checkpoint and the content of its manifest, and writes the manifest to one or more storages.
        """

        def write_folder(name: str, _: Callable[[str], None]) -> WrittenFiles:
            folder = f"{name}.ckpt"
            if self.storage.folder is not None:
                (self.storage.folder / folder).mkdir()
                fsync_folder(self.storage.folder)
            reach_fault_point("folder created")
            try:
                files = write(folder)
            except BaseException:
                self._discard(folder)
                raise
            return WrittenFiles.from_shards(files)

        return self._commit(write_folder, info, attempt=attempt, fence=fence, sequence=sequence, publish=publish)

    def _commit(
        self,
        write: Callable[[str, Callable[[str], None]], WrittenFiles],
        info: CommitInfo,
        *,
        attempt: int,
        fence: Fence | None = None,
        sequence: int | None = None,
        publish: Callable[[Checkpoint, bytes], object] | None = None,
    ) -> Checkpoint:
        reach_fault_point("commit begins")
        sequence = self.next_sequence() if sequence is None else sequence
        path = make_path(self.storage, f"{format_stem(sequence, info.step)}.ckpt")
        if not self._claims.claim(sequence, info.step, fence):
            raise make_lost_error(self.storage)
        appeared: set[str] = set()  # of "checkpoint" and "manifest"
        try:
            content = write(path.stem, _make_stage_callback("checkpoint", fence, appeared))
            appeared.add("checkpoint")
            score = None if info.score is None or not isfinite(info.score) else float(info.score)
            checkpoint = Checkpoint(
                **vars(replace(info, score=score)),
                path=path,
                sequence=sequence,
                attempt=attempt,
                digest=content.digest,
                bytes=content.bytes,
                files=content.files,
                versions=collect_versions(),
                time=time.time(),
            )
            manifest = encode_manifest(checkpoint, LogPrefix.from_content(self.catalog.read_log().content))
            if publish is None:
                self._put_manifest(checkpoint, manifest, _make_stage_callback("manifest", fence, appeared))
            else:
                appeared.add("manifest")  # if it fails, some storages may have it
                publish(checkpoint, manifest)
        except OutcomeUnknownError:  # the manifest may exist; the next attempt decides
            raise
        except BaseException:
            # if this commit did not rename the file, it belongs to an attempt that took over the folder
            if appeared == {"checkpoint"}:
                self._discard(path.name)
            raise
        try:
            self._append({"event": "committed", "name": checkpoint.name})
            self._claims.release(sequence)
        except OSError:  # the manifest makes the commit valid; the next attempt appends the missing line
            return checkpoint
        reach_fault_point("log appended")
        return checkpoint

    def _put_manifest(self, checkpoint: Checkpoint, content: bytes, on_stage: Callable[[str], None]) -> None:
        if not self.storage.put_if_absent(checkpoint.manifest_path.name, content, on_stage):
            raise make_lost_error(self.storage)

    def quarantine(
        self,
        checkpoints: Sequence[Checkpoint],
        reason: str,
        *,
        fence: Fence | None = None,
        is_rollback: bool = True,
    ) -> None:
        """Moves good checkpoints, from which no run should resume, to ``quarantine/``.

        Args:
            checkpoints: Checkpoints of this folder.
            reason: Description for the log.
            fence: Called before any file is moved. Its exception cancels the move.
            is_rollback: Whether a rollback discards the checkpoints. If True, a mirror also quarantines their copies.
        """
        if fence is not None:
            fence()
        self._append(
            *(
                {"event": "quarantined", "name": checkpoint.name, "reason": reason, "rolled_back": is_rollback}
                for checkpoint in checkpoints
            )
        )
        self._quarantine.add(checkpoint.name for checkpoint in checkpoints)
        self.storage.delete(())  # makes moves durable

    def quarantine_newest(self, reason: str, *, fence: Fence) -> None:
        """Moves the newest finite checkpoint to ``quarantine/``, because it is damaged."""
        newest_finite = self._find_newest_finite()
        if newest_finite is not None:
            self.quarantine([newest_finite], reason, fence=fence, is_rollback=False)

    def list_quarantined_files(self) -> list[str]:
        """Returns the sorted names of the files or marks in quarantine."""
        return self._quarantine.list_files()

    def remove_quarantined(self, names: Collection[str]) -> set[str]:
        """Deletes the marked checkpoints among ``names``, which can be copied again then, and returns their names."""
        removed_names = self._quarantine.find_marked() & {*names}
        for name in removed_names:
            claim = format_claim(parse_sequence(f"{name}.json"))
            self.delete([f"{name}.json", f"{name}.ckpt", claim, format_mark(name)])
        return removed_names

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files and sharded checkpoints in the given order."""
        self.storage.delete(self._list_deleted(names))

    def apply_retention(
        self, retention: Retention, *, fence: Fence | None = None, check_content: ContentCheck | None = None
    ) -> list[Checkpoint]:
        """Deletes the checkpoints that ``retention`` does not keep, after verifying the newest finite one.

        Args:
            retention: Checkpoints to keep.
            fence: Called before any file is deleted. Its exception cancels the deletion.
            check_content: As for :meth:`read_back`.

        Returns:
            The deleted checkpoints, oldest first.

        Raises:
            DamagedError: If the newest checkpoint is damaged. No checkpoint is deleted then.
        """
        return self._delete_checkpoints(select_for_deletion(self.read_checkpoints(), retention), fence, check_content)

    def free_disk_space(
        self, retention: Retention, *, fence: Fence | None = None, check_content: ContentCheck | None = None
    ) -> list[Checkpoint]:
        """Makes room on a full disk: like :meth:`apply_retention` with ``keep_last=1``."""
        deleted_checkpoints = select_for_deletion(self.read_checkpoints(), retention, keep_last=1)
        return self._delete_checkpoints(deleted_checkpoints, fence, check_content)

    def _delete_checkpoints(
        self, checkpoints: Sequence[Checkpoint], fence: Fence | None, check_content: ContentCheck | None
    ) -> list[Checkpoint]:
        newest_finite = self._find_newest_finite()
        if not checkpoints or newest_finite is None:  # None if the manifests have become unreadable
            return []
        self.read_back(newest_finite, check_content, fence)
        if fence is not None:
            fence()
        self._log_deletion(checkpoints)
        reach_fault_point("pruning")
        self.delete(file for checkpoint in checkpoints for file in _files_in_deletion_order(checkpoint))
        reach_fault_point("pruned")
        return list(checkpoints)

    def _find_newest_finite(self) -> Checkpoint | None:
        return next((checkpoint for checkpoint in reversed(self.read_checkpoints()) if checkpoint.finite), None)

    def _log_deletion(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Logs deletions before they happen. If the disk is full, deletes one checkpoint to make room for the log."""
        events = [{"event": "deleted", "name": checkpoint.name} for checkpoint in checkpoints]
        try:
            self._append(*events)
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS:
                raise
            self.delete(_files_in_deletion_order(checkpoints[0]))
            self._append(*events)

    def _read_events(self, *event_types: str) -> list[Mapping[str, Any]]:
        return [event for event in self.catalog.read_log().events if event["event"] in event_types]

    def _append(self, *events: Mapping[str, Any], log_bytes: int | None = None) -> None:
        if events:
            commit_log.append(self._log, [{**event, "time": time.time()} for event in events], log_bytes)

    def _prepare(self) -> None:
        """Creates the folder if it does not exist. Renames folders with the name of a file that is written."""
        if self.storage.folder is None:
            return
        make_folder(self.storage.folder)
        for name in (*_FILE_NAMES, QUARANTINE_FOLDER_NAME):
            path = self.storage.folder / name
            if os.path.lexists(path) and path.is_dir() != (name == QUARANTINE_FOLDER_NAME):
                path.rename(path.with_name(f"{name}.{secrets.token_hex(4)}.moved"))

    def _discard(self, file: str) -> None:
        """Deletes the file or folder of a failed commit. Ignores errors, because the next attempt deletes it, too."""
        with suppress(OSError):
            self.delete([file])

    def _list_deleted(self, names: Iterable[str]) -> Iterator[str]:
        """Yields names with the files of sharded checkpoints, which are deleted before their folder."""
        for name in names:
            if name.endswith(".ckpt"):
                files = (entry.name for entry in self.storage.list(name))
                yield from (f"{name}/{file}" for file in files if is_unfinished_shard_file(file))
            yield name


def open_storage(location: Path | str | Storage) -> Storage:
    """Returns the storage of a folder or a URL. Returns a storage unchanged.

    Raises:
        ValueError: If ``location`` is a URL with an unsupported scheme or without a valid bucket.
        MissingExtraError: If ``location`` is a URL, and the extra ``remote`` is not installed.
    """
    if isinstance(location, Storage):
        return location
    return ObjectStorage(str(location)) if is_url(location) else PosixStorage(Path(location))


def _files_in_deletion_order(checkpoint: Checkpoint) -> Iterator[str]:
    """Yields the files of a checkpoint in the order of their deletion."""
    yield checkpoint.manifest_path.name
    reach_fault_point("manifest pruned")
    yield checkpoint.path.name


def _make_stage_callback(label: str, fence: Fence | None, appeared: set[str]) -> Callable[[str], None]:
    """Returns a callback for the stages of writing ``label``. Calls the fence before the rename, and records it."""

    def on_stage(stage: str) -> None:
        if stage == "renamed":
            appeared.add(label)
        reach_fault_point(f"{label} {stage}")
        if stage == "synced" and fence is not None:
            fence()

    return on_stage
