"""Moves bad checkpoints to ``quarantine/`` instead of deleting them."""

from __future__ import annotations

import os
from pathlib import Path

from stormproof.checkpoint.atomic import fsync_folder
from stormproof.checkpoint.file_names import QUARANTINE_FOLDER_NAME


def move_to_quarantine(folder: Path, name: str) -> None:
    """Moves the files of the checkpoint ``name`` to ``folder/quarantine``. Existing files there are kept."""
    quarantine_folder = folder / QUARANTINE_FOLDER_NAME
    quarantine_folder.mkdir(exist_ok=True)
    for suffix in (".ckpt", ".json"):
        file = folder / f"{name}{suffix}"
        if os.path.lexists(file):
            file.rename(_find_free_path(quarantine_folder, file.name))
    fsync_folder(quarantine_folder)


def list_quarantined_files(folder: Path) -> list[str]:
    """Returns the sorted names of the files in ``folder/quarantine``. Empty if that folder does not exist."""
    try:
        return sorted(path.name for path in (folder / QUARANTINE_FOLDER_NAME).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _find_free_path(folder: Path, name: str) -> Path:
    """Returns ``folder/name``, with a numeric suffix if that file exists."""
    path, number = folder / name, 1
    while os.path.lexists(path):
        path, number = folder / f"{name}.{number}", number + 1
    return path
