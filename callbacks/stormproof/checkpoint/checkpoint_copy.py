"""Copies checkpoints to another storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import BinaryIO

from stormproof.checkpoint.hashing import StoredFile, copy_verified, put_hashed
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.read_retry import read_twice
from stormproof.checkpoint.storage import Fence, Storage
from stormproof.checkpoint.store import Store


def copy_checkpoint(
    source: Storage,
    checkpoint: Checkpoint,
    target: Store,
    *,
    attempt: int,
    fence: Fence,
    copy_files: Callable[[str], Mapping[str, StoredFile]] | None = None,
) -> Checkpoint:
    """Commits a copy of a checkpoint under the same name, and returns it. Verifies the content.

    Args:
        source: Storage that contains the checkpoint.
        checkpoint: Content of the manifest.
        target: Store of the copy.
        attempt: Attempt that writes the copy.
        fence: Called before the manifest appears. Its exception cancels the commit.
        copy_files: Takes the name of the target folder, copies the files of a sharded checkpoint, and returns them. If
            None, this process copies all files.

    Raises:
        DamagedError: If the content has changed since it was committed.
        FileNotFoundError: If the checkpoint was deleted.
        OSError: If the copy cannot be written.
    """
    info, sequence = checkpoint.commit_info, checkpoint.sequence
    if checkpoint.files is not None:
        return target.commit_sharded(
            copy_files or (lambda folder: copy_shards(source, checkpoint, target.storage, folder)),
            info,
            attempt=attempt,
            fence=fence,
            sequence=sequence,
        )
    ((name, file),) = checkpoint.stored_files.items()

    def write(stream: BinaryIO) -> None:
        copy_verified(source, name, file, stream)

    return read_twice(lambda: target.commit(write, info, attempt=attempt, fence=fence, sequence=sequence))


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
