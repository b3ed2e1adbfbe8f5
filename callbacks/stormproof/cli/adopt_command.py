"""The command that adopts a foreign checkpoint."""

from __future__ import annotations

import shlex

from stormproof.checkpoint import Store
from stormproof.checkpoint.backends import ObjectBackend


def adopt_command(store: Store, name: str) -> str:
    """Returns what to do to adopt the file ``name`` of a store, for a message."""
    if isinstance(store.backend, ObjectBackend):
        return f"download it and run: stormproof adopt {shlex.quote(name)} --into {shlex.quote(store.location)}"
    return f"stormproof adopt {shlex.quote(store.storage.locate(name))}"
