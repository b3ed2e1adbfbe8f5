"""Describes broken symbolic links."""

from __future__ import annotations

import errno
from pathlib import Path


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
