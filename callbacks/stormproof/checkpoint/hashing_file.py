"""Hashes the bytes of files while they are written, and compares the hashes while they are read."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO, cast

from stormproof.checkpoint.digest import ALGORITHMS, DEFAULT_ALGORITHM, drop_cached_pages
from stormproof.checkpoint.manifest import StoredFile
from stormproof.checkpoint.storage.protocol import StageCallback, Storage
from stormproof.errors import DamagedError


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
