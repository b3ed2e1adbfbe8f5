"""Quarantine of checkpoints from which no run may resume. They are kept for inspection."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from stormproof.checkpoint.atomic import fsync_folder
from stormproof.checkpoint.file_names import QUARANTINE_FOLDER_NAME, parse_sequence
from stormproof.checkpoint.storage import Storage


class RenamingQuarantine:
    """Moves checkpoints of a folder to ``quarantine/``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, names: Iterable[str]) -> None:
        """Moves the files of checkpoints. Existing files in quarantine are kept. Does not fsync the folder."""
        target = self._folder / QUARANTINE_FOLDER_NAME
        for name in names:
            target.mkdir(exist_ok=True)
            for suffix in (".ckpt", ".json"):
                file = self._folder / f"{name}{suffix}"
                if os.path.lexists(file):
                    file.rename(_find_free_path(target, file.name))
            fsync_folder(target)

    def list_files(self) -> list[str]:
        """Returns the sorted names of the files in quarantine."""
        try:
            return sorted(path.name for path in (self._folder / QUARANTINE_FOLDER_NAME).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def find_marked(self) -> set[str]:
        """Returns an empty set, because no checkpoint in quarantine is among the others."""
        return set()


class MarkingQuarantine:
    """Marks checkpoints of a storage that cannot rename. Their contents stay in place."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def add(self, names: Iterable[str]) -> None:
        """Marks checkpoints."""
        for name in names:
            content = json.dumps({"name": name, "token": secrets.token_hex(8)}).encode()
            self._storage.put_if_absent(format_mark(name), content)

    def list_files(self) -> list[str]:
        """Returns the sorted names of the marks."""
        return sorted(entry.name for entry in self._storage.list(QUARANTINE_FOLDER_NAME))

    def find_marked(self) -> set[str]:
        """Returns the names of the checkpoints with a mark."""
        return {file.removesuffix(".json") for file in self.list_files() if parse_sequence(file)}


Quarantine = RenamingQuarantine | MarkingQuarantine


def format_mark(name: str) -> str:
    """Returns the name of a mark in the storage."""
    return f"{QUARANTINE_FOLDER_NAME}/{name}.json"


def _find_free_path(folder: Path, name: str) -> Path:
    """Returns ``folder/name``, with a numeric suffix if that file exists."""
    path, number = folder / name, 1
    while os.path.lexists(path):
        path, number = folder / f"{name}.{number}", number + 1
    return path
