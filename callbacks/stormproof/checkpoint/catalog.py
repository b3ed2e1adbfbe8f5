"""Lists, reads and verifies the checkpoints of a storage."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stormproof.checkpoint.commit_log import CommitLog, Log, read_log
from stormproof.checkpoint.file_names import is_unfinished_shard_file, parse_file_name
from stormproof.checkpoint.manifest import AbortedCommitError, Checkpoint, LogPrefix
from stormproof.checkpoint.once_per_node import LocalCopies, verify_once_per_node
from stormproof.checkpoint.quarantine import Quarantine
from stormproof.checkpoint.read_retry import confirm_damage, read_twice
from stormproof.checkpoint.storage import Storage
from stormproof.checkpoint.verification import ContentCheck, find_damage, find_size_problem, read_manifest
from stormproof.errors import DamagedError


@dataclass
class Manifests:
    """Manifests of a storage.

    Attributes:
        checkpoints: Checkpoints with an intact manifest, newest first.
        log_prefixes: Log prefixes of their manifests, by checkpoint name.
        bad_reasons: Reasons why checkpoints are bad, by name.
        unreadable_names: Names of checkpoints with files that storage failed to read.
        aborted_names: Names of commits that another attempt aborted.
    """

    checkpoints: list[Checkpoint] = field(default_factory=list)
    log_prefixes: dict[str, LogPrefix] = field(default_factory=dict)
    bad_reasons: dict[str, str] = field(default_factory=dict)
    unreadable_names: set[str] = field(default_factory=set)
    aborted_names: set[str] = field(default_factory=set)


class Catalog:
    """Reads checkpoints. Modifies no file, except local copies of checkpoints in a storage that is not a folder.

    Args:
        storage: Storage of the checkpoints.
        log: Log of the storage.
        quarantine: Quarantine of the storage.
    """

    def __init__(self, storage: Storage, log: Log, quarantine: Quarantine) -> None:
        self.storage, self._log, self._quarantine = storage, log, quarantine
        self._copies = None if storage.folder is not None else LocalCopies(storage)

    @property
    def load_folder(self) -> Path:
        """Folder of the files that training loads."""
        return self._copies.folder if self._copies is not None else Path(self.storage.location)

    def read_log(self) -> CommitLog:
        """Returns the parsed log."""
        return read_log(self._log)

    def list_files(self) -> set[str]:
        """Returns the names of all files and sharded checkpoints, without other subfolders that are named like them.

        Leaves out checkpoints in quarantine. A missing folder counts as empty.
        """
        try:
            entries = self.storage.list()
        except FileNotFoundError:
            return set()
        marked_names = self._quarantine.find_marked()
        files = {entry.name for entry in entries if not entry.is_folder}
        files |= {
            entry.name
            for entry in entries
            if entry.is_folder
            and (not entry.name.endswith((".ckpt", ".json", ".tmp")) or self._is_sharded_checkpoint(entry.name, files))
        }
        return {file for file in files if (parts := parse_file_name(file)) is None or parts[0] not in marked_names}

    def find_existing(self, files: Collection[str]) -> set[str]:
        """Returns the files that exist now. A network file system may cache a listing, but not the test of a name."""
        if self.storage.folder is not None:
            return {file for file in files if os.path.lexists(self.storage.folder / file)}
        return set(files) & {entry.name for entry in self.storage.list()} if files else set()

    def read_manifests(self, names: Iterable[str]) -> Manifests:
        """Reads the manifests of these checkpoints."""
        manifests = Manifests()
        for name in names:
            try:
                checkpoint, log_prefix = read_twice(partial(read_manifest, self.storage, name), ValueError)
            except AbortedCommitError:
                manifests.aborted_names.add(name)
            except ValueError as error:
                manifests.bad_reasons[name] = str(error)
            except OSError as error:
                manifests.bad_reasons[name] = f"its manifest cannot be read: {error.strerror}"
                if not isinstance(error, FileNotFoundError):
                    manifests.unreadable_names.add(name)
            else:
                manifests.checkpoints.append(checkpoint)
                manifests.log_prefixes[name] = log_prefix
        return manifests

    def read_checkpoints(self) -> list[Checkpoint]:
        """Returns the checkpoints with an intact manifest, oldest first. Does not read their content."""
        parsed_names = (parse_file_name(file) for file in self.list_files() if file.endswith(".json"))
        names = [parsed_name[0] for parsed_name in parsed_names if parsed_name]
        return sorted(self.read_manifests(names).checkpoints, key=lambda checkpoint: checkpoint.sequence)

    def find_size_problem(self, checkpoint: Checkpoint) -> str | None:
        """Returns why a file is missing or of the wrong size. None if all are fine."""
        return find_size_problem(self.storage, checkpoint)

    def find_damage(self, checkpoint: Checkpoint, check_content: ContentCheck | None = None) -> str | None:
        """Returns why no run may resume from the checkpoint. None if it is good. Reads its content.

        Args:
            checkpoint: Content of the manifest.
            check_content: Compares the content with the hashes. This process reads all files if None.

        Raises:
            OSError: If the content cannot be read.
        """
        return find_damage(self.storage, checkpoint, check_content)

    def find_damage_once_per_node(self, checkpoint: Checkpoint, *, fetch: bool = False) -> str | None:
        """Returns the same as :meth:`find_damage`. Only one process per node reads a file, or downloads a copy.

        Args:
            checkpoint: Content of the manifest.
            fetch: Whether to download a checkpoint that is not in a folder and to verify the copy. If False, each
                process reads it.

        Raises:
            OSError: If the content cannot be read.
            StorageError: If the copy cannot be written.
        """
        copies = self._copies
        if copies is None:
            return verify_once_per_node(self.storage, checkpoint)
        if not fetch or not checkpoint.finite:
            return self.find_damage(checkpoint)
        return confirm_damage(lambda: self.find_size_problem(checkpoint) or copies.find_damage(checkpoint))

    def fetch(self, checkpoint: Checkpoint) -> Path:
        """Returns the path of a file from which the checkpoint can be loaded: itself, or a verified local copy.

        Raises:
            DamagedError: If a checkpoint that is copied is damaged.
            OSError: If it cannot be read.
            StorageError: If the copy cannot be written.
        """
        if self._copies is None:
            return checkpoint.path
        problem = self.find_damage_once_per_node(checkpoint, fetch=True)
        if problem is not None:
            raise DamagedError(
                f"{self.storage.locate(checkpoint.path.name)} cannot be used: {problem}. Use an older checkpoint."
            )
        return self._copies.get_path(checkpoint)

    def discard_copy(self, checkpoint: Checkpoint) -> None:
        """Deletes the local copy if there is one."""
        if self._copies is not None:
            self._copies.discard(checkpoint)

    def _is_sharded_checkpoint(self, name: str, files: Collection[str]) -> bool:
        """Returns whether a folder has a manifest, or contains only files of a sharded checkpoint."""
        name_parts = parse_file_name(name) if name.endswith(".ckpt") else None
        if name_parts is None:
            return False
        return f"{name_parts[0]}.json" in files or all(
            is_unfinished_shard_file(entry.name) for entry in self.storage.list(name)
        )
