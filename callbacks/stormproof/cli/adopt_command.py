"""The command that adopts a foreign checkpoint."""

from __future__ import annotations

import shlex

from stormproof.checkpoint import Store


def adopt_command(store: Store, name: str) -> str:
    """Returns what to do to adopt the file ``name`` of a store, for a message."""
    if store.storage.folder is None:
        return f"download it and run: stormproof adopt {shlex.quote(name)} --into {shlex.quote(store.location)}"
    return f"stormproof adopt {shlex.quote(store.storage.locate(name))}"
