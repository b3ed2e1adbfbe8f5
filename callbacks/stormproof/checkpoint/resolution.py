"""What a folder holds, and which checkpoint to go on from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stormproof.checkpoint.commit_log import CommitLog, read_log
from stormproof.checkpoint.file_names import LOG_FILE_NAME, is_temporary, parse_file_name, parse_sequence
from stormproof.checkpoint.manifest import Checkpoint, LogPrefix
from stormproof.checkpoint.read_retry import retry_read
from stormproof.checkpoint.shared_verification import verify_once_per_node
from stormproof.checkpoint.verification import describe_read_error, find_damage, read_manifest


@dataclass(frozen=True)
class BadCheckpoint:
    """A committed checkpoint that must not be resumed from.

    Attributes:
        name: Name without ``.ckpt``.
        reason: Why it must not be used.
        is_unreadable: Whether reading failed. The content may be intact, so the files stay in place.
    """

    name: str
    reason: str
    is_unreadable: bool = False


@dataclass(frozen=True)
class Resolution:
    """What a folder held when it was looked at; nothing in it was changed.

    Attributes:
        chosen_checkpoint: the newest good checkpoint, verified to the last bit; None if there is none.
        older_checkpoints: those before it whose manifest is whole, newest first; their content was not read, unless
            :func:`resolve` was to be thorough.
        bad_checkpoints: committed, and damaged, not loadable, not finite or without manifest; newest first.
        lost_names: names that the log says were committed, and whose files are gone.
        leftover_files: files of ours that no commit finished, or no deletion.
        foreign_files: ``.ckpt`` files of other tools; ``stormproof adopt`` takes one over.
        log_problems: what is broken in the log, in words; it keeps nobody from resuming.
        is_log_torn: whether a crash cut the log's last line off, which is harmless.
        fingerprint: what was looked at; equal as long as nobody commits to or deletes from the folder.
    """

    chosen_checkpoint: Checkpoint | None
    older_checkpoints: Sequence[Checkpoint] = ()
    bad_checkpoints: Sequence[BadCheckpoint] = ()
    lost_names: Sequence[str] = ()
    leftover_files: Sequence[str] = ()
    foreign_files: Sequence[str] = ()
    log_problems: Sequence[str] = ()
    is_log_torn: bool = False
    fingerprint: object = field(default=None, repr=False)

    @property
    def skipped_checkpoints(self) -> list[BadCheckpoint]:
        """Bad checkpoints that are newer than the chosen one."""
        chosen_sequence = 0 if self.chosen_checkpoint is None else self.chosen_checkpoint.sequence
        return [
            bad_checkpoint
            for bad_checkpoint in self.bad_checkpoints
            if parse_sequence(f"{bad_checkpoint.name}.ckpt") > chosen_sequence
        ]


def resolve(folder: Path, *, verify_all: bool = False) -> Resolution:
    """Classifies everything in ``folder`` and finds the newest good checkpoint; read-only.

    Files are listed before the log is read: in the folder of a run that goes on, what is deleted in between is then
    known to be deleted.

    Args:
        folder: a folder of checkpoints; one that is not there is empty.
        verify_all: verify the content of every checkpoint, not only down to the newest good one.

    Raises:
        OSError: if the folder cannot be read.
    """
    files = list_files(folder)
    names = extract_names(files)
    folder_manifests = read_manifests(folder, [name for name in names if f"{name}.json" in files])
    good_checkpoints = _verify_checkpoints(folder_manifests, verify_all)
    log = read_log(folder / LOG_FILE_NAME)
    bad_reasons = {
        name: reason
        for name, reason in folder_manifests.bad_reasons.items()
        if name not in log.checkpoint_names("deleted")
    }
    unfinished_names = [name for name in names if f"{name}.json" not in files]
    bad_reasons |= dict.fromkeys(find_without_manifest(folder, unfinished_names, log), "its manifest is gone")
    lost_names = _find_lost(folder, log)
    if bad_reasons or lost_names:  # a run that goes on here may have deleted them meanwhile; it says so before it does
        current_log = read_log(folder / LOG_FILE_NAME)
        bad_reasons = {
            name: reason for name, reason in bad_reasons.items() if name not in current_log.checkpoint_names("deleted")
        }
        lost_names = [name for name in lost_names if name not in current_log.checkpoint_names("deleted", "quarantined")]
    leftover_names = (
        {*unfinished_names, *folder_manifests.bad_reasons}
        - set(bad_reasons)
        - _find_newly_committed(folder, unfinished_names)
    )
    log_prefixes = [folder_manifests.log_prefixes[checkpoint.name] for checkpoint in folder_manifests.checkpoints]
    return Resolution(
        chosen_checkpoint=good_checkpoints[0] if good_checkpoints else None,
        older_checkpoints=good_checkpoints[1:],
        bad_checkpoints=[
            BadCheckpoint(name, bad_reasons[name], name in folder_manifests.unreadable_names)
            for name in names
            if name in bad_reasons
        ],
        lost_names=lost_names,
        leftover_files=sorted(file for file in files if is_temporary(file) or _parse_stem(file) in leftover_names),
        foreign_files=sorted(file for file in files if is_foreign(file)),
        log_problems=log.find_problems_since(log_prefixes[0] if log_prefixes else None),
        is_log_torn=log.torn_bytes > 0,
        fingerprint=_fingerprint_files(files, log),
    )


@dataclass
class FolderManifests:
    """The manifests of a folder, newest first."""

    checkpoints: list[Checkpoint] = field(default_factory=list)
    log_prefixes: dict[str, LogPrefix] = field(default_factory=dict)
    bad_reasons: dict[str, str] = field(default_factory=dict)
    unreadable_names: set[str] = field(default_factory=set)


def read_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of ``folder`` whose manifests are whole, oldest first; their content is not read."""
    names = [
        parsed_name[0]
        for file in list_files(folder)
        if file.endswith(".json") and (parsed_name := parse_file_name(file))
    ]
    return sorted(read_manifests(folder, names).checkpoints, key=lambda checkpoint: checkpoint.sequence)


def list_files(folder: Path) -> set[str]:
    """The names in ``folder``; but a folder that is called like a checkpoint is none, and in nobody's way."""
    try:
        return retry_read(
            lambda: {path.name for path in folder.iterdir() if not _is_folder_named_like_checkpoint(path)}
        )
    except FileNotFoundError:
        return set()


def _is_folder_named_like_checkpoint(path: Path) -> bool:
    has_checkpoint_name = parse_sequence(path.name) or path.suffix == ".ckpt"
    return bool(has_checkpoint_name) and path.is_dir() and not path.is_symlink()


def read_manifests(folder: Path, names: Sequence[str]) -> FolderManifests:
    """Reads the manifests of these checkpoints."""
    folder_manifests = FolderManifests()
    for name in names:
        try:
            checkpoint, log_prefix = retry_read(partial(read_manifest, folder / f"{name}.ckpt"))
        except ValueError as error:
            folder_manifests.bad_reasons[name] = str(error)
        except OSError as error:
            folder_manifests.bad_reasons[name] = f"its manifest cannot be read: {error.strerror}"
            if not isinstance(error, FileNotFoundError):
                folder_manifests.unreadable_names.add(name)
        else:
            folder_manifests.checkpoints.append(checkpoint)
            folder_manifests.log_prefixes[name] = log_prefix
    return folder_manifests


def _verify_checkpoints(folder_manifests: FolderManifests, verify_all: bool) -> list[Checkpoint]:
    """The checkpoints that are good, newest first; those behind the first good one are taken on trust, or not."""
    good_checkpoints: list[Checkpoint] = []
    verify = find_damage if verify_all else verify_once_per_node
    for checkpoint in folder_manifests.checkpoints:
        try:
            problem = None if good_checkpoints and not verify_all else verify(checkpoint)
        except OSError as error:
            problem = describe_read_error(error)
            folder_manifests.unreadable_names.add(checkpoint.name)
        if problem is None:
            good_checkpoints.append(checkpoint)
        else:
            folder_manifests.bad_reasons[checkpoint.name] = problem
    return good_checkpoints


def fingerprint_folder(folder: Path) -> object:
    """What :attr:`Resolution.fingerprint` would be now."""
    return _fingerprint_files(list_files(folder), read_log(folder / LOG_FILE_NAME))


def _fingerprint_files(files: set[str], log: CommitLog) -> object:
    return frozenset(file for file in files if parse_sequence(file)), LogPrefix.from_content(log.content)


def extract_names(files: set[str]) -> list[str]:
    """The names of checkpoints, without ending, the newest first."""
    names_with_sequences = {name_parts[:2] for name_parts in map(parse_file_name, files) if name_parts}
    return [name for name, _ in sorted(names_with_sequences, key=lambda pair: pair[1], reverse=True)]


def _parse_stem(file: str) -> str | None:
    name_parts = parse_file_name(file)
    return name_parts[0] if name_parts else None


def is_foreign(file: str) -> bool:
    """Whether it is a checkpoint's name, and not one of ours."""
    return file.endswith(".ckpt") and not file.startswith(".") and parse_file_name(file) is None


def _find_newly_committed(folder: Path, unfinished_names: Sequence[str]) -> set[str]:
    """Those whose manifest came while the folder was being looked at: a run goes on there."""
    return {name for name in unfinished_names if os.path.lexists(folder / f"{name}.json")}


def find_without_manifest(folder: Path, unfinished_names: Sequence[str], log: CommitLog) -> set[str]:
    """Those of ``unfinished_names`` that the log says were committed."""
    committed_names = log.checkpoint_names("committed", "quarantined") - log.checkpoint_names("deleted")
    return (committed_names & set(unfinished_names)) - _find_newly_committed(folder, unfinished_names)


def _find_lost(folder: Path, log: CommitLog) -> list[str]:
    """What was committed and is gone without a word; asked after the log was read, which may be ahead of the list."""
    unexplained_names = log.checkpoint_names("committed") - log.checkpoint_names("deleted", "quarantined", "lost")
    files = {name: (folder / f"{name}.ckpt", folder / f"{name}.json") for name in unexplained_names}
    return sorted(name for name, paths in files.items() if not any(map(os.path.lexists, paths)))
