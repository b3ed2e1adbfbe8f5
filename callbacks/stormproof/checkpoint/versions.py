"""Collects the versions of the software that writes a checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "pytorch-lightning", "stormproof")


@cache
def collect_versions() -> Mapping[str, str]:
    """Returns the versions of Python and of ``PACKAGES``. A package that is not installed is ``unknown``."""
    return {"python": platform.python_version(), **{package: _find_version(package) for package in PACKAGES}}


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
