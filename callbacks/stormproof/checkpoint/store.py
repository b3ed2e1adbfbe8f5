"""Commits checkpoints to a folder durably and applies the retention policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from stormproof.arguments import check_arguments
from stormproof.checkpoint import commit_log
from stormproof.checkpoint.backends import FolderBackend, get_backend
from stormproof.checkpoint.backends.object_lease import ObjectLease
from stormproof.checkpoint.digest import compute_combined_digest
from stormproof.checkpoint.fault_points import reach_fault_point
from stormproof.checkpoint.file_names import format_stem, parse_sequence
from stormproof.checkpoint.hashing_file import put_hashed
from stormproof.checkpoint.lease import Lease
from stormproof.checkpoint.manifest import (
    Checkpoint,
    CommitInfo,
    LogPrefix,
    StoredFile,
    collect_versions,
    encode_manifest,
)
from stormproof.checkpoint.resolution import (
    Resolution,
    fingerprint_folder,
    read_checkpoints,
    resolve,
)
from stormproof.checkpoint.retention import Retention, select_for_deletion
from stormproof.checkpoint.storage import (
    DISK_FULL_ERRNOS,
    Fence,
    ObjectStorage,
    OutcomeUnknownError,
    Storage,
    is_url,
)
from stormproof.checkpoint.verification import ContentCheck, describe_read_error
from stormproof.errors import (
    DamagedError,
    FolderLostError,
    NoGoodCheckpointError,
    RanksDisagreeError,
    StorageError,
)


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

    Args:
        folder: Folder of checkpoints, which may not exist yet, the URL of an object store, or an
            :class:`stormproof.checkpoint.storage.ObjectStorage`.

    Attributes:
        backend: Access to the folder or object store.

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
    def __init__(self, folder: Path | str | ObjectStorage) -> None:
        if not isinstance(folder, ObjectStorage):
            folder = ObjectStorage(str(folder)) if is_url(folder) else Path(folder)
        self.backend = get_backend(folder)
        self._min_sequence = 1

    @property
    def storage(self) -> Storage:
        """Storage of the checkpoints."""
        return self.backend.storage

    @property
    def folder(self) -> Path:
        """Folder of checkpoints.

        Raises:
            TypeError: If the checkpoints are in an object store.
        """
        if not isinstance(self.backend, FolderBackend):
            raise TypeError(f"{self.location} is not a folder.")
        return self.backend.folder

    @property
    def location(self) -> str:
        """Path of the folder, or URL."""
        return self.storage.location

    def acquire_lease(self) -> Lease | ObjectLease:
        """Acquires the right to write. Creates the folder if it does not exist.

        Raises:
            FolderTakenError: If another running process owns the folder or the prefix.
            LeaseError: If the lease cannot be read.
        """
        return self.backend.acquire_lease()

    def resolve(self, *, verify_all: bool = False, fetch: bool = False) -> Resolution:
        """Finds the newest good checkpoint and classifies all other files. Modifies no file.

        Args:
            verify_all: Whether to verify the content of every checkpoint. If False, stops at the newest good one.
            fetch: Whether to verify a local copy of a checkpoint in an object store, so that :meth:`fetch` need not
                download it. Ignored with ``verify_all``.
        """
        return resolve(self.backend, verify_all=verify_all, fetch=fetch)

    def fetch(self, checkpoint: Checkpoint) -> Path:
        """Returns the path of a file from which the checkpoint can be loaded.

        In an object store, this is a verified copy in the temporary folder. One process per node downloads it. Training
        deletes the copy after all ranks have loaded it. Other copies are deleted at a later download if they are older
        than a day.

        Raises:
            DamagedError: If the checkpoint in the object store is damaged.
            OSError: If it cannot be read.
            StorageError: If the copy cannot be written.
        """
        return self.backend.fetch(checkpoint)

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
        return read_checkpoints(self.backend)

    def read_attempts(self) -> list[Attempt]:
        """Returns the attempts that the log contains, oldest first."""
        return [Attempt(event["number"], event["step"], event["time"]) for event in self._read_events("attempt")]

    def read_rolled_back_names(self) -> set[str]:
        """Returns the names of checkpoints that a rollback quarantined."""
        return {event["name"] for event in self._read_events("quarantined") if event.get("rolled_back")}

    def verify(self, checkpoint: Checkpoint) -> str | None:
        """Returns why no run may resume from the checkpoint. None if it is good."""
        try:
            return self.backend.find_damage(checkpoint)
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
        problem = self.backend.find_damage(checkpoint, check_content)
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
        names, claimed = [entry.name for entry in self.storage.list()], self.backend.list_claimed_sequences()
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
        self.backend.prepare()
        log_bytes = len(commit_log.read_log(self.backend.log).content)
        aborted_files = self.backend.abort_pending_commits()
        if resolution.fingerprint != fingerprint_folder(self.backend, aborted_files):
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
        self.backend.quarantine([bad_checkpoint.name for bad_checkpoint in damaged_checkpoints])
        self.backend.delete(resolution.leftover_files)
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
    ) -> Checkpoint:
        """Commits a sharded checkpoint, which is a folder of files, like :meth:`commit`.

        Creates the folder, lets ``write`` fill it, and then writes the manifest, which contains the hashes of all
        files. A folder without a manifest is ignored. ``write`` takes the name of the folder, and returns the files in
        it after they are durable. Other processes may write some of them.
        """

        def write_folder(name: str, _: Callable[[str], None]) -> WrittenFiles:
            folder = f"{name}.ckpt"
            self.backend.make_checkpoint_folder(folder)
            reach_fault_point("folder created")
            try:
                files = write(folder)
            except BaseException:
                self.backend.discard(folder)
                raise
            return WrittenFiles.from_shards(files)

        return self._commit(write_folder, info, attempt=attempt, fence=fence, sequence=sequence)

    def _commit(
        self,
        write: Callable[[str, Callable[[str], None]], WrittenFiles],
        info: CommitInfo,
        *,
        attempt: int,
        fence: Fence | None = None,
        sequence: int | None = None,
    ) -> Checkpoint:
        reach_fault_point("commit begins")
        sequence = self.next_sequence() if sequence is None else sequence
        path = self.backend.get_path(f"{format_stem(sequence, info.step)}.ckpt")
        if not self.backend.claim(sequence, info.step, fence):
            raise self._make_lost_error()
        completed_stages: set[str] = set()
        try:
            content = write(path.stem, _make_stage_callback("checkpoint", fence, completed_stages))
            completed_stages.add("checkpoint renamed")
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
            log_prefix = LogPrefix.from_content(commit_log.read_log(self.backend.log).content)
            self._write_manifest(checkpoint, log_prefix, _make_stage_callback("manifest", fence, completed_stages))
        except OutcomeUnknownError:  # the manifest may exist; the next attempt decides
            raise
        except BaseException:
            # if this commit did not rename the file, it belongs to an attempt that took over the folder
            if "checkpoint renamed" in completed_stages and "manifest renamed" not in completed_stages:
                self.backend.discard(path.name)
            raise
        try:
            self._append({"event": "committed", "name": checkpoint.name})
            self.backend.release_claims(sequence)
        except OSError:  # the manifest makes the commit valid; the next attempt appends the missing line
            return checkpoint
        reach_fault_point("log appended")
        return checkpoint

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
        self.backend.quarantine([checkpoint.name for checkpoint in checkpoints])
        self.storage.delete(())

    def quarantine_newest(self, reason: str, *, fence: Fence) -> None:
        """Moves the newest finite checkpoint to ``quarantine/``, because it is damaged."""
        newest_finite = self._find_newest_finite()
        if newest_finite is not None:
            self.quarantine([newest_finite], reason, fence=fence, is_rollback=False)

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
        self.backend.delete(file for checkpoint in checkpoints for file in _files_in_deletion_order(checkpoint))
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
            self.backend.delete(_files_in_deletion_order(checkpoints[0]))
            self._append(*events)

    def _write_manifest(self, checkpoint: Checkpoint, log_prefix: LogPrefix, on_stage: Callable[[str], None]) -> None:
        content = encode_manifest(checkpoint, log_prefix)
        if not self.storage.put_if_absent(checkpoint.manifest_path.name, content, on_stage):
            raise self._make_lost_error()

    def _make_lost_error(self) -> FolderLostError:
        return FolderLostError(
            f"Another process writes to {self.location}. This process stops writing to it. Use one prefix per run."
        )

    def _read_events(self, *event_types: str) -> list[Mapping[str, Any]]:
        return [event for event in commit_log.read_log(self.backend.log).events if event["event"] in event_types]

    def _append(self, *events: Mapping[str, Any], log_bytes: int | None = None) -> None:
        if events:
            self.backend.append_to_log([{**event, "time": time.time()} for event in events], log_bytes)


def _files_in_deletion_order(checkpoint: Checkpoint) -> Iterator[str]:
    """Yields the files of a checkpoint in the order of their deletion."""
    yield checkpoint.manifest_path.name
    reach_fault_point("manifest pruned")
    yield checkpoint.path.name


def _make_stage_callback(label: str, fence: Fence | None, completed_stages: set[str]) -> Callable[[str], None]:
    """Returns a callback that records the stages of writing ``label`` and calls the fence before the rename."""

    def on_stage(stage: str) -> None:
        completed_stages.add(f"{label} {stage}")
        reach_fault_point(f"{label} {stage}")
        if stage == "synced" and fence is not None:
            fence()

    return on_stage
