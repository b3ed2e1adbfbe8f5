"""Tests whether an object store supports conditional writes."""

from __future__ import annotations

import secrets
from contextlib import suppress

from stormproof.checkpoint.storage.protocol import Storage
from stormproof.errors import StormproofError


class UnsupportedStoreError(StormproofError):
    """The object store does not support conditional writes."""

    exit_code = 2


def find_create_problem(storage: Storage, name: str) -> str | None:
    """Returns the problem with conditional creation (``If-None-Match: *``). None if it works. Creates ``name``."""
    if not storage.put_if_absent(name, b"first"):
        return "an object that does not exist could not be created"
    return "an existing object was overwritten" if storage.put_if_absent(name, b"second") else None


def find_swap_problem(storage: Storage, name: str) -> str | None:
    """Returns the problem with conditional replacement (``If-Match``). None if it works. Replaces ``name``."""
    version = storage.stat(name).version
    if storage.compare_and_swap(name, b"third", version) is None:
        return "an unchanged object could not be replaced"
    if storage.compare_and_swap(name, b"fourth", version) is not None:
        return "an object was replaced although it had changed"
    return None if storage.read(name) == b"third" else "the stored content differs from the written content"


def check_conditions(storage: Storage) -> None:
    """Checks that conditional writes exclude a second writer. Writes a small object and deletes it.

    Raises:
        UnsupportedStoreError: If the object store ignores a condition.
        OSError: If the object store fails.
    """
    name = f".probe.{secrets.token_hex(8)}.tmp"
    try:
        problem = find_create_problem(storage, name) or find_swap_problem(storage, name)
    finally:
        with suppress(OSError):
            storage.delete([name])
    if problem is not None:
        raise UnsupportedStoreError(
            f"{storage.location} does not support conditional writes ({problem}). Without them, two runs could write "
            "to the same prefix. Use another object store or a folder."
        )
