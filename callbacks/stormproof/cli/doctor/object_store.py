"""Tests whether an object store supports the operations of a commit."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress

from stormproof.checkpoint.storage import Storage
from stormproof.checkpoint.storage.conditions import find_create_problem, find_swap_problem
from stormproof.cli.doctor.risk import Risk


def object_store_risks(storage: Storage) -> Iterator[Risk]:
    """Yields the operations that the object store does not support. Writes a small object and deletes it."""
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


def _run_check(check: Callable[[Storage, str], str | None], storage: Storage, name: str) -> str | None:
    try:
        return check(storage, name)
    except OSError as error:
        return error.strerror or str(error)


_CHECKS = (
    (
        "the store does not support conditional creation",
        "without If-None-Match, two runs can commit to the same prefix",
        find_create_problem,
    ),
    (
        "the store does not support conditional replacement",
        "without If-Match, two runs can own the same prefix",
        find_swap_problem,
    ),
)
