"""Symbolic links that lead nowhere."""

from __future__ import annotations

import errno
from pathlib import Path


def broken_link(path: Path) -> str | None:
    """Returns what is wrong with the first symbolic link on a path that leads nowhere, or None if there is none.

    Args:
        path: Path of a file or folder. It does not have to exist.

    Example:
        >>> Path("runs").symlink_to("/nowhere")
        >>> broken_link(Path("runs/mine"))
        'runs is a link to /nowhere, which does not exist'
    """
    for place in (*reversed(path.parents), path):
        try:
            if place.is_symlink():
                place.stat()
        except FileNotFoundError:
            return f"{place} is a link to {place.readlink()}, which does not exist"
        except OSError as error:
            return f"{place} is a link that leads back to itself" if error.errno == errno.ELOOP else None
    return None


def reason(path: Path, error: OSError) -> str | None:
    """Returns why ``path`` cannot be used: the broken link on it, or else what the error says."""
    return broken_link(path) or error.strerror
