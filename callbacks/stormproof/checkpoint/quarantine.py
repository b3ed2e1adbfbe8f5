"""Where bad checkpoints go: out of the way, not away."""

from __future__ import annotations

import os
from pathlib import Path

from stormproof.checkpoint.atomic import fsync_folder
from stormproof.checkpoint.file_names import QUARANTINE_FOLDER_NAME


def move_to_quarantine(folder: Path, name: str) -> None:
    """Moves the files of the checkpoint ``name`` to ``folder/quarantine``; what lies there already stays."""
    quarantine_folder = folder / QUARANTINE_FOLDER_NAME
    quarantine_folder.mkdir(exist_ok=True)
    for suffix in (".ckpt", ".json"):
        file = folder / f"{name}{suffix}"
        if os.path.lexists(file):
            file.rename(_find_free_path(quarantine_folder, file.name))
    fsync_folder(quarantine_folder)


def list_quarantined_files(folder: Path) -> list[str]:
    """The files in ``folder/quarantine``, sorted; none if it is not there."""
    try:
        return sorted(path.name for path in (folder / QUARANTINE_FOLDER_NAME).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _find_free_path(folder: Path, name: str) -> Path:
    """``name`` in ``folder``, with a number behind it if that is taken."""
    path, number = folder / name, 1
    while os.path.lexists(path):
        path, number = folder / f"{name}.{number}", number + 1
    return path
