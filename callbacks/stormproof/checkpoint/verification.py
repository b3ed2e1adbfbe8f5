"""Verifies that the files of a checkpoint are unchanged since its commit and safe to load."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from stormproof.checkpoint.hashing import StoredFile, find_content_problem
from stormproof.checkpoint.load_check import find_load_problem
from stormproof.checkpoint.manifest import Checkpoint, LogPrefix, decode_manifest
from stormproof.checkpoint.read_retry import confirm_damage, retry_read
from stormproof.checkpoint.storage import Entry, PosixStorage, Storage
from stormproof.checkpoint.storage.range_reader import RangeReader

ContentCheck = Callable[[Mapping[str, StoredFile]], str | None]
"""Reads files, by their names in the storage. Returns ``CHANGED`` if the content of one differs from its hash."""
_READ_BUFFER_BYTES = 1 << 20


def read_manifest(storage: Storage, name: str) -> tuple[Checkpoint, LogPrefix]:
    """Reads the manifest of the checkpoint ``name``.

    Raises:
        ValueError: If the manifest is damaged or not a regular file. The message states the reason.
        NotResumableError: If a later version of stormproof wrote the manifest.
        OSError: If the manifest is missing or cannot be read.
    """
    if storage.folder is not None and not storage.stat(f"{name}.json").is_regular:
        raise ValueError("its manifest is not a regular file")
    return decode_manifest(storage.read(f"{name}.json"), make_path(storage, f"{name}.ckpt"))


def make_path(storage: Storage, file: str) -> Path:
    """Returns the path of a file in a folder. Only its name in another storage."""
    return Path(file) if storage.folder is None else storage.folder / file


def find_damage(storage: Storage, checkpoint: Checkpoint, check_content: ContentCheck | None = None) -> str | None:
    """Returns why no run may resume from the checkpoint. None if it is good.

    Compares the sizes, reads all content once through the hash, and then loads the structure with
    ``torch.load(weights_only=True)``, which does not copy the tensors. Stores nothing on disk.

    Args:
        storage: Storage of the checkpoint.
        checkpoint: Content of the manifest.
        check_content: Compares the content with the hashes. This process reads all files if None.

    Raises:
        OSError: If the content cannot be read.
    """
    check_content = check_content or partial(find_content_problem, storage)

    def find() -> str | None:
        return (
            find_size_problem(storage, checkpoint)
            or check_content(checkpoint.stored_files)
            or find_resume_problem(storage, checkpoint)
        )

    return confirm_damage(find)


def find_size_problem(storage: Storage, checkpoint: Checkpoint) -> str | None:
    """Returns why a file is missing, irregular or of the wrong size, without reading it. None if all are fine."""
    folder, listed = checkpoint.path.name, dict[str, Entry]()
    if checkpoint.files is not None:
        problem = _find_folder_problem(storage, folder)
        if problem is not None:
            return problem
        listed = {f"{folder}/{entry.name}": entry for entry in storage.list(folder)}
    for name, file in checkpoint.stored_files.items():
        entry, short_name = listed.get(name), name.rpartition("/")[2]
        if entry is None or entry.size != file.bytes:  # a network file system may cache the listing
            try:
                entry = storage.stat(name)
            except FileNotFoundError:
                return "its file is missing" if checkpoint.files is None else f"its file {short_name} is missing"
        subject = "it" if checkpoint.files is None else short_name
        if not entry.is_regular:
            return f"{subject} is not a regular file"
        if entry.size != file.bytes:
            return f"{subject} has {entry.size} bytes but was committed with {file.bytes}"
    return None


def _find_folder_problem(storage: Storage, folder: str) -> str | None:
    """Returns why ``folder`` is not a folder in a file system. A symbolic link may lead out of the storage."""
    if storage.folder is None:
        return None
    try:
        return None if storage.stat(folder).is_folder else "it is not a folder"
    except FileNotFoundError:
        return "its folder is missing"


def find_resume_problem(storage: Storage, checkpoint: Checkpoint) -> str | None:
    """Returns why no run may resume from an unchanged checkpoint. None if it can be loaded."""
    if not checkpoint.finite:
        return "it contains numbers that are not finite"
    if storage.folder is not None:
        return retry_read(lambda: find_path_problem(checkpoint.path, checkpoint.files))
    readers: list[RangeReader] = []

    def open_content(name: str) -> BinaryIO:
        readers.append(RangeReader(storage, name, checkpoint.stored_files[name].bytes))
        return cast("BinaryIO", io.BufferedReader(readers[-1], _READ_BUFFER_BYTES))

    folder = checkpoint.path.name
    if checkpoint.files is None:
        problem = find_load_problem(open_content(folder))
    else:
        from stormproof.checkpoint.sharding.shard_reader import find_shard_problem  # noqa: PLC0415 (imports torch)

        problem = find_shard_problem(lambda name: open_content(f"{folder}/{name}"), checkpoint.files)
    for reader in readers:
        if reader.failure is not None:
            raise reader.failure
    return problem


def find_path_problem(path: Path, files: Mapping[str, StoredFile] | None = None) -> str | None:
    """Returns why ``torch.load(weights_only=True)`` refuses a checkpoint in a file system. None if it loads.

    Args:
        path: File, or folder of a sharded checkpoint.
        files: Files of a sharded checkpoint. All files in the folder if None.
    """
    if not path.is_dir():
        return find_load_problem(path)
    from stormproof.checkpoint.sharding.shard_reader import find_shard_problem  # noqa: PLC0415 (imports torch)

    return find_shard_problem(lambda name: (path / name).open("rb"), files or {file.name for file in path.iterdir()})


def find_committed_problem(path: Path) -> str | None:
    """Returns why a checkpoint in a folder is bad, according to its manifest. None if it is good.

    Raises:
        OSError: If it cannot be read.
    """
    storage = PosixStorage(path.parent)
    try:
        checkpoint, _ = read_manifest(storage, path.stem)
    except ValueError as error:
        return str(error)
    return find_damage(storage, checkpoint)


def describe_read_error(error: OSError) -> str:
    """Returns a description of a read error."""
    return f"it cannot be read: {error.strerror or error}"
