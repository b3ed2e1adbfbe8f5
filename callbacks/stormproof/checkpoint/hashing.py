"""Hashes the bytes of files while they are written, and compares the hashes while they are read."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import xxhash

from stormproof.checkpoint.storage.protocol import StageCallback, Storage
from stormproof.errors import DamagedError

DEFAULT_ALGORITHM = "xxh3_128"
"""Algorithm for new checkpoints. Detects accidental damage, like SHA-256, in much less time. Neither protects against
someone who can write to the folder."""
ALGORITHMS: dict[str, Callable[[], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""Constructors of hash objects, as in :mod:`hashlib`, by the name of the algorithm."""
CHANGED = "its content has changed since it was committed"
"""Problem of a checkpoint whose hash differs from its manifest."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint.

    Attributes:
        bytes: Size, in bytes.
        digest: Hash, as ``<algorithm>:<hex digits>``.
    """

    bytes: int
    digest: str

    @property
    def algorithm(self) -> str:
        """Algorithm of :attr:`digest`."""
        return self.digest.partition(":")[0]


class HashingFile(io.RawIOBase):
    """Writes to ``file`` and computes the digest and the length of all bytes.

    Has no file descriptor and cannot seek, so that no byte bypasses the hash.

    Args:
        file: File to write to.
        on_first_write: Called once, after the first bytes are written.

    Attributes:
        length: Number of bytes written so far.
        failure: Last error of ``file``, which ``torch.save`` replaces with its own. None without an error.

    Example:
        >>> inner = io.BytesIO()
        >>> file = HashingFile(inner)
        >>> file.write(b"abc"), file.length, file.digest[:13]
        (3, 3, 'xxh3_128:06b0')
    """

    def __init__(self, file: BinaryIO, on_first_write: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._file = file
        self._on_first_write = on_first_write
        self._hash = ALGORITHMS[DEFAULT_ALGORITHM]()
        self.length = 0
        self.failure: OSError | None = None

    @property
    def digest(self) -> str:
        """Digest of the bytes written so far, as ``<algorithm>:<hex digits>``."""
        return f"{DEFAULT_ALGORITHM}:{self._hash.hexdigest()}"

    def tell(self) -> int:  # prose: allow (named by io.IOBase)
        """Returns the number of bytes written so far."""
        return self.length

    def writable(self) -> bool:
        """Returns True."""
        return True

    # The stubs of RawIOBase accept any buffer. torch and shutil write only these.
    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Writes all of ``data``."""
        view = memoryview(data).cast("B")
        try:
            self._file.write(view)
        except OSError as error:
            self.failure = error
            raise
        self._hash.update(view)
        self.length += len(view)
        if self._on_first_write is not None and self.length:
            self._file.flush()
            on_first_write, self._on_first_write = self._on_first_write, None
            on_first_write()
        return len(view)


def put_hashed(
    storage: Storage,
    name: str,
    write: Callable[[BinaryIO], object],
    on_stage: StageCallback | None = None,
    on_first_write: Callable[[], object] | None = None,
) -> StoredFile:
    """Writes a file to a storage and returns its size and hash.

    Args:
        storage: Storage to write to.
        name: Name that no other process writes.
        write: Takes a binary file, open for writing, and writes the content to it.
        on_stage: Called after each stage, as for :meth:`Storage.put`.
        on_first_write: Called once, after the first bytes are written.

    Raises:
        OSError: If the storage fails.
    """
    results: list[StoredFile] = []

    def write_and_hash(file: BinaryIO) -> None:
        hashing_file = HashingFile(file, on_first_write)
        try:
            write(cast("BinaryIO", hashing_file))
        except Exception:
            if hashing_file.failure is not None:
                raise hashing_file.failure from None
            raise
        results.append(StoredFile(hashing_file.length, hashing_file.digest))

    storage.put(name, write_and_hash, on_stage)
    return results[-1]


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
        if source.folder is not None:
            drop_cached_pages(source.folder / name)
        raise DamagedError(f"{source.locate(name)} has changed since it was committed. It is not copied.")


def find_content_problem(storage: Storage, files: Mapping[str, StoredFile]) -> str | None:
    """Reads files. Returns :data:`CHANGED` if the content of one differs from its hash.

    Args:
        storage: Storage of the files.
        files: The files according to the manifest, by their names in the storage.

    Raises:
        FileNotFoundError: If a file was deleted.
        OSError: If a file cannot be read.
    """
    try:
        for name, file in files.items():
            copy_verified(storage, name, file, None)
    except DamagedError:
        return CHANGED
    return None


def drop_cached_pages(path: Path) -> None:
    """Makes the system read a file from its storage again. It may have cached a wrong read."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compute_combined_digest(lines: Iterable[str]) -> str:
    """Returns the digest of lines of text, by the default algorithm.

    Example:
        >>> compute_combined_digest(["a", "b"])[:13]
        'xxh3_128:895c'
    """
    content_hash = ALGORITHMS[DEFAULT_ALGORITHM]()
    for line in lines:
        content_hash.update(f"{line}\n".encode())
    return f"{DEFAULT_ALGORITHM}:{content_hash.hexdigest()}"
