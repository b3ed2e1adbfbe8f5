"""Seekable file over a content in a storage."""

from __future__ import annotations

import io
import os

from stormproof.checkpoint.storage.protocol import Storage


class RangeReader(io.RawIOBase):
    """Reads ranges of a content on demand.

    Attributes:
        content_name: Name of the content.
        failure: First exception of a read. Callers such as ``zipfile`` may hide it. None if all reads succeeded.
    """

    def __init__(self, storage: Storage, name: str, size: int) -> None:
        super().__init__()
        self._storage, self.content_name, self._size = storage, name, size
        self._position = 0
        self.failure: BaseException | None = None

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:  # prose: allow (named by io.IOBase)
        """Returns the position."""
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Reads into ``buffer``."""
        stop = min(self._position + len(buffer), self._size)
        try:
            content = (
                b"".join(self._storage.get(self.content_name, self._position, stop)) if stop > self._position else b""
            )
        except BaseException as error:
            self.failure = self.failure or error
            raise
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
