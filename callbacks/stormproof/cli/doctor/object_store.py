"""Tests whether an object store supports the operations of a commit."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress

from stormproof.checkpoint.storage import ObjectStorage
from stormproof.cli.doctor.risk import Risk


def object_store_risks(storage: ObjectStorage) -> Iterator[Risk]:
    """Yields the operations that the object store does not support. Writes a small object and deletes it.

    Args:
        storage: Object store.
    """
    name = f".doctor.{secrets.token_hex(8)}.tmp"
    try:
        for summary, reason, check in _CHECKS:
            problem = _run_check(check, storage, name)
            if problem is not None:
                advice = "allow reading, writing, listing and deleting, and use a store with conditional writes"
                yield Risk(summary, f"{storage.location}: {problem}", reason, advice)
    finally:
        with suppress(OSError):
            storage.delete([name])


def _run_check(check: Callable[[ObjectStorage, str], str | None], storage: ObjectStorage, name: str) -> str | None:
    try:
        return check(storage, name)
    except OSError as error:
        return error.strerror or str(error)


def _check_create(storage: ObjectStorage, name: str) -> str | None:
    if not storage.put_if_absent(name, b"first"):
        return "an object that does not exist could not be created"
    return "an existing object was overwritten" if storage.put_if_absent(name, b"second") else None


def _check_swap(storage: ObjectStorage, name: str) -> str | None:
    version = next((entry.version for entry in storage.list() if entry.name == name), None)
    if version is None or storage.compare_and_swap(name, b"third", version) is None:
        return "an unchanged object could not be replaced"
    if storage.compare_and_swap(name, b"fourth", version) is not None:
        return "an object was replaced although it had changed"
    return None if storage.read(name) == b"third" else "the stored content differs from the written content"


_CHECKS = (
    (
        "the store does not support conditional creation",
        "without If-None-Match, two runs can commit to the same prefix",
        _check_create,
    ),
    (
        "the store does not support conditional replacement",
        "without If-Match, two runs can own the same prefix",
        _check_swap,
    ),
)
