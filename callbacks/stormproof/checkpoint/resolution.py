"""Classifies the files of a folder and chooses the checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from stormproof.checkpoint.catalog import Catalog, Manifests
from stormproof.checkpoint.commit_log import CommitLog
from stormproof.checkpoint.file_names import is_temporary, parse_file_name, parse_sequence
from stormproof.checkpoint.manifest import Checkpoint, LogPrefix
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


def resolve(catalog: Catalog, *, verify_all: bool = False, fetch: bool = False) -> Resolution:
    """Classifies all files of a storage and finds the newest good checkpoint. Modifies no file.

    Lists the files before it reads the log. If a running process deletes a checkpoint in between, the log contains the
    deletion.

    Args:
        catalog: Catalog of the storage. A missing folder counts as empty.
        verify_all: Whether to verify the content of every checkpoint. If False, stops at the newest good one.
        fetch: Whether to verify a local copy of a checkpoint in an object store. Ignored with ``verify_all``.

    Raises:
        OSError: If the folder cannot be read.
        NotResumableError: If a later version of stormproof wrote a manifest.
    """
    files = catalog.list_files()
    names = extract_names(files)
    manifests = catalog.read_manifests([name for name in names if f"{name}.json" in files])
    find_damage = catalog.find_damage if verify_all else partial(catalog.find_damage_once_per_node, fetch=fetch)
    good_checkpoints = _verify_checkpoints(manifests, find_damage, verify_all=verify_all)
    log = catalog.read_log()
    bad_reasons = {
        name: reason for name, reason in manifests.bad_reasons.items() if name not in log.checkpoint_names("deleted")
    }
    unfinished_names = [name for name in names if f"{name}.json" not in files]
    bad_reasons |= dict.fromkeys(find_without_manifest(catalog, unfinished_names, log), "its manifest is missing")
    lost_names = _find_lost(catalog, log)
    if bad_reasons or lost_names:  # a running process may have deleted them since; it logs a deletion before it deletes
        current_log = catalog.read_log()
        bad_reasons = {
            name: reason for name, reason in bad_reasons.items() if name not in current_log.checkpoint_names("deleted")
        }
        lost_names = [name for name in lost_names if name not in current_log.checkpoint_names("deleted", "quarantined")]
    leftover_names = (
        {*unfinished_names, *manifests.bad_reasons}
        - set(bad_reasons)
        - _find_newly_committed(catalog, unfinished_names)
    )
    aborted_files = {f"{name}.ckpt" for name in manifests.aborted_names} & files
    log_prefixes = [manifests.log_prefixes[checkpoint.name] for checkpoint in manifests.checkpoints]
    return Resolution(
        chosen_checkpoint=good_checkpoints[0] if good_checkpoints else None,
        older_checkpoints=good_checkpoints[1:],
        bad_checkpoints=[
            BadCheckpoint(name, bad_reasons[name], name in manifests.unreadable_names)
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


def _verify_checkpoints(
    manifests: Manifests, find_damage: Callable[[Checkpoint], str | None], *, verify_all: bool
) -> list[Checkpoint]:
    """Returns the good checkpoints, newest first. Verifies all, or all up to the first good one."""
    good_checkpoints: list[Checkpoint] = []
    for checkpoint in manifests.checkpoints:
        try:
            problem = None if good_checkpoints and not verify_all else find_damage(checkpoint)
        except OSError as error:
            problem = describe_read_error(error)
            manifests.unreadable_names.add(checkpoint.name)
        if problem is None:
            good_checkpoints.append(checkpoint)
        else:
            manifests.bad_reasons[checkpoint.name] = problem
    return good_checkpoints


def fingerprint(catalog: Catalog, ignored_files: Collection[str] = ()) -> object:
    """Returns the current :attr:`Resolution.fingerprint`, without ``ignored_files``."""
    return _fingerprint_files(catalog.list_files() - set(ignored_files), catalog.read_log())


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


def _find_newly_committed(catalog: Catalog, unfinished_names: Sequence[str]) -> set[str]:
    """Returns the names that a running process committed since the files were listed."""
    existing_files = catalog.find_existing([f"{name}.json" for name in unfinished_names])
    return {name for name in unfinished_names if f"{name}.json" in existing_files}


def find_without_manifest(catalog: Catalog, unfinished_names: Sequence[str], log: CommitLog) -> set[str]:
    """Returns the names among ``unfinished_names`` that were committed according to the log."""
    committed_names = log.checkpoint_names("committed", "quarantined") - log.checkpoint_names("deleted")
    return (committed_names & set(unfinished_names)) - _find_newly_committed(catalog, unfinished_names)


def _find_lost(catalog: Catalog, log: CommitLog) -> list[str]:
    """Returns committed names whose files are missing although the log contains no deletion.

    Checks the files after the log was read, because the log may be newer than the list of files.
    """
    unexplained_names = log.checkpoint_names("committed") - log.checkpoint_names("deleted", "quarantined", "lost")
    files = {name: {f"{name}.ckpt", f"{name}.json"} for name in unexplained_names}
    existing_files = catalog.find_existing(set().union(*files.values()))
    return sorted(name for name in unexplained_names if not files[name] & existing_files)
