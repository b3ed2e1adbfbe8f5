"""Reads the git commit that a run was started with."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

TIMEOUT_SECONDS = 10.0
"""Maximum duration of the git command, which can be slow on a network file system."""
_DIRTY_SUFFIX = "-dirty"


@dataclass(frozen=True)
class GitState:
    """A commit, and True if tracked files have uncommitted changes."""

    commit: str
    dirty: bool


def read_git_state() -> GitState | None:
    """Returns the state of the repository of the working directory, or None without a repository, a commit, or git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", f"--dirty={_DIRTY_SUFFIX}"]
    try:
        description = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return GitState(description.removesuffix(_DIRTY_SUFFIX), description.endswith(_DIRTY_SUFFIX))
