"""Reads the files of a checkpoint in a storage, verifies them, and copies them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import BinaryIO

from stormproof.checkpoint.digest import ALGORITHMS, drop_cached_pages
from stormproof.checkpoint.hashing_file import put_hashed
from stormproof.checkpoint.manifest import Checkpoint, StoredFile
from stormproof.checkpoint.read_retry import read_twice
from stormproof.checkpoint.storage import Storage, is_url
from stormproof.checkpoint.verification import CHANGED
from stormproof.errors import DamagedError


def copy_verified(source: Storage, name: str, file: StoredFile, target: BinaryIO | None) -> None:
    """Reads a file of a checkpoint, writes it to ``target``, and compares its hash with the manifest.

    Args:
        source: Storage that contains the checkpoint.
        name: Name in the storage.
        file: The file, according to the manifest.
        target: File to write to. Only verifies the content if None.

    Raises:
        DamagedError: If the content has changed since it was committed.
        FileNotFoundError: If the file was deleted.
    """
    content_hash = ALGORITHMS[file.algorithm]()
    for chunk in source.get(name):
        content_hash.update(chunk)
        if target is not None:
            target.write(chunk)
    if f"{file.algorithm}:{content_hash.hexdigest()}" != file.digest:
        if not is_url(source.location):
            drop_cached_pages(source.locate(name))
        raise DamagedError(f"{source.locate(name)} has changed since it was committed. It is not copied.")


def find_content_problem(source: Storage, files: Mapping[str, StoredFile]) -> str | None:
    """Reads files. Returns :data:`CHANGED` if the content of one differs from its hash.

    Args:
        source: Storage that contains the files.
        files: The files according to the manifest, by their names in the storage.

    Raises:
        FileNotFoundError: If a file was deleted.
        OSError: If a file cannot be read.
    """
    try:
        for name, file in files.items():
            copy_verified(source, name, file, None)
    except DamagedError:
        return CHANGED
    return None


def copy_shards(source: Storage, checkpoint: Checkpoint, target: Storage, folder: str) -> dict[str, StoredFile]:
    """Copies all files of a sharded checkpoint, verifies them, and returns them.

    Args:
        source: Storage that contains the checkpoint.
        checkpoint: Content of the manifest.
        target: Storage to write to.
        folder: Name of the folder there.

    Raises:
        DamagedError: If a file has changed since it was committed.
        FileNotFoundError: If a file was deleted.
    """
    copied_files = {}
    for name, file in (checkpoint.files or {}).items():
        write = partial(copy_verified, source, f"{checkpoint.path.name}/{name}", file)
        copied_files[name] = read_twice(partial(put_hashed, target, f"{folder}/{name}", write))
    return copied_files
