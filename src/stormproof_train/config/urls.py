"""Rejects URLs in settings for local paths."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stormproof_train.errors import UserError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
PATH_SETTINGS = frozenset({
    "runs_dir", "search.folder", "folder", "run", "checkpoint", "against", "input", "output", "data.path", "data.root",
    "data.packaged", "data.validation_path", "data.test_path", "initialization.path",
})  # fmt: skip
"""Settings of all subcommands that are paths."""


def check_urls(argv: Iterable[str]) -> None:
    """Raises UserError if an argument sets a path to a URL.

    Example:
        >>> check_urls(["runs_dir=runs", "search.storage=postgresql://host/database"])
        >>> check_urls(["runs_dir=s3://bucket/runs"])
        Traceback (most recent call last):
        stormproof_train.errors.UserError: runs_dir=s3://bucket/runs is a URL; only local or mounted paths are supported
    """
    for arg in argv:
        name, _, value = arg.lstrip("+").partition("=")
        if name in PATH_SETTINGS:
            check_url(name, value.strip("'\""))


def check_url(name: str, value: object) -> None:
    """Raises UserError if a value is a URL."""
    if isinstance(value, str) and URL.match(value):
        raise UserError(f"{name}={value} is a URL; only local or mounted paths are supported")
