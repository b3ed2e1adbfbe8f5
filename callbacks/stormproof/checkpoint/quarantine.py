"""Puts bad checkpoints into ``quarantine/`` instead of deleting them.

In a folder, the files are moved. In an object store, which cannot rename, the objects stay where they are, and
``quarantine/<name>.json`` marks them. Marked checkpoints are not listed.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from stormproof.checkpoint.atomic import fsync_folder
from stormproof.checkpoint.file_names import QUARANTINE_FOLDER_NAME, parse_sequence
from stormproof.checkpoint.storage import AnyStorage, ObjectStorage, PosixStorage


def quarantine_checkpoints(storage: AnyStorage, names: Iterable[str]) -> None:
    """Puts checkpoints into quarantine. Does not fsync the checkpoint folder."""
    for name in names:
        if isinstance(storage, PosixStorage):
            move_to_quarantine(storage.folder, name)
        else:
            content = json.dumps({"name": name, "token": secrets.token_hex(8)}).encode()
            storage.put_if_absent(f"{QUARANTINE_FOLDER_NAME}/{name}.json", content)


def move_to_quarantine(folder: Path, name: str) -> None:
    """Moves the files of the checkpoint ``name`` to ``folder/quarantine``. Existing files there are kept."""
    quarantine_folder = folder / QUARANTINE_FOLDER_NAME
    quarantine_folder.mkdir(exist_ok=True)
    for suffix in (".ckpt", ".json"):
        file = folder / f"{name}{suffix}"
        if os.path.lexists(file):
            file.rename(_find_free_path(quarantine_folder, file.name))
    fsync_folder(quarantine_folder)


def list_quarantined_files(storage: AnyStorage) -> list[str]:
    """Returns the sorted names of the files in ``quarantine/``. Empty if that folder does not exist."""
    try:
        return sorted(entry.name for entry in storage.list(QUARANTINE_FOLDER_NAME))
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_marked_names(storage: ObjectStorage) -> set[str]:
    """Returns the names of the checkpoints of an object store that are in quarantine."""
    return {file.removesuffix(".json") for file in list_quarantined_files(storage) if parse_sequence(file)}


def _find_free_path(folder: Path, name: str) -> Path:
    """Returns ``folder/name``, with a numeric suffix if that file exists."""
    path, number = folder / name, 1
    while os.path.lexists(path):
        path, number = folder / f"{name}.{number}", number + 1
    return path
