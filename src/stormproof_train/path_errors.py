"""Creates folders, and describes errors of paths, such as a broken symbolic link."""

from __future__ import annotations

import errno
from pathlib import Path

from stormproof_train.errors import STORAGE_FAULTS, UserError


def create_folders(description: str, *folders: Path) -> None:
    """Creates missing folders and their parents.

    Args:
        description: Setting and problem, for the message.
        folders: Paths.

    Raises:
        UserError: If a folder cannot be created. Failures of the storage stay an OSError.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in STORAGE_FAULTS:
                raise
            raise UserError(f"{description}: {describe_path_error(folder, error)}") from error


def describe_broken_link(path: Path) -> str | None:
    """Returns a description of the first broken symbolic link on a path, or None if all links are valid.

    Args:
        path: Path of a file or folder. It does not have to exist.

    Example:
        >>> Path("runs").symlink_to("/nowhere")
        >>> describe_broken_link(Path("runs/mine"))
        'runs is a link to /nowhere, which does not exist'
    """
    for component in (*reversed(path.parents), path):
        try:
            if component.is_symlink():
                component.stat()
        except FileNotFoundError:
            return f"{component} is a link to {component.readlink()}, which does not exist"
        except OSError as error:
            return f"{component} is a link to itself" if error.errno == errno.ELOOP else None
    return None


def describe_path_error(path: Path, error: OSError) -> str | None:
    """Returns why ``path`` cannot be used: a broken link on it, or else the message of the error."""
    return describe_broken_link(path) or error.strerror
