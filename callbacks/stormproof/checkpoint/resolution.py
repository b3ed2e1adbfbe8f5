"""Classifies the files of a folder and chooses the checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from stormproof.checkpoint.backends import Backend, Source, get_backend
from stormproof.checkpoint.commit_log import CommitLog, read_log
from stormproof.checkpoint.file_names import is_temporary, parse_file_name, parse_sequence
from stormproof.checkpoint.manifest import AbortedCommitError, Checkpoint, LogPrefix
from stormproof.checkpoint.read_retry import read_twice
from stormproof.checkpoint.shard_file_names import is_unfinished_shard_file
from stormproof.checkpoint.verification import describe_read_error


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
    """Contents of a folder at one time.

    Attributes:
        chosen_checkpoint: Newest good checkpoint, with verified content. None if no checkpoint is good.
        older_checkpoints: Older checkpoints with an intact manifest, newest first. Their content is only verified with
            ``resolve(verify_all=True)``.
        bad_checkpoints: Committed checkpoints that are damaged, not loadable, not finite or without a manifest, newest
            first.
        lost_names: Names of checkpoints that were committed according to the log, but whose files are missing.
        leftover_files: Files of unfinished commits and deletions.
        foreign_files: ``.ckpt`` files of other tools, which ``stormproof adopt`` can copy.
        log_problems: Descriptions of damage to the log, which does not prevent a resume.
        is_log_torn: Whether a crash cut off the last line of the log, which is harmless.
        fingerprint: Names of the files and hash of the log. Changes with each commit and deletion.
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


def resolve(source: Source, *, verify_all: bool = False, fetch: bool = False) -> Resolution:
    """Classifies all files of ``source`` and finds the newest good checkpoint. Modifies no file.

    Lists the files before it reads the log. If a running process deletes a checkpoint in between, the log contains the
    deletion.

    Args:
        source: Folder or object store of checkpoints. A missing folder counts as empty.
        verify_all: Whether to verify the content of every checkpoint. If False, stops at the newest good one.
        fetch: Whether to verify a local copy of a checkpoint in an object store. Ignored with ``verify_all``.

    Raises:
        OSError: If the folder cannot be read.
        NotResumableError: If a later version of stormproof wrote a manifest.
    """
    backend = get_backend(source)
    files = list_files(backend)
    names = extract_names(files)
    folder_manifests = read_manifests(backend, [name for name in names if f"{name}.json" in files])
    find_damage = partial(backend.find_damage_once_per_node, fetch=fetch)
    good_checkpoints = _verify_checkpoints(
        folder_manifests, backend.find_damage if verify_all else find_damage, verify_all=verify_all
    )
    log = read_log(backend.log)
    bad_reasons = {
        name: reason
        for name, reason in folder_manifests.bad_reasons.items()
        if name not in log.checkpoint_names("deleted")
    }
    unfinished_names = [name for name in names if f"{name}.json" not in files]
    bad_reasons |= dict.fromkeys(find_without_manifest(backend, unfinished_names, log), "its manifest is missing")
    lost_names = _find_lost(backend, log)
    if bad_reasons or lost_names:  # a running process may have deleted them since; it logs a deletion before it deletes
        current_log = read_log(backend.log)
        bad_reasons = {
            name: reason for name, reason in bad_reasons.items() if name not in current_log.checkpoint_names("deleted")
        }
        lost_names = [name for name in lost_names if name not in current_log.checkpoint_names("deleted", "quarantined")]
    leftover_names = (
        {*unfinished_names, *folder_manifests.bad_reasons}
        - set(bad_reasons)
        - _find_newly_committed(backend, unfinished_names)
    )
    aborted_files = {f"{name}.ckpt" for name in folder_manifests.aborted_names} & files
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
        leftover_files=sorted(
            aborted_files | {file for file in files if is_temporary(file) or _parse_stem(file) in leftover_names}
        ),
        foreign_files=sorted(file for file in files if is_foreign(file)),
        log_problems=log.find_problems_since(log_prefixes[0] if log_prefixes else None),
        is_log_torn=log.torn_bytes > 0,
        fingerprint=_fingerprint_files(files, log),
    )


@dataclass
class FolderManifests:
    """Manifests of a folder.

    Attributes:
        checkpoints: Checkpoints with an intact manifest, newest first.
        log_prefixes: Log prefixes of their manifests, by checkpoint name.
        bad_reasons: Reasons why checkpoints are bad, by name.
        unreadable_names: Names of checkpoints with files that storage failed to read.
        aborted_names: Names of commits that another attempt aborted, in an object store.
    """

    checkpoints: list[Checkpoint] = field(default_factory=list)
    log_prefixes: dict[str, LogPrefix] = field(default_factory=dict)
    bad_reasons: dict[str, str] = field(default_factory=dict)
    unreadable_names: set[str] = field(default_factory=set)
    aborted_names: set[str] = field(default_factory=set)


def read_checkpoints(source: Source) -> list[Checkpoint]:
    """Returns the checkpoints with an intact manifest, oldest first. Does not read their content."""
    backend = get_backend(source)
    names = [
        parsed_name[0]
        for file in list_files(backend)
        if file.endswith(".json") and (parsed_name := parse_file_name(file))
    ]
    return sorted(read_manifests(backend, names).checkpoints, key=lambda checkpoint: checkpoint.sequence)


def list_files(backend: Backend) -> set[str]:
    """Returns the names of all files and sharded checkpoints, without other subfolders that are named like them."""
    try:
        entries = backend.list_entries()
    except FileNotFoundError:
        return set()
    files = {entry.name for entry in entries if not entry.is_folder}
    return files | {
        entry.name
        for entry in entries
        if entry.is_folder
        and (not entry.name.endswith((".ckpt", ".json", ".tmp")) or _is_sharded_checkpoint(backend, entry.name, files))
    }


def _is_sharded_checkpoint(backend: Backend, name: str, files: Collection[str]) -> bool:
    """Returns whether a folder has a manifest, or contains only files of a sharded checkpoint and may be deleted."""
    name_parts = parse_file_name(name) if name.endswith(".ckpt") else None
    if name_parts is None:
        return False
    return f"{name_parts[0]}.json" in files or all(
        is_unfinished_shard_file(entry.name) for entry in backend.list_folder(name)
    )


def read_manifests(backend: Backend, names: Sequence[str]) -> FolderManifests:
    """Reads the manifests of these checkpoints."""
    folder_manifests = FolderManifests()
    for name in names:
        try:
            checkpoint, log_prefix = read_twice(partial(backend.read_manifest, name), ValueError)
        except AbortedCommitError:
            folder_manifests.aborted_names.add(name)
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


def _verify_checkpoints(
    folder_manifests: FolderManifests, find_damage: Callable[[Checkpoint], str | None], *, verify_all: bool
) -> list[Checkpoint]:
    """Returns the good checkpoints, newest first. Verifies all, or all up to the first good one."""
    good_checkpoints: list[Checkpoint] = []
    for checkpoint in folder_manifests.checkpoints:
        try:
            problem = None if good_checkpoints and not verify_all else find_damage(checkpoint)
        except OSError as error:
            problem = describe_read_error(error)
            folder_manifests.unreadable_names.add(checkpoint.name)
        if problem is None:
            good_checkpoints.append(checkpoint)
        else:
            folder_manifests.bad_reasons[checkpoint.name] = problem
    return good_checkpoints


def fingerprint_folder(source: Source, ignored_files: Collection[str] = ()) -> object:
    """Returns the current :attr:`Resolution.fingerprint` of ``source``, without ``ignored_files``."""
    backend = get_backend(source)
    return _fingerprint_files(list_files(backend) - set(ignored_files), read_log(backend.log))


def _fingerprint_files(files: set[str], log: CommitLog) -> object:
    return frozenset(file for file in files if parse_sequence(file)), LogPrefix.from_content(log.content)


def extract_names(files: set[str]) -> list[str]:
    """Returns the names of the checkpoints among ``files``, without extension, newest first."""
    names_with_sequences = {name_parts[:2] for name_parts in map(parse_file_name, files) if name_parts}
    return [name for name, _ in sorted(names_with_sequences, key=lambda pair: pair[1], reverse=True)]


def _parse_stem(file: str) -> str | None:
    name_parts = parse_file_name(file)
    return name_parts[0] if name_parts else None


def is_foreign(file: str) -> bool:
    """Returns whether ``file`` is a ``.ckpt`` file that another tool wrote."""
    return file.endswith(".ckpt") and not file.startswith(".") and parse_file_name(file) is None


def _find_newly_committed(backend: Backend, unfinished_names: Sequence[str]) -> set[str]:
    """Returns the names that a running process committed since the files were listed."""
    existing_files = backend.find_existing([f"{name}.json" for name in unfinished_names])
    return {name for name in unfinished_names if f"{name}.json" in existing_files}


def find_without_manifest(backend: Backend, unfinished_names: Sequence[str], log: CommitLog) -> set[str]:
    """Returns the names among ``unfinished_names`` that were committed according to the log."""
    committed_names = log.checkpoint_names("committed", "quarantined") - log.checkpoint_names("deleted")
    return (committed_names & set(unfinished_names)) - _find_newly_committed(backend, unfinished_names)


def _find_lost(backend: Backend, log: CommitLog) -> list[str]:
    """Returns committed names whose files are missing although the log contains no deletion.

    Checks the files after the log was read, because the log may be newer than the list of files.
    """
    unexplained_names = log.checkpoint_names("committed") - log.checkpoint_names("deleted", "quarantined", "lost")
    files = {name: {f"{name}.ckpt", f"{name}.json"} for name in unexplained_names}
    existing_files = backend.find_existing(set().union(*files.values()))
    return sorted(name for name in unexplained_names if not files[name] & existing_files)
