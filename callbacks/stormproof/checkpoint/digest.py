"""Hashes of checkpoint files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xxhash

DEFAULT_ALGORITHM = "xxh3_128"
"""Algorithm for new checkpoints. Detects accidental damage, like SHA-256, in much less time. Neither protects against
someone who can write to the folder."""
ALGORITHMS: dict[str, Callable[[], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""Constructors of hash objects, as in :mod:`hashlib`, by the name of the algorithm."""


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
